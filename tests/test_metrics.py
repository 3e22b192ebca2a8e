import pytest
import torch
from conftest import make_toy_split

import models
from data import Dataset
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


def test_gap_is_the_mean_distance():
    retrain = {"A_r": 99, "A_f": 98, "A_ts": 97, "MIA": 50}
    ours = {"A_r": 98, "A_f": 99, "A_ts": 97, "MIA": 46}
    assert gap(ours, retrain, "random") == pytest.approx(1.5)


def test_attack_on_a_diverged_model():
    p = torch.full((100, 4), torch.nan)
    assert accuracy(p, torch.zeros(100, dtype=torch.long)) == 0
    assert membership_attack(p, p, p[:10], p[:10]) == 50
