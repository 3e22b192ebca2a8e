"""What makes each baseline the method of its paper."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import SmallNet, colour_images, loaded, make_toy_split, same_weights

import models
import training
from baselines import METHODS, boundary, neggrad, sisa
from data import Images, Split, cycled_batches, derive_seed, generator, shuffled_batches
from harness import graphs
from harness.store import UserError
from hyperparameters import HYPERPARAMETERS, hyperparameters_of, settings, training_row
from training import train

BATCH = 16
SISA_ROW = {"shards": 3, "slices": 2, "epochs": 2, "lr": 1e-3}


@pytest.fixture(scope="module")
def plain():
    """A CNN that has learned the toy images, and their split."""
    split = make_toy_split(count=200)
    model = models.build("CNN", 4, seed=1)
    train(model, split.train, torch.arange(200), epochs=2, lr=1e-3, batch_size=32, rng=generator("toy"))
    return model.eval(), split


@pytest.fixture(scope="module")
def augmented():
    """A model with batch normalisation, fresh from `models.build`, and a split of images that are cropped at random."""
    pixels, labels = colour_images(60, side=8)
    images = Images(pixels, labels, side=8, normalise=True, augment=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "small", partial(SmallNet, 3 * 8 * 8))
        f_o = models.build("small", 4, seed=0).eval()
        yield f_o, Split(images, torch.arange(8), torch.arange(8, 60), 4, "small")


def prepare(split, row=SISA_ROW):
    chosen = settings(row, seed=0)
    return [sisa.prepare_shard(k, split.train, split.model, split.classes, chosen) for k in range(row["shards"])]


def quick_settings(method, split, seed=0):
    """One epoch of the method with the table's row for OptDigits."""
    row = hyperparameters_of(method, "OptDigits", split.kind, training_row("OptDigits", "CNN")) | {"epochs": 1}
    row |= SISA_ROW if method == "SISA" else {"repeats": 1} if method == "CaMU" else {}
    more = {"prepared": prepare(split)} if method == "SISA" else {"test_accuracy": 90.0}
    return settings(row, seed=seed, **more)


def test_every_method_has_hyperparameters():
    assert METHODS.keys() == HYPERPARAMETERS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_f_o_and_follows_its_seed(method, plain):
    f_o, split = plain
    before = copy.deepcopy(f_o)
    first, again, other = (METHODS[method].unlearn(f_o, split, quick_settings(method, split, s)) for s in (0, 0, 1))
    assert same_weights(f_o, before) and not f_o.training and not first.training
    assert same_weights(first, again) and (method == "Original") == same_weights(first, other)
    logits, z = first(split.train.batch(torch.arange(3)))
    assert logits.shape == (3, 4) and z.shape == (3, 256)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_batch_normalisation_and_augmentation(method, augmented):
    f_o, split = augmented
    before = copy.deepcopy(f_o)
    chosen = quick_settings(method, split)
    f_u = METHODS[method].unlearn(f_o, split, chosen)
    assert same_weights(f_o, before) and not f_u.training
    assert torch.isfinite(f_u(split.train.batch(torch.arange(4)))[0]).all()


@pytest.mark.parametrize(
    "method, unread",
    [
        *((method, "neither") for method in METHODS if method not in ("Original", "SISA")),
        ("Retrain", "forget"),
        ("Boundary", "remain"),
        ("SISA", "forget"),  # from the request on: its shards are made of all samples
    ],
)
def test_no_method_reads_other_samples_than_it_should(method, unread, plain):
    f_o, split = plain
    if unread == "neither":
        split = replace(split, forget=split.forget[2:], remain=split.remain[10:])
    read = torch.cat({"neither": [split.forget, split.remain], "forget": [split.remain]}.get(unread, [split.forget]))
    pixels = torch.zeros_like(split.train.pixels)
    pixels[read] = split.train.pixels[read]
    blanked = replace(split, train=replace(split.train, pixels=pixels))
    chosen = quick_settings(method, split)
    assert same_weights(*(METHODS[method].unlearn(f_o, one, chosen) for one in (split, blanked)))


def epoch(images, index, batch_size, rng):
    return loaded(shuffled_batches(images, index, batch_size, rng), images, index)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def optimizer_of(f_u, row, momentum=0.0):
    if row["optimizer"] == "SGD":
        return torch.optim.SGD(f_u.parameters(), row["lr"], momentum, weight_decay=row["weight_decay"])
    return torch.optim.Adam(f_u.parameters(), row["lr"], weight_decay=row["weight_decay"])


def neggrad_written_out(f_o, f_u, split, row, seed):
    optimizer = optimizer_of(f_u, row)
    forget = cycled_batches(split.train, split.forget, BATCH, generator(seed, "NegGrad forget"))
    forget = loaded(forget, split.train, split.forget)
    rng = generator(seed, "NegGrad")
    for _ in range(row["epochs"]):
        for _, x_r, y_r in epoch(split.train, split.remain, BATCH, rng):
            _, x_f, y_f = next(forget)
            remain, forgotten = (F.cross_entropy(f_u(x)[0], y) for x, y in ((x_r, y_r), (x_f, y_f)))
            step(optimizer, row["a"] * remain - (1 - row["a"]) * forgotten)


def boundary_written_out(f_o, f_u, split, row, seed):
    labels = boundary.nearest_wrong_labels(f_o, split)
    optimizer = torch.optim.SGD(f_u.parameters(), row["lr"], momentum=0.9)
    rng = generator(seed, "Boundary")
    for _ in range(row["epochs"]):
        for rows in torch.randperm(len(split.forget), generator=rng).split(BATCH):
            step(optimizer, F.cross_entropy(f_u(split.train.batch(split.forget[rows]))[0], labels[rows]))


def teacher_student_written_out(f_o, f_u, split, row, seed):
    incompetent = models.build(split.model, split.classes, derive_seed(seed, "incompetent teacher")).eval()
    order = torch.randperm(len(split.remain), generator=generator(seed, "T-S part of D_r"))
    kept = split.remain[order[: round(row["remain_fraction"] * len(split.remain))]]
    optimizer = torch.optim.Adam(f_u.parameters(), row["lr"])
    rng = generator(seed, "T-S")
    for _ in range(row["epochs"]):
        for rows, x, _ in epoch(split.train, torch.cat([split.forget, kept]), BATCH, rng):
            forgotten = (rows < len(split.forget))[:, None]
            target = torch.where(forgotten, incompetent(x)[0], f_o(x)[0]).detach().softmax(1)
            step(optimizer, (target * (target.log() - f_u(x)[0].log_softmax(1))).sum(1).mean())


def scrub_written_out(f_o, f_u, split, row, seed):
    optimizer = optimizer_of(f_u, row, momentum=0.9)
    rng = generator(seed, "SCRUB")

    def divergence(x, logits):
        p, q = ((z / row["temperature"]).softmax(1) for z in (f_o(x)[0].detach(), logits))
        return row["temperature"] ** 2 * (p * (p.log() - q.log())).sum(1).mean()

    for number in range(row["epochs"]):
        if number < row["msteps"]:
            for _, x, _ in epoch(split.train, split.forget, row["forget_batch_size"], rng):
                step(optimizer, -divergence(x, f_u(x)[0]))
        for _, x, y in epoch(split.train, split.remain, BATCH, rng):
            logits = f_u(x)[0]
            step(optimizer, row["gamma"] * F.cross_entropy(logits, y) + row["alpha"] * divergence(x, logits))
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 if number + 1 in row["decay_after"] else 1


def unroll_written_out(f_o, f_u, split, row, seed):
    """w_T + lr * epochs * the sum of the gradients at w_0, in training mode, of D_f's batches."""
    model, at_start = copy.deepcopy(f_o).train(), [0 for _ in f_u.parameters()]
    for _, x, y in epoch(split.train, split.forget, BATCH, generator(seed, "Unroll gradients")):
        gradients = torch.autograd.grad(F.cross_entropy(model(x)[0], y), list(model.parameters()))
        at_start = [total + gradient for total, gradient in zip(at_start, gradients)]
    optimizer, rng = optimizer_of(f_u, row, momentum=0.9), generator(seed, "Unroll")
    for _ in range(row["epochs"]):
        for index in (split.forget, split.remain):
            for _, x, y in epoch(split.train, index, BATCH, rng):
                step(optimizer, F.cross_entropy(f_u(x)[0], y))
    with torch.no_grad():
        for parameter, gradient in zip(f_u.parameters(), at_start):
            parameter += row["lr"] * row["epochs"] * gradient


ADAM, SGD = {"optimizer": "Adam", "weight_decay": 1e-2}, {"optimizer": "SGD", "weight_decay": 1e-2}
SCRUB_ROW = {"epochs": 3, "msteps": 2, "lr": 2e-3, "alpha": 0.5, "gamma": 0.9, "temperature": 3.0, "decay_after": [1]}
SCRUB_ROW |= {"forget_batch_size": BATCH}
SCRUB_ADAM = SCRUB_ROW | ADAM | {"lr": 2e-4, "forget_batch_size": 3, "decay_after": [1, 2]}
NEGGRAD_ROW = {"epochs": 2, "lr": 0.01, "a": 0.8, "stop": 0}
WRITTEN_OUT = {
    "NegGrad": (METHODS["NegGrad"], neggrad_written_out, NEGGRAD_ROW | SGD),
    "NegGrad by Adam": (METHODS["NegGrad"], neggrad_written_out, NEGGRAD_ROW | ADAM | {"lr": 1e-4}),
    "Boundary": (METHODS["Boundary"], boundary_written_out, {"epochs": 3, "lr": 3e-3}),
    "T-S": (METHODS["T-S"], teacher_student_written_out, {"epochs": 2, "lr": 1e-3, "remain_fraction": 0.3}),
    "SCRUB": (METHODS["SCRUB"], scrub_written_out, SCRUB_ROW | SGD),
    "SCRUB by Adam with batches of D_f": (METHODS["SCRUB"], scrub_written_out, SCRUB_ADAM),
    "Unroll": (METHODS["Unroll"], unroll_written_out, {"epochs": 2, "lr": 0.02} | SGD),
    "Unroll by Adam": (METHODS["Unroll"], unroll_written_out, {"epochs": 2, "lr": 1e-4} | ADAM),
}


@pytest.mark.parametrize("data", ["plain", "augmented"])
@pytest.mark.parametrize("method", [name for name in WRITTEN_OUT if "Adam" not in name])
def test_a_baseline_equals_its_algorithm_written_out(method, data, request):
    compare(method, *request.getfixturevalue(data), atol=1e-5)


@pytest.mark.parametrize("method", [name for name in WRITTEN_OUT if "Adam" in name])
def test_a_baseline_by_adam_equals_its_algorithm_written_out(method, plain):
    """In double precision, where Adam is no chaos."""
    f_o, split = plain
    images = replace(split.train, pixels=split.train.pixels.double() / 255)
    compare(method, copy.deepcopy(f_o).double(), replace(split, train=images), atol=1e-9)


def compare(method, f_o, split, atol):
    module, written_out, row = WRITTEN_OUT[method]
    expected = copy.deepcopy(f_o).train()
    written_out(f_o, expected, split, row, seed=3)
    found = module.unlearn(f_o, split, settings(row, seed=3, batch_size=BATCH)).state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=10 * atol, atol=atol)


@pytest.mark.parametrize("normalise", [False, True])
def test_boundary_attack_respects_its_bound_in_pixel_space(normalise, augmented):
    model, split = augmented
    images = replace(split.train, normalise=normalise, augment=False)
    clean = images.pixels / 255
    attacked = boundary.fgsm(model, images, torch.arange(len(images)))
    moved = attacked - clean
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert moved.abs().max() <= boundary.BOUND + 0.5 / 255 + 1e-6 and moved.abs().max() > 0.09
    torch.testing.assert_close(attacked * 255, (attacked * 255).round())
    before, after = (F.cross_entropy(model(images.standardise(x))[0], images.labels) for x in (clean, attacked))
    assert after > before


def test_boundary_attack_leaves_inputs_that_are_no_pixels_in_their_own_range(plain):
    model, split = plain
    standardised = (split.train.pixels / 255 - 0.5) / 0.2
    attacked = boundary.fgsm(model, Images(standardised, split.train.labels), torch.arange(200))
    torch.testing.assert_close((attacked - standardised).abs().max(), torch.tensor(boundary.BOUND))
    assert attacked.min() < -1 and attacked.max() > 1.1


def test_boundary_labels_are_the_nearest_wrong_ones(plain):
    f_o, split = plain
    own = (split.train.labels + (torch.arange(200) % 3 == 0)) % 4  # a third of the labels is wrong
    images, index = replace(split.train, labels=own), torch.arange(300) % 200  # more than are attacked at a time
    labels = boundary.nearest_wrong_labels(f_o, replace(split, train=images, forget=index))
    ranked = f_o(boundary.fgsm(f_o, images, index))[0].argsort(1, descending=True)
    right = ranked[:, 0] == own[index]
    assert right.any() and not right.all() and (labels != own[index]).all()
    assert torch.equal(labels, torch.where(right, ranked[:, 1], ranked[:, 0]))


def test_boundary_teaches_no_class_that_is_to_be_forgotten_too(plain):
    f_o, split = plain
    of_two = torch.isin(split.train.labels, torch.tensor([0, 1]))
    both = replace(split, forget=of_two.nonzero()[:, 0], remain=(~of_two).nonzero()[:, 0], forgotten_classes=(0, 1))
    alone = replace(split, forget=both.forget)  # the two classes occur in D_r
    assert torch.isin(boundary.nearest_wrong_labels(f_o, alone), torch.tensor([0, 1])).any()
    assert torch.isin(boundary.nearest_wrong_labels(f_o, both), torch.tensor([2, 3])).all()


class TwoWeights(torch.nn.Module):
    """A model of two parameters: logits (w_1 x, w_2 x)."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x):
        return x.flatten(1) * self.w, x.flatten(1)


def test_unroll_by_hand():
    """One sample x = 1 of class 0 is forgotten, one x = 2 of class 1 stays; one epoch of SGD, without momentum yet."""
    images = Images(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([0, 1]))
    split = Split(images, torch.tensor([0]), torch.tensor([1]), 2)
    row = {"epochs": 1, "lr": 0.1, "optimizer": "SGD", "weight_decay": 0.0}
    f_u = METHODS["Unroll"].unlearn(TwoWeights(), split, settings(row, seed=0))

    def gradient(w, x, own):  # of -log softmax(w x)[own]: x (p - e_own)
        p = [math.exp(w[k] * x) / (math.exp(w[0] * x) + math.exp(w[1] * x)) for k in range(2)]
        return [x * (p[k] - (k == own)) for k in range(2)]

    w_0 = [0.3, -0.2]
    g_f = gradient(w_0, 1.0, 0)
    w = [a - 0.1 * g for a, g in zip(w_0, g_f)]  # the batch of D_f, then that of D_r with momentum 0.9
    w = [a - 0.1 * (0.9 * f + g) for a, f, g in zip(w, g_f, gradient(w, 2.0, 1))]
    assert f_u.w.tolist() == pytest.approx([a + 0.1 * f for a, f in zip(w, g_f)], abs=1e-6)


def test_neggrad_stops_where_the_forgotten_are_known_no_better_than_unseen_samples(plain, monkeypatch):
    monkeypatch.setattr(neggrad, "FIRST_LOOK", 1)
    f_o, split = plain
    row = NEGGRAD_ROW | {"optimizer": "Adam", "weight_decay": 1e-4, "lr": 1e-3, "a": 0.5, "epochs": 20}
    accuracy = {}
    for stop, target in ((0, None), (1, 99.0), (1, 30.0)):
        f_u = METHODS["NegGrad"].unlearn(f_o, split, settings(row | {"stop": stop}, seed=0, test_accuracy=target))
        accuracy[target] = neggrad.forget_accuracy(f_u, split)
    assert accuracy[99.0] <= 99 and accuracy[30.0] <= 30 and accuracy[99.0] > accuracy[None]
    whole = replace(split, forgotten_classes=(0,))  # its target is 0, whatever f_o's accuracy
    f_u = METHODS["NegGrad"].unlearn(f_o, whole, settings(row | {"stop": 1}, seed=0))
    assert neggrad.forget_accuracy(f_u, split) == 0
    with pytest.raises(UserError, match="NegGrad's stop needs the accuracy of f_o on test samples"):
        METHODS["NegGrad"].unlearn(f_o, split, settings(row | {"stop": 1}, seed=0))


def test_neggrad_looks_ten_times_an_epoch_but_not_at_its_very_first_steps(plain, monkeypatch):
    f_o, split = plain
    row, looks = NEGGRAD_ROW | ADAM | {"lr": 1e-5, "stop": 1, "epochs": 4}, []
    monkeypatch.setattr(neggrad, "forget_accuracy", lambda f_u, split: looks.append(1) or 100)
    for batch_size, least, expected in ((2, 5, 40), (2, 30, 37), (32, 50, 0)):  # 90 and 6 batches an epoch
        monkeypatch.setattr(neggrad, "FIRST_LOOK", least)
        looks.clear()
        METHODS["NegGrad"].unlearn(f_o, split, settings(row, seed=0, batch_size=batch_size, test_accuracy=50.0))
        assert len(looks) == expected


def test_every_epoch_is_watched(plain):
    f_o, split = plain
    for method in set(METHODS) - {"Retrain", "Original", "SISA"}:
        seen = []
        chosen = quick_settings(method, split)
        chosen.epochs, chosen.watch, chosen.stop = 2, seen.append, 0
        f_u = METHODS[method].unlearn(f_o, split, chosen)
        assert [model is f_u for model in seen] == [True, True], method


@pytest.mark.parametrize("e, slices, expected", [(20, 4, [8, 8, 8, 8]), (10, 4, [4, 4, 4, 4]), (3, 2, [2, 2])])
def test_sisa_stages_pass_over_as_many_samples_as_the_epochs(e, slices, expected):
    found = sisa.stage_epochs(e, slices)
    assert found == expected
    passes = sum(n * (r + 1) / slices for r, n in enumerate(found))
    assert passes == pytest.approx(e, rel=0.25)


def test_sisa_shards_are_a_partition():
    parts = sisa.shard_slices(1003, 5, 4)
    sizes = [sum(map(len, shard)) for shard in parts]
    assert max(sizes) - min(sizes) <= 1 and all(len(shard) == 4 for shard in parts)
    everything = torch.cat([slice_ for shard in parts for slice_ in shard]).tolist()
    assert sorted(everything) == list(range(1003)) != everything


def test_sisa_equals_training_without_the_forget_set_from_the_last_clean_checkpoint(plain):
    """D_f lies in the first slice of shard 1 and in the second of shard 2; shard 0 has none of it."""
    f_o, split = plain
    parts = sisa.shard_slices(200, 3, 2)
    forget = torch.cat([parts[1][0][:3], parts[2][1][:5]]).sort().values
    remain = torch.arange(200)[~torch.isin(torch.arange(200), forget)]
    prepared = prepare(split)
    needed = [2, 0, 1]
    given = [[state if k == i else None for i, state in enumerate(states)] for k, states in zip(needed, prepared)]
    chosen = settings(SISA_ROW, seed=0, prepared=given)
    found = sisa.unlearn(f_o, replace(split, forget=forget, remain=remain), chosen)
    for shard, member in enumerate(found.members):
        expected = models.build("CNN", 4, derive_seed(0, "SISA weights", shard))
        assert same_weights(expected, models.restore("CNN", 4, prepared[shard][0]))
        for stage, epochs in enumerate(sisa.stage_epochs(2, 2)):
            index = torch.cat(parts[shard][: stage + 1])
            index = index[~torch.isin(index, forget)]
            rng = generator(0, "SISA", shard, stage)
            train(expected, split.train, index, epochs=epochs, lr=1e-3, batch_size=32, rng=rng)
        assert same_weights(member, expected)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("Retrain", "Original", "SISA")])
def test_dropout_follows_the_seed_and_frozen_layers_stay_as_they_are(method):
    split = make_toy_split(count=120)
    torch.manual_seed(3)
    f_o = SmallNet(28 * 28)
    f_o.head.insert(1, torch.nn.Dropout(0.5))
    f_o.head.append(torch.nn.BatchNorm1d(4))
    f_o.eval()
    state = torch.get_rng_state()
    first = METHODS[method].unlearn(f_o, split, quick_settings(method, split))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(17)
    assert same_weights(first, METHODS[method].unlearn(f_o, split, quick_settings(method, split)))
    frozen = f_o.features.requires_grad_(False)
    f_u = METHODS[method].unlearn(f_o, split, quick_settings(method, split))
    assert same_weights(f_u.features, frozen) and not same_weights(f_u.head, f_o.head)
    flags = [parameter.requires_grad for parameter in f_o.parameters()]
    assert [parameter.requires_grad for parameter in f_u.parameters()] == flags and True in flags
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        METHODS[method].unlearn(f_o.requires_grad_(False), split, quick_settings(method, split))


@pytest.mark.parametrize("data", ["plain", "augmented"])
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("Original",)])
def test_every_method_is_the_same_by_captured_steps(method, data, request, monkeypatch):
    """With a stand-in for the graph: fixed places for what a step reads, and a new capture where a setting changes."""
    f_o, split = request.getfixturevalue(data)
    chosen = quick_settings(method, split)
    chosen.epochs, chosen.decay_after, chosen.batch_size, chosen.forget_batch_size = 3, [1, 2], 4, 3
    expected = METHODS[method].unlearn(f_o, split, chosen)
    monkeypatch.setattr(graphs, "capture", lambda step, static: (lambda: step(*static), None))
    monkeypatch.setattr(graphs, "on_side_stream", lambda step, given: step(*given))
    for module in (training, *METHODS.values()):
        if hasattr(module, "captured"):
            monkeypatch.setattr(module, "captured", lambda step, device: graphs.Captured(step))
    if method == "CaMU":  # its steps give their losses
        monkeypatch.setattr(graphs, "capture", losses_in_place)
    assert same_weights(METHODS[method].unlearn(f_o, split, chosen), expected)


def losses_in_place(step, static):
    results = (torch.zeros(()), torch.zeros(()))

    def replay():
        for place, value in zip(results, step(*static)):
            place.copy_(value)

    return replay, results
