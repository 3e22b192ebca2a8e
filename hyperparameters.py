"""Hyperparameters: the row of every method, by data set and kind of task."""

import re
from types import SimpleNamespace

from harness.store import UserError, require

# The rows of HYPERPARAMETERS and TRAINING are shared by the data sets of a family.
FAMILIES = {"OptDigits": "OptDigits", "Digit": "MNIST", "Fashion": "MNIST", "CIFAR10": "CIFAR", "CIFAR100": "CIFAR"}

# Section A.2.4 of the paper; OptDigits and own data are not in the paper.
TRAINING = {
    "OptDigits": {"pretrain_epochs": 15, "retrain_epochs": 15, "lr": 1e-3},
    "MNIST": {"pretrain_epochs": 10, "retrain_epochs": 20, "lr": 1e-3},
    "CIFAR": {"pretrain_epochs": 20, "retrain_epochs": 40, "lr": 5e-5},
    "own CNN": {"pretrain_epochs": 15, "retrain_epochs": 15, "lr": 1e-3},
    "own ResNet-18": {"pretrain_epochs": 30, "retrain_epochs": 30, "lr": 5e-4},
}

ANY = "any"
FEW = 0.01  # a forget set under this fraction of the training samples uses the "few" row
LARGE = 0.5  # one above this fraction of D_r uses the "large" row: with the others CaMU would take longer than Retrain

# What the searched rows of a method have in common. The LONGER rows are for data sets with few batches in an epoch.
NEGGRAD = {"optimizer": "Adam", "weight_decay": 1e-4, "epochs": 2, "stop": 1}
SCRUB = {"optimizer": "Adam", "weight_decay": 5e-4, "epochs": 4, "decay_after": [2, 3], "gamma": 1.0}
UNROLL = {"optimizer": "Adam", "weight_decay": 1e-4}
NEGGRAD_LONGER = NEGGRAD | {"epochs": 20}  # at most: the stop ends it
SCRUB_LONGER = SCRUB | {"epochs": 6, "decay_after": [3, 5]}

# HYPERPARAMETERS[method][family or data set, kind of task]. ANY stands for those without a row of their own, None for
# the data set's value in TRAINING. CaMU's rows for random and class removal of MNIST and CIFAR are the published ones.
# Its `repeats` is the number of tuples per forget sample (None: see `camu.steps`). The baselines' CIFAR rows are those
# of each paper, except Unroll's (see there). Those of OptDigits, Digit and Fashion come from the search
# (benchmarks/tune.py) in the ranges of SEARCHED: ("log", from, to), ("int", from, to) or ("choice", ...); all else
# there stays fixed.
SEARCHED = "searched"
HYPERPARAMETERS = {
    "Retrain": {(ANY, ANY): {"epochs": None, "lr": None}},
    "Original": {(ANY, ANY): {}},
    "NegGrad": {
        SEARCHED: NEGGRAD | {"lr": ("log", 2e-5, 4e-4), "a": ("choice", 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)},
        ("OptDigits", "random"): NEGGRAD_LONGER | {"lr": 1.6e-4, "a": 0.99},
        ("OptDigits", "class"): NEGGRAD_LONGER | {"lr": 1.5e-4, "a": 0.995},
        ("Digit", "random"): NEGGRAD | {"lr": 1.2e-4, "a": 0.8},
        ("Digit", "class"): NEGGRAD | {"lr": 5.5e-5, "a": 0.995},
        ("Fashion", "random"): NEGGRAD | {"lr": 2.4e-4, "a": 0.8},
        ("Fashion", "class"): NEGGRAD | {"lr": 3.1e-5, "a": 0.995},
        ("CIFAR", ANY): {"optimizer": "SGD", "weight_decay": 0.0, "epochs": 5, "lr": 0.01, "a": 0.9999, "stop": 0},
        (ANY, "random"): NEGGRAD_LONGER | {"lr": 1e-4, "a": 0.9},
        (ANY, "class"): NEGGRAD_LONGER | {"lr": 1e-4, "a": 0.99},
        (ANY, "few"): NEGGRAD_LONGER | {"lr": 1e-4, "a": 0.97},
    },
    "Boundary": {
        SEARCHED: {"epochs": ("int", 1, 10), "lr": ("log", 1e-6, 3e-3)},
        ("OptDigits", "random"): {"epochs": 3, "lr": 1.2e-4},
        ("OptDigits", "class"): {"epochs": 10, "lr": 8.7e-5},
        ("Digit", "random"): {"epochs": 3, "lr": 1.4e-6},
        ("Digit", "class"): {"epochs": 6, "lr": 4.4e-4},
        ("Fashion", "random"): {"epochs": 1, "lr": 1.3e-6},
        ("Fashion", "class"): {"epochs": 6, "lr": 4.4e-4},
        ("CIFAR", ANY): {"epochs": 10, "lr": 1e-5},
        (ANY, "class"): {"epochs": 10, "lr": 1e-4},
        (ANY, ANY): {"epochs": 5, "lr": 1e-5},
    },
    "T-S": {
        SEARCHED: {"epochs": ("int", 1, 3), "lr": ("log", 1e-5, 3e-3), "remain_fraction": 0.3},
        ("OptDigits", "random"): {"epochs": 3, "lr": 8.8e-4, "remain_fraction": 0.3},
        ("OptDigits", "class"): {"epochs": 3, "lr": 5.3e-4, "remain_fraction": 0.3},
        ("Digit", "random"): {"epochs": 3, "lr": 2.7e-4, "remain_fraction": 0.3},
        ("Digit", "class"): {"epochs": 3, "lr": 1e-3, "remain_fraction": 0.3},
        ("Fashion", "random"): {"epochs": 2, "lr": 6.3e-4, "remain_fraction": 0.3},
        ("Fashion", "class"): {"epochs": 1, "lr": 8.9e-4, "remain_fraction": 0.3},
        (ANY, ANY): {"epochs": 1, "lr": 1e-4, "remain_fraction": 0.3},  # as published
    },
    "SCRUB": {
        SEARCHED: SCRUB
        | {"msteps": ("int", 1, 4), "lr": ("log", 5e-5, 3e-3), "alpha": ("log", 1e-3, 1.0)}
        | {"temperature": ("choice", 2.0, 4.0), "forget_batch_size": ("choice", 32, 128, 256, 512)},
        ("OptDigits", "random"): SCRUB_LONGER
        | {"msteps": 4, "lr": 1.7e-3, "alpha": 1.2e-3, "temperature": 4.0, "forget_batch_size": 128},
        ("OptDigits", "class"): SCRUB_LONGER
        | {"msteps": 2, "lr": 3e-4, "alpha": 3.1e-3, "temperature": 4.0, "forget_batch_size": 32},
        ("Digit", "random"): SCRUB
        | {"msteps": 4, "lr": 3.3e-4, "alpha": 3.9e-3, "temperature": 4.0, "forget_batch_size": 512},
        ("Digit", "class"): SCRUB
        | {"msteps": 2, "lr": 1e-4, "alpha": 0.11, "temperature": 4.0, "forget_batch_size": 256},
        ("Fashion", "random"): SCRUB
        | {"msteps": 3, "lr": 2.5e-4, "alpha": 0.025, "temperature": 4.0, "forget_batch_size": 128},
        ("Fashion", "class"): SCRUB
        | {"msteps": 3, "lr": 1.6e-4, "alpha": 0.065, "temperature": 4.0, "forget_batch_size": 512},
        ("CIFAR", ANY): {
            "optimizer": "SGD",
            "weight_decay": 5e-4,
            "epochs": 3,
            "decay_after": [],
            "gamma": 0.99,
            "msteps": 2,
            "lr": 5e-4,
            "alpha": 0.001,
            "temperature": 4.0,
            "forget_batch_size": 512,
        },
        (ANY, ANY): SCRUB_LONGER
        | {"msteps": 3, "lr": 3e-4, "alpha": 0.1, "temperature": 4.0, "forget_batch_size": 512},
    },
    "SISA": {(ANY, ANY): {"shards": 5, "slices": 4, "epochs": None, "lr": None}},
    "Unroll": {
        SEARCHED: UNROLL | {"epochs": ("int", 1, 3), "lr": ("log", 1e-4, 1e-2)},
        ("OptDigits", "random"): UNROLL | {"epochs": 1, "lr": 3e-3},
        ("OptDigits", "class"): UNROLL | {"epochs": 1, "lr": 3.1e-3},
        ("Digit", "random"): UNROLL | {"epochs": 1, "lr": 1.2e-3},
        ("Digit", "class"): UNROLL | {"epochs": 3, "lr": 8.2e-4},
        ("Fashion", "random"): UNROLL | {"epochs": 1, "lr": 1.2e-3},
        ("Fashion", "class"): UNROLL | {"epochs": 1, "lr": 1.5e-4},
        ("CIFAR", ANY): UNROLL | {"epochs": 1, "lr": None},
        (ANY, ANY): UNROLL | {"epochs": 1, "lr": 1e-3},
    },
    "CaMU": {
        ("MNIST", "random"): {"epochs": 10, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 1},
        ("MNIST", "class"): {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 1},
        ("CIFAR", "random"): {"epochs": 10, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 1, "passes": 2},
        ("CIFAR", "class"): {"epochs": 2, "lr_ce": 5e-5, "lr_kl": 1e-5, "repeats": 1, "passes": 1},
        ("CIFAR100", "class"): {"epochs": 2, "lr_ce": 5e-5, "lr_kl": 1e-5, "repeats": 10, "passes": 1},
        ("OptDigits", "random"): {"epochs": 5, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 4},
        ("OptDigits", "class"): {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 10},
        (ANY, "random"): {"epochs": 5, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 4, "passes": 1},
        (ANY, "class"): {"epochs": 2, "lr_ce": None, "lr_kl": None, "repeats": None, "passes": 1},
        ("OptDigits", "large"): {"epochs": 1, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 1},
        ("MNIST", "large"): {"epochs": 1, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 1},
        (ANY, "large"): {"epochs": 1, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 1, "passes": 1},
        ("OptDigits", "few"): {"epochs": 2, "lr_ce": 5e-4, "lr_kl": 4e-5, "repeats": 100},
        ("MNIST", "few"): {"epochs": 2, "lr_ce": 5e-4, "lr_kl": 4e-5, "repeats": 100},
        (ANY, "few"): {"epochs": 2, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 100, "passes": 1},
    },
}

LONGER = {"NegGrad": NEGGRAD_LONGER, "SCRUB": SCRUB_LONGER}


def search_space(method, dataset):
    """What the search draws a method's settings from; empty for a method that is not searched."""
    space = HYPERPARAMETERS[method].get(SEARCHED, {})
    return space | (LONGER.get(method, {}) if dataset == "OptDigits" else {})


def training_row(dataset, model, config=None):
    """The row of TRAINING that applies to a data set and its model, with the user's epochs and rate where given."""
    given = {name: getattr(config, name, None) for name in ("pretrain_epochs", "retrain_epochs", "lr")}
    family = FAMILIES.get(dataset, f"own {model}" if model == "CNN" else "own ResNet-18")
    return TRAINING[family] | {name: value for name, value in given.items() if value}


def hyperparameters_of(method, dataset, kind, training=None, overrides=()):
    """The row of HYPERPARAMETERS that applies, with the user's overrides: a dict of names to values.

    Parameters
    ----------
    method, dataset : str
        Names as in the configuration; a data set that is not built in counts as own data.
    kind : str
        "random", "class", "few" or "large" (see `data.Split.kind`).
    training : dict, optional
        From `training_row`, by default that of the data set with a ResNet-18: stands in where the row says None.
    overrides : sequence of str
        ``METHOD.NAME=VALUE`` each, those of other methods ignored; a UserError for one that is not written so.
    """
    table = HYPERPARAMETERS[method]
    family = FAMILIES.get(dataset, "own")
    if kind == "large" and (ANY, kind) not in table:
        kind = "random"
    keys = [(dataset, kind), (family, kind), (dataset, ANY), (family, ANY), (ANY, kind), (ANY, ANY)]
    row = dict(next(table[key] for key in keys if key in table))
    training = training or training_row(dataset, "ResNet-18")
    lr, defaults = training["lr"], {"epochs": training["retrain_epochs"]}
    defaults |= {"lr": lr, "lr_ce": lr, "lr_kl": lr / 5}  # lr_ce / lr_kl as in CIFAR's class row
    row = {name: defaults.get(name) if value is None else value for name, value in row.items()}
    for text in overrides:
        target, name, value = parse_override(text)
        if target == method:
            row[name] = value
    return row


def check_overrides(texts):
    """Refuse overrides that are wrong, or there twice."""
    named = [parse_override(text)[:2] for text in texts]
    twice = [f"{method}.{name}" for method, name in named if named.count((method, name)) > 1]
    require(not twice, lambda: f"--override {twice[0]} is there twice")


def parse_override(text):
    """Split ``METHOD.NAME=VALUE`` into the two names and the value; a UserError says which of the three is wrong."""
    target, _, value = text.partition("=")
    method, _, name = target.partition(".")
    require(method in HYPERPARAMETERS, f"--override {text}: no method {method!r}, only {', '.join(HYPERPARAMETERS)}")
    rows = [row for key, row in HYPERPARAMETERS[method].items() if key != SEARCHED]
    known = {entry: usual for row in rows for entry, usual in row.items()}
    require(name in known, f"--override {text}: {method} has no {name!r}, only {', '.join(known) or 'no settings'}")
    try:
        return method, name, parse_value(name, known[name], value)
    except ValueError as error:
        raise UserError(f"--override {text}: {name} must be {error}")


def parse_value(name, usual, text):
    """A hyperparameter's value from its text, of the sort of its `usual` one; a ValueError says what it must be."""
    if name == "optimizer":
        if text not in ("Adam", "SGD"):
            raise ValueError("Adam or SGD")
        return text
    if name == "decay_after":
        if not re.fullmatch(r"([1-9]\d*(,[1-9]\d*)*)?", text):
            raise ValueError("the numbers of epochs, from 1, separated by commas")
        return [int(epoch) for epoch in text.split(",") if epoch]
    if name in ("stop", "passes"):
        first, second = ("0", "1") if name == "stop" else ("1", "2")
        if text not in (first, second):
            raise ValueError(f"{first} or {second}")
        return int(text)
    if name == "epochs" or isinstance(usual, int):
        if not re.fullmatch(r"0*[1-9]\d{0,4}", text):
            raise ValueError("a whole number from 1 to 99999")
        return int(text)
    most = 1 if name in ("a", "remain_fraction") else 10**6
    wanted = "a number above 0" if name == "temperature" else f"a number from 0 to {most}"
    try:
        number = float(text)
    except ValueError:
        raise ValueError(wanted)
    if not 0 <= number <= most or (number == 0 and name == "temperature"):
        raise ValueError(wanted)
    return number


def settings(row, *, seed, batch_size=32, **more):
    """What every method is called with besides the model and the split: these values as attributes.

    `row` has the method's hyperparameters, and `seed` is the source of all of its randomness. `more` may have:

    progress : bool
        Show a bar on a terminal.
    partial : Path
        Where a long training keeps its state, to continue after an interruption.
    prepared : list
        What the method's preparation step returned.
    test_accuracy : float
        The accuracy of f_o on test samples, in percent.
    watch : callable
        Called with f_u after every epoch.
    terms, paired, y_c, passes
        What a row of `camu.ABLATION` changes.
    """
    absent = {"progress": False} | dict.fromkeys(("partial", "prepared", "test_accuracy", "watch"))
    return SimpleNamespace(seed=seed, batch_size=batch_size, **{**absent, **row, **more})
