import copy
import math

import pytest
import torch
from conftest import same_weights
from torch import nn
from torch.distributions import Categorical, kl_divergence

import camu
from config import HYPERPARAMETERS, settings
from data import Images, Split, counterfactuals, joint_dataset

ROW = {"epochs": 1, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 1}


def test_representation_loss_by_hand():
    # p = (1/2, 1/2) against q = (3/4, 1/4): KL = ln 2 - ln 3 / 2
    p, z = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.75, 0.25]]))
    kl = math.log(2) - math.log(3) / 2
    assert camu.representation_loss(p, z, p, z).item() == pytest.approx(kl, abs=1e-6)
    assert camu.representation_loss(p, z, None, z).item() == pytest.approx(kl / 2, abs=1e-6)


def test_representation_loss_against_distributions():
    rng = torch.Generator().manual_seed(0)
    a_r, z_r, a_c, z_f = (torch.randn(5, 7, generator=rng) for _ in range(4))
    expected = 0.5 * sum(
        kl_divergence(Categorical(logits=a), Categorical(logits=z)).sum() for a, z in ((a_r, z_r), (a_c, z_f))
    )
    found = camu.representation_loss(a_r.log_softmax(1), z_r, a_c.log_softmax(1), z_f)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_output_loss_by_hand():
    logits_r = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    logits_f = torch.log(torch.tensor([[0.1, 0.9]]))
    y_r, y_c = torch.tensor([0, 0]), torch.tensor([0])
    expected = 0.9 * (math.log(2) + math.log(4)) / 2 + 0.01 * math.log(10)
    assert camu.output_loss(logits_r, y_r, logits_f, y_c).item() == pytest.approx(expected, abs=1e-6)
    assert camu.output_loss(logits_r, y_r, logits_f, y_c, forget_term=False).item() == pytest.approx(
        0.9 * (math.log(2) + math.log(4)) / 2, abs=1e-6
    )


def test_pre_unlearning_model_is_unchanged_and_the_seed_decides(toy_split, toy_model):
    before = copy.deepcopy(toy_model)
    first, again = (camu.unlearn(toy_model, toy_split, settings(ROW, seed=3)) for _ in range(2))
    other = camu.unlearn(toy_model, toy_split, settings(ROW, seed=4))
    assert same_weights(toy_model, before) and not toy_model.training
    assert all(parameter.requires_grad for parameter in first.parameters())
    assert same_weights(first, again) and not same_weights(first, other)
    assert not same_weights(first, toy_model)


def unlearn_by_the_book(f_o, split, row, seed):
    """Algorithm 2 written out: one batch that holds all of J, separate passes, the teacher run on every batch."""
    joint = joint_dataset(split, row["repeats"], seed)
    x_c = torch.cat([x for _, _, x in counterfactuals(split, joint)])
    x_r, x_f = split.train.batch(joint.remain), split.train.batch(joint.forget)
    y_r = split.train.labels[joint.remain]
    f_u = copy.deepcopy(f_o)
    kl_step = torch.optim.Adam(f_u.parameters(), row["lr_kl"], weight_decay=1e-4)
    ce_step = torch.optim.Adam(f_u.parameters(), row["lr_ce"], weight_decay=1e-4)
    states = []
    for _ in range(row["epochs"]):
        loss = 0
        for source, target in ((x_r, x_r), (x_c, x_f)):
            a = f_o(source)[1].detach().log_softmax(1)
            loss = loss + 0.5 * (a.exp() * (a - f_u(target)[1].log_softmax(1))).sum()
        kl_step.zero_grad()
        loss.backward()
        kl_step.step()
        states.append(copy.deepcopy(f_u))
        loss = 0.9 * nn.functional.cross_entropy(f_u(x_r)[0], y_r)
        loss = loss + 0.01 * nn.functional.cross_entropy(f_u(x_f)[0], joint.y_c)
        ce_step.zero_grad()
        loss.backward()
        ce_step.step()
        states.append(copy.deepcopy(f_u))
    return states


def test_equals_algorithm_2_written_out(toy_split, toy_model):
    row = {**ROW, "epochs": 2}
    *_, expected = unlearn_by_the_book(toy_model, toy_split, row, seed=0)
    found = camu.unlearn(toy_model, toy_split, settings(row, seed=0, batch_size=len(toy_split.forget)))
    for a, b in zip(found.parameters(), expected.parameters()):
        # Adam's first steps have the size of the learning rate whatever the gradient, so rounding shows as a part of it
        assert (a - b).abs().mean() < 0.01 * row["lr_kl"]


def test_each_loss_steps_with_its_own_learning_rate(toy_split, toy_model):
    # Adam's first step moves a weight with a gradient by just the learning rate.
    after_kl, _ = unlearn_by_the_book(toy_model, toy_split, ROW, seed=0)
    found = camu.unlearn(toy_model, toy_split, settings(ROW, seed=0, batch_size=len(toy_split.forget)))
    head = [name for name, _ in toy_model.named_parameters() if name.startswith("head")]
    before, after = toy_model.state_dict(), found.state_dict()
    for name in head:  # L_KL does not reach the head: only the cross-entropy's rate is seen there
        assert torch.equal(after_kl.state_dict()[name], before[name])
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(ROW["lr_ce"], rel=1e-2)
    step = (after_kl.state_dict()["features.7.bias"] - before["features.7.bias"]).abs().max().item()
    assert step == pytest.approx(ROW["lr_kl"], rel=1e-2)
    slow = camu.unlearn(toy_model, toy_split, settings({**ROW, "lr_kl": 1e-12}, seed=0, batch_size=40)).state_dict()
    assert (slow["features.7.bias"] - before["features.7.bias"]).abs().max().item() <= ROW["lr_ce"] * 1.01


def test_one_pass_equals_two(toy_split, toy_model):
    x = toy_split.train.batch(toy_split.forget)
    together = camu.forward_both(toy_model, x[:20], x[20:])
    apart = *toy_model(x[:20]), *toy_model(x[20:])
    for a, b in zip(together, apart):
        torch.testing.assert_close(a, b)


def test_batch_normalisation_sees_the_tuples_as_one_batch():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            z = self.norm(x)
            return z, z

    rng = torch.Generator().manual_seed(0)
    x_r, x_f = torch.randn(8, 3, generator=rng), 5 + torch.randn(8, 3, generator=rng)
    _, z_r, _, z_f = camu.forward_both(Normalised(), x_r, x_f)
    assert torch.cat([z_r, z_f]).mean().abs() < 1e-5 and z_f.mean() > 0.5 > z_r.mean()


@pytest.mark.parametrize("relabel_forget", [False, True])
def test_without_a_term_on_x_f_it_has_no_say(toy_split, toy_model, relabel_forget):
    """Not even through the batch statistics: forward passes on x_r alone unless a loss needs x_f."""
    seen = []
    toy_model.register_forward_hook(lambda model, inputs, _: seen.append(len(inputs[0])) if model.training else None)
    chosen = {"align_forget": False, "relabel_forget": relabel_forget}
    camu.unlearn(toy_model, toy_split, settings({**ROW, **chosen}, seed=0, batch_size=len(toy_split.forget)))
    assert set(seen) == {len(toy_split.forget) * (2 if relabel_forget else 1)}


def test_x_f_keeps_its_crop_and_x_r_gets_a_new_one_every_epoch():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 8 * 8, 4)

        def forward(self, x):
            if self.training:
                seen.append(x.detach().sum((1, 2, 3)))
            z = self.layer(x.flatten(1))
            return z, z

    seen, rng = [], torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=rng, dtype=torch.uint8)
    images = Images(pixels, torch.arange(40) % 4, side=8, normalise=True, augment=True)
    split = Split(images, torch.arange(10), torch.arange(10, 40), 4)
    camu.unlearn(Flat(), split, settings({**ROW, "epochs": 2}, seed=0, batch_size=10 * ROW["repeats"]))
    halves = [[half.sort().values for half in x.chunk(2)] for x in seen]  # (x_r, x_f) of L_KL and L_CE, twice
    assert len(halves) == 4 and all(torch.allclose(halves[0][1], half[1], atol=1e-3) for half in halves)
    assert torch.allclose(halves[0][0], halves[1][0]) and not torch.allclose(halves[1][0], halves[2][0], atol=1)


def test_published_settings():
    rows = HYPERPARAMETERS["CaMU"].items()
    published = {(f, kind): row for (f, kind), row in rows if f in ("MNIST", "CIFAR") and kind != "few"}
    assert {place: (row["epochs"], row["lr_ce"], row["lr_kl"]) for place, row in published.items()} == {
        ("MNIST", "random"): (10, 5e-4, 4e-4),
        ("MNIST", "class"): (2, 1e-3, 4e-4),
        ("CIFAR", "random"): (10, 1e-4, 1e-5),
        ("CIFAR", "class"): (2, 5e-5, 1e-5),
    }
