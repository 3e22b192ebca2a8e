"""CaMU: causal machine unlearning, Algorithm 2 of Shen et al., SDM 2024 (arXiv:2401.17504).

For every tuple of the joint dataset the post-unlearning model f_u = g_u . h_u is brought, on the forget sample, to
the representation that the pre-unlearning model f_o = g_o . h_o gives the counterfactual sample and to a wrong label
y_c; on the remain sample it is held to f_o's representation and to the true label.
"""

import copy

import torch
import torch.nn.functional as F

from data import counterfactuals, generator, joint_dataset
from training import adam, epoch_bar, take_step


def representation_loss(log_p_r, z_r, log_p_c, z_f):
    """L_KL (Eq. 3.13): 0.5 * sum KL(p(h_o(x_r)) || p(h_u(x_r))) + 0.5 * sum KL(p(h_o(x_c)) || p(h_u(x_f))).

    Parameters
    ----------
    log_p_r, log_p_c : Tensor, (B, d), or None
        f_o's log p of x_r and x_c; None leaves the term out (ablation).
    z_r, z_f : Tensor, (B, d)
        f_u's representations of x_r and x_f; p(z) is the softmax over the d entries.

    Returns
    -------
    Tensor
        A scalar, in nats: a sum over the batch and the entries.
    """
    pairs = [(log_p, z) for log_p, z in ((log_p_r, z_r), (log_p_c, z_f)) if log_p is not None]
    kl = [F.kl_div(z.log_softmax(1), log_p, reduction="sum", log_target=True) for log_p, z in pairs]
    return 0.5 * sum(kl)


def output_loss(logits_r, y_r, logits_f, y_c, forget_term=True):
    """L_CE (Eq. 3.14): 0.9 * mean CE(f_u(x_r), y_r) + 0.01 * mean CE(f_u(x_f), y_c).

    Parameters
    ----------
    logits_r, logits_f : Tensor, (B, classes)
    y_r, y_c : LongTensor, (B,)
    forget_term : bool
        False leaves the second term out (ablation).

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    loss = 0.9 * F.cross_entropy(logits_r, y_r)
    return loss + 0.01 * F.cross_entropy(logits_f, y_c) if forget_term else loss


@torch.no_grad()
def log_p(model, x):
    """log p(h(x)), the log-softmax of the representation: (B, d)."""
    return model(x)[1].log_softmax(1)


def forward_both(model, x_r, x_f):
    """f_u's (logits, representation) of x_r and of x_f, from one pass over both; x_f may be empty.

    One pass is faster, and batch normalisation needs it: on its own, a batch of x_f (one class, or a few samples over
    and over) would be normalised by statistics that no later input has.
    """
    logits, z = model(torch.cat([x_r, x_f]))
    return logits[: len(x_r)], z[: len(x_r)], logits[len(x_r) :], z[len(x_r) :]


def unlearn(f_o, split, settings, monitor=None):
    """Unlearn the forget set with CaMU.

    Parameters
    ----------
    f_o : nn.Module
        The pre-unlearning model; forward gives (logits, representation). It is not changed.
    split : Split
    settings : namespace
        `seed`, `batch_size`, `progress` and the hyperparameters `epochs`, `lr_ce`, `lr_kl` and `repeats` (of D_f in
        the joint dataset). The ablations set `align_remain`, `align_forget` or `relabel_forget` to False, which
        leaves out the KL on x_r, the KL on x_f to x_c, or the cross-entropy on (x_f, y_c).
    monitor : callable, optional
        Called as ``monitor(epoch, f_u, loss_kl, loss_ce)`` after every step, to watch an unlearning. `epoch` counts
        from 1.

    Returns
    -------
    nn.Module
        The post-unlearning model f_u, in evaluation mode.

    Notes
    -----
    The order of a step is Algorithm 2's: one Adam step on L_KL, then one on L_CE with the updated weights. f_o's
    representations are computed beforehand wherever its input stays the same over the epochs: x_c always, x_r where
    nothing is augmented.

    Where the authors' published code differs from the paper, the paper is followed: the code takes the losses' x_r
    from a shuffle of its own, here it is the tuple's; its y_c is y_r unless that equals y_f, here it is drawn from all
    labels but y_f. The paper leaves open whether x_r and x_f go through f_u together; the code's two passes are one
    here, which changes nothing but with batch normalisation (see `forward_both`). Data sets the paper does not have
    get several tuples a forget sample (`repeats`) where one would fill only a few batches.
    """
    align_remain = getattr(settings, "align_remain", True)
    align_forget = getattr(settings, "align_forget", True)
    relabel_forget = getattr(settings, "relabel_forget", True)
    images = split.train
    joint = joint_dataset(split, settings.repeats, settings.seed)
    f_o = copy.deepcopy(f_o).eval().requires_grad_(False)
    f_u = copy.deepcopy(f_o).train().requires_grad_(True)

    log_p_r, log_p_c = [], []
    for rows, _, x_c in counterfactuals(split, joint):
        log_p_c.append(log_p(f_o, x_c))
        if not images.augment:
            log_p_r.append(log_p(f_o, images.batch(joint.remain[rows])))
    log_p_c, log_p_r = torch.cat(log_p_c), torch.cat(log_p_r) if log_p_r else None

    kl_optimizer, ce_optimizer = adam(f_u, settings.lr_kl), adam(f_u, settings.lr_ce)
    rng = generator(settings.seed, "CaMU")
    for epoch in epoch_bar("CaMU", settings):
        order = torch.randperm(len(joint), generator=rng).to(images.device)
        crops = images.draw_crops(len(joint), rng)  # x_r is augmented afresh every epoch
        for rows in order.split(settings.batch_size):
            x_r = images.batch(joint.remain[rows], None if crops is None else crops[rows])
            x_f = x_r[:0]  # without a term on x_f it must not reach the batch statistics either
            if align_forget or relabel_forget:
                x_f = images.batch(joint.forget[rows], None if crops is None else joint.forget_crops[rows])
            target_r = log_p(f_o, x_r) if log_p_r is None else log_p_r[rows]
            target_c = log_p_c[rows]
            y_r, y_c = images.labels[joint.remain[rows]], joint.y_c[rows]

            loss_kl = torch.zeros(())
            if align_remain or align_forget:
                _, z_r, _, z_f = forward_both(f_u, x_r, x_f)
                loss_kl = representation_loss(
                    target_r if align_remain else None, z_r, target_c if align_forget else None, z_f
                )
                take_step(kl_optimizer, loss_kl)

            logits_r, _, logits_f, _ = forward_both(f_u, x_r, x_f)
            loss_ce = output_loss(logits_r, y_r, logits_f, y_c, relabel_forget)
            take_step(ce_optimizer, loss_ce)
            if monitor is not None:
                monitor(epoch, f_u, loss_kl.item(), loss_ce.item())
    return f_u.eval()
