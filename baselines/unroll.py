"""Unroll: add the gradients of the forget samples back.

Thudi et al., "Unrolling SGD: Understanding Factors Influencing Machine Unlearning", EuroS&P 2022, section 5 (single
gradient unlearning). Preparation: from f_o, with weights w_0, incremental training over the batches of D_f first and
then of D_r. Unlearning: w = w_T + lr * epochs * the sum over D_f's batches of the gradient at w_0, where w_T are the
trained weights. Buffers of batch normalisation stay those of the trained model.

The preparation depends on D_f, so it counts as unlearning time, as in the CaMU paper. The order of the data does much
of the forgetting: on OptDigits w_T alone has already lost a class.

Deviations from the published code: the incremental training is by Adam with weight decay 1e-4, because the CaMU paper
keeps the hyperparameters of the training (published: SGD with momentum 0.9 and weight decay 5e-4); batches hold 32
samples; with several epochs, D_f comes first in each; the settings come from the table in `hyperparameters.py`.
"""

import torch
import torch.nn.functional as F

from data import generator, shuffled_batches
from training import epochs_of, learning_step, optimizer_of, seeded, student


@seeded
def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`, `optimizer`, `weight_decay`. See `baselines` for the parameters."""
    at_start = forget_gradients(f_o, split, settings)
    f_u = student(f_o)
    optimizer = optimizer_of(f_u, settings, momentum=0.9)
    images, rng = split.train, generator(settings.seed, "Unroll")
    step = learning_step(f_u, images, optimizer)
    for _ in epochs_of(settings, f_u, "Unroll"):
        for index in (split.forget, split.remain):
            for rows, crops in shuffled_batches(images, index, settings.batch_size, rng):
                step(index[rows], crops)
    with torch.no_grad():
        for parameter, gradient in zip(f_u.parameters(), at_start):
            if gradient is not None:  # None: frozen, or not used by the model
                parameter += settings.lr * settings.epochs * gradient
    return f_u.eval()


def forget_gradients(f_o, split, settings):
    """The sum over D_f's batches of the gradient of the cross-entropy at f_o's weights, by parameter."""
    images, model, rng = split.train, student(f_o), generator(settings.seed, "Unroll gradients")
    for rows, crops in shuffled_batches(images, split.forget, settings.batch_size, rng):
        chosen = split.forget[rows]
        F.cross_entropy(model(images.batch(chosen, crops))[0], images.labels[chosen]).backward()  # adds up in .grad
    return [parameter.grad for parameter in model.parameters()]
