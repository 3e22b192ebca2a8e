"""What the three points of the authors' published code change on a model with batch normalisation.

    python -m benchmarks.passes --kernels portable --data-root data --results-dir results/passes --jobs 2

A small residual net on CIFAR-10 at 32 pixels, which a CPU can train, forgets in `class0` and `random10`: by CaMU with
one pass over x_r and x_f, with two, with x_r from a shuffle of its own, with x_r's label as y_c, and with all three
(`Published-code`); beside them Retrain. CaMU's settings are those of CIFAR in the paper, with learning rates ten times
as high, for this net is trained at 1e-3. Accuracies are without the training transform. Every finished cell is a file
under <results-dir>/cells/, and a run that is started again goes on. Cells of another configuration are not replaced.
"""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

import models
from camu import ABLATION
from config import Config
from data import make_splits
from harness.cells import Cell, key, machine_spec, pretrain, provenance, run_cell
from harness.datasets import load
from harness.plan import check, refuse_settings
from harness.runner import run_all
from harness.store import load_or_set_aside, read_record, read_tensors, require, save_record, save_tensors
from harness.tasks import parse_tasks
from hyperparameters import hyperparameters_of

NET = "small residual net"
TRAINING = {"epochs": 10, "lr": 1e-3}
VARIANTS = {
    "CaMU": {},
    "Two-passes": {"passes": 2},
    "Own-shuffle": {"paired": False},
    "Label-of-x_r": {"y_c": "y_r"},
    "Published-code": ABLATION["Published-code"],
}
NOT_HERE = (
    "methods", "study", "label_noise", "model", "checkpoint", "image_size", "pretrain_epochs", "retrain_epochs", "lr",
    "time_limit", "override", "save_models", "overwrite", "dry_run",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments(Config):
    """The settings of the study; those of a run, with other defaults."""

    dataset: tuple[str, ...] = ("CIFAR10",)
    """with 32 pixels a side"""
    results_dir: str = "results/passes"
    """where the finished cells go"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """forget sets, and randomness of the methods"""


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut by a 1x1 convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).relu()


class SmallResNet(models.Classifier):
    """(B, 3, 32, 32) -> logits (B, classes), the pooled feature (B, 64)."""

    def __init__(self, classes):
        super().__init__()
        stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        blocks = Block(16, 16, 2), Block(16, 32, 2), Block(32, 64, 2)
        self.features = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, classes)


def with_the_net(call, **arguments):
    """Call a function in a process that may not know the net yet."""
    models.MODELS[NET] = SmallResNet
    return call(**arguments)


def main(arguments):
    config = check(arguments)
    refuse_settings(arguments, NOT_HERE, "this study")
    require(
        config.dataset in (("CIFAR10",), ("CIFAR100",)), f"--dataset {' '.join(config.dataset)}: CIFAR10 or CIFAR100"
    )
    known = load(config.dataset[0], config.data_root, 32, progress=not config.quiet)
    dataset = replace(known, name=f"{known.name}-32", model=NET, published_protocol=False)
    pretrained = {"data": dataset.fingerprint(), "model": NET, **TRAINING} | machine_spec(config)
    calls = {}
    for task in parse_tasks(config.tasks):
        for seed in config.seeds:
            split, *further = make_splits(dataset, task, seed)
            require(not further, f"--tasks {task.name}: this study is for tasks of one request")
            for name in ("Retrain", *VARIANTS):
                cell = Cell(dataset.name, task, name, seed)
                spec = {"pretrained": key(pretrained), "task": task.name, "seed": seed, **machine_spec(config)}
                spec |= (
                    {"method": "Retrain", "hyperparameters": TRAINING} if name == "Retrain" else variant(name, split)
                )
                record = load_or_set_aside(cell.path(config), read_record)
                unlike = f"{cell.path(config)} was made with another configuration; give another --results-dir"
                require(record is None or record["config"] == spec, unlike)
                if record is None:
                    calls[cell] = {"call": run_cell, "cell": cell, "spec": spec, "dataset": dataset}
    if not calls:
        return
    path = Path(config.checkpoints_dir, dataset.name, f"pretrained-{key(pretrained)}.pt")
    f_o = load_or_set_aside(path, read_tensors)
    if f_o is None:
        f_o = with_the_net(pretrain, dataset=dataset, spec=pretrained, progress=not config.quiet)
        save_tensors(path, f_o)
    print(f"{dataset.name}: {f_o['accuracy']['test']:.2f} % of the test images")
    waiting = {cell: partial(dict, call, f_o_state=f_o["state"], jobs=config.jobs) for cell, call in calls.items()}
    for cell, (record, _, _) in run_all(with_the_net, waiting, config, "passes"):
        save_record(cell.path(config), record | provenance(config, "-m benchmarks.passes"))


def variant(name, split):
    """CaMU's row for CIFAR, with one pass, and the variant's changes."""
    row = hyperparameters_of("CaMU", "CIFAR10", split.kind)
    rates = {rate: 10 * row[rate] for rate in ("lr_ce", "lr_kl")}
    return {"method": "CaMU", "hyperparameters": row | rates | {"passes": 1} | VARIANTS[name]}


if __name__ == "__main__":
    harness.scripts.run_script(main, Arguments, __doc__)
