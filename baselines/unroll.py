"""Unroll: add the gradients of the forget samples back.

Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine Unlearning", EuroS&P 2022, section 5 (single
gradient unlearning). Preparation: from f_o, incremental training by plain SGD, without momentum or weight decay, over
the batches of D_f first and then of D_r. The gradients of D_f's batches are summed. Unlearning: w = w_trained +
lr * that sum. Buffers of batch normalisation stay those of the trained model.

The preparation depends on D_f, so it counts as unlearning time, as in the CaMU paper. f_o has learned D_f before, so
the accuracy on it hardly falls; the CaMU paper reports the same.

Deviations from the published code: batches hold 32 samples; with several epochs, D_f comes first in each; the settings
come from the table in `hyperparameters.py`.
"""

import copy

import torch
import torch.nn.functional as F

from data import generator, shuffled_batches
from training import epoch_bar, take_step


def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`. See `baselines` for the parameters."""
    f_u = copy.deepcopy(f_o).train()
    optimizer = torch.optim.SGD(f_u.parameters(), lr=settings.lr)
    rng = generator(settings.seed, "Unroll")
    recorded = [torch.zeros_like(parameter) for parameter in f_u.parameters()]
    for _ in epoch_bar("Unroll", settings.epochs, settings.progress):
        for index in (split.forget, split.remain):
            for _, x, y in shuffled_batches(split.train, index, settings.batch_size, rng):
                take_step(optimizer, F.cross_entropy(f_u(x)[0], y))
                if index is split.forget:
                    torch._foreach_add_(recorded, [parameter.grad for parameter in f_u.parameters()])
    with torch.no_grad():
        for parameter, gradient in zip(f_u.parameters(), recorded):
            parameter += settings.lr * gradient
    return f_u.eval()
