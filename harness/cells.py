"""Cells: what determines the numbers of one, and how they are computed."""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import models
from audit import audit, reference_probabilities
from baselines import METHODS
from camu import ABLATION
from data import derive_seed, generator, make_splits
from harness.architectures import own_weights
from harness.store import UserError, load_or_set_aside, load_tensors, read_tensors, require
from harness.tasks import Task
from hyperparameters import hyperparameters_of, settings, training_row
from metrics import accuracy, attacked, evaluate, predict, relearn
from training import train

PRETRAINING_SEED = 0  # one pre-unlearning model (and one set of SISA shards) per data set, for every task and seed
RELEARN_EPOCHS = 10


# The settings that determine numbers, the search's among them.
DETERMINING = (
    "dataset", "tasks", "methods", "seeds", "study", "device", "precision", "kernels", "threads", "batch_size",
    "image_size", "model", "layer", "pool", "weights", "checkpoint", "pretrain_epochs", "retrain_epochs", "lr",
    "label_noise", "override", "trials",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One result: a data set, a task, a method and a seed, in a tree of `config.TREES`."""

    dataset: str
    task: Task
    method: str
    seed: int
    tree: str = "cells"

    def __str__(self):
        return f"{self.task.name} {self.method} seed {self.seed}"

    def path(self, config):
        return Path(config.results_dir, self.tree, self.dataset, self.task.name, self.method, f"seed{self.seed}.json")

    def model_path(self, config):
        folder = Path(config.checkpoints_dir, "unlearned", self.dataset, self.task.name, self.method)
        return folder / f"seed{self.seed}.pt"


def choose_gpu(config):
    """Let this process, and those it starts, see only the GPU that --device cuda:<number> names; then it is "cuda"."""
    require(
        re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", config.device),
        f"--device {config.device}: must be auto, cpu, cuda, cuda:<number> or mps",
    )
    name, _, number = config.device.partition(":")
    require(
        not number or not config.cluster,
        f"--device {config.device}: on a cluster Ray chooses the GPU; write --device cuda",
    )
    if number:  # CUDA reads this when it is first asked
        known = os.environ.get("CUDA_VISIBLE_DEVICES")  # empty: all are hidden
        visible = None if known is None else [gpu for gpu in known.split(",") if gpu]
        require(
            visible is None or int(number) < len(visible),
            lambda: f"--device {config.device}: CUDA_VISIBLE_DEVICES names {len(visible)} GPUs, from 0",
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = number if visible is None else visible[int(number)]
    return replace(config, device=name)


def resolve_device(config):
    """ "cpu", "cuda" or "mps" as --device asks; a UserError if it is not there. On a cluster the workers' count."""
    available = config.gpus_per_cell > 0 if config.cluster else torch.cuda.is_available()
    if config.device == "cuda" and not available:
        require(not config.cluster, "--device cuda with --cluster needs --gpus-per-cell above 0")
        raise UserError("--device cuda: torch finds no such CUDA device here; use --device auto or cpu")
    require(
        config.device != "mps" or torch.backends.mps.is_available(),
        "--device mps: torch finds no Apple GPU here; use --device auto or cpu",
    )
    return "mps" if config.device == "mps" else "cuda" if config.device != "cpu" and available else "cpu"


def machine_spec(config):
    device = resolve_device(config)
    precision = "float32 with TF32 convolutions" if device == "cuda" else "float32"
    precision = "bf16" if config.precision == "bf16" else precision
    spec = {"device": device, "threads": config.threads, "precision": precision, "batch_size": config.batch_size}
    return spec | ({"kernels": "portable"} if (device, config.kernels) == ("cpu", "portable") else {})


def in_precision(spec):
    """The context in which a specification's trainings run. No torch.compile: compiling takes longer than it saves."""
    # under a captured step nothing may be kept from call to call
    return torch.autocast(spec["device"], torch.bfloat16, spec["precision"] == "bf16", cache_enabled=False)


def pretrained_spec(dataset, fingerprint, config):
    """All that determines the pre-unlearning model."""
    row = training_row(dataset.name, dataset.model, config)
    spec = {"data": fingerprint, "model": dataset.model, "epochs": row["pretrain_epochs"], "lr": row["lr"]}
    spec |= machine_spec(config) | ({"label_noise": config.label_noise} if config.label_noise else {})
    if config.checkpoint:
        spec = {k: v for k, v in spec.items() if k not in ("epochs", "lr")}
        spec["checkpoint"] = hashlib.sha256(Path(config.checkpoint).read_bytes()).hexdigest()[:16]
    return spec


def cell_spec(cell, dataset, splits, pretrained, config):
    """All that determines a cell's numbers: two cells with the same specification are the same cell.

    `splits` are those of the cell's requests, `pretrained` is from `pretrained_spec`. Several requests have a list of
    hyperparameters, one entry each.
    """
    training = training_row(dataset.name, dataset.model, config)
    method = "CaMU" if cell.tree == "ablation" else "Retrain" if cell.method == "Floor" else cell.method
    rows = [hyperparameters_of(method, dataset.name, split.kind, training, config.override) for split in splits]
    if cell.tree == "ablation":
        rows = [row | ABLATION[cell.method] for row in rows]
    forget_sets = hashlib.sha256(b"".join(split.forget.cpu().numpy().tobytes() for split in splits))
    spec = {
        "data": pretrained["data"],
        "pretrained": key(pretrained),
        "task": cell.task.name,
        "forget_set": forget_sets.hexdigest()[:16],
        "method": method,
        "hyperparameters": rows if len(rows) > 1 else rows[0],
        "seed": cell.seed,
        **machine_spec(config),
    }
    if cell.tree == "relearn":
        spec["relearn"] = {"epochs": RELEARN_EPOCHS, "lr": training["lr"]}
    return spec | {"weights": "others"} if cell.method == "Floor" else spec


def key(spec):
    """A short name for a specification, for file names."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def use_machine(spec):
    """Make torch compute as a specification says: on a CPU the same bits on the same machine every time.

    Numbers below 1.2e-38 count as 0. A trained model's gradients are full of them, and they slow processors down.
    On CUDA, cuDNN and cuBLAS are held to the same bits; a few other kernels may add in any order.
    """
    torch.set_num_threads(spec["threads"])
    torch.set_flush_denormal(True)
    if spec["device"] == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a process first uses cuBLAS
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def pretrain(dataset, spec, partial=None, progress=False):
    """Train the pre-unlearning model: its `state` (state dict on the CPU) and `accuracy` ({"train": %, "test": %})."""
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    images = dataset.train
    seed = spec.get("pretraining_seed", PRETRAINING_SEED)
    weights_seed = derive_seed(seed, "pretraining weights")
    model = models.build(dataset.model, len(dataset.classes), weights_seed, images.device)
    everything = torch.arange(len(images), device=images.device)
    given = {name: spec[name] for name in ("epochs", "lr", "batch_size")} | {"partial": partial, "progress": progress}
    rng, label = generator(seed, "pretraining"), f"{dataset.name}: pretraining"
    with in_precision(spec):
        train(model, images, everything, **given, rng=rng, label=label)
    return {"state": models.cpu_state(model), "accuracy": accuracies(model, dataset)}


def take_checkpoint(dataset, spec, path):
    """The user's trained model in place of `pretrain`, which returns the same."""
    use_machine(spec)
    state = own_weights(path, dataset)
    dataset = dataset.to(spec["device"])
    model = models.restore(dataset.model, len(dataset.classes), state, spec["device"])
    return {"state": state, "accuracy": accuracies(model, dataset)}


def accuracies(model, dataset):
    """In percent, on the training and the test set."""
    parts = {"train": dataset.train, "test": dataset.test}
    return {name: accuracy(predict(model, part), part.labels) for name, part in parts.items()}


def prepare_shard(shard, method, row, dataset, spec, partial=None, progress=False):
    """Run one part of a method's preparation step, before any forget request; see `baselines.sisa`."""
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    chosen = settings(row, seed=PRETRAINING_SEED, batch_size=spec["batch_size"], partial=partial, progress=progress)
    classes = len(dataset.classes)
    with in_precision(spec):
        return {"states": METHODS[method].prepare_shard(shard, dataset.train, dataset.model, classes, chosen)}


def audit_references(dataset, spec, row, prepared, partial=None, progress=False):
    """The `references` of `audit.audit`, from SISA's models before any request: `train`, (N,), and `test`, (M,)."""
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    shards = METHODS["SISA"].shard_slices(len(dataset.train), row["shards"], 1)
    members = [models.restore(dataset.model, len(dataset.classes), s[-1], spec["device"]) for s in prepared]
    train, test = reference_probabilities(members, [index for (index,) in shards], dataset)
    return {"train": train, "test": test}


def run_cell(cell, spec, dataset, f_o_state, prepared=None, partial=None, progress=False, jobs=1, watch=None):
    """Unlearn, then evaluate, request by request: a pure function of its arguments (times aside).

    `spec` is from `cell_spec`, `f_o_state` the pre-unlearning model's state dict, `prepared` what the method's
    preparation step returned, part by part. A long training keeps its state in files named after the path `partial`.
    `jobs`, how many cells are computed at a time, is for the record; None where that is not known, as on a cluster.

    Returns
    -------
    record, stored, outputs : dict, dict, list of dict
        What the cell's file holds, with several requests the metrics and the time after each of them; the unlearned
        model as `load_model` reads it, on the CPU; and the outputs after each request, as `evaluate` gives them.
    """
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    f = models.restore(dataset.model, len(dataset.classes), f_o_state, spec["device"])
    given = {"batch_size": spec["batch_size"], "prepared": prepared, "progress": progress, "watch": watch}
    requests, outputs, splits = [], [], make_splits(dataset, cell.task, cell.seed)
    for number, split in enumerate(splits):
        row = spec["hyperparameters"] if len(splits) == 1 else spec["hyperparameters"][number]
        state = partial.with_suffix(f".request{number:03}.pt") if partial and len(splits) > 1 else partial
        known = test_accuracy(f, dataset, split) if row.get("stop") else None
        chosen = settings(row, seed=request_seed(cell, number), partial=state, test_accuracy=known, **given)
        with in_precision(spec):
            f, seconds = timed(METHODS[spec["method"]].unlearn, f, split, chosen)
        so_far = split.so_far()
        metrics, output = evaluate(f, dataset, so_far, cell.seed, spec["threads"])
        requests.append({"metrics": metrics, "attacked": attacked(so_far, len(dataset.test)), "time_s": seconds})
        outputs.append(output)

    total = sum(request["time_s"] for request in requests)
    record = {**names(cell), **requests[-1], "time_s": total, "config": spec, **circumstances(spec, jobs)}
    record |= {"requests": requests} if len(requests) > 1 else {}
    members = len(f.members) if isinstance(f, models.Ensemble) else 0
    stored = {"model": dataset.model, "classes": len(dataset.classes), "members": members, "config": spec}
    return record, stored | {"state": models.cpu_state(f)}, outputs


def test_accuracy(model, dataset, split):
    """A model's accuracy on test samples of the classes that no earlier request has removed, in percent."""
    left = ~torch.isin(dataset.test.labels, torch.tensor(split.earlier_classes, device=dataset.test.device))
    return accuracy(predict(model, dataset.test)[left], dataset.test.labels[left])


def request_seed(cell, number):
    """The seed of what a method draws for a cell's request. Floor is Retrain from other weights, in another order."""
    seed = derive_seed(cell.seed, "floor") if cell.method == "Floor" else cell.seed
    return derive_seed(seed, "request", number) if number else seed


def timed(unlearn, f, split, chosen):
    """The unlearned model, and the seconds that it took, those before an interruption included."""
    earlier, started = seconds_before(chosen.partial), time.perf_counter()
    f_u = unlearn(f, split, chosen)
    if split.train.device.type != "cpu":
        torch.accelerator.synchronize()
    return f_u, earlier + time.perf_counter() - started


def run_audit(cell, spec, dataset, outputs, retrain=None, references=None, earlier=None, progress=False):
    """Audit a cell's model from its outputs after each request, beside Retrain's and the reference models'.

    Metrics that only the `earlier` audit of the same cell has are kept.
    """
    splits = [split.so_far() for split in make_splits(dataset, cell.task, cell.seed)]
    compared = zip(outputs, splits, retrain or [None] * len(splits))
    audits = [audit(own, dataset, split, references, theirs) for own, split, theirs in compared]
    if earlier:
        spec = earlier["config"] | spec
        audits = [old["metrics"] | new for old, new in zip(earlier.get("requests", [earlier]), audits)]
    requests = [{"metrics": metrics} for metrics in audits]
    return {**names(cell), **requests[-1], **({"requests": requests} if len(audits) > 1 else {}), "config": spec}


def run_relearning(cell, spec, dataset, stored, progress=False):
    """Let an unlearned model (`stored`, from `run_cell`) learn D_r again, each of SISA's models its own share.

    Returns what the cell's file holds: `A_r` and `A_f` in percent, before and after each of the 10 epochs.
    """
    use_machine(spec)
    dataset = dataset.to(spec["device"])
    split = make_splits(dataset, cell.task, cell.seed)[-1].so_far()
    model = restore_model(stored, spec["device"])
    shares = None
    if stored["members"]:
        parts = METHODS["SISA"].shard_slices(len(dataset.train), stored["members"], 1)
        shares = [split.remain[torch.isin(split.remain, part.to(spec["device"]))] for (part,) in parts]
    given = {**spec["relearn"], "batch_size": spec["batch_size"], "shares": shares, "progress": progress}
    with in_precision(spec):
        curves = relearn(model, dataset, split, cell.seed, **given, label=f"{cell.method}: relearning")
    return {**names(cell), **curves, "config": spec, **circumstances(spec, None)}


def seconds_before(partial):
    """Seconds that an interrupted unlearning has taken so far."""
    states = [load_or_set_aside(path, read_tensors) for path in partial_files(partial)]
    return sum(state["seconds"] for state in states if state is not None)


def names(cell):
    return {"dataset": cell.dataset, "task": cell.task.name, "method": cell.method, "seed": cell.seed}


def circumstances(spec, jobs):
    """The conditions of a cell's times, comparable only if equal, and the versions behind it."""
    device = device_name(spec["device"])
    conditions = None if jobs is None else {"device": device, "threads": spec["threads"], "jobs": jobs}
    software = {"python": platform.python_version(), "torch": torch.__version__}
    return {"conditions": conditions, "versions": {**software, "device": device, "subnormal numbers": "as 0"}}


def device_name(device):
    """The GPU's name, or the processor's as Linux gives it, else its architecture."""
    if device == "cuda" and torch.cuda.is_available():  # on a cluster this machine may have none
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def provenance(config, program="main.py"):
    """The command behind a run's cells, with every setting that determines numbers, and the code's commit."""
    words, chosen = ["python", *program.split()], vars(config) | {"device": resolve_device(config)}
    chosen |= {} if chosen.get("model") else {"pool": ""}
    for name in DETERMINING:
        if chosen.get(name) not in (None, (), 0, ""):
            values = chosen[name] if isinstance(chosen[name], tuple) else (chosen[name],)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return {"command": shlex.join(words), "commit": commit()}


def commit():
    """What `git describe` says of this code; "unknown" outside a checkout of its own."""
    root = Path(__file__).parent.parent
    search_no_further = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    options = {"cwd": root, "env": search_no_further, "capture_output": True, "text": True, "check": True}
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def partial_files(partial):
    """The files in which the long trainings of one call keep their states."""
    return sorted(partial.parent.glob(partial.stem + "*.pt")) if partial else []


def remove_partial(partial):
    for path in partial_files(partial):
        path.unlink(missing_ok=True)


def restore_model(stored, device="cpu"):
    return models.restore(stored["model"], stored["classes"], stored["state"], device, stored["members"])


def load_model(path, device="cpu"):
    """An unlearned model from the file that ``--save-models`` wrote, in evaluation mode."""
    return restore_model(load_tensors(path), device).to(memory_format=torch.contiguous_format)  # to be exported
