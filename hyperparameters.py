"""Hyperparameters: the row of every method, by data set and kind of task."""

from types import SimpleNamespace

from harness.store import UserError

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

# What SCRUB's rows have in common where D_f comes in batches of its own.
SCRUB_CLASS = {"msteps": 2, "gamma": 1.0, "temperature": 4.0, "forget_batch_size": 512}

# HYPERPARAMETERS[method][family or data set, kind of task or task]; ANY stands for those without a row of their own,
# None for the data set's value in TRAINING. CaMU's MNIST and CIFAR rows are the published ones; its `repeats` is how
# often D_f stands in the joint dataset. The baselines' OptDigits, MNIST and Fashion rows and those of single tasks
# are the best of a search (benchmarks/tune.py). Their CIFAR rows are each paper's values or near, not tuned yet.
HYPERPARAMETERS = {
    "Retrain": {(ANY, ANY): {"epochs": None, "lr": None}},
    "NegGrad": {
        ("OptDigits", "random"): {"epochs": 2, "lr": 0.01, "a": 0.8},
        ("OptDigits", "class"): {"epochs": 4, "lr": 0.02, "a": 0.85},
        ("MNIST", "random"): {"epochs": 1, "lr": 0.01, "a": 0.6},
        ("MNIST", "class"): {"epochs": 2, "lr": 0.003, "a": 0.95},
        ("Fashion", "random"): {"epochs": 2, "lr": 0.01, "a": 0.7},
        ("Fashion", "class"): {"epochs": 2, "lr": 0.01, "a": 0.998},
        ("Digit", "class1"): {"epochs": 2, "lr": 0.01, "a": 0.97},
        ("Digit", "class2"): {"epochs": 2, "lr": 0.01, "a": 0.98},
        ("Fashion", "class1"): {"epochs": 2, "lr": 0.005, "a": 0.97},
        ("Fashion", "class2"): {"epochs": 2, "lr": 0.003, "a": 0.995},
        ("CIFAR", "random"): {"epochs": 5, "lr": 0.01, "a": 0.99},
        ("CIFAR", "class"): {"epochs": 5, "lr": 0.01, "a": 0.95},
        (ANY, "random"): {"epochs": 1, "lr": 0.01, "a": 0.95},
        (ANY, "class"): {"epochs": 2, "lr": 0.01, "a": 0.9},
        (ANY, "few"): {"epochs": 1, "lr": 0.01, "a": 0.97},
    },
    "Boundary": {
        ("OptDigits", "random"): {"epochs": 1, "lr": 1e-5},
        ("OptDigits", "class"): {"epochs": 2, "lr": 3e-4},
        ("MNIST", "random"): {"epochs": 1, "lr": 3e-7},
        ("MNIST", "class"): {"epochs": 10, "lr": 1e-4},
        ("Fashion", "random"): {"epochs": 1, "lr": 3e-7},
        ("Fashion", "class"): {"epochs": 5, "lr": 3e-4},
        ("Digit", "class1"): {"epochs": 10, "lr": 3e-4},
        ("Digit", "class2"): {"epochs": 10, "lr": 3e-4},
        ("Fashion", "class1"): {"epochs": 10, "lr": 1e-4},
        ("Fashion", "class2"): {"epochs": 5, "lr": 3e-4},
        (ANY, "random"): {"epochs": 5, "lr": 1e-5},
        (ANY, "class"): {"epochs": 10, "lr": 1e-4},
        (ANY, "few"): {"epochs": 5, "lr": 1e-5},
    },
    "T-S": {
        ("OptDigits", "random"): {"epochs": 3, "lr": 5e-4, "remain_fraction": 0.3},
        ("OptDigits", "class"): {"epochs": 2, "lr": 1e-3, "remain_fraction": 0.3},
        ("MNIST", "random"): {"epochs": 3, "lr": 5e-4, "remain_fraction": 0.3},
        ("MNIST", "class"): {"epochs": 2, "lr": 1e-3, "remain_fraction": 0.3},
        ("Fashion", "random"): {"epochs": 3, "lr": 2e-4, "remain_fraction": 0.3},
        ("Fashion", "class"): {"epochs": 1, "lr": 2e-4, "remain_fraction": 0.3},
        ("Digit", "class1"): {"epochs": 1, "lr": 5e-4, "remain_fraction": 0.3},
        ("Digit", "class2"): {"epochs": 2, "lr": 0.001, "remain_fraction": 0.3},
        ("Fashion", "class1"): {"epochs": 2, "lr": 0.001, "remain_fraction": 0.3},
        ("Fashion", "class2"): {"epochs": 2, "lr": 2e-4, "remain_fraction": 0.3},
        (ANY, ANY): {"epochs": 1, "lr": 1e-4, "remain_fraction": 0.3},
    },
    "SCRUB": {
        ("OptDigits", "random"): {"epochs": 3, "msteps": 2, "lr": 1e-3, "alpha": 0.5, "gamma": 1.0, "temperature": 4.0},
        ("OptDigits", "class"): SCRUB_CLASS | {"epochs": 10, "msteps": 8, "lr": 1.4e-3, "alpha": 0.1},
        ("MNIST", "random"): {"epochs": 3, "msteps": 2, "lr": 1.5e-5, "alpha": 0.1, "gamma": 1.0, "temperature": 4.0},
        ("MNIST", "class"): {"epochs": 3, "msteps": 2, "lr": 2e-5, "alpha": 0.1, "gamma": 1.0, "temperature": 4.0},
        ("Fashion", "random"): {"epochs": 3, "msteps": 2, "lr": 2e-5, "alpha": 0.1, "gamma": 1.0, "temperature": 4.0},
        ("Fashion", "class"): {"epochs": 3, "msteps": 2, "lr": 1.4e-5, "alpha": 0.1, "gamma": 1.0, "temperature": 4.0},
        ("Digit", "class1"): SCRUB_CLASS | {"epochs": 3, "lr": 6e-4, "alpha": 0.1},
        ("Digit", "class2"): SCRUB_CLASS | {"epochs": 5, "lr": 9e-4, "alpha": 0.05},
        ("Fashion", "class1"): SCRUB_CLASS | {"epochs": 5, "lr": 9e-4, "alpha": 0.1},
        ("Fashion", "class2"): SCRUB_CLASS | {"epochs": 3, "lr": 9e-4, "alpha": 0.05},
        ("CIFAR", "random"): {"epochs": 3, "msteps": 2, "lr": 5e-4, "alpha": 0.001, "gamma": 0.99, "temperature": 4.0},
        ("CIFAR", "class"): {"epochs": 3, "msteps": 2, "lr": 5e-4, "alpha": 0.001, "gamma": 0.99, "temperature": 4.0},
        (ANY, ANY): {"epochs": 3, "msteps": 2, "lr": 1e-4, "alpha": 0.1, "gamma": 1.0, "temperature": 4.0},
    },
    "SISA": {(ANY, ANY): {"shards": 5, "slices": 4, "epochs": None, "lr": None}},
    "Unroll": {
        ("OptDigits", "random"): {"epochs": 2, "lr": 0.03},
        ("OptDigits", "class"): {"epochs": 2, "lr": 0.15},
        ("MNIST", "random"): {"epochs": 1, "lr": 0.03},
        ("MNIST", "class"): {"epochs": 3, "lr": 0.1},
        ("Fashion", "random"): {"epochs": 2, "lr": 0.003},
        ("Fashion", "class"): {"epochs": 1, "lr": 0.007},
        ("Digit", "class1"): {"epochs": 3, "lr": 0.05},
        ("Digit", "class2"): {"epochs": 3, "lr": 0.1},
        ("Fashion", "class1"): {"epochs": 2, "lr": 0.02},
        ("Fashion", "class2"): {"epochs": 1, "lr": 0.01},
        (ANY, ANY): {"epochs": 1, "lr": 3e-3},
    },
    "CaMU": {
        ("MNIST", "random"): {"epochs": 10, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 1},
        ("MNIST", "class"): {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 1},
        ("CIFAR", "random"): {"epochs": 10, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 1},
        ("CIFAR", "class"): {"epochs": 2, "lr_ce": 5e-5, "lr_kl": 1e-5, "repeats": 1},
        ("CIFAR100", "class"): {"epochs": 2, "lr_ce": 5e-5, "lr_kl": 1e-5, "repeats": 10},
        ("OptDigits", "random"): {"epochs": 5, "lr_ce": 5e-4, "lr_kl": 4e-4, "repeats": 4},
        ("OptDigits", "class"): {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 4e-4, "repeats": 10},
        (ANY, "random"): {"epochs": 5, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 4},
        (ANY, "class"): {"epochs": 2, "lr_ce": 1e-3, "lr_kl": 1e-4, "repeats": 20},
        ("OptDigits", "few"): {"epochs": 2, "lr_ce": 5e-4, "lr_kl": 4e-5, "repeats": 100},
        ("MNIST", "few"): {"epochs": 2, "lr_ce": 5e-4, "lr_kl": 4e-5, "repeats": 100},
        (ANY, "few"): {"epochs": 2, "lr_ce": 1e-4, "lr_kl": 1e-5, "repeats": 100},
    },
}


def training_row(dataset, model, pretrain_epochs=None, retrain_epochs=None):
    """The row of TRAINING that applies to a data set and its model, with the user's epochs where given."""
    given = {"pretrain_epochs": pretrain_epochs, "retrain_epochs": retrain_epochs}
    return TRAINING[FAMILIES.get(dataset, f"own {model}")] | {name: value for name, value in given.items() if value}


def hyperparameters_of(method, dataset, kind, training=None, overrides=(), task=None):
    """The row of HYPERPARAMETERS that applies, with the user's overrides: a dict of name to number.

    Parameters
    ----------
    method, dataset : str
        Names as in the configuration; a data set that is not built in counts as own data.
    kind : str
        "random", "class" or "few" (see `data.Split.kind`).
    training : dict, optional
        From `training_row`: stands in where the row says None, as those of Retrain and SISA do.
    overrides : sequence of str
        ``METHOD.NAME=VALUE`` each, those of other methods ignored; a UserError for one that is not written so.
    task : str, optional
        Such as "class1": its own row goes before that of its kind.
    """
    table = HYPERPARAMETERS[method]
    family = FAMILIES.get(dataset, "own")
    places = [(dataset, task), (dataset, kind), (family, kind), (ANY, kind), (ANY, ANY)]
    row = dict(next(table[place] for place in places if place in table))
    if training is not None:
        defaults = {"epochs": training["retrain_epochs"], "lr": training["lr"]}
        row = {name: defaults[name] if value is None else value for name, value in row.items()}
    for text in overrides:
        target, name, value = parse_override(text)
        if target == method:
            row[name] = value
    return row


def parse_override(text):
    """Split ``METHOD.NAME=VALUE`` into the two names and the number; a UserError says which of the three is wrong."""
    target, _, value = text.partition("=")
    method, _, name = target.partition(".")
    try:
        number = int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise UserError(f"--override {text}: {value!r} is no number; write METHOD.NAME=VALUE")
    if method not in HYPERPARAMETERS:
        raise UserError(f"--override {text}: no method {method!r}, only {', '.join(HYPERPARAMETERS)}")
    known = {entry: usual for row in HYPERPARAMETERS[method].values() for entry, usual in row.items()}
    if name not in known:
        raise UserError(f"--override {text}: {method} has no {name!r}, only {', '.join(known)}")
    whole = name == "epochs" or isinstance(known[name], int)
    if whole and not (isinstance(number, int) and number >= 1):
        raise UserError(f"--override {text}: {name} must be a whole number of at least 1")
    most = 1 if name in ("a", "remain_fraction") else float("inf")
    if not 0 <= number <= most or number == float("inf"):
        raise UserError(f"--override {text}: {name} must be a number {'from 0 to 1' if most == 1 else 'of at least 0'}")
    if name == "temperature" and number == 0:
        raise UserError(f"--override {text}: {name} must be above 0")
    return method, name, number


def settings(row, *, seed, batch_size=32, progress=False, partial=None, prepared=None, **more):
    """What every method is called with besides the model and the split: these values as attributes.

    `row` has the method's hyperparameters, `seed` is the source of all of its randomness, and `progress` shows a bar. A
    long training keeps its state in `partial`, a path, to continue after an interruption. `prepared` is what the
    method's preparation step returned, and `more` what a single method knows besides, such as CaMU's `terms`.
    """
    return SimpleNamespace(
        seed=seed, batch_size=batch_size, progress=progress, partial=partial, prepared=prepared, **row, **more
    )
