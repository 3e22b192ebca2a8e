"""The one supervised training loop: pretraining, Retrain, SISA's shards, fine-tuning and relearning."""

import copy
import functools
import time

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data import derive_seed, shuffled_batches
from harness.graphs import captured
from harness.store import load_or_set_aside, read_tensors, require, save_tensors

WEIGHT_DECAY = 1e-4
EVALUATION_BATCH = 500  # images a frozen model is run on at a time
SAVE_EVERY_S = 60  # least time between two saves of a training's state, made at the end of an epoch


def adam(model, lr, weight_decay=WEIGHT_DECAY):
    """Adam; the paper's weight decay is 1e-4."""
    on_gpu = next(model.parameters()).is_cuda  # there its step is captured
    return torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay, fused=True, capturable=on_gpu)


def optimizer_of(model, settings, momentum=0.0):
    """The optimiser that a row of hyperparameters names: "Adam", or "SGD" with the method's published momentum."""
    if settings.optimizer == "Adam":
        return adam(model, settings.lr, settings.weight_decay)
    chosen = {"lr": settings.lr, "momentum": momentum, "weight_decay": settings.weight_decay}
    return torch.optim.SGD(model.parameters(), **chosen)


def student(f_o):
    """A copy of f_o to be trained. What its owner has frozen stays as it is; a UserError if that is everything."""
    require(
        any(parameter.requires_grad for parameter in f_o.parameters()),
        "every parameter of the model is frozen (requires_grad is False): none is left to unlearn with",
    )
    return training_mode(copy.deepcopy(f_o))


def training_mode(model):
    """Training mode, except for batch normalisation whose parameters are frozen: it keeps its statistics too."""
    for module in model.train().modules():
        frozen = [not parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and frozen and all(frozen):
            module.eval()
    return model


def own_draws(device):
    """Let what a model itself draws, as for dropout, leave the global generators as they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def seeded(unlearn):
    """Seed what a model itself draws while a method runs."""

    @functools.wraps(unlearn)
    def unlearn_seeded(f_o, split, settings):
        with own_draws(split.train.device):
            torch.manual_seed(derive_seed(settings.seed, "dropout"))
            return unlearn(f_o, split, settings)

    return unlearn_seeded


def take_step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def learning_step(model, images, optimizer):
    """The step of supervised training, by the cross-entropy: a function of positions in `images` and their crops."""

    def learn(chosen, crops):
        take_step(optimizer, F.cross_entropy(model(images.batch(chosen, crops))[0], images.labels[chosen]))

    return captured(learn, images.device)


def epochs_of(settings, f_u, label):
    """1, ... settings.epochs, with a bar. After each, `settings.watch` is called with f_u, where it is given."""
    for epoch in epoch_bar(label, settings.epochs, settings.progress):
        yield epoch
        if settings.watch is not None:
            settings.watch(f_u)


def epoch_bar(label, epochs, progress, first=1):
    """first, ... epochs, with a bar on a terminal that goes when it is done."""
    shown = {"desc": label, "unit": "epoch", "leave": False, "disable": None if progress else True}
    return tqdm(range(first, epochs + 1), total=epochs, initial=first - 1, **shown)


@torch.no_grad()
def frozen_outputs(model, images, index):
    """A frozen model's logits for the samples `index`, without augmentation: (n, classes)."""
    return torch.cat([model(images.batch(chosen))[0] for chosen in index.split(EVALUATION_BATCH)])


def outputs_now(model, images, index):
    """`frozen_outputs` of a model in the middle of its training, which goes on as before."""
    logits = frozen_outputs(model.eval(), images, index)
    training_mode(model)
    return logits


def train(model, images, index, *, epochs, lr, batch_size, rng, partial=None, progress=False, label="", after=None):
    """Minimise the cross-entropy with Adam, in place; the model ends in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Forward gives (logits, representation).
    images, index : Images, LongTensor
        The samples to train on are at the positions `index`, (n,).
    epochs, lr, batch_size, rng : int, float, int, torch.Generator
        The generator is on the CPU; it shuffles and augments. Its seed is also that of what the model itself draws.
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
    stored = load_or_set_aside(partial, read_tensors) if partial else None
    if stored is not None:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        rng.set_state(stored["rng"])
        first, seconds = stored["epoch"] + 1, stored["seconds"]
    training_mode(model)
    step = learning_step(model, images, optimizer)
    started = saved = time.perf_counter()
    for epoch in epoch_bar(label, epochs, progress, first):
        with own_draws(images.device):
            torch.manual_seed(derive_seed(rng.initial_seed(), "dropout", epoch))
            for rows, crops in shuffled_batches(images, index, batch_size, rng):
                step(index[rows], crops)
        if after is not None:
            after(epoch)
            training_mode(model)
        now = time.perf_counter()
        if partial is not None and now - saved > SAVE_EVERY_S:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.get_state()}
            state |= {"epoch": epoch, "seconds": seconds + now - started}
            save_tensors(partial, state)
            saved = time.perf_counter()
    model.eval()
