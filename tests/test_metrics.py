import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_toy_split, same_weights
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_info, threadpool_limits

import metrics
import models
from data import Dataset, Images, Split, generator, joint_dataset
from metrics import accuracy, evaluate, gap, membership_attack, predict, relearn
from training import train


def one_hot(labels, confidence, classes=4):
    rest = (1 - confidence) / (classes - 1)
    p = torch.full((len(labels), classes), rest)
    return p.scatter_(1, labels[:, None], confidence)


def test_accuracy_counts_the_largest_entries():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert accuracy(p, torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)
    assert np.isnan(accuracy(p[:0], torch.tensor([], dtype=torch.long)))


def test_outputs_are_softmax_in_order_and_in_evaluation_mode():
    images = Images(torch.rand(1003, 1, 28, 28), torch.zeros(1003, dtype=torch.long))
    model = models.build("CNN", 4, seed=0).train()
    p = predict(model, images)
    torch.testing.assert_close(p, model(images.pixels)[0].softmax(1))
    assert not model.training and not p.requires_grad


def test_attack_tells_sure_outputs_from_unsure_ones():
    labels = torch.arange(400) % 4
    sure, unsure = one_hot(labels, 0.99), one_hot(labels, 0.6)
    assert membership_attack(sure, unsure, sure[:100], unsure[:100]) == 100
    # forget samples that look like test samples are all taken for such
    assert membership_attack(sure, unsure, unsure[:100], unsure[:100]) == 50
    # and where all look alike, there is nothing to tell
    assert membership_attack(sure, sure, sure[:100], sure[:100]) == 50


def test_attack_sorts_the_outputs():
    labels = torch.arange(400) % 4
    sure, unsure = one_hot(labels, 0.99), one_hot(labels, 0.6)
    moved = one_hot((labels + 1) % 4, 0.99)
    assert membership_attack(sure[labels == 0], unsure[labels == 0], moved, unsure) == 100


def test_a_diverged_model_is_wrong_and_tells_the_attack_nothing():
    p = torch.full((100, 4), torch.nan)
    assert accuracy(p, torch.zeros(100, dtype=torch.long)) == 0
    assert membership_attack(p, p, p[:10], p[:10]) == 50


def test_tug_of_war_by_hand():
    retrain = {"A_f": 90.0, "A_r": 100.0, "A_ts": 80.0}
    assert metrics.tug_of_war(retrain, retrain) == 1
    ours = {"A_f": 100.0, "A_r": 80.0, "A_ts": 75.0}
    assert metrics.tug_of_war(ours, retrain) == pytest.approx(0.9 * 0.8 * 0.95)
    classes = {"A_ts_r": 90.0, "A_ts_f": 0.0}
    assert metrics.tug_of_war(ours | classes, retrain | classes | {"A_ts_r": 95.0}) == pytest.approx(0.9 * 0.8 * 0.95)


@pytest.fixture(scope="module")
def outputs():
    """Softmax outputs of members and others, twice, that overlap: what is learned of them depends on the attacker."""
    rng = torch.Generator().manual_seed(0)
    scales = (3.0, 2.2, 3.0, 2.2)
    return [(scale * torch.randn(400, 5, generator=rng)).softmax(1) for scale in scales]


def test_attack_is_the_same_for_any_number_of_threads(outputs, monkeypatch):
    class Noting(HistGradientBoostingClassifier):
        def fit(self, *args):
            used.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"})
            return self.set_params(max_iter=5) and super().fit(*args)  # few: two threads beside other work wait a lot

    used = []
    monkeypatch.setattr(metrics, "HistGradientBoostingClassifier", Noting)
    assert membership_attack(*outputs, threads=1) == membership_attack(*outputs, threads=2)
    assert used == [{1}, {2}]


def test_the_attacker_is_a_hundred_trees_of_depth_6_at_rate_three_tenths(outputs):
    remain, test, *asked = outputs
    questions = [[p[start : start + 100] for p in asked] for start in range(0, 400, 100)]

    def features(members, others):
        return torch.cat([members, others]).sort(1).values.double().numpy(), np.repeat([1, 0], len(members))

    def answers(**changes):
        settings = {"max_iter": 100, "learning_rate": 0.3, "max_depth": 6, "max_leaf_nodes": None}
        settings |= {"min_samples_leaf": 1, "l2_regularization": 1, "early_stopping": False, "random_state": 0}
        with threadpool_limits(1):
            attacker = HistGradientBoostingClassifier(**settings | changes).fit(*features(remain, test))
            return [100 * attacker.score(*features(*question)) for question in questions]

    found = [membership_attack(remain, test, *question) for question in questions]
    assert found == answers()
    others = [{"max_iter": 50}, {"learning_rate": 0.01}, {"learning_rate": 0.1}, {"max_depth": 2}, {"max_depth": 5}]
    others += [{"max_leaf_nodes": 31}, {"min_samples_leaf": 20}, {"l2_regularization": 0}, {"early_stopping": True}]
    assert [change for change in others if found == answers(**change)] == []


class Oracle(torch.nn.Module):
    """Classifies the toy images by their brightest band."""

    def forward(self, x):
        z = x.view(len(x), 4, -1).mean(2) * 20
        return z, z


@pytest.mark.parametrize("forgotten_class", [None, 1])
def test_an_oracle_is_evaluated(forgotten_class):
    split = make_toy_split(forgotten_class=forgotten_class)
    test = make_toy_split(seed=1).train
    test.labels[test.labels == 1] = 2  # the oracle is wrong about all of class 1
    dataset = Dataset("toy", "CNN", split.train, test, tuple("abcd"))
    found, _ = evaluate(Oracle(), dataset, split, seed=0)
    assert (found["A_r"], found["A_f"], found["A_ts"]) == (100, 100, 75)
    assert 0 <= found["MIA"] <= 100
    classes = () if forgotten_class is None else ("A_ts_r",)  # no test sample is of the forgotten class
    assert tuple(found) == ("A_r", "A_f", "A_ts", *classes, "MIA") and found.get("A_ts_r", 75) == 75


def test_forgotten_classes_are_evaluated_apart():
    split = make_toy_split(forgotten_class=1)
    dataset = Dataset("toy", "CNN", split.train, make_toy_split(seed=1).train, tuple("abcd"))
    model = models.build("CNN", 4, seed=0)
    with torch.no_grad():
        model.head[1].bias[:] = torch.tensor([0.0, 100, 0, 0])  # always says class 1
    found, _ = evaluate(model, dataset, split, seed=0)
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
    found, _ = evaluate(None, dataset, split, seed=3)
    sign = -1 if published_protocol else 1
    remain, test_known, members, others = (p[:, 0] for p in given[:4])
    two_labels = replace(split, train=replace(train, labels=torch.arange(20_000) % 2))  # one is too few for y_c
    assert torch.equal(sign * remain, joint_dataset(two_labels, 1, 3).remain[:known].double())
    assert torch.equal(sign * members, split.forget.double())
    assert torch.equal(torch.cat([test_known, others]), torch.arange(known + attacked).double())
    assert found["MIA"] == 50 and metrics.attacked(split, tests) == attacked
    # a position is larger than 0, its negative is not: class 0 is seen where nothing is cropped
    right, wrong = (0, 100) if published_protocol else (100, None)
    assert (found["A_r"], found.get("A_r_clean")) == (right, wrong) and found["A_ts"] == 100


def positions(images, crops):
    x = torch.arange(len(images)).double() * (1 if crops is None else -1)
    return torch.stack([x, torch.zeros_like(x) - 0.5 * (x == 0)], 1)


def test_the_gap_is_the_mean_distance_over_retrains_metrics():
    retrain = {"A_r": 99, "A_f": 98, "A_ts": 97, "MIA": 50, "A_r_clean": 0, "time_s": 0}
    ours = {"A_r": 98, "A_f": 99, "A_ts": 97, "MIA": 46, "A_ts_f": 7, "A_r_clean": 50, "time_s": 3}
    assert gap(ours, retrain) == pytest.approx((1 + 1 + 0 + 4) / 4)
    assert gap(ours, retrain | {"A_ts_f": 2}) == pytest.approx((1 + 1 + 0 + 5 + 4) / 5)


@pytest.fixture
def toy():
    """120 samples, class 1 to be forgotten."""
    split = make_toy_split(count=120, forgotten_class=1)
    return Dataset("toy", "CNN", split.train, split.train, tuple("abcd")), split


def test_relearning_trains_on_the_remaining_data_and_is_followed_epoch_by_epoch(toy):
    dataset, split = toy
    learned, expected = (models.build("CNN", 4, seed=0).eval() for _ in range(2))
    options = {"epochs": 3, "lr": 1e-3, "batch_size": 16}
    curves = relearn(learned, dataset, split, 5, **options)
    found = [evaluate(expected, dataset, split, seed=5)[0]]
    train(
        expected,
        dataset.train,
        split.remain,
        rng=generator(5, "relearning", 0),
        after=lambda _: found.append(evaluate(copy.deepcopy(expected), dataset, split, seed=5)[0]),
        **options,
    )
    assert same_weights(learned, expected)
    assert curves == {name: [metrics[name] for metrics in found] for name in ("A_r", "A_f")}
    assert len(curves["A_r"]) == 4 and curves["A_r"][-1] > curves["A_r"][0]


def test_each_member_of_an_ensemble_relearns_its_own_share(toy):
    dataset, split = toy
    ensemble = models.Ensemble([models.build("CNN", 4, seed=k) for k in range(2)]).eval()
    expected = copy.deepcopy(ensemble)
    shares, options = split.remain.tensor_split(2), {"epochs": 2, "lr": 1e-3, "batch_size": 16}
    curves = relearn(ensemble, dataset, split, 5, shares=shares, **options)
    found = [evaluate(expected, dataset, split, seed=5)[0]["A_r"]]
    for k, (member, share) in enumerate(zip(expected.members, shares)):
        train(member, dataset.train, share, rng=generator(5, "relearning", k), **options)
    found.append(evaluate(expected, dataset, split, seed=5)[0]["A_r"])
    assert same_weights(ensemble, expected) and curves["A_r"][::2] == found and len(curves["A_f"]) == 3
