"""CaMU: causal machine unlearning, Algorithm 2 of Shen et al., SDM 2024 (arXiv:2401.17504).

The post-unlearning model f_u = g_u . h_u starts as a copy of the pre-unlearning model f_o = g_o . h_o. For every tuple
of the joint dataset, training moves the representation of x_f to the one that f_o gives x_c, and its output to a wrong
label, y_c. The remain sample x_r keeps f_o's representation and its true label:

    L_KL = 0.5 * sum KL(p(h_o(x_r)) || p(h_u(x_r))) + 0.5 * sum KL(p(h_o(x_c)) || p(h_u(x_f)))        (Eq. 3.13)
    L_CE = 0.9 * mean CE(f_u(x_r), y_r) + 0.01 * mean CE(f_u(x_f), y_c)                               (Eq. 3.14)

p(z) is the softmax over the representation's entries. A step is one Adam step on L_KL and then, with the updated
weights, one on L_CE, each with an optimiser of its own.

Where the authors' published code differs from the paper, the paper is followed. The code draws the losses' x_r from a
separate shuffle; here x_r is the tuple's. In the code y_c is y_r unless that equals y_f; here it is drawn from all
labels but y_f. The paper leaves open whether x_r and x_f share a pass through f_u. The code makes two passes; one is
faster. The choice matters only with batch normalisation: a batch of x_f alone would be normalised by statistics that no
later input has. Where one tuple per forget sample would fill only a few batches, each gets several (`repeats`).
"""

import copy
from collections import deque

import torch
import torch.nn.functional as F

from data import counterfactuals, generator, joint_batches, joint_dataset
from training import adam, epochs_of, seeded, student, take_step

# The terms of the two losses, in the order of the equations. The ablation of tables 6 and 7 leaves some out.
TERMS = ("KL_r", "KL_f", "CE_r", "CE_f")
ABLATION = {
    "Finetune": ("CE_r",),
    "Remain-alignment": ("KL_r", "CE_r"),
    "Counterfactual": ("KL_f", "CE_r", "CE_f"),
}


@seeded
def unlearn(f_o, split, settings):
    """Unlearn the forget set: run all of `steps`, which has the same parameters.

    Returns
    -------
    nn.Module
        The post-unlearning model f_u, in evaluation mode.
    """
    ((f_u, _, _),) = deque(steps(f_o, split, settings), maxlen=1)  # the last step's
    return f_u.eval()


def steps(f_o, split, settings):
    """Algorithm 2, step by step.

    Parameters
    ----------
    f_o : nn.Module
        The pre-unlearning model; forward gives (logits, representation). It is not changed.
    split : Split
    settings : namespace
        `seed`, `batch_size`, `progress`, the hyperparameters `epochs`, `lr_ce`, `lr_kl` and `repeats` (of D_f in the
        joint dataset), and for an ablation the `terms` that it keeps.

    Yields
    ------
    f_u, loss_kl, loss_ce : nn.Module, Tensor, Tensor
        The model after the step, always the same object, and the step's two losses, scalars in nats.
    """
    terms = getattr(settings, "terms", TERMS)
    joint = joint_dataset(split, settings.repeats, settings.seed)
    teacher = Teacher(f_o, split, joint)
    f_u = student(f_o)
    kl_optimizer, ce_optimizer = adam(f_u, settings.lr_kl), adam(f_u, settings.lr_ce)
    rng = generator(settings.seed, "CaMU")
    for _ in epochs_of(settings, f_u, "CaMU"):
        for rows, x_r, y_r, x_f, y_c in joint_batches(split, joint, settings.batch_size, rng):
            log_p_r, log_p_c = teacher.log_p(rows, x_r)
            if "KL_f" not in terms and "CE_f" not in terms:
                x_f = x_f[:0]  # no term reads x_f, so it must not reach the batch statistics either

            loss_kl = torch.zeros(())
            if "KL_r" in terms or "KL_f" in terms:
                _, z_r, _, z_f = forward_both(f_u, x_r, x_f)
                if "KL_r" in terms:  # Eq. 3.13, first term: x_r keeps its representation
                    loss_kl = loss_kl + 0.5 * kl_divergence(log_p_r, z_r)
                if "KL_f" in terms:  # Eq. 3.13, second term: x_f takes the representation of x_c
                    loss_kl = loss_kl + 0.5 * kl_divergence(log_p_c, z_f)
                take_step(kl_optimizer, loss_kl)

            logits_r, _, logits_f, _ = forward_both(f_u, x_r, x_f)
            loss_ce = 0.9 * F.cross_entropy(logits_r, y_r)  # Eq. 3.14, first term: x_r keeps its label
            if "CE_f" in terms:  # Eq. 3.14, second term: x_f takes a wrong label
                loss_ce = loss_ce + 0.01 * F.cross_entropy(logits_f, y_c)
            take_step(ce_optimizer, loss_ce)
            yield f_u, loss_kl.detach(), loss_ce.detach()


def kl_divergence(log_p, z):
    """sum KL(p || softmax(z)) over the batch and the entries, in nats; `log_p` and `z` are (B, d)."""
    return F.kl_div(z.log_softmax(1), log_p, reduction="sum", log_target=True)


def forward_both(f_u, x_r, x_f):
    """f_u's (logits, representation) of x_r and of x_f, from one pass over both; x_f may be empty."""
    logits, z = f_u(torch.cat([x_r, x_f]))
    return logits[: len(x_r)], z[: len(x_r)], logits[len(x_r) :], z[len(x_r) :]


class Teacher:
    """The frozen f_o. Its representations of x_c, and of x_r where nothing is augmented, are computed once."""

    def __init__(self, f_o, split, joint):
        self.f_o = copy.deepcopy(f_o).eval().requires_grad_(False)
        known_r, known_c = [], []
        for rows, _, x_c in counterfactuals(split, joint):
            known_c.append(self.represent(x_c))
            known_r += [] if split.train.augment else [self.represent(split.train.batch(joint.remain[rows]))]
        self.known_r, self.known_c = torch.cat(known_r) if known_r else None, torch.cat(known_c)

    def log_p(self, rows, x_r):
        """log p(h_o(x_r)) and log p(h_o(x_c)) of the tuples `rows`, (B, d) each."""
        return self.represent(x_r) if self.known_r is None else self.known_r[rows], self.known_c[rows]

    def represent(self, x):
        with torch.no_grad():
            return self.f_o(x)[1].log_softmax(1)
