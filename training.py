"""The one supervised training loop: pretraining, Retrain, SISA's shards, fine-tuning and relearning."""

import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import shuffled_batches
from harness.store import load_or_set_aside, load_tensors, save_tensors

WEIGHT_DECAY = 1e-4
EVALUATION_BATCH = 500  # images a frozen model is run on at a time
SAVE_EVERY_S = 60  # least time between two saves of a training's state, made at the end of an epoch


def adam(model, lr):
    """The paper's optimiser: Adam with weight decay 1e-4."""
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True)


def take_step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def epoch_bar(label, epochs, progress, first=1):
    """first, ... epochs, with a bar on a terminal that goes when it is done."""
    shown = {"desc": label, "unit": "epoch", "leave": False, "disable": None if progress else True}
    return tqdm(range(first, epochs + 1), total=epochs, initial=first - 1, **shown)


@torch.no_grad()
def frozen_outputs(model, images, index):
    """A frozen model's logits for the samples `index`, without augmentation: (n, classes)."""
    return torch.cat([model(images.batch(chosen))[0] for chosen in index.split(EVALUATION_BATCH)])


def train(model, images, index, *, epochs, lr, batch_size, rng, partial=None, progress=False, label="", after=None):
    """Minimise the cross-entropy with Adam, in place.

    Parameters
    ----------
    model : nn.Module
        Forward gives (logits, representation).
    images, index : Images, LongTensor
        The samples to train on are at the positions `index`.
    epochs, lr, batch_size, rng : int, float, int, torch.Generator
        The generator is on the CPU; it shuffles and augments.
    partial : Path, optional
        Where a long training saves its state, with the `seconds` it has taken. A training that finds it continues from
        there, bit for bit. The caller removes it.
    progress, label : bool, str
        Show a bar with this text (on a terminal).
    after : callable, optional
        Called as ``after(epoch)``, counting from 1, at the end of every epoch.
    """
    optimizer = adam(model, lr)
    first, seconds = 1, 0.0
    stored = load_or_set_aside(partial, load_tensors) if partial else None
    if stored is not None:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        rng.set_state(stored["rng"])
        first, seconds = stored["epoch"] + 1, stored["seconds"]
    model.train()
    started = saved = time.perf_counter()
    for epoch in epoch_bar(label, epochs, progress, first):
        for _, x, y in shuffled_batches(images, index, batch_size, rng):
            take_step(optimizer, F.cross_entropy(model(x)[0], y))
        if after is not None:
            after(epoch)
            model.train()
        now = time.perf_counter()
        if partial is not None and now - saved > SAVE_EVERY_S:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.get_state()}
            state |= {"epoch": epoch, "seconds": seconds + now - started}
            save_tensors(partial, state)
            saved = time.perf_counter()
    model.eval()
