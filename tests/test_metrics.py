import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_toy_split, same_weights
from scipy.spatial.distance import jensenshannon
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


def audit_case(classes=4, forgotten=(), train=40, tests=60):
    """A data set whose labels go round, and a split that forgets the first quarter, or whole classes."""
    parts = [Images(torch.zeros(n, 1, 2, 2), torch.arange(n) % classes) for n in (train, tests)]
    dataset = Dataset("toy", "CNN", *parts, tuple(map(str, range(classes))))
    gone = torch.isin(parts[0].labels, torch.tensor(forgotten)) if forgotten else torch.arange(train) < train // 4
    return dataset, Split(parts[0], gone.nonzero()[:, 0], (~gone).nonzero()[:, 0], classes, forgotten_classes=forgotten)


def test_ratios_by_hand():
    """Three samples and two reference models, the mean of which is (1/2, 1/4, 1): Pr = (1.3 mean + 0.7) / 2."""
    references = torch.tensor([[0.4, 0.2, 1.0], [0.6, 0.3, 1.0]]).mean(0)
    found = metrics.rmia_ratios(torch.tensor([0.9, 0.5125, 0.5]), references)
    assert found.tolist() == pytest.approx([0.9 / 0.675, 0.5125 / 0.5125, 0.5])


def test_rmia_by_hand():
    """Scores: members 2/4, 4/4, 1/4; others 1/4, 0, a tie with the population counting as no win."""
    members, others = torch.tensor([0.35, 0.9, 0.2]), torch.tensor([0.2, 0.1])
    auc, tpr = metrics.rmia(members, others, torch.tensor([0.1, 0.3, 0.5, 0.7]))
    assert auc == pytest.approx(100 * (2 + 2 + 1.5) / 6) and tpr == pytest.approx(100 * 2 / 3)


def test_rmia_of_equal_distributions_is_chance_and_does_not_change_with_a_monotone_transformation():
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        draws = [torch.rand(4000, generator=rng, dtype=torch.double) for _ in range(3)]
        auc, tpr = metrics.rmia(*draws)
        assert abs(auc - 50) < 3 and 0 < tpr < 3
        assert metrics.rmia(*(torch.exp(3 * ratios) for ratios in draws)) == (auc, tpr)


def test_rmia_finds_what_an_overfitted_model_has_memorised():
    """Noise with random labels: the model knows D_f by heart, the reference models know the other half."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(400, 1, 28, 28, generator=rng), torch.randint(0, 10, (400,), generator=rng)
    train_part, test = Images(x[:200], y[:200]), Images(x[200:], y[200:])
    dataset = Dataset("noise", "CNN", train_part, test, tuple("abcdefghij"))
    halves = torch.arange(100), torch.arange(100, 200)
    learned = []
    for seed, index in enumerate((torch.arange(200), *halves)):
        learned.append(models.build("CNN", 10, seed))
        train(learned[-1], train_part, index, epochs=40, lr=1e-3, batch_size=32, rng=generator(seed))
    split = Split(train_part, torch.arange(80), torch.arange(80, 200), 10, "CNN")
    _, outputs = evaluate(learned[0], dataset, split, seed=0)
    found = metrics.audit(outputs, dataset, split, metrics.reference_probabilities(learned[1:], halves, dataset))
    assert found["RMIA_AUC"] > 95 and found["RMIA_TPR1"] > 50
    _, unknowing = evaluate(learned[2], dataset, split, seed=0)  # it has not seen the first hundred
    only = metrics.reference_probabilities(learned[1:2], [torch.arange(80, 200)], dataset)
    assert 35 < metrics.audit(unknowing, dataset, split, only)["RMIA_AUC"] < 65


def test_references_are_the_models_that_have_not_seen_a_sample(monkeypatch):
    """Model k gives every label (k + 1) / 10 on the training set, and the double of it on the test set."""
    dataset, _ = audit_case(train=4, tests=3)
    monkeypatch.setattr(
        metrics,
        "predict",
        lambda k, images: torch.full((len(images), 4), (k + 1) / 10 * (2 if len(images) == 3 else 1)),
    )
    seen = [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([2])]
    on_train, on_test = metrics.reference_probabilities([0, 1, 2], seen, dataset)
    assert on_train.tolist() == pytest.approx([0.3, 0.2, 0.15, 0.2]) and on_test.tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("forgotten", [(), (0, 2)])
def test_members_stand_against_test_samples_of_their_kind(monkeypatch, forgotten):
    """Of the forgotten classes; in random removal every other one. All others are the population."""
    dataset, split = audit_case(forgotten=forgotten)
    seen = []
    monkeypatch.setattr(metrics, "rmia", lambda *ratios: seen.extend(ratios) or (50, 1))
    p = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    outputs = {"forget": p[split.forget].log(), "test": p[40:].log()}
    references = torch.linspace(0.1, 0.9, 40), torch.linspace(0.2, 0.8, 60)
    metrics.audit(outputs, dataset, split, references)
    y, y_test = dataset.train.labels[split.forget], dataset.test.labels
    own, tests = p[split.forget].gather(1, y[:, None])[:, 0], p[40:].gather(1, y_test[:, None])[:, 0]
    chosen = torch.isin(y_test, torch.tensor(forgotten)) if forgotten else torch.arange(60) % 2 == 0
    expected = metrics.rmia_ratios(own, references[0][split.forget]), metrics.rmia_ratios(tests, references[1])
    for found, wanted in zip(seen, (expected[0], expected[1][chosen], expected[1][~chosen]), strict=True):
        torch.testing.assert_close(found.float(), wanted)


def test_samples_of_kept_classes_among_d_f_make_it_a_random_removal():
    y_test, split = torch.arange(8) % 4, audit_case()[1]
    mixed = replace(split, forgotten_classes=(0,))
    assert metrics.non_members(mixed, torch.tensor([0, 0, 1]), y_test).tolist() == [True, False] * 4
    assert metrics.non_members(mixed, torch.tensor([0, 0, 0]), y_test).tolist() == [True, False, False, False] * 2


def test_divergence_and_churn():
    p, q = (torch.rand(50, 4, generator=torch.Generator().manual_seed(s)).double().softmax(1) for s in (0, 1))
    expected = (jensenshannon(p.numpy(), q.numpy(), axis=1, base=2) ** 2).mean()
    assert metrics.js_divergence(p.log(), q.log()) == pytest.approx(expected, rel=1e-9)
    sure = torch.eye(4).log()  # logarithms of 0 included
    assert metrics.js_divergence(sure, sure) == 0 and metrics.js_divergence(sure, sure.flip(0)) == 1
    assert metrics.js_divergence(sure, torch.full((4, 4), torch.nan)) == 1
    dataset, split = audit_case()
    ours, theirs = {"forget": p.log()}, {"forget": q.log()}
    ours["test"], theirs["test"] = torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[0, 1, 3, 3]]
    found = metrics.audit(ours, dataset, split, retrain=theirs)
    assert found == {"JS_f": pytest.approx(expected), "churn": 25}


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
    classes = () if forgotten_class is None else ("A_ts_r", "A_ts_f")
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
    assert found["MIA"] == 50
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
