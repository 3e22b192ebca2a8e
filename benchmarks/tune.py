"""The search that the baselines' rows in `config.HYPERPARAMETERS` come from.

    python -m benchmarks.tune --dataset Digit Fashion --tasks random10 class0 --data-root data

For each baseline, data set and task, `--trials` points are drawn from SPACE (the same number for all, always the same
points) and run as cells with seeds of at least 100, so that no reported seed is touched; the best has the smallest
`gap` to Retrain of those that take no longer than Retrain. The grids lie where first trials, on Digit and with such
seeds too, neither diverged nor forgot nothing: the ascent of NegGrad and SCRUB is unbounded, and between the two ends
of their learning rates there is less than a factor of ten. SISA is Retrain on shards and keeps the data set's own
training; CaMU keeps its published settings. Every finished trial is a cell under <results-dir>/tuning/, and the
summary beside them, <dataset>-<task>.csv, ranks them.
"""

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import tyro

import main
from config import Config, UserError
from data import generator, make_split, parse_task
from experiment import cell_spec, finished, run_jobs
from metrics import METRICS, gap

TS = {"epochs": (1, 2, 3), "lr": (1e-4, 2e-4, 5e-4, 1e-3), "remain_fraction": (0.3,)}
SCRUB = {"epochs": (3,), "msteps": (2,), "lr": (1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5, 4e-5), "alpha": (0.1, 0.5)}
UNROLL = {"epochs": (1, 2), "lr": (0.001, 0.003, 0.01, 0.03, 0.05, 0.1)}
SPACE = {  # by kind of task; for Digit and Fashion
    "random": {
        "NegGrad": {"epochs": (1, 2), "lr": (0.01, 0.03), "a": (0.5, 0.6, 0.7)},
        "Boundary": {"epochs": (1, 2, 5), "lr": (3e-7, 1e-6, 3e-6, 1e-5)},
        "T-S": TS,
        "SCRUB": SCRUB,
        "Unroll": UNROLL,
    },
    "class": {
        "NegGrad": {"epochs": (1, 2), "lr": (0.001, 0.003), "a": (0.85, 0.9, 0.95)},
        "Boundary": {"epochs": (1, 2, 5, 10), "lr": (3e-5, 1e-4, 3e-4)},
        "T-S": TS,
        "SCRUB": SCRUB,
        "Unroll": UNROLL,
    },
}


@dataclass(frozen=True)
class Arguments(Config):
    """The settings of the search; those of a run, with other defaults."""

    methods: tuple[str, ...] = tuple(SPACE["random"])
    """the baselines to tune"""
    seeds: tuple[int, ...] = (100,)
    """at least 100: lower seeds are for reporting"""
    trials: int = 12
    """points tried for every baseline, data set and task"""


def points(method, kind, count):
    """The first `count` points of the method's grid for a kind of task, in a fixed random order."""
    space = SPACE[kind][method]
    grid = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    order = torch.randperm(len(grid), generator=generator("tuning", method))
    return [grid[i] for i in order[:count].tolist()]


@dataclass(frozen=True)
class Trial(main.Cell):
    """A cell with hyperparameters of its own."""

    number: int = 0

    def path(self, config):
        place = Path(self.dataset, self.task.name, self.method, f"trial{self.number}-seed{self.seed}.json")
        return Path(config.results_dir) / "tuning" / place


def search(arguments):
    if min(arguments.seeds) < 100:
        raise UserError(f"--seeds {min(arguments.seeds)}: tuning uses seeds of at least 100")
    config = replace(main.check(arguments), save_models=False)
    tasks = [parse_task(text) for text in config.tasks]
    for name in config.dataset:
        one = main.plan(name, [], config)
        main.make_shared(one, config)
        for task in tasks:
            add_trials(one, task, config)
            jobs = [main.unlearning_job(trial, one, config) for trial in one.specs if trial not in one.records]
            run_jobs(jobs, config, f"{name} {task.name}: tuning")
            summarise(one, task, config)


def add_trials(one, task, config):
    """Put all trials of a task, and the records of those that are finished, into the plan."""
    drawn = {"Retrain": [{}]} | {m: points(m, task.metrics_kind, config.trials) for m in config.methods}
    for seed in config.seeds:
        split = make_split(one.dataset, task, seed)
        for method, number, point in ((m, i, point) for m in drawn for i, point in enumerate(drawn[m])):
            trial = Trial(one.dataset.name, task, method, seed, number=number)
            spec = cell_spec(trial, one.dataset, split, one.spec, config)
            one.specs[trial] = spec | {"hyperparameters": spec["hyperparameters"] | point}
            record = finished(trial.path(config), one.specs[trial], config.overwrite)
            if record is not None:
                one.records[trial] = record


def summarise(one, task, config):
    """Rank the trials of a task, write the table, and print the best of each method."""
    records = {trial: record for trial, record in one.records.items() if trial.task == task}
    names = list(dict.fromkeys(name for r in records.values() for name in r["config"]["hyperparameters"]))
    measured = [*METRICS[task.metrics_kind], "time_s"]
    rows = [
        {"method": t.method, "trial": t.number, **r["config"]["hyperparameters"], **r["metrics"], "time_s": r["time_s"]}
        for t, r in records.items()
    ]
    columns = dict.fromkeys(names, "first") | dict.fromkeys(measured, "mean")
    frame = pd.DataFrame(rows).groupby(["method", "trial"], as_index=False).agg(columns)
    retrain = frame[frame.method == "Retrain"].iloc[0]
    frame["gap"] = [gap(row, retrain, task.metrics_kind) for _, row in frame.iterrows()]
    frame["time/Retrain"] = frame.time_s / retrain.time_s
    frame = frame[frame.method != "Retrain"].sort_values(["method", "gap"]).dropna(axis="columns", how="all")
    frame = frame.round(dict.fromkeys([*measured, "gap", "time/Retrain"], 4))
    path = Path(config.results_dir) / "tuning" / f"{one.dataset.name}-{task.name}.csv"
    frame.to_csv(path, index=False)
    best = frame[frame["time/Retrain"] <= 1].groupby("method").first()
    shown = [c for c in best if c not in ("trial", "time_s")]
    print(f"\n{one.dataset.name}, {task.name}: best of {config.trials} trials ({path})")
    print(best[shown].to_string())


if __name__ == "__main__":
    try:
        search(tyro.cli(Arguments, description=__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
