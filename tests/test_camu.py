import copy
import math
import warnings

import pytest
import torch
from conftest import SmallNet, colour_images, make_toy_split, same_weights
from sklearn.datasets import load_digits
from torch import nn

import camu
import models
from data import Images, Split, counterfactuals, generator, joint_dataset, tensor_split
from hyperparameters import settings
from training import train

ROW = {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 2}
TERMS = {"all": ("KL_r", "KL_f", "CE_r", "CE_f")}
TERMS |= {name: tuple(changes["terms"]) for name, changes in camu.ABLATION.items() if "terms" in changes}


@pytest.fixture
def small():
    """A model and a split of 40 samples, 8 of them to be forgotten, in double precision, where Adam is no chaos."""
    torch.manual_seed(0)
    x, y = torch.rand(40, 1, 3, 5, dtype=torch.double), torch.arange(40) % 4
    return SmallNet(15).double().eval(), Split(Images(x, y), torch.arange(8), torch.arange(8, 40), 4)


def written_out(f_o, split, row, seed, terms):
    """Algorithm 2 in one batch that holds all of J; yields the weights and losses after every step."""
    joint = joint_dataset(split, row["repeats"], seed)
    x_c = torch.cat([masked(x_r) for _, x_r, masked in counterfactuals(split, joint)])
    x_r, x_f = split.train.batch(joint.remain), split.train.batch(joint.forget)
    y_r, y_c, n = split.train.labels[joint.remain], joint.y_c, len(joint)
    p_r, p_c = (f_o(x)[1].detach().softmax(1) for x in (x_r, x_c))
    f_u = copy.deepcopy(f_o).train()
    x = torch.cat([x_r, x_f]) if {"KL_f", "CE_f"} & set(terms) else x_r
    kl_step = torch.optim.Adam(f_u.parameters(), row["lr_kl"], weight_decay=1e-4)
    ce_step = torch.optim.Adam(f_u.parameters(), row["lr_ce"], weight_decay=1e-4)
    for _ in range(row["epochs"]):
        kl = torch.zeros(())
        if {"KL_r", "KL_f"} & set(terms):
            z = f_u(x)[1]
            if "KL_r" in terms:
                kl = kl + 0.5 * (p_r * (p_r / z[:n].softmax(1)).log()).sum()
            if "KL_f" in terms:
                kl = kl + 0.5 * (p_c * (p_c / z[n:].softmax(1)).log()).sum()
            kl_step.zero_grad()
            kl.backward()
            kl_step.step()
        log_q = f_u(x)[0].log_softmax(1)
        ce = -0.9 * log_q[:n].gather(1, y_r[:, None]).mean()
        if "CE_f" in terms:
            ce = ce - 0.01 * log_q[n:].gather(1, y_c[:, None]).mean()
        ce_step.zero_grad()
        ce.backward()
        ce_step.step()
        yield copy.deepcopy(f_u), kl.item(), ce.item()


@pytest.mark.parametrize("name", TERMS)
def test_every_step_equals_algorithm_2_written_out(small, name):
    f_o, split = small
    row = {**ROW, "epochs": 4}
    chosen = {} if name == "all" else {"terms": TERMS[name]}
    found = camu.steps(f_o, split, settings(row, seed=0, batch_size=16, **chosen))
    expected = list(written_out(f_o, split, row, 0, TERMS[name]))
    for (f_u, loss_kl, loss_ce), (model, kl, ce) in zip(found, expected, strict=True):
        assert (loss_kl.item(), loss_ce.item()) == pytest.approx((kl, ce), rel=1e-9, abs=1e-12)
        for entry, value in model.state_dict().items():
            torch.testing.assert_close(f_u.state_dict()[entry], value, rtol=0, atol=1e-9)


def test_the_ablations_of_the_paper_leave_out_these_terms():
    assert TERMS == {
        "all": camu.TERMS,
        "Finetune": ("CE_r",),
        "Remain-alignment": ("KL_r", "CE_r"),
        "Counterfactual": ("KL_f", "CE_r", "CE_f"),
    }


def test_every_step_of_the_published_code_written_out(small):
    """x_r of its own shuffle, y_c = y_r where it can, two passes: x_r and x_f for the KL, x_f and x_r for the CE."""
    f_o, split = small
    chosen = settings(ROW | {"epochs": 1}, seed=0, batch_size=8, **camu.ABLATION["Published-code"])
    joint = joint_dataset(split, 2, 0, "y_r")
    x_c = torch.cat([masked(x_r) for _, x_r, masked in counterfactuals(split, joint)])
    x_r, y_r = split.train.batch(joint.remain), split.train.labels[joint.remain]
    x_f, rng = split.train.batch(joint.forget), generator(0, "CaMU")
    orders = [torch.randperm(16, generator=rng) for _ in range(2)]
    f_u = copy.deepcopy(f_o).train()
    kl_step = torch.optim.Adam(f_u.parameters(), ROW["lr_kl"], weight_decay=1e-4)
    ce_step = torch.optim.Adam(f_u.parameters(), ROW["lr_ce"], weight_decay=1e-4)
    found = camu.steps(f_o, split, chosen)
    for (model, loss_kl, loss_ce), f, r in zip(found, orders[0].split(8), orders[1].split(8), strict=True):
        p_r, p_c = (f_o(x)[1].detach().softmax(1) for x in (x_r[r], x_c[f]))
        q_r = f_u(x_r[r])[1].softmax(1)
        q_f = f_u(x_f[f])[1].softmax(1)
        kl = 0.5 * (p_r * (p_r / q_r).log()).sum() + 0.5 * (p_c * (p_c / q_f).log()).sum()
        kl_step.zero_grad()
        kl.backward()
        kl_step.step()
        ce_f = nn.functional.cross_entropy(f_u(x_f[f])[0], joint.y_c[f])
        ce = 0.9 * nn.functional.cross_entropy(f_u(x_r[r])[0], y_r[r]) + 0.01 * ce_f
        ce_step.zero_grad()
        ce.backward()
        ce_step.step()
        assert (loss_kl.item(), loss_ce.item()) == pytest.approx((kl.item(), ce.item()), rel=1e-9)
        for entry, value in f_u.state_dict().items():
            torch.testing.assert_close(model.state_dict()[entry], value, rtol=0, atol=1e-9)


def test_a_frozen_feature_extractor_is_left_alone(small):
    f_o, split = small
    f_o.features.requires_grad_(False)
    f_u = camu.unlearn(f_o, split, settings(ROW, seed=0))
    assert same_weights(f_u.features, f_o.features) and not same_weights(f_u.head, f_o.head)


def test_a_class_that_is_known_as_well_as_before_is_told(toy_model):
    split = make_toy_split(forgotten_class=0)
    train(toy_model, split.train, torch.arange(400), epochs=2, lr=1e-3, batch_size=32, rng=generator("toy"))
    row = {"epochs": 1, "lr_ce": 0.0, "lr_kl": 0.0, "repeats": 1}
    with pytest.warns(UserWarning, match="the accuracy on D_f has not fallen"):
        camu.unlearn(toy_model, split, settings(row, seed=0))
    with warnings.catch_warnings(action="error"):
        camu.unlearn(toy_model, split, settings(row | {"lr_ce": 1e-3, "epochs": 3, "repeats": 3}, seed=0))
        camu.unlearn(toy_model, make_toy_split(), settings(row, seed=0))  # single samples may be known all the same


class Scripted(nn.Module):
    """Answers 0 (x_f), 10 (x_r) and what lies above (x_c) with given distributions, h's and g's at once."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        answers = {0: (0.6, 0.4), 10: (0.75, 0.25)} if self.training else {10: (0.5, 0.5), 11: (0.2, 0.8)}
        p = torch.tensor([answers[math.ceil(value)] for value in x.flatten()])
        return p.log() + self.shift, p.log() + self.shift


def test_losses_by_hand():
    """Two tuples of (x_r, x_f, x_c) with two classes: KLs are added up over them, cross-entropies averaged."""
    x, y = torch.tensor([0.0, 10, 10, 10]).view(4, 1, 1, 1), torch.tensor([0, 1, 1, 1])
    split = Split(Images(x, y), torch.tensor([0]), torch.tensor([1, 2, 3]), 2)
    row = {"epochs": 1, "lr_kl": 0.0, "lr_ce": 0.0, "repeats": 2}
    ((_, loss_kl, loss_ce),) = camu.steps(Scripted(), split, settings(row, seed=0))
    kl_r = math.log(2) - math.log(3) / 2  # p = (1/2, 1/2) against q = (3/4, 1/4)
    kl_f = 0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4)  # p of x_c against q of x_f
    assert loss_kl.item() == pytest.approx(0.5 * 2 * kl_r + 0.5 * 2 * kl_f, rel=1e-5)
    assert loss_ce.item() == pytest.approx(0.9 * -math.log(0.25) + 0.01 * -math.log(0.4), rel=1e-5)


def test_the_steps_are_the_unlearning(toy_split, toy_model):
    chosen = settings({**ROW, "repeats": 1}, seed=0)
    steps = [(id(f_u), *losses) for f_u, *losses in camu.steps(toy_model, toy_split, chosen)]
    assert len(steps) == 2 * 2 and len({place for place, *_ in steps}) == 1  # 2 epochs of 40 tuples, 32 a step
    *_, (last, _, _) = camu.steps(toy_model, toy_split, chosen)
    f_u = camu.unlearn(toy_model, toy_split, chosen)
    assert same_weights(f_u, last) and not f_u.training


def test_batches_are_of_so_many_tuples(small):
    """Steps of 5 tuples see the ones of 16 in parts: same tuples, all of them, other order."""
    f_o, split = small
    seen = []
    f_o.register_forward_hook(lambda model, inputs, _: seen.append(inputs[0]) if model.training else None)
    steps = list(camu.steps(f_o, split, settings({**ROW, "epochs": 1}, seed=0, batch_size=5)))
    joint = joint_dataset(split, 2, seed=0)
    assert len(steps) == 3 and [len(x) for x in seen] == [10, 10] * 2 + [12, 12]  # for L_KL and L_CE; no lone tuple
    x_r, x_f = (torch.cat(part) for part in zip(*(x.chunk(2) for x in seen[::2])))
    for found, index in ((x_r, joint.remain), (x_f, joint.forget)):
        assert torch.equal(found.sum((1, 2, 3)).sort()[0], split.train.batch(index).sum((1, 2, 3)).sort()[0])


def test_x_f_keeps_its_crop_and_x_r_gets_a_new_one_every_epoch():
    model, seen = SmallNet(3 * 8 * 8).eval(), {True: [], False: []}
    images = Images(*colour_images(40, 8), side=8, normalise=True, augment=True)
    split = Split(images, torch.arange(10), torch.arange(10, 40), 4)
    model.register_forward_hook(lambda model, inputs, _: seen[model.training].append(inputs[0].sum((1, 2, 3))))
    list(camu.steps(model, split, settings({**ROW, "repeats": 1}, seed=0, batch_size=10)))
    halves = [[half.sort().values for half in x.chunk(2)] for x in seen[True]]  # (x_r, x_f) of L_KL and L_CE, twice
    assert len(halves) == 4 and all(torch.allclose(halves[0][1], half[1], atol=1e-3) for half in halves)
    assert torch.allclose(halves[0][0], halves[1][0]) and not torch.allclose(halves[1][0], halves[2][0], atol=1)
    _, *teacher = seen[False]  # after x_c it is asked about just the x_r of each step
    assert [torch.equal(x, both.chunk(2)[0]) for x, both in zip(teacher, seen[True][::2], strict=True)] == [True] * 2


@pytest.mark.slow
def test_a_class_forgotten_by_an_earlier_request_stays_forgotten():
    """With y_c from all labels, the second request brings the first class back to 76 %."""
    digits = load_digits()
    x, y = torch.from_numpy(digits.images).float().flatten(1) / 16, torch.from_numpy(digits.target).long()
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    f = models.Represented(nn.Sequential(hidden, nn.ReLU(), nn.Linear(64, 10)), layer="0")
    train(f, Images(x, y), torch.arange(len(x)), epochs=30, lr=1e-3, batch_size=32, rng=generator("digits"))
    split = None
    for k in range(3):  # forget classes 0, 1 and 2, one request after the other
        forget = (y == k).nonzero()[:, 0]
        split = split.next(forget) if split else tensor_split(x, y, forget)
        f = camu.unlearn(f, split, settings({"epochs": 2, "lr_ce": 1e-3, "lr_kl": 1e-4, "repeats": 20}, seed=0))
        with torch.no_grad():
            right = f(x)[0].argmax(1) == y
        assert right[y <= k].float().mean() < 0.03 and right[y > k].float().mean() > 0.95
