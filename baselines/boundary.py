"""Boundary Shrink: move the forget samples over the nearest decision boundary.

Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary", CVPR 2023,
section 3.2. Every x_f is attacked once with FGSM on the frozen f_o: one untargeted step of 0.1 on the sign of the
gradient of the cross-entropy, in pixel space. The class that f_o then sees is its new label. The model is fine-tuned on
(x_f, new label) by SGD with momentum 0.9. D_r is not read.

Deviations from the published code: there the new label may be y_f itself, where one step does not cross a boundary. The
paper means the nearest *incorrect* class, so the highest-scoring class other than y_f is taken. It must occur in D_r: a
class that is itself to be forgotten is not taught. The method was made for class removal; its use for random removal is
the CaMU paper's. The settings come from the table in `hyperparameters.py`. Batches hold 32 samples. For tokens the
embedding's output is attacked.
"""

import copy

import torch
import torch.nn.functional as F

from data import batches, draw_order, generator
from harness.graphs import captured
from models import on_embedding
from training import epochs_of, seeded, student, take_step

BOUND = 0.1  # of the FGSM step, for pixels in [0, 1]; other inputs should have about this scale
CHUNK = 250  # images attacked at a time


def fgsm(model, images, index):
    """The samples `index` of `images`, attacked: (B, ...), each value within BOUND; pixels stay k/255 in [0, 1]."""
    x = images.unit(index).requires_grad_()
    outputs = model(images.standardise(x).clone())[0]  # a net may change its input in place
    loss = F.cross_entropy(outputs, images.labels[index], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    attacked = x.detach() + BOUND * gradient.sign()
    return (attacked.clamp(0, 1) * 255).round() / 255 if images.pixels.dtype == torch.uint8 else attacked


def embedding_fgsm(model, images, index):
    """The logits of attacked tokens: the step is made on the output of the model's embedding, without rounding."""
    seen, x = [], images.unit(index)

    def keep(z):
        seen.append(z.detach().requires_grad_())
        return seen[0].clone()  # a net may change it in place

    with on_embedding(model, keep):
        loss = F.cross_entropy(model(x)[0], images.labels[index], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, seen[0])
    with on_embedding(model, lambda z: z + BOUND * gradient.sign()):
        return model(x)[0]


def nearest_wrong_labels(f_o, split):
    """The class of D_r, other than its own, that f_o, frozen, finds most likely for each attacked x_f: (|D_f|,)."""
    images = split.train
    f_o = copy.deepcopy(f_o).eval().requires_grad_(False)
    labels, remain = [], images.labels[split.remain].unique()
    for chosen in split.forget.split(CHUNK):
        if images.pixels.is_floating_point() or images.pixels.dtype == torch.uint8:
            logits = f_o(images.standardise(fgsm(f_o, images, chosen)))[0]
        else:
            logits = embedding_fgsm(f_o, images, chosen)
        allowed = torch.full_like(logits, -torch.inf).index_fill(1, remain, 0)
        labels.append((logits + allowed).scatter(1, images.labels[chosen][:, None], -torch.inf).argmax(1))
    return torch.cat(labels)


@seeded
def unlearn(f_o, split, settings):
    """Hyperparameters: `epochs`, `lr`. See `baselines` for the parameters."""
    images = split.train
    new_labels = nearest_wrong_labels(f_o, split)
    f_u = student(f_o)
    optimizer = torch.optim.SGD(f_u.parameters(), lr=settings.lr, momentum=0.9)
    rng = generator(settings.seed, "Boundary")

    def learn(rows):  # without augmentation, as published
        take_step(optimizer, F.cross_entropy(f_u(images.batch(split.forget[rows]))[0], new_labels[rows]))

    step = captured(learn, images.device)
    for _ in epochs_of(settings, f_u, "Boundary"):
        for rows in batches(draw_order(len(split.forget), rng).to(images.device), settings.batch_size):
            step(rows)
    return f_u.eval()
