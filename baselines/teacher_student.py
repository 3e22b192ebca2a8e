"""T-S, "Bad Teaching": imitate an incompetent teacher on the forget data, a competent one on the rest.

Chundawat et al., "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher",
AAAI 2023, section 4. The student starts as f_o and minimises KL(target || student). It reads D_f and a random 30 % of
D_r, drawn once, shuffled together. For a forget sample the target is the softmax output of the incompetent teacher,
which has fresh weights. For a remaining sample it is that of the competent teacher, f_o. Temperature 1, no labels,
Adam.

Deviations from the published code: the KL is the batch mean, where the published reduction also divides by the number
of classes. Batches hold 32 samples instead of 256. On CIFAR the training crops are used, where the authors only resize.
The CaMU paper describes two retrained teachers; we follow the published method, which retrains none. The settings come
from the table in `hyperparameters.py`.
"""

import copy

import torch
import torch.nn.functional as F

import models
from data import derive_seed, generator, shuffled_batches
from harness.graphs import captured
from training import adam, epochs_of, frozen_outputs, seeded, student, take_step


@seeded
def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`, `remain_fraction` (of D_r read). See `baselines` for the parameters."""
    images = split.train
    competent = copy.deepcopy(f_o).eval()
    fresh = models.build(split.model, split.classes, derive_seed(settings.seed, "incompetent teacher"), images.device)
    incompetent = fresh.eval()

    part = generator(settings.seed, "T-S part of D_r")
    count = round(settings.remain_fraction * len(split.remain))
    kept = split.remain[torch.randperm(len(split.remain), generator=part)[:count].to(images.device)]
    index = torch.cat([split.forget, kept])
    targets = None
    if not images.augment:
        outputs = [frozen_outputs(incompetent, images, split.forget), frozen_outputs(competent, images, kept)]
        targets = torch.cat(outputs).log_softmax(1)

    f_u = student(f_o)
    optimizer = adam(f_u, settings.lr, weight_decay=0)
    rng = generator(settings.seed, "T-S")

    def imitate(rows, crops):
        x = images.batch(index[rows], crops)
        if targets is None:
            forgotten = (rows < len(split.forget))[:, None]
            with torch.no_grad():
                target = torch.where(forgotten, incompetent(x)[0], competent(x)[0]).log_softmax(1)
        else:
            target = targets[rows]
        output = f_u(x)[0].log_softmax(1)
        take_step(optimizer, F.kl_div(output, target, reduction="batchmean", log_target=True))

    step = captured(imitate, images.device)
    for _ in epochs_of(settings, f_u, "T-S"):
        for batch in shuffled_batches(images, index, settings.batch_size, rng):
            step(*batch)
    return f_u.eval()
