"""The audit: RMIA, divergence and churn, by hand and on what models have memorised."""

from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon

import audit
import models
from data import Dataset, Images, Split, generator
from metrics import evaluate
from training import train


def audit_case(classes=4, forgotten=(), train=40, tests=60):
    """A data set whose labels go round, and a split that forgets the first quarter, or whole classes."""
    parts = [Images(torch.zeros(n, 1, 2, 2), torch.arange(n) % classes) for n in (train, tests)]
    dataset = Dataset("toy", "CNN", *parts, tuple(map(str, range(classes))))
    gone = torch.isin(parts[0].labels, torch.tensor(forgotten)) if forgotten else torch.arange(train) < train // 4
    return dataset, Split(parts[0], gone.nonzero()[:, 0], (~gone).nonzero()[:, 0], classes, forgotten_classes=forgotten)


def test_ratios_by_hand():
    """Three samples and two reference models, the mean of which is (1/2, 1/4, 1): Pr = (1.3 mean + 0.7) / 2."""
    references = torch.tensor([[0.4, 0.2, 1.0], [0.6, 0.3, 1.0]]).mean(0)
    found = audit.rmia_ratios(torch.tensor([0.9, 0.5125, 0.5]), references)
    assert found.tolist() == pytest.approx([0.9 / 0.675, 0.5125 / 0.5125, 0.5])


def test_rmia_by_hand():
    """Scores: members 2/4, 4/4, 1/4; others 1/4, 0, a tie with the population counting as no win."""
    members, others = torch.tensor([0.35, 0.9, 0.2]), torch.tensor([0.2, 0.1])
    auc, tpr = audit.rmia(members, others, torch.tensor([0.1, 0.3, 0.5, 0.7]))
    assert auc == pytest.approx(100 * (2 + 2 + 1.5) / 6) and tpr == pytest.approx(100 * 2 / 3)


def test_rmia_of_equal_distributions_is_chance_and_does_not_change_with_a_monotone_transformation():
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        draws = [torch.rand(4000, generator=rng, dtype=torch.double) for _ in range(3)]
        auc, tpr = audit.rmia(*draws)
        assert abs(auc - 50) < 3 and 0 < tpr < 3
        assert audit.rmia(*(torch.exp(3 * ratios) for ratios in draws)) == (auc, tpr)


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
    found = audit.audit(outputs, dataset, split, audit.reference_probabilities(learned[1:], halves, dataset))
    assert found["RMIA_AUC"] > 95 and found["RMIA_TPR1"] > 50
    _, unknowing = evaluate(learned[2], dataset, split, seed=0)  # it has not seen the first hundred
    only = audit.reference_probabilities(learned[1:2], [torch.arange(80, 200)], dataset)
    assert 35 < audit.audit(unknowing, dataset, split, only)["RMIA_AUC"] < 65


def test_references_are_the_models_that_have_not_seen_a_sample(monkeypatch):
    """Model k gives every label (k + 1) / 10 on the training set, and the double of it on the test set."""
    dataset, _ = audit_case(train=4, tests=3)
    monkeypatch.setattr(
        audit,
        "predict",
        lambda k, images: torch.full((len(images), 4), (k + 1) / 10 * (2 if len(images) == 3 else 1)),
    )
    seen = [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([2])]
    on_train, on_test = audit.reference_probabilities([0, 1, 2], seen, dataset)
    assert on_train.tolist() == pytest.approx([0.3, 0.2, 0.15, 0.2]) and on_test.tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("forgotten", [(), (0, 2)])
def test_members_stand_against_test_samples_of_their_kind(monkeypatch, forgotten):
    """Of the forgotten classes; in random removal every other one. All others are the population."""
    dataset, split = audit_case(forgotten=forgotten)
    seen = []
    monkeypatch.setattr(audit, "rmia", lambda *ratios: seen.extend(ratios) or (50, 1))
    p = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    outputs = {"forget": p[split.forget].log(), "test": p[40:].log()}
    references = torch.linspace(0.1, 0.9, 40), torch.linspace(0.2, 0.8, 60)
    audit.audit(outputs, dataset, split, references)
    y, y_test = dataset.train.labels[split.forget], dataset.test.labels
    own, tests = p[split.forget].gather(1, y[:, None])[:, 0], p[40:].gather(1, y_test[:, None])[:, 0]
    chosen = torch.isin(y_test, torch.tensor(forgotten)) if forgotten else torch.arange(60) % 2 == 0
    expected = audit.rmia_ratios(own, references[0][split.forget]), audit.rmia_ratios(tests, references[1])
    for found, wanted in zip(seen, (expected[0], expected[1][chosen], expected[1][~chosen]), strict=True):
        torch.testing.assert_close(found.float(), wanted)


def test_samples_of_kept_classes_among_d_f_make_it_a_random_removal():
    y_test, split = torch.arange(8) % 4, audit_case()[1]
    mixed = replace(split, forgotten_classes=(0,))
    assert audit.non_members(mixed, torch.tensor([0, 0, 1]), y_test).tolist() == [True, False] * 4
    assert audit.non_members(mixed, torch.tensor([0, 0, 0]), y_test).tolist() == [True, False, False, False] * 2


def test_divergence_and_churn():
    p, q = (torch.rand(50, 4, generator=torch.Generator().manual_seed(s)).double().softmax(1) for s in (0, 1))
    expected = (jensenshannon(p.numpy(), q.numpy(), axis=1, base=2) ** 2).mean()
    assert audit.js_divergence(p.log(), q.log()) == pytest.approx(expected, rel=1e-9)
    sure = torch.eye(4).log()  # logarithms of 0 included
    assert audit.js_divergence(sure, sure) == 0 and audit.js_divergence(sure, sure.flip(0)) == 1
    assert audit.js_divergence(sure, torch.full((4, 4), torch.nan)) == 1
    dataset, split = audit_case()
    ours, theirs = {"forget": p.log()}, {"forget": q.log()}
    ours["test"], theirs["test"] = torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[0, 1, 3, 3]]
    found = audit.audit(ours, dataset, split, retrain=theirs)
    assert found == {"JS_f": pytest.approx(expected), "churn": 25}
