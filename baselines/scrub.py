"""SCRUB: move away from the teacher on the forget data, stay with it on the remaining data.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, Algorithm 1 and Eq. 3. The student starts as the
teacher f_o. Each of the first `msteps` epochs begins with a max-epoch over D_f, which ascends KL(teacher || student).
Every epoch has a min-epoch over D_r, which descends gamma * CE + alpha * KL(teacher || student). Both KLs are at
temperature T with the factor T^2, means over the batch. One optimiser serves both. The epochs after the last max-epoch,
if there are any, repair the model. The learning rate falls to a tenth after each epoch of `decay_after`. SCRUB+R, the
variant with rewinding, is not what the CaMU paper compares with.

At f_o itself the KL has no slope, so without batch normalisation the forgetting begins with the second max-step. The
ascent is unbounded. What holds it are few max-steps (larger batches of D_f), the decay, and the repair.

The published runs are of two sorts: large scale by SGD with momentum 0.9 at a constant learning rate, small scale by
Adam with the decay. The searched rows follow the second, with fewer epochs and a weight decay of 5e-4 instead of 0.1.

Deviations from the published code: batches of D_r hold 32 samples, those of D_f as many as `forget_batch_size` says. On
CIFAR it trains on random crops; the authors use none. The settings come from the table in `hyperparameters.py`.
"""

import copy

import torch
import torch.nn.functional as F

from data import generator, shuffled_batches
from harness.graphs import captured
from training import epochs_of, frozen_outputs, optimizer_of, seeded, student, take_step


def distillation(teacher_logits, student_logits, temperature):
    """T^2 KL(teacher || student) at temperature T, mean over the batch, in nats."""
    student, teacher = ((logits / temperature).log_softmax(1) for logits in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def max_loss(teacher_logits, student_logits, _, settings):
    """What a max-step descends: -KL. Labels are not read."""
    return -distillation(teacher_logits, student_logits, settings.temperature)


def min_loss(teacher_logits, student_logits, y, settings):
    """What a min-step descends: gamma * CE + alpha * KL."""
    kl = distillation(teacher_logits, student_logits, settings.temperature)
    return settings.gamma * F.cross_entropy(student_logits, y) + settings.alpha * kl


@seeded
def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `msteps`, `decay_after`, `lr`, `optimizer`, `weight_decay`, `alpha`, `gamma`,
    `temperature`, `forget_batch_size`. See `baselines` for the parameters."""
    images = split.train
    teacher = copy.deepcopy(f_o).eval()
    f_u = student(f_o)
    optimizer = optimizer_of(f_u, settings, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, settings.decay_after, gamma=0.1)
    rng = generator(settings.seed, "SCRUB")
    known_f, known_r = (
        None if images.augment else frozen_outputs(teacher, images, index) for index in (split.forget, split.remain)
    )

    def step_of(index, known, loss):
        def step(rows, crops):
            x, y = images.batch(index[rows], crops), images.labels[index[rows]]
            with torch.no_grad():
                target = teacher(x)[0] if known is None else known[rows]
            take_step(optimizer, loss(target, f_u(x)[0], y, settings))

        return captured(step, images.device)

    for epoch in epochs_of(settings, f_u, "SCRUB"):
        if epoch == 1 or epoch - 1 in settings.decay_after:  # a captured step keeps its learning rate
            max_step, min_step = step_of(split.forget, known_f, max_loss), step_of(split.remain, known_r, min_loss)
        if epoch <= settings.msteps:
            for batch in shuffled_batches(images, split.forget, settings.forget_batch_size, rng):
                max_step(*batch)
        for batch in shuffled_batches(images, split.remain, settings.batch_size, rng):
            min_step(*batch)
        schedule.step()
    return f_u.eval()
