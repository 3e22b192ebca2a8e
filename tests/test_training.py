import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SmallNet, loaded, make_toy_split, same_weights

import training
from data import generator, shuffled_batches
from harness import graphs
from harness.graphs import Captured, captured
from harness.store import load_tensors
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
        for _, x, y in loaded(shuffled_batches(images, split.remain, 32, rng), images, split.remain):
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
    stored = load_tensors(partial)
    assert stored["epoch"] == 2 and stored["seconds"] > 0
    assert same_weights(run(split, partial=partial), run(split))
    assert load_tensors(partial)["seconds"] > stored["seconds"]


def test_dropout_follows_the_streams_seed_also_after_an_interruption(split, tmp_path, monkeypatch):
    monkeypatch.setattr("training.SAVE_EVERY_S", 0)

    def run_with_dropout(stream="toy", **options):
        model = fresh()
        model.head.insert(1, torch.nn.Dropout(0.5))
        train(model, split.train, split.remain, rng=generator(stream), **OPTIONS | options)
        return model

    state = torch.get_rng_state()
    expected = run_with_dropout()
    torch.rand(7)
    run_with_dropout(epochs=2, partial=tmp_path / "partial.pt")
    assert same_weights(run_with_dropout(partial=tmp_path / "partial.pt"), expected)
    torch.set_rng_state(state)
    assert not same_weights(run_with_dropout("other"), expected) and torch.equal(torch.get_rng_state(), state)


def test_a_short_training_is_not_saved(split, tmp_path):
    run(split, epochs=1, partial=tmp_path / "partial.pt")
    assert not list(tmp_path.iterdir())


def test_frozen_outputs_are_in_the_order_asked_for(split, toy_model):
    index = torch.arange(199, -1, -1).repeat(3)  # more than are run at a time
    found = frozen_outputs(toy_model, split.train, index)
    torch.testing.assert_close(found, toy_model(split.train.batch(index))[0])
    assert not found.requires_grad


@pytest.fixture
def stand_in(monkeypatch):
    """Steps are captured on any device: what a graph reads and writes are fixed places, and capturing runs nothing."""

    def capture(step, static):
        results = [torch.full((), torch.nan)]

        def replay():
            for place, value in zip(results, step(*static) or (), strict=False):
                place.copy_(value)

        return replay, results

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "on_side_stream", lambda step, given: step(*given))
    monkeypatch.setattr(training, "captured", lambda step, device: Captured(step))


def test_a_captured_step_takes_every_call_once_with_its_own_values(stand_in):
    seen = []

    def step(x, nothing):
        assert nothing is None
        seen.append(x.clone())
        return (x.sum(),)

    run_step, given = Captured(step), [torch.full((2,), float(i)) for i in range(7)]
    given[5] = torch.full((1,), 5.0)  # an odd batch, which is run as it is
    for x in given:
        (result,) = run_step(x, None)
        assert result == x.sum()
    assert all(torch.equal(a, b) for a, b in zip(seen, given, strict=True))


def test_an_odd_first_batch_is_no_pattern_for_the_others(stand_in):
    calls = []
    run_step = Captured(lambda x: calls.append(len(x)) or (x.sum(),))
    for size in (1, 3, 3, 1, 1, 1, 3, 1):
        assert run_step(torch.ones(size))[0] == size
    assert calls == [1, 3, 3, 1, 1, 1, 3, 1]


def test_training_by_captured_steps_is_the_same_and_goes_on_from_the_middle(split, stand_in, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "captured", captured)
        expected = run(split)
    assert same_weights(run(split), expected)
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0)

    def stop(epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    partial = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(split, partial=partial, after=stop)
    assert same_weights(run(split, partial=partial), expected)


def test_on_a_cpu_a_step_is_itself():
    assert captured(max, torch.device("cpu")) is max and isinstance(captured(max, torch.device("cuda")), Captured)
