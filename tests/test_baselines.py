"""What makes each baseline the method of its paper."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_toy_split, same_weights

import models
from baselines import METHODS, boundary, retrain, scrub, sisa, teacher_student
from config import HYPERPARAMETERS, hyperparameters, settings, training_row
from data import Images, derive_seed, generator, shuffled_batches
from training import train

SISA_ROW = {"shards": 3, "slices": 2, "epochs": 2, "lr": 1e-3}


@pytest.fixture(scope="module")
def trained():
    """A model that has learned the toy images, and their split."""
    split = make_toy_split()
    model = models.build("CNN", 4, seed=1)
    train(model, split.train, torch.arange(400), epochs=2, lr=1e-3, batch_size=32, rng=generator("toy"))
    return model.eval(), split


def prepare(split, row=SISA_ROW):
    chosen = settings(row, seed=0)
    return [sisa.prepare_shard(k, split.train, "CNN", 4, chosen) for k in range(row["shards"])]


def quick_settings(method, split, seed=0):
    row = hyperparameters(method, "OptDigits", split.kind, training_row("OptDigits", "CNN", retrain_epochs=1))
    row |= SISA_ROW if method == "SISA" else {"epochs": 1}
    return settings(row, seed=seed, prepared=prepare(split) if method == "SISA" else None)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_f_o_and_follows_its_seed(method, trained):
    f_o, split = trained
    before = copy.deepcopy(f_o)
    first, again, other = (METHODS[method].unlearn(f_o, split, quick_settings(method, split, s)) for s in (0, 0, 1))
    assert same_weights(f_o, before) and not f_o.training and not first.training
    assert same_weights(first, again) and not same_weights(first, other)
    logits, z = first(split.train.batch(torch.arange(3)))
    assert logits.shape == (3, 4) and z.shape == (3, 256)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_only_the_split(method, trained):
    """Samples that are neither in D_f nor in D_r have no say."""
    f_o, split = trained
    pixels = torch.cat([split.train.pixels, torch.full((50, 1, 28, 28), 255, dtype=torch.uint8)])
    images = Images(pixels, torch.cat([split.train.labels, torch.zeros(50, dtype=torch.long)]))
    changed = replace(images, pixels=torch.cat([split.train.pixels, torch.zeros(50, 1, 28, 28, dtype=torch.uint8)]))
    first, second = replace(split, train=images), replace(split, train=changed)
    if method == "SISA":  # its shards are made of all samples, before the request; from then on D_f has no say
        chosen, pixels = quick_settings(method, split), split.train.pixels.clone()
        pixels[split.forget] = 0
        blank = replace(split, train=replace(split.train, pixels=pixels))
        assert same_weights(sisa.unlearn(f_o, split, chosen), sisa.unlearn(f_o, blank, chosen))
        return
    a, b = (METHODS[method].unlearn(f_o, one, quick_settings(method, split)) for one in (first, second))
    assert same_weights(a, b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("forgotten_class", [None, 1])
def test_every_method_runs_with_batch_normalisation_and_augmentation(method, forgotten_class):
    rng = torch.Generator().manual_seed(0)
    count = 60
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    images = Images(pixels, labels, side=32, normalise=True, augment=True)
    forgotten = labels == 1 if forgotten_class else torch.arange(count) < 10
    gone = (1,) if forgotten_class else ()
    split = make_toy_split()
    split = replace(split, train=images, forget=forgotten.nonzero()[:, 0], remain=(~forgotten).nonzero()[:, 0])
    split = replace(split, classes=3, model="ResNet-18", forgotten_classes=gone)
    row = hyperparameters(method, "Own", "random", training_row("Own", "ResNet-18")) | {"epochs": 1}
    row |= {"repeats": 1} if "repeats" in row else {}
    prepared = None
    if method == "SISA":
        row |= {"shards": 2, "slices": 1}
        prepared = [sisa.prepare_shard(k, images, "ResNet-18", 3, settings(row, seed=0)) for k in range(2)]
    f_o = models.build("ResNet-18", 3, seed=0).eval()
    before = copy.deepcopy(f_o)
    f_u = METHODS[method].unlearn(f_o, split, settings(row, seed=0, prepared=prepared))
    assert same_weights(f_o, before) and not f_u.training
    assert torch.isfinite(f_u(images.batch(torch.arange(4)))[0]).all()


def test_every_method_has_rows_for_every_kind_of_task():
    for method in METHODS:
        for dataset in ("OptDigits", "Digit", "CIFAR10", "CIFAR100", "Own"):
            for kind in ("random", "class", "few"):
                row = hyperparameters(method, dataset, kind, training_row(dataset, "CNN"))
                assert all(value is not None for value in row.values())
    assert METHODS.keys() == HYPERPARAMETERS.keys()


def test_retrain_never_sees_the_forget_set(trained):
    f_o, split = trained
    changed = copy.deepcopy(split)
    changed.train.pixels[split.forget] = 255
    chosen = quick_settings("Retrain", split)
    assert same_weights(retrain.unlearn(f_o, split, chosen), retrain.unlearn(f_o, changed, chosen))


def test_neggrad_with_a_1_is_fine_tuning(trained):
    f_o, split = trained
    found = METHODS["NegGrad"].unlearn(f_o, split, settings({"epochs": 2, "lr": 0.01, "a": 1.0}, seed=0))
    expected, rng = copy.deepcopy(f_o).train(), generator(0, "NegGrad")
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01)
    for _ in range(2):
        for _, x, y in shuffled_batches(split.train, split.remain, 32, rng):
            optimizer.zero_grad()
            F.cross_entropy(expected(x)[0], y).backward()
            optimizer.step()
    for a, b in zip(found.parameters(), expected.parameters()):
        torch.testing.assert_close(a, b)


def test_neggrad_ascends_on_the_forget_set(trained):
    f_o, split = models.build("CNN", 4, seed=1).eval(), trained[1]
    f_u = METHODS["NegGrad"].unlearn(f_o, split, settings({"epochs": 1, "lr": 0.01, "a": 0.0}, seed=0))
    x, y = split.train.batch(split.forget), split.train.labels[split.forget]
    assert F.cross_entropy(f_u(x)[0], y) > F.cross_entropy(f_o(x)[0], y) + 0.1


@pytest.mark.parametrize("normalise", [False, True])
def test_boundary_attack_respects_its_bound_in_pixel_space(normalise):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), generator=rng, dtype=torch.uint8)
    images = Images(pixels, torch.arange(20) % 3, side=32, normalise=normalise)
    model = models.build("ResNet-18", 3, seed=0).eval()
    index = torch.arange(20)
    attacked = boundary.fgsm(model, images, index)
    step = attacked - pixels / 255
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert step.abs().max() <= boundary.BOUND + 0.5 / 255 + 1e-6 and step.abs().max() > 0.09
    torch.testing.assert_close(attacked * 255, (attacked * 255).round())
    before, after = (F.cross_entropy(model(images.standardise(x))[0], images.labels) for x in (pixels / 255, attacked))
    assert after > before


def test_boundary_labels_are_the_nearest_wrong_ones(trained):
    f_o, split = trained
    labels = boundary.nearest_wrong_labels(f_o, split.train, split.forget)
    own = split.train.labels[split.forget]
    assert (labels != own).all()
    logits = f_o(boundary.fgsm(f_o, split.train, split.forget))[0]
    ranked = logits.argsort(1, descending=True)
    assert torch.equal(labels, torch.where(ranked[:, 0] == own, ranked[:, 1], ranked[:, 0]))


def test_boundary_does_not_read_the_remaining_data(trained):
    f_o, split = trained
    changed = copy.deepcopy(split)
    changed.train.pixels[split.remain] = 0
    chosen = settings({"epochs": 1, "lr": 1e-3}, seed=0)
    assert same_weights(*(boundary.unlearn(f_o, one, chosen) for one in (split, changed)))


@pytest.mark.parametrize("part, teacher", [("forget", "incompetent"), ("remain", "competent")])
def test_teacher_student_approaches_its_teachers(trained, part, teacher):
    f_o, split = trained
    incompetent = models.build("CNN", 4, derive_seed(0, "incompetent teacher")).eval()
    student_start = f_o if teacher == "incompetent" else models.build("CNN", 4, seed=9).eval()
    everything, nothing = torch.arange(400), torch.empty(0, dtype=torch.long)
    only = (everything, nothing) if part == "forget" else (nothing, everything)
    split = replace(split, forget=only[0], remain=only[1])
    row = {"epochs": 10, "lr": 1e-3, "remain_fraction": 1.0}
    x = split.train.batch(everything)
    if teacher == "competent":
        # the student starts as f_o and must stay: a step moves it no further than rounding does
        student = METHODS["T-S"].unlearn(f_o, split, settings(row, seed=0))
        assert (student(x)[0].softmax(1) - f_o(x)[0].softmax(1)).abs().mean() < 1e-3
        return
    student = METHODS["T-S"].unlearn(student_start, split, settings(row, seed=0))
    target = incompetent(x)[0].softmax(1)
    before = (student_start(x)[0].softmax(1) - target).abs().mean()
    assert (student(x)[0].softmax(1) - target).abs().mean() < 0.1 * before


def test_teacher_student_asks_each_teacher_about_its_own_samples(trained, monkeypatch):
    """A step reads 30 % of D_r and all of D_f; f_o is the target on the former, random weights on the latter."""
    f_o, split = trained
    incompetent = models.build("CNN", 4, derive_seed(0, "incompetent teacher")).eval()
    seen = []

    def note(student, targets, **options):
        seen.append(targets)
        return original(student, targets, **options)

    original = teacher_student.F.kl_div
    monkeypatch.setattr(teacher_student.F, "kl_div", note)
    row = {"epochs": 1, "lr": 1e-4, "remain_fraction": 0.3}
    METHODS["T-S"].unlearn(f_o, split, settings(row, seed=0))
    targets = torch.cat(seen).exp()
    assert len(targets) == len(split.forget) + round(0.3 * len(split.remain))
    for teacher, index in ((incompetent, split.forget), (f_o, split.remain)):
        answers = teacher(split.train.batch(index))[0].softmax(1)
        found = (targets[:, None] - answers).abs().amax(2).amin(1) < 1e-5
        expected = len(split.forget) if teacher is incompetent else round(0.3 * len(split.remain))
        assert found.sum() == expected


def test_scrub_losses():
    rng = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 6, 4, generator=rng)
    y = torch.arange(6) % 4
    chosen = SimpleNamespace(temperature=2.0, gamma=0.9, alpha=0.3)
    p, q = (torch.softmax(logits / 2, 1) for logits in (teacher, student))
    kl = 4 * (p * (p / q).log()).sum(1).mean()
    assert scrub.max_loss(teacher, student, y, chosen).item() == pytest.approx(-kl.item(), rel=1e-5)
    ce = F.cross_entropy(student, y)
    expected = 0.9 * ce + 0.3 * kl
    assert scrub.min_loss(teacher, student, y, chosen).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scrub_steps_move_the_right_way(trained):
    f_o, split = trained
    row = {"epochs": 2, "lr": 1e-3, "alpha": 0.0, "gamma": 1.0, "temperature": 4.0}
    x = split.train.batch(split.forget)
    # at f_o itself the KL has no slope, so it is the second max-epoch that ascends
    once, twice = (scrub.unlearn(f_o, split, settings({**row, "msteps": n}, seed=0)) for n in (1, 2))
    kl = [scrub.distillation(f_o(x)[0], model(x)[0], 4.0).item() for model in (once, twice)]
    assert kl[1] > 1.5 * kl[0] > 0
    index = split.remain
    x_r, y_r = split.train.batch(index), split.train.labels[index]
    rough = models.build("CNN", 4, seed=5).eval()
    tuned = scrub.unlearn(rough, split, settings({**row, "msteps": 0, "lr": 1e-2}, seed=0))
    assert F.cross_entropy(tuned(x_r)[0], y_r) < F.cross_entropy(rough(x_r)[0], y_r)


@pytest.mark.parametrize(("own", "steps"), [({}, 2), ({"forget_batch_size": 8}, 5)])
def test_scrub_maximises_first_then_minimises(trained, monkeypatch, own, steps):
    f_o, split = trained
    order = []
    for name in ("max_loss", "min_loss"):
        original = getattr(scrub, name)
        monkeypatch.setattr(scrub, name, lambda *a, n=name, f=original: order.append(n) or f(*a))
    row = {"epochs": 3, "msteps": 2, "lr": 1e-4, "alpha": 0.5, "gamma": 1.0, "temperature": 4.0}
    scrub.unlearn(f_o, split, settings(row | own, seed=0))
    epochs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert epochs == ["max_loss", "min_loss", "max_loss", "min_loss"]
    assert (order.count("max_loss"), order.count("min_loss")) == (2 * steps, 3 * 12)  # of 40 and 360 samples


@pytest.mark.parametrize("e, slices, expected", [(20, 4, [8, 8, 8, 8]), (10, 4, [4, 4, 4, 4]), (3, 2, [2, 2])])
def test_sisa_stage_epochs(e, slices, expected):
    found = sisa.stage_epochs(e, slices)
    assert found == expected
    passes = sum(n * (r + 1) / slices for r, n in enumerate(found))
    assert passes == pytest.approx(e, rel=0.25)


def test_sisa_shards_are_a_partition():
    parts = sisa.shard_slices(1003, 5, 4)
    sizes = [sum(map(len, shard)) for shard in parts]
    assert max(sizes) - min(sizes) <= 1 and all(len(shard) == 4 for shard in parts)
    assert sorted(torch.cat([slice_ for shard in parts for slice_ in shard]).tolist()) == list(range(1003))


def test_sisa_equals_training_without_the_forget_set(trained):
    f_o, split = trained
    parts = sisa.shard_slices(400, 3, 2)
    split = replace(split, forget=torch.stack([shard[0][0] for shard in parts]).sort().values)
    keep = ~torch.isin(torch.arange(400), split.forget)
    split = replace(split, remain=keep.nonzero()[:, 0])
    prepared = prepare(split)
    found = sisa.unlearn(f_o, split, settings(SISA_ROW, seed=0, prepared=prepared))
    for k, member in enumerate(found.members):
        expected = models.restore("CNN", 4, prepared[k][0])
        for stage in range(2):
            index = torch.cat(parts[k][: stage + 1])
            index = index[~torch.isin(index, split.forget)]
            rng = generator(0, "SISA", k, stage)
            epochs = sisa.stage_epochs(2, 2)[stage]
            train(expected, split.train, index, epochs=epochs, lr=1e-3, batch_size=32, rng=rng)
        assert same_weights(member, expected)


def test_sisa_goes_back_to_a_checkpoint_that_has_not_seen_the_forget_set(trained):
    f_o, split = trained
    parts = sisa.shard_slices(400, 3, 2)
    split = replace(split, forget=parts[1][1][:5].sort().values)  # in the second slice of the second shard alone
    prepared = prepare(split)
    found = sisa.unlearn(f_o, split, settings(SISA_ROW, seed=0, prepared=prepared))
    for k in (0, 2):  # untouched: not trained again
        assert same_weights(found.members[k], models.restore("CNN", 4, prepared[k][-1]))
    # what the second shard starts from is its checkpoint before stage 2, which has read the first slice only
    start = models.restore("CNN", 4, prepared[1][1])
    changed = copy.deepcopy(split)
    changed.train.pixels[split.forget] = 255
    again = prepare(changed)
    assert same_weights(start, models.restore("CNN", 4, again[1][1]))
    assert not same_weights(models.restore("CNN", 4, prepared[1][2]), models.restore("CNN", 4, again[1][2]))
    other = sisa.unlearn(f_o, changed, settings(SISA_ROW, seed=0, prepared=prepared))
    assert same_weights(found, other)


def test_ensemble_is_the_mean_of_the_softmax_outputs(trained):
    split = trained[1]
    members = [models.build("CNN", 4, seed=k).eval() for k in range(3)]
    x = split.train.batch(torch.arange(10))
    mean = torch.stack([member(x)[0].softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(models.Ensemble(members)(x)[0].softmax(1), mean)


def test_unroll_undoes_a_single_batch(trained):
    f_o, split = trained
    split = replace(split, remain=torch.empty(0, dtype=torch.long))
    found = METHODS["Unroll"].unlearn(f_o, split, settings({"epochs": 1, "lr": 0.05}, seed=0, batch_size=40))
    for a, b in zip(found.parameters(), f_o.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_unroll_adds_back_just_the_recorded_gradients(trained):
    f_o, split = trained
    chosen = settings({"epochs": 1, "lr": 0.05}, seed=0)
    found = METHODS["Unroll"].unlearn(f_o, split, chosen)
    model, rng, recorded = copy.deepcopy(f_o).train(), generator(0, "Unroll"), 0
    for index in (split.forget, split.remain):
        for _, x, y in shuffled_batches(split.train, index, 32, rng):
            gradients = torch.autograd.grad(F.cross_entropy(model(x)[0], y), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter -= 0.05 * gradient
            recorded += gradients[-1] if index is split.forget else 0
    expected = list(model.parameters())[-1] + 0.05 * recorded
    torch.testing.assert_close(list(found.parameters())[-1], expected, atol=1e-5, rtol=1e-4)
