"""Cells: what determines their numbers, computing them, and keeping what was computed."""

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from baselines import METHODS
from config import UserError, hyperparameters, settings, threads_per_cell, training_row
from data import (
    Task,
    derive_seed,
    generator,
    load_or_set_aside,
    load_tensors,
    make_split,
    save_atomically,
)
from metrics import accuracy, evaluate, predict
from training import train

PRETRAINING_SEED = 0  # one pre-unlearning model per data set, shared by every method, task and seed


@dataclass(frozen=True)
class Cell:
    """One result: a data set, a task, a method and a seed."""

    dataset: str
    task: Task
    method: str
    seed: int

    @property
    def place(self):
        return Path(self.dataset, self.task.name, self.method, f"seed{self.seed}")


def resolve_device(text):
    """ "auto", "cpu" or "cuda" to a device type.

    Raises
    ------
    UserError
        For another text, or "cuda" on a machine without CUDA.
    """
    if text not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {text}: must be auto, cpu or cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return "cuda" if text != "cpu" and torch.cuda.is_available() else "cpu"


def use_machine(spec):
    """Make torch compute as a cell's configuration says: the same bits on the same machine every time."""
    torch.set_num_threads(spec["threads"])
    if spec["device"] == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def machine_spec(config):
    device = resolve_device(config.device)
    precision = "float32" if device == "cpu" else "float32 with TF32 convolutions"
    return {
        "device": device,
        "threads": threads_per_cell(config),
        "precision": precision,
        "batch_size": config.batch_size,
    }


def pretrained_spec(dataset, fingerprint, config):
    """All that determines the pre-unlearning model."""
    row = training_row(dataset.name, dataset.model, config.pretrain_epochs, config.retrain_epochs)
    return {
        "data": fingerprint,
        "model": dataset.model,
        "epochs": row["pretrain_epochs"],
        "lr": row["lr"],
        **machine_spec(config),
    }


def cell_spec(cell, dataset, split, pretrained, config):
    """All that determines a cell's numbers: two cells with the same specification are the same cell.

    Parameters
    ----------
    cell : Cell
    dataset : Dataset
    split : Split
    pretrained : dict
        From `pretrained_spec`.
    config : Config
    """
    training = training_row(dataset.name, dataset.model, config.pretrain_epochs, config.retrain_epochs)
    return {
        "data": pretrained["data"],
        "pretrained": key(pretrained),
        "task": cell.task.name,
        "forget_set": hashlib.sha256(split.forget.cpu().numpy().data).hexdigest()[:16],
        "method": cell.method,
        "hyperparameters": hyperparameters(cell.method, dataset.name, split.kind, training, config.override),
        "seed": cell.seed,
        **machine_spec(config),
    }


def key(spec):
    """A short name for a specification, for file names."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def pretrain(dataset, spec, partial=None, progress=False):
    """Train the pre-unlearning model.

    Returns
    -------
    dict
        A checkpoint: `state` (state dict on the CPU) and `accuracy` ({"train": %, "test": %}, without augmentation).
    """
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    images = dataset.train
    seed = derive_seed(PRETRAINING_SEED, "pretraining weights")
    model = models.build(dataset.model, len(dataset.classes), seed, images.device)
    train(
        model,
        images,
        torch.arange(len(images), device=images.device),
        epochs=spec["epochs"],
        lr=spec["lr"],
        batch_size=spec["batch_size"],
        rng=generator(PRETRAINING_SEED, "pretraining"),
        partial=partial,
        progress=progress,
        label=f"{dataset.name}: pretraining",
    )
    found = {
        part: accuracy(predict(model, images), images.labels)
        for part, images in (("train", dataset.train), ("test", dataset.test))
    }
    return {"state": cpu_state(model), "accuracy": found}


def cpu_state(model):
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def run_cell(cell, spec, dataset, f_o_state, partial=None, progress=False, jobs=1):
    """Unlearn and evaluate: a pure function of its arguments (times aside).

    Parameters
    ----------
    cell : Cell
    spec : dict
        From `cell_spec`.
    dataset : Dataset
        On any device.
    f_o_state : dict
        The pre-unlearning model's state dict.
    partial : Path, optional
        Where a long training keeps its state.
    progress : bool
    jobs : int
        How many cells are computed at a time, for the record: times are only comparable under the same conditions.

    Returns
    -------
    record : dict
        What the cell's file holds.
    state : dict
        The unlearned model's state dict, on the CPU.
    """
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    split = make_split(dataset, cell.task, cell.seed)
    f_o = models.restore(dataset.model, len(dataset.classes), f_o_state, spec["device"])
    chosen = settings(
        spec["hyperparameters"],
        seed=cell.seed,
        batch_size=spec["batch_size"],
        progress=progress,
        partial=partial,
    )
    started = time.perf_counter()
    model = METHODS[cell.method].unlearn(f_o, split, chosen)
    if spec["device"] == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    record = {
        "dataset": cell.dataset,
        "task": cell.task.name,
        "method": cell.method,
        "seed": cell.seed,
        "metrics": evaluate(model, dataset, split, cell.seed, spec["threads"]),
        "time_s": seconds,
        "config": spec,
        "conditions": {"device": device_name(spec["device"]), "threads": spec["threads"], "jobs": jobs},
        "versions": versions(spec["device"]),
    }
    return record, cpu_state(model)


def versions(device):
    """What the numbers were made with."""
    return {"python": platform.python_version(), "torch": torch.__version__, "device": device_name(device)}


def device_name(device):
    """The GPU's name, or the processor's as Linux gives it, else its architecture."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cell_path(config, cell):
    return Path(config.results_dir) / "cells" / cell.place.with_suffix(".json")


def model_path(config, cell):
    return Path(config.checkpoints_dir) / "unlearned" / cell.place.with_suffix(".pt")


def read_json(path):
    return json.loads(path.read_text())


def finished(path, spec, overwrite):
    """The record of a finished cell, or None where it has to be run.

    Raises
    ------
    UserError
        The cell was made with another configuration and `overwrite` is False; says what differs.
    """
    record = load_or_set_aside(path, read_json)
    if record is None or record["config"] == spec:
        return record
    if overwrite:
        return None
    raise UserError(
        f"{path} was made with another configuration ({', '.join(differences(record['config'], spec))}); "
        "use --overwrite to redo it, or another --results-dir"
    )


def differences(old, new):
    """ "name: old -> new" for every entry in which two specifications differ, nested ones by their inner names."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after)
        elif before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


def save_record(path, record):
    save_atomically(path, lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))


def save_model(path, dataset, state, spec):
    stored = {"model": dataset.model, "classes": len(dataset.classes), "state": state, "config": spec}
    save_atomically(path, lambda file: torch.save(stored, file))


def pretrained_model(dataset, spec, config):
    """The pre-unlearning model's checkpoint (see `pretrain`), trained once and kept under --checkpoints-dir."""
    folder = Path(config.checkpoints_dir) / dataset.name
    path = folder / f"pretrained-{key(spec)}.pt"
    checkpoint = load_or_set_aside(path, load_tensors)
    if checkpoint is None:
        partial = folder / f"pretraining-{key(spec)}.partial.pt"
        checkpoint = pretrain(dataset, spec, partial, progress=not config.quiet)
        save_atomically(path, lambda file: torch.save({**checkpoint, "spec": spec}, file))
    return checkpoint


def check_writable(folder):
    """Raise a UserError unless files can be made in `folder`, which is made where it is missing."""
    probe = Path(folder) / ".writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}")
