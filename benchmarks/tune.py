"""The search that the baselines' rows in `hyperparameters.HYPERPARAMETERS` come from.

    python -m benchmarks.tune --dataset Digit Fashion --tasks random10 class0 --data-root data

For each baseline, data set and task, `--trials` points are drawn from SPACE (the same number for all, always the same
points) and run as cells with seeds of at least 100, so that no reported seed is touched. All points run with the first
seed; the FINALISTS best of each baseline run with the other seeds too, for a point that is good with one seed can
diverge with the next. The best has the smallest `gap` to Retrain, from the means over the seeds as everywhere here, of
the finalists that take no longer than Retrain.

The grids lie where first trials, with such seeds too, neither diverged nor forgot nothing: the ascent of NegGrad and
SCRUB is unbounded, and between the two ends of their learning rates there is less than a factor of ten. SISA is Retrain
on shards and keeps the data set's own training; CaMU keeps its published settings. Every finished trial is a cell under
<results-dir>/tuning/, and the summary beside them, <dataset>-<task>.csv, ranks them.
"""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from config import Config
from data import generator, make_split
from harness.cells import Cell, provenance, run_cell
from harness.datasets import load
from harness.plan import Plan, check
from harness.runner import run_all
from harness.store import UserError, run_script, save_atomically
from harness.tasks import parse_tasks
from hyperparameters import FAMILIES
from metrics import METRICS
from reporting.summary import distances, time_ratio

BOUNDARY_MNIST = {"epochs": (1, 2, 5), "lr": (3e-7, 1e-6, 3e-6, 1e-5)}
BOUNDARY_CLASS = {"epochs": (1, 2, 5, 10), "lr": (3e-5, 1e-4, 3e-4)}
TS_RANDOM = {"epochs": (1, 2, 3), "lr": (1e-4, 2e-4, 5e-4, 1e-3), "remain_fraction": (0.3,)}
TS_CLASS = {"epochs": (1, 2, 3), "lr": (2e-4, 5e-4, 1e-3, 2e-3), "remain_fraction": (0.3,)}
UNROLL_RANDOM = {"epochs": (1, 2), "lr": (0.001, 0.003, 0.01, 0.03, 0.05, 0.1)}
SCRUB_MNIST = {"epochs": (3,), "msteps": (2,), "lr": (1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5, 4e-5), "alpha": (0.1, 0.5)}
SCRUB_CLASS = {"epochs": (3, 5), "msteps": (2,), "forget_batch_size": (512,)}
NEGGRAD_CLASS = {"epochs": (2,), "lr": (0.003, 0.005, 0.01), "a": (0.95, 0.97, 0.98, 0.99)}
SPACE = {  # by data set or family of data sets, and task or kind of task
    ("OptDigits", "random"): {
        "NegGrad": {"epochs": (1, 2, 4), "lr": (0.01, 0.03), "a": (0.8, 0.95)},
        "Boundary": {"epochs": (1, 2, 5, 10), "lr": (1e-6, 1e-5, 1e-4)},
        "T-S": TS_RANDOM,
        "SCRUB": {"epochs": (3, 5), "msteps": (2,), "lr": (1e-4, 5e-4, 1e-3), "alpha": (0.1, 0.5)},
        "Unroll": UNROLL_RANDOM,
    },
    ("OptDigits", "class"): {
        "NegGrad": {"epochs": (4, 6), "lr": (0.01, 0.02), "a": (0.8, 0.85, 0.9)},
        "Boundary": BOUNDARY_CLASS,
        "T-S": TS_CLASS,
        "SCRUB": SCRUB_CLASS
        | {"epochs": (10,), "msteps": (8,), "lr": (1e-3, 1.4e-3, 1.8e-3), "alpha": (0.1, 0.2, 0.3, 0.5)},
        "Unroll": {"epochs": (1, 2, 4), "lr": (0.01, 0.03, 0.1, 0.15)},
    },
    ("MNIST", "random"): {
        "NegGrad": {"epochs": (1, 2), "lr": (0.01, 0.03), "a": (0.5, 0.6, 0.7)},
        "Boundary": BOUNDARY_MNIST,
        "T-S": TS_RANDOM,
        "SCRUB": SCRUB_MNIST,
        "Unroll": UNROLL_RANDOM,
    },
    ("MNIST", "class"): {
        "NegGrad": NEGGRAD_CLASS,
        "Boundary": BOUNDARY_CLASS,
        "T-S": TS_CLASS,
        "SCRUB": SCRUB_MNIST,
        "Unroll": {"epochs": (1, 2, 3), "lr": (0.05, 0.1, 0.15, 0.2)},
    },
    ("Fashion", "random"): {
        "NegGrad": {"epochs": (1, 2), "lr": (0.01, 0.03), "a": (0.7, 0.8, 0.9)},
        "Boundary": BOUNDARY_MNIST,
        "T-S": TS_RANDOM,
        "SCRUB": SCRUB_MNIST | {"lr": (1.8e-5, 2e-5, 2.1e-5, 2.2e-5, 2.3e-5, 2.4e-5)},
        "Unroll": UNROLL_RANDOM,
    },
    ("Fashion", "class"): {
        "NegGrad": {"epochs": (2,), "lr": (0.001, 0.003, 0.01), "a": (0.99, 0.995, 0.998, 0.999)},
        "Boundary": BOUNDARY_CLASS,
        "T-S": TS_CLASS,
        "SCRUB": SCRUB_MNIST | {"lr": (1.1e-5, 1.2e-5, 1.3e-5, 1.4e-5, 1.6e-5, 1.8e-5)},
        "Unroll": {"epochs": (1, 2), "lr": (0.001, 0.002, 0.003, 0.005, 0.007, 0.01)},
    },
    ("Digit", "class1"): {"SCRUB": SCRUB_CLASS | {"lr": (6e-4, 7e-4, 8e-4), "alpha": (0.1, 0.2)}},
    ("Digit", "class2"): {"SCRUB": SCRUB_CLASS | {"lr": (7e-4, 8e-4, 9e-4), "alpha": (0.05, 0.1)}},
    ("Fashion", "class1"): {
        "NegGrad": NEGGRAD_CLASS,
        "SCRUB": SCRUB_CLASS | {"lr": (7e-4, 8e-4, 9e-4), "alpha": (0.001, 0.1)},
        "Unroll": {"epochs": (2, 3), "lr": (0.007, 0.01, 0.015, 0.02, 0.03, 0.05)},
    },
    ("Fashion", "class2"): {"SCRUB": SCRUB_CLASS | {"lr": (7e-4, 8e-4, 9e-4), "alpha": (0.02, 0.05)}},
}
METHODS = tuple(SPACE["MNIST", "random"])
FINALISTS = 3


@dataclass(frozen=True)
class Arguments(Config):
    """The settings of the search; those of a run, with other defaults."""

    methods: tuple[str, ...] = METHODS
    """the baselines to tune"""
    seeds: tuple[int, ...] = (100,)
    """at least 100: lower seeds are for reporting. All points run with the first, the best few with the others"""
    trials: int = 12
    """points tried for every baseline, data set and task"""


def points(method, dataset, task, kind, count):
    """The first `count` points of the method's grid for a data set and a task of a kind, in a fixed random order."""
    places = [(dataset, task), (dataset, kind), (FAMILIES[dataset], kind)]
    space = next(SPACE[place][method] for place in places if method in SPACE.get(place, {}))
    grid = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    order = torch.randperm(len(grid), generator=generator("tuning", method))
    return [grid[i] for i in order[:count].tolist()]


@dataclass(frozen=True)
class Trial(Cell):
    """A cell with hyperparameters of its own."""

    number: int = 0

    def path(self, config):
        place = Path(self.dataset, self.task.name, self.method, f"trial{self.number}-seed{self.seed}.json")
        return Path(config.results_dir) / "tuning" / place


def search(arguments):
    if min(arguments.seeds) < 100:
        raise UserError(f"--seeds {min(arguments.seeds)}: tuning uses seeds of at least 100")
    if arguments.dry_run:
        raise UserError("--dry-run: the search has none; main.py has")
    untuned = [method for method in arguments.methods if method not in METHODS]
    if untuned:
        raise UserError(f"--methods {untuned[0]}: has no search; choose from {', '.join(METHODS)}")
    unknown = [name for name in arguments.dataset if (FAMILIES.get(name), "class") not in SPACE]
    if unknown:
        known = [name for name, family in FAMILIES.items() if (family, "class") in SPACE]
        raise UserError(f"--dataset {unknown[0]}: no search for this; choose from {', '.join(known)}")
    config = replace(check(arguments), study="plain", save_models=False)
    tasks = parse_tasks(config.tasks)
    first, *others = config.seeds
    for name in config.dataset:
        plan = Plan(load(name, config.data_root, progress=not config.quiet), [], config)
        plan.provenance = provenance(config, "-m benchmarks.tune")
        kinds = {task: make_split(plan.dataset, task, first).kind for task in tasks}  # says what is wrong with a task
        for task, kind in kinds.items():
            drawn = {"Retrain": [{}]} | {m: points(m, name, task.name, kind, config.trials) for m in config.methods}
            trials = [(method, number) for method, tried in drawn.items() for number in range(len(tried))]
            run_trials(plan, task, trials, [first], drawn)
            best = within_time(ranked(plan, task)).groupby("method").head(FINALISTS)
            finalists = [("Retrain", 0), *zip(best.method, best.trial)]
            run_trials(plan, task, finalists, others, drawn)
            summarise(plan, task)


def run_trials(plan, task, trials, seeds, drawn):
    """Put trials, each a (method, number of its point), into the plan, and run those that are not finished."""
    for seed in seeds:
        split = make_split(plan.dataset, task, seed)
        for method, number in trials:
            trial = Trial(plan.dataset.name, task, method, seed, number=number)
            plan.add(trial, split, **drawn[method][number])
    plan.refuse_unlike()
    plan.prepare()
    calls = {trial: partial(plan.unlearning, trial) for trial in plan.todo("cells")}
    for trial, result in run_all(run_cell, calls, plan.config, f"{plan.dataset.name} {task.name}: tuning"):
        plan.keep(trial, result)


def ranked(plan, task):
    """The trials of a task, those with the most seeds first, then by `gap`: one row each, means over the seeds."""
    records = {trial: record for trial, record in plan.records.items() if trial.task == task}
    names = list(dict.fromkeys(name for r in records.values() for name in r["config"]["hyperparameters"]))
    cells = pd.DataFrame(
        {"method": t.method, "trial": t.number, "seed": t.seed, **r["config"]["hyperparameters"], **r["metrics"]}
        | {"time_s": r["time_s"]}
        for t, r in records.items()
    )
    cells = cells.assign(seeds=1).set_index("seed")
    retrain = cells[cells.method == "Retrain"]
    measured = dict.fromkeys([*(name for name in METRICS if name in cells), "time_s"], "mean")
    trials = cells[cells.method != "Retrain"].groupby(["method", "trial"])
    frame = trials.agg({"seeds": "sum"} | dict.fromkeys(names, "first") | measured)
    frame["time/Retrain"] = [time_ratio(rows, retrain).mean for _, rows in trials]
    frame["gap"] = [distances(rows, retrain)["gap"].mean for _, rows in trials]
    frame = frame.dropna(axis="columns", how="all").round(dict.fromkeys([*measured, "time/Retrain", "gap"], 4))
    return frame.reset_index().sort_values(["method", "seeds", "gap"], ascending=[True, False, True])


def within_time(frame):
    """Only the trials that take no longer than Retrain."""
    return frame[frame["time/Retrain"] <= 1]


def summarise(plan, task):
    """Write the table of a task's trials, and print the best of each method."""
    frame = ranked(plan, task)
    path = Path(plan.config.results_dir) / "tuning" / f"{plan.dataset.name}-{task.name}.csv"
    save_atomically(path, frame.to_csv(index=False).encode())
    best = within_time(frame).groupby("method").first()
    print(f"\n{plan.dataset.name}, {task.name}: best of {plan.config.trials} trials ({path})")
    print(best.drop(columns=["trial", "time_s"]).to_string())


if __name__ == "__main__":
    run_script(search, Arguments, __doc__)
