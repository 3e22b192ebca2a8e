"""Cells: what determines their numbers, computing them, keeping what was computed, and running many at a time."""

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

import models
from baselines import METHODS
from config import ABLATION, UserError, hyperparameters, settings, training_row
from data import (
    Task,
    derive_seed,
    generator,
    load_or_set_aside,
    load_tensors,
    make_split,
    save_atomically,
)
from metrics import accuracy, evaluate, evaluation_crops, predict
from training import train

PRETRAINING_SEED = 0  # one pre-unlearning model (and one set of SISA shards) per data set, for every task and seed
RELEARN_EPOCHS = 10
SHARED = ("dataset", "f_o_state", "prepared")  # arguments of many jobs, sent to a cluster once


@dataclass(frozen=True)
class Cell:
    """One result: a data set, a task, a method and a seed, in the tree of its study.

    The trees are "cells" (the plain run), "ablation", "relearn" and "efficiency".
    """

    dataset: str
    task: Task
    method: str
    seed: int
    tree: str = "cells"

    @property
    def place(self):
        return Path(self.dataset, self.task.name, self.method, f"seed{self.seed}")

    def path(self, config):
        return Path(config.results_dir) / self.tree / self.place.with_suffix(".json")

    def model_path(self, config):
        return Path(config.checkpoints_dir) / "unlearned" / self.place.with_suffix(".pt")


def resolve_device(config):
    """--device as a device type, "cpu" or "cuda"; on a cluster the workers' devices count, not this machine's.

    Raises
    ------
    UserError
        For another text, or "cuda" where there is none.
    """
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {config.device}: must be auto, cpu or cuda")
    available = config.gpus_per_cell > 0 if config.cluster else torch.cuda.is_available()
    if config.device == "cuda" and not available:
        if config.cluster:
            raise UserError("--device cuda with --cluster needs --gpus-per-cell above 0")
        raise UserError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return "cuda" if config.device != "cpu" and available else "cpu"


def use_machine(spec):
    """Make torch compute as a specification says: on a CPU the same bits on the same machine every time.

    Numbers below 1.2e-38 count as 0: where a trained model's gradients and Adam's averages of them fade away, such
    numbers come up by the thousand, and processors take many times longer over them.

    On CUDA cuDNN and cuBLAS are held to that too; other kernels, such as the backward pass of max-pooling, may add in
    any order.
    """
    torch.set_num_threads(spec["threads"])
    torch.set_flush_denormal(True)
    if spec["device"] == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a process first uses cuBLAS
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def machine_spec(config):
    device = resolve_device(config)
    return {
        "device": device,
        "threads": config.threads,
        "precision": "float32" if device == "cpu" else "float32 with TF32 convolutions",
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


def shards_spec(spec, row):
    """All that determines SISA's shards: the pre-unlearning model's, with SISA's own hyperparameters."""
    return {**spec, **row}


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
    method, variant = ("CaMU", ABLATION[cell.method]) if cell.tree == "ablation" else (cell.method, {})
    row = hyperparameters(method, dataset.name, split.kind, training, config.override, cell.task.name)
    spec = {
        "data": pretrained["data"],
        "pretrained": key(pretrained),
        "task": cell.task.name,
        "forget_set": hashlib.sha256(split.forget.cpu().numpy().data).hexdigest()[:16],
        "method": method,
        "hyperparameters": row | variant,
        "seed": cell.seed,
        **machine_spec(config),
    }
    return spec | {"relearn": {"epochs": RELEARN_EPOCHS, "lr": training["lr"]}} if cell.tree == "relearn" else spec


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
    return {"state": models.cpu_state(model), "accuracy": found}


def prepare_shard(shard, method, row, spec, dataset, partial=None, progress=False):
    """Run one part of a method's preparation step, before any forget request; see `baselines.sisa`."""
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    chosen = settings(row, seed=PRETRAINING_SEED, batch_size=spec["batch_size"], partial=partial, progress=progress)
    classes = len(dataset.classes)
    return {"states": METHODS[method].prepare_shard(shard, dataset.train, dataset.model, classes, chosen)}


def run_cell(cell, spec, dataset, f_o_state, prepared=None, partial=None, progress=False, jobs=1):
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
    prepared : list, optional
        What the method's preparation step returned, part by part.
    partial : Path, optional
        Where a long training keeps its state; its name is the stem of all such files of the cell.
    progress : bool
    jobs : int or None
        How many cells are computed at a time, for the record: times are only comparable under the same conditions.
        None: not known, as on a cluster; then no conditions are recorded.

    Returns
    -------
    record : dict
        What the cell's file holds.
    stored : dict
        The unlearned model as `models.load` reads it, on the CPU.
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
        prepared=prepared,
    )
    interrupted = [load_or_set_aside(path, load_tensors) for path in partial_files(partial)]
    earlier = sum(state["seconds"] for state in interrupted if state is not None)
    started = time.perf_counter()
    model = METHODS[spec["method"]].unlearn(f_o, split, chosen)
    if spec["device"] == "cuda":
        torch.cuda.synchronize()
    seconds = earlier + time.perf_counter() - started
    conditions = {"device": device_name(spec["device"]), "threads": spec["threads"], "jobs": jobs}
    record = {
        **names(cell),
        "metrics": evaluate(model, dataset, split, cell.seed, spec["threads"]),
        "time_s": seconds,
        "config": spec,
        "conditions": None if jobs is None else conditions,
        "versions": versions(spec["device"]),
    }
    stored = {
        "model": dataset.model,
        "classes": len(dataset.classes),
        "members": len(model.members) if isinstance(model, models.Ensemble) else 0,
        "state": models.cpu_state(model),
        "config": spec,
    }
    return record, stored


def run_relearning(cell, spec, dataset, stored, progress=False):
    """Fine-tune an unlearned model on all of D_r and follow A_r and A_f (figures 4 and 5).

    Adam at the pretraining learning rate; each of SISA's models learns from its own shard's share of D_r.

    Parameters
    ----------
    stored : dict
        The unlearned model, from `run_cell`.
    cell, spec, dataset, progress
        As for `run_cell`.

    Returns
    -------
    dict
        What the cell's file holds: `A_r` and `A_f` in percent, before and after each of the 10 epochs.
    """
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    split = make_split(dataset, cell.task, cell.seed)
    images = split.train
    model = models.restore(stored["model"], stored["classes"], stored["state"], spec["device"], stored["members"])
    crops = evaluation_crops(dataset, cell.seed)
    curves = {"A_r": [], "A_f": []}

    def follow():
        p = predict(model, images, crops)
        for name, index in (("A_r", split.remain), ("A_f", split.forget)):
            curves[name].append(accuracy(p[index], images.labels[index]))

    follow()
    learners = [(model, split.remain)]
    if stored["members"]:
        parts = METHODS["SISA"].shard_slices(len(images), spec["hyperparameters"]["shards"], 1)
        shares = [split.remain[torch.isin(split.remain, part.to(images.device))] for (part,) in parts]
        learners = list(zip(model.members, shares))
    states = []  # learner by learner, its weights after each epoch: the ensemble is looked at epoch by epoch
    for i, (learner, index) in enumerate(learners):
        after = []
        train(
            learner,
            images,
            index,
            epochs=spec["relearn"]["epochs"],
            lr=spec["relearn"]["lr"],
            batch_size=spec["batch_size"],
            rng=generator(cell.seed, "relearning", i),
            progress=progress,
            label=f"{cell.method}: relearning",
            after=lambda _, learner=learner, after=after: after.append(models.cpu_state(learner)),
        )
        states.append(after)
    for epoch in range(spec["relearn"]["epochs"]):
        for (learner, _), after in zip(learners, states):
            learner.load_state_dict(after[epoch])
        follow()
    return {**names(cell), **curves, "config": spec, "versions": versions(spec["device"])}


def names(cell):
    return {"dataset": cell.dataset, "task": cell.task.name, "method": cell.method, "seed": cell.seed}


def versions(device):
    """What the numbers were made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "subnormal numbers": "as 0",
    }


def device_name(device):
    """The GPU's name, or the processor's as Linux gives it, else its architecture."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def partial_files(partial):
    """The files in which the long trainings of one job keep their states."""
    return sorted(partial.parent.glob(partial.stem + "*.pt")) if partial else []


def read_record(path):
    """A cell's record; a ValueError or TypeError for JSON that is none."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if "config" not in record:
        raise ValueError("not a cell")
    return record


def save_record(path, record):
    save_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def finished(path, spec, overwrite):
    """The record of a finished cell, or None where it has to be run.

    Raises
    ------
    UserError
        The cell was made with another configuration and `overwrite` is False; says what differs.
    """
    record = load_or_set_aside(path, read_record)
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


def check_writable(folder):
    """Raise a UserError unless files can be made in `folder`, which is made where it is missing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as probe:  # its own name: runs may start together
            probe.write(bytes(4096))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}")


@dataclass(frozen=True)
class Job:
    """A pure function to call, anywhere, and what to do here with its result.

    Attributes
    ----------
    label : str
        For the progress bar.
    function : callable
    arguments : callable
        Returns the dict of arguments; called when the job is started.
    keep : callable
        Called with the result in the process that writes all files.
    """

    label: str
    function: Callable
    arguments: Callable
    keep: Callable


def run_jobs(jobs, config, title):
    """Run jobs, `config.jobs` at a time, and keep each result as soon as it is there; show a bar."""
    if not jobs:
        return
    with tqdm(total=len(jobs), desc=title, unit="cell", disable=True if config.quiet else None) as bar:
        for i, result in _results(jobs, config, bar):
            jobs[i].keep(result)
            bar.update()
            running = min(config.jobs, len(jobs) - bar.n)
            bar.set_postfix_str(f"{running} running")


def _results(jobs, config, bar):
    """(number of the job, its result), as they finish."""
    if config.cluster:
        yield from _ray_results(jobs, config)
    elif config.jobs > 1:
        parallel = joblib.Parallel(config.jobs, return_as="generator_unordered", pre_dispatch=config.jobs)
        calls = (joblib.delayed(_numbered)(i, job.function, **job.arguments()) for i, job in enumerate(jobs))
        try:
            yield from parallel(calls)
        except KeyboardInterrupt:  # joblib would wait for the cells in progress
            get_reusable_executor().shutdown(wait=False, kill_workers=True)
            raise
        except BrokenProcessPool:
            raise UserError(
                f"one of the {config.jobs} processes was ended from outside, as happens when memory runs out; the same "
                "command, with fewer --jobs, continues with what is not finished"
            )
    else:
        for i, job in enumerate(jobs):
            bar.set_postfix_str(job.label)
            yield i, job.function(**job.arguments(), progress=not config.quiet)


def _numbered(i, function, **arguments):
    return i, function(**arguments)


def _ray_results(jobs, config):
    """The same through Ray, whose workers need no file of this machine: data and models travel as objects.

    A task whose worker dies is started again, up to three times. Workers keep no state of long trainings, for another
    machine may take over.
    """
    ray = start_ray(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= config.threads and node.get("GPU", 0) >= config.gpus_per_cell for node in nodes):
        wanted = f"{config.threads} CPUs (--threads) and {config.gpus_per_cell:g} GPUs (--gpus-per-cell)"
        print(f"no node of the cluster has {wanted}, which a cell takes: waiting for one", flush=True)
    run = ray.remote(num_cpus=config.threads, num_gpus=config.gpus_per_cell, max_retries=3)(_numbered)
    at_a_time = max(config.jobs, int(ray.cluster_resources().get("CPU", 1) // config.threads))
    references, running = {}, []

    def shared(value):
        if id(value) not in references:
            references[id(value)] = ray.put(value)
        return references[id(value)]

    waiting = list(enumerate(jobs))[::-1]
    while waiting or running:
        while waiting and len(running) < at_a_time:
            i, job = waiting.pop()
            arguments = {k: shared(v) if k in SHARED else v for k, v in job.arguments().items() if k != "partial"}
            running.append(run.remote(i, job.function, **arguments))
        (done, *_), running = ray.wait(running)
        yield ray.get(done)


def start_ray(config):
    """Connect to the cluster, or start one here; its workers get a copy of this folder's modules."""
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray: python -m pip install -r requirements-ray.txt")
    if not ray.is_initialized():
        here = Path(__file__).resolve().parent
        kept_back = [".git", ".venv", "data", "checkpoints", "runs", "results", "tests", "*.ipynb"]
        try:
            ray.init(
                address=None if config.cluster == "local" else config.cluster,
                num_cpus=config.jobs * config.threads if config.cluster == "local" else None,
                runtime_env={"working_dir": str(here), "excludes": kept_back},
                log_to_driver=False,
                include_dashboard=False if config.cluster == "local" else None,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--cluster {config.cluster}: no Ray cluster answers ({' '.join(str(error).split())})")
    return ray
