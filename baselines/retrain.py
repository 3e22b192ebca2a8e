"""Retrain, the gold standard: train from fresh weights on the remaining data only.

Section A.2.4 of the paper: Adam, 20 epochs at 1e-3 on Digit and Fashion, 40 epochs at 5e-5 on CIFAR.
"""

import models
from data import derive_seed, generator
from training import seeded, train


@seeded
def unlearn(f_o, split, settings):
    """Train on D_r from weights drawn from the seed; `f_o` is not read. See `baselines` for the parameters."""
    model = models.build(split.model, split.classes, derive_seed(settings.seed, "Retrain weights"), split.train.device)
    given = {"epochs": settings.epochs, "lr": settings.lr, "batch_size": settings.batch_size}
    given |= {"partial": settings.partial, "progress": settings.progress, "label": "Retrain"}
    train(model, split.train, split.remain, rng=generator(settings.seed, "Retrain"), **given)
    return model
