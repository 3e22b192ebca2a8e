import pytest
import torch
from conftest import make_toy_split

import metrics
import models
from data import Dataset, Images, Split, joint_dataset
from metrics import accuracy, evaluate, gap, membership_attack


def one_hot(labels, confidence, classes=4):
    rest = (1 - confidence) / (classes - 1)
    p = torch.full((len(labels), classes), rest)
    return p.scatter_(1, labels[:, None], confidence)


def test_accuracy():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert accuracy(p, torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)


def test_attack_on_separable_outputs():
    labels = torch.arange(400) % 4
    sure, unsure = one_hot(labels, 0.99), one_hot(labels, 0.6)
    assert membership_attack(sure, unsure, sure[:100], unsure[:100]) == 100
    # forget samples that look like test samples are all taken for such
    assert membership_attack(sure, unsure, unsure[:100], unsure[:100]) == 50


def test_attack_on_identical_outputs():
    p = one_hot(torch.arange(400) % 4, 0.9)
    assert membership_attack(p, p, p[:100], p[:100]) == 50


def test_attack_sorts_the_outputs():
    labels = torch.arange(400) % 4
    sure, unsure = one_hot(labels, 0.99), one_hot(labels, 0.6)
    moved = one_hot((labels + 1) % 4, 0.99)
    assert membership_attack(sure[labels == 0], unsure[labels == 0], moved, unsure) == 100


def test_attack_is_the_same_for_any_number_of_threads():
    rng = torch.Generator().manual_seed(0)
    parts = [torch.rand(500, 10, generator=rng).softmax(1) for _ in range(4)]
    assert membership_attack(*parts, threads=1) == membership_attack(*parts, threads=2)


class Oracle(torch.nn.Module):
    """Classifies the toy images by their brightest band."""

    def forward(self, x):
        z = x.view(len(x), 4, -1).mean(2) * 20
        return z, z


@pytest.mark.parametrize("forgotten_class", [None, 1])
def test_evaluate(forgotten_class):
    split = make_toy_split(forgotten_class=forgotten_class)
    test = make_toy_split(seed=1).train
    test.labels[test.labels == 1] = 2  # the oracle is wrong about all of class 1
    dataset = Dataset("toy", "CNN", split.train, test, tuple("abcd"))
    found = evaluate(Oracle(), dataset, split, seed=0)
    assert (found["A_r"], found["A_f"], found["A_ts"]) == (100, 100, 75)
    if forgotten_class is None:
        assert "A_ts_f" not in found
    else:
        assert found["A_ts_r"] == 75 and "A_ts_f" in found
    assert 0 <= found["MIA"] <= 100 and "A_r_clean" not in found


def test_evaluate_tells_forgotten_classes_apart():
    split = make_toy_split(forgotten_class=1)
    dataset = Dataset("toy", "CNN", split.train, make_toy_split(seed=1).train, tuple("abcd"))
    model = models.build("CNN", 4, seed=0)
    with torch.no_grad():
        model.head[1].bias[:] = torch.tensor([0.0, 100, 0, 0])  # always says class 1
    found = evaluate(model, dataset, split, seed=0)
    assert (found["A_f"], found["A_r"], found["A_ts_f"], found["A_ts_r"], found["A_ts"]) == (100, 0, 100, 0, 25)


@pytest.mark.parametrize("tests, known, attacked", [(12_000, 4000, 6000), (10_000, 4000, 6000), (1000, 400, 600)])
@pytest.mark.parametrize("published_protocol", [False, True])
def test_who_learns_and_who_is_attacked(monkeypatch, tests, known, attacked, published_protocol):
    """Outputs are replaced by the samples' positions; through the training transform by their negatives."""
    given = []
    monkeypatch.setattr(metrics, "membership_attack", lambda *parts: given.extend(parts) or 50)
    monkeypatch.setattr(metrics, "predict", lambda _, images, crops=None: positions(images, crops))
    train, test = (
        Images(torch.zeros(n, 3, 2, 2, dtype=torch.uint8), torch.zeros(n).long(), side=2, augment=augment)
        for n, augment in ((20_000, True), (tests, False))
    )
    forgotten = torch.arange(20_000) % 5 < 2
    split = Split(train, forgotten.nonzero()[:, 0], (~forgotten).nonzero()[:, 0], 2)
    dataset = Dataset("toy", "ResNet-18", train, test, tuple("ab"), published_protocol=published_protocol)
    found = evaluate(None, dataset, split, seed=3)
    sign = -1 if published_protocol else 1
    remain, test_known, members, others = (p[:, 0] for p in given[:4])
    assert torch.equal(sign * remain, joint_dataset(split, 1, 3).remain[:known].double())
    assert torch.equal(sign * members, split.forget.double())
    assert torch.equal(torch.cat([test_known, others]), torch.arange(known + attacked).double())
    assert found["MIA"] == 50
    # a position is larger than 0, its negative is not: class 0 is seen where nothing is cropped
    right, wrong = (0, 100) if published_protocol else (100, None)
    assert (found["A_r"], found.get("A_r_clean")) == (right, wrong) and found["A_ts"] == 100


def positions(images, crops):
    x = torch.arange(len(images)).double() * (1 if crops is None else -1)
    return torch.stack([x, torch.zeros_like(x) - 0.5 * (x == 0)], 1)


def test_gap_is_the_mean_distance():
    retrain = {"A_r": 99, "A_f": 98, "A_ts": 97, "MIA": 50}
    ours = {"A_r": 98, "A_f": 99, "A_ts": 97, "MIA": 46}
    assert gap(ours, retrain, "random") == pytest.approx(1.5)


def test_attack_on_a_diverged_model():
    p = torch.full((100, 4), torch.nan)
    assert accuracy(p, torch.zeros(100, dtype=torch.long)) == 0
    assert membership_attack(p, p, p[:10], p[:10]) == 50
