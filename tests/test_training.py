import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SmallNet, make_toy_split, same_weights

from data import generator, shuffled_batches
from training import frozen_outputs, train

OPTIONS = {"epochs": 3, "lr": 1e-3, "batch_size": 32}


@pytest.fixture(scope="module")
def split():
    return make_toy_split(count=200)


def fresh():
    torch.manual_seed(0)
    return SmallNet(28 * 28)


def run(split, **options):
    """A training from fixed weights and a fixed stream."""
    model = fresh()
    train(model, split.train, split.remain, rng=generator("toy"), **OPTIONS | options)
    return model


def test_training_is_adam_with_the_papers_weight_decay(split):
    """In double precision, where rounding does not grow."""
    model, expected = fresh().double(), fresh().double()
    images = replace(split.train, pixels=split.train.pixels.double() / 255)
    train(model, images, split.remain, rng=generator("toy"), **OPTIONS)
    optimizer, rng = torch.optim.Adam(expected.parameters(), lr=1e-3, weight_decay=1e-4), generator("toy")
    for _ in range(3):
        for _, x, y in shuffled_batches(images, split.remain, 32, rng):
            optimizer.zero_grad()
            F.cross_entropy(expected(x)[0], y).backward()
            optimizer.step()
    assert not model.training
    for a, b in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_what_is_called_after_an_epoch_sees_the_model_of_that_epoch(split):
    model, seen = fresh(), []

    def after(epoch):
        model.eval()  # as who looks at it would
        seen.append((epoch, copy.deepcopy(model)))

    train(model, split.train, split.remain, rng=generator("toy"), **OPTIONS, after=after)
    assert [epoch for epoch, _ in seen] == [1, 2, 3] and same_weights(seen[-1][1], model)
    assert same_weights(seen[0][1], run(split, epochs=1)) and same_weights(model, run(split))


def test_an_interrupted_training_continues_bit_for_bit(split, tmp_path, monkeypatch):
    monkeypatch.setattr("training.SAVE_EVERY_S", 0)
    partial = tmp_path / "partial.pt"

    def interrupt(epoch):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(split, partial=partial, after=interrupt)
    stored = torch.load(partial, weights_only=True)
    assert stored["epoch"] == 2 and stored["seconds"] > 0
    assert same_weights(run(split, partial=partial), run(split))
    assert torch.load(partial, weights_only=True)["seconds"] > stored["seconds"]


def test_a_short_training_is_not_saved(split, tmp_path):
    run(split, epochs=1, partial=tmp_path / "partial.pt")
    assert not list(tmp_path.iterdir())


def test_frozen_outputs_are_in_the_order_asked_for(split, toy_model):
    index = torch.arange(199, -1, -1).repeat(3)  # more than are run at a time
    found = frozen_outputs(toy_model, split.train, index)
    torch.testing.assert_close(found, toy_model(split.train.batch(index))[0])
    assert not found.requires_grad
