"""NegGrad: descend on the remaining data while ascending on the forget data.

The method that SCRUB's paper calls NegGrad+ (Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023,
section 4). It minimises a * CE(D_r) - (1 - a) * CE(D_f), a mean over each batch, by plain SGD. There is one step
for every batch of D_r. Batches of D_f are cycled beside it, each in a forward pass of its own.

Deviations from the published code: batches of both sets have this repository's size, 32; the settings come from the
table in `hyperparameters.py`.
"""

import copy

import torch
import torch.nn.functional as F

from data import cycled_batches, generator, shuffled_batches
from training import epoch_bar, take_step


def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`, `a` (weight of D_r, in [0, 1]). See `baselines` for the parameters."""
    f_u = copy.deepcopy(f_o).train()
    optimizer = torch.optim.SGD(f_u.parameters(), lr=settings.lr)
    forget_batches = cycled_batches(
        split.train, split.forget, settings.batch_size, generator(settings.seed, "NegGrad forget")
    )
    remain_rng = generator(settings.seed, "NegGrad")
    for _ in epoch_bar("NegGrad", settings.epochs, settings.progress):
        for _, x_r, y_r in shuffled_batches(split.train, split.remain, settings.batch_size, remain_rng):
            _, x_f, y_f = next(forget_batches)
            remain_loss = F.cross_entropy(f_u(x_r)[0], y_r)
            forget_loss = F.cross_entropy(f_u(x_f)[0], y_f)
            take_step(optimizer, settings.a * remain_loss - (1 - settings.a) * forget_loss)
    return f_u.eval()
