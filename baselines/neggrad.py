"""NegGrad: descend on the remaining data while ascending on the forget data.

The method that SCRUB's paper calls NegGrad+ (Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023,
section 4). It minimises a * CE(D_r) - (1 - a) * CE(D_f), a mean over each batch. There is one step for every batch of
D_r. Batches of D_f are cycled beside it, each in a forward pass of its own. The published optimiser is SGD without
momentum or weight decay.

Nothing bounds the ascent. With `stop` it ends when the accuracy on D_f has reached its target: 0 in class removal, else
the accuracy of f_o on the test set. Neither needs Retrain. D_f is looked at ten times an epoch, for the
first time after 50 steps.

We follow the published code's large-scale runs. Its small-scale ones keep evaluation mode and an L2 penalty to the
start. Deviations: the stop, and Adam with weight decay where the row says so, because SGD keeps the model only within a
narrow band of learning rates. Batches hold 32 samples. On CIFAR it trains on random crops; the authors use none. The
settings come from the table in `hyperparameters.py`.
"""

import torch.nn.functional as F

from data import cycled_batches, generator, shuffled_batches
from harness.graphs import captured
from harness.store import require
from metrics import accuracy
from training import epochs_of, optimizer_of, outputs_now, seeded, student, take_step

LOOKS = 10  # at the accuracy on D_f, in an epoch
FIRST_LOOK = 50  # steps: the very first ones of Adam lower the accuracy for a moment


@seeded
def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`, `optimizer`, `weight_decay`, `a` (weight of D_r, in [0, 1]) and `stop` (0 or 1).

    With `stop`, random removal reads `settings.test_accuracy`, a UserError if it is missing. See `baselines` for the
    parameters.
    """
    target = stop_accuracy(split, settings) if settings.stop else -1
    f_u = student(f_o)
    optimizer = optimizer_of(f_u, settings)
    images, steps = split.train, -(-len(split.remain) // settings.batch_size)
    every, taken = max(steps // LOOKS, 1), 0
    forget_rng, remain_rng = generator(settings.seed, "NegGrad forget"), generator(settings.seed, "NegGrad")
    forget_batches = cycled_batches(images, split.forget, settings.batch_size, forget_rng)

    def ascend(remain, crops_r, forget, crops_f):
        remain_loss = F.cross_entropy(f_u(images.batch(remain, crops_r))[0], images.labels[remain])
        forget_loss = F.cross_entropy(f_u(images.batch(forget, crops_f))[0], images.labels[forget])
        take_step(optimizer, settings.a * remain_loss - (1 - settings.a) * forget_loss)

    step = captured(ascend, images.device)
    for _ in epochs_of(settings, f_u, "NegGrad"):
        for remain, crops_r in shuffled_batches(images, split.remain, settings.batch_size, remain_rng):
            forget, crops_f = next(forget_batches)
            step(split.remain[remain], crops_r, split.forget[forget], crops_f)
            taken += 1
            looks = settings.stop and taken >= FIRST_LOOK and taken % every == 0
            if looks and forget_accuracy(f_u, split) <= target:
                return f_u.eval()
    return f_u.eval()


def stop_accuracy(split, settings):
    """The accuracy on D_f, in percent, at which the ascent ends."""
    if split.forgotten_classes:
        return 0
    require(
        settings.test_accuracy is not None,
        "NegGrad's stop needs the accuracy of f_o on test samples: settings(..., test_accuracy=...)",
    )
    return settings.test_accuracy


def forget_accuracy(f_u, split):
    return accuracy(outputs_now(f_u, split.train, split.forget), split.train.labels[split.forget])
