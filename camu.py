"""CaMU: causal machine unlearning, Algorithm 2 of Shen et al., SDM 2024 (arXiv:2401.17504).

The post-unlearning model f_u = g_u . h_u starts as a copy of the pre-unlearning model f_o = g_o . h_o. For every tuple
of the joint dataset, training moves the representation of x_f to the one that f_o gives x_c, and its output to a wrong
label, y_c. The remain sample x_r keeps f_o's representation and its true label:

    L_KL = 0.5 * sum KL(p(h_o(x_r)) || p(h_u(x_r))) + 0.5 * sum KL(p(h_o(x_c)) || p(h_u(x_f)))        (Eq. 3.13)
    L_CE = 0.9 * mean CE(f_u(x_r), y_r) + 0.01 * mean CE(f_u(x_f), y_c)                               (Eq. 3.14)

p(z) is the softmax over the representation's entries. A step is one Adam step on L_KL and then, with the updated
weights, one on L_CE, each with an optimiser of its own.

The authors' published code differs from the paper in three points. We follow the paper; the ablation's
`Published-code` has all three. (1) The code shuffles x_r apart from x_f; here both come from one tuple (`paired`).
(2) Its y_c is y_r unless that equals y_f; here y_c is any label of D_r but y_f (`y_c`). (3) It passes x_r and x_f
through f_u separately; here together, unless the row says two (`passes`). This matters only with batch normalisation: a
batch of x_f alone is normalised by statistics that no later input has. The code also draws x_r without replacement.

Where one tuple per forget sample would fill only a few batches, each gets several (`repeats`).
"""

import copy
import warnings
from collections import deque
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from data import counterfactuals, generator, joint_batches, joint_dataset
from harness.graphs import captured
from models import on_embedding
from training import adam, epochs_of, frozen_outputs, seeded, student, take_step

TERMS = ("KL_r", "KL_f", "CE_r", "CE_f")  # of the two losses, in the order of the equations
CAMU = {"terms": TERMS, "paired": True, "y_c": "random", "passes": 1}
ABLATION = {  # what the rows of tables 6 and 7 change, and ours; lists, because JSON has no tuples
    "Finetune": {"terms": ["CE_r"]},
    "Remain-alignment": {"terms": ["KL_r", "CE_r"]},
    "Counterfactual": {"terms": ["KL_f", "CE_r", "CE_f"]},
    "Published-code": {"paired": False, "y_c": "y_r", "passes": 2},
}
TUPLES = 6000  # wanted where `repeats` is None: about as many as in the paper's class removal of MNIST
MOST_REPEATS = 100
CHECKED = 100  # samples of D_f, at most, to be looked at after a class removal; this counts as unlearning time


@seeded
def unlearn(f_o, split, settings):
    """Unlearn the forget set: run all of `steps`, which has the same parameters.

    Returns
    -------
    nn.Module
        The post-unlearning model f_u, in evaluation mode. A warning says so if a class to be removed is still known as
        well as before. (Single samples may well be: a model that has never seen them can be right about them.)
    """
    ((f_u, _, _),) = deque(steps(f_o, split, settings), maxlen=1)  # the last step's
    f_u.eval()
    whole = getattr(settings, "terms", TERMS) == TERMS
    if split.forgotten_classes and whole and not forgets(f_u, f_o, split):
        warnings.warn("the accuracy on D_f has not fallen: raise the repeats, epochs or learning rates", stacklevel=3)
    return f_u


def forgets(f_u, f_o, split):
    """Whether f_u is right about none of D_f, or about fewer than f_o; only CHECKED samples are looked at."""
    index = split.forget[:CHECKED]

    def right(model):
        return int((frozen_outputs(model, split.train, index).argmax(1) == split.train.labels[index]).sum())

    after = right(f_u)
    return after == 0 or after < right(copy.deepcopy(f_o).eval())


def steps(f_o, split, settings):
    """Algorithm 2, step by step.

    Parameters
    ----------
    f_o : nn.Module
        The pre-unlearning model; forward gives (logits, representation). It is not changed.
    split : Split
    settings : namespace
        From `hyperparameters.settings`: `epochs`, `lr_ce`, `lr_kl`, `repeats` (tuples per forget sample; None gives
        about TUPLES in all, at most MOST_REPEATS each), `passes` (1 by default), and what a row of ABLATION changes.

    Yields
    ------
    f_u, loss_kl, loss_ce : nn.Module, Tensor, Tensor
        The model after the step, always the same object, and the step's two losses, scalars in nats.
    """
    chosen = SimpleNamespace(**CAMU | vars(settings))
    terms = chosen.terms
    repeats = chosen.repeats or max(1, min(MOST_REPEATS, round(TUPLES / len(split.forget))))
    joint = joint_dataset(split, repeats, chosen.seed, chosen.y_c)
    teacher, f_u = Teacher(f_o, split, joint), student(f_o)
    kl_optimizer, ce_optimizer = adam(f_u, chosen.lr_kl), adam(f_u, chosen.lr_ce)
    rng = generator(chosen.seed, "CaMU")

    def step(*batch):
        (x_r, y_r), (x_f, y_c) = joint.tuples(split.train, *batch)
        rows_r, _, rows_f = batch
        if "KL_f" not in terms and "CE_f" not in terms:
            x_f = x_f[:0]  # no term reads x_f, so it must not reach the batch statistics either

        loss_kl = torch.zeros((), device=x_r.device)
        if "KL_r" in terms or "KL_f" in terms:
            (_, z_r), (_, z_f) = forward_both(f_u, x_r, x_f, chosen.passes)
            if "KL_r" in terms:  # Eq. 3.13, first term: x_r keeps its representation
                loss_kl = loss_kl + 0.5 * kl_divergence(teacher.log_p_r(rows_r, x_r), z_r)
            if "KL_f" in terms:  # Eq. 3.13, second term: x_f takes the representation of x_c
                loss_kl = loss_kl + 0.5 * kl_divergence(teacher.log_p_c[rows_f], z_f)
        if loss_kl.requires_grad:  # not if all of h is frozen
            take_step(kl_optimizer, loss_kl)

        (logits_r, _), (logits_f, _) = forward_both(f_u, x_r, x_f, chosen.passes, first="x_f")
        loss_ce = 0.9 * F.cross_entropy(logits_r, y_r)  # Eq. 3.14, first term: x_r keeps its label
        if "CE_f" in terms:  # Eq. 3.14, second term: x_f takes a wrong label
            loss_ce = loss_ce + 0.01 * F.cross_entropy(logits_f, y_c)
        take_step(ce_optimizer, loss_ce)
        return loss_kl.detach(), loss_ce.detach()

    step = captured(step, split.train.device)
    for _ in epochs_of(chosen, f_u, "CaMU"):
        for batch in joint_batches(split, joint, chosen.batch_size, rng, chosen.paired):
            yield f_u, *step(*batch)


def kl_divergence(log_p, z):
    """sum KL(p || softmax(z)) over the batch and the entries, in nats; `log_p` and `z` are (B, d)."""
    return F.kl_div(z.log_softmax(1), log_p, reduction="sum", log_target=True)


def forward_both(f_u, x_r, x_f, passes, first="x_r"):
    """f_u's (logits, representation) of x_r and of x_f, from one pass over both or from two, `first` first."""
    if passes == 1 or not len(x_f):
        sizes = len(x_r), len(x_f)
        return zip(*(output.split(sizes) for output in f_u(torch.cat([x_r, x_f]))))
    if first == "x_r":
        return f_u(x_r), f_u(x_f)
    return (f_u(x_f), f_u(x_r))[::-1]


class Teacher:
    """The frozen f_o. log p(h_o(x_c)) is computed once, and so is log p(h_o(x_r)) unless x_r is augmented."""

    def __init__(self, f_o, split, joint):
        self.f_o = copy.deepcopy(f_o).eval().requires_grad_(False)
        known_r, known_c = [], []
        for rows, x_r, masked in counterfactuals(split, joint):
            known_c.append(self.represent_counterfactual(x_r, masked))
            known_r += [] if split.train.augment else [self.represent(split.train.batch(joint.remain[rows]))]
        self.known_r, self.log_p_c = torch.cat(known_r) if known_r else None, torch.cat(known_c)  # (n, d) each

    def log_p_r(self, rows, x_r):
        """log p(h_o(x_r)) of the tuples `rows`, (B, d)."""
        return self.represent(x_r) if self.known_r is None else self.known_r[rows]

    def represent_counterfactual(self, x_r, masked):
        """log p(h_o(x_c)), (B, d). For tokens the noise is added to the embedding's output (ours)."""
        if x_r.is_floating_point():
            return self.represent(masked(x_r))
        with on_embedding(self.f_o, masked):
            return self.represent(x_r)

    def represent(self, x):
        with torch.no_grad():
            return self.f_o(x)[1].log_softmax(1)


def __getattr__(name):
    if name == "compare":  # it needs all methods, and they need this module
        from harness.compare import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
