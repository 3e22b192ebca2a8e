"""The search that the baselines' rows in `hyperparameters.HYPERPARAMETERS` come from.

    python -m benchmarks.tune --dataset Digit Fashion --tasks random10 class0 --data-root data

It needs Optuna (`pip install -r requirements-search.txt`). For each baseline, data set and task, Optuna's TPE sampler
draws the same number of points from `hyperparameters.search_space`. Each runs as a cell with the first seed, of at
least 100, so that no reported seed is touched. A trial whose accuracy on D_r is below LEAST_A_R after an epoch ends
there. The FINALISTS best of each baseline run again with the other seeds, and with all seeds on a second pre-unlearning
model. One that does not hold there makes room for the next best. The row is the one whose worst ToW over all of these
is highest. A setting that works on one model and diverges on the next is not chosen.

A point counts only if it does something. In the means over its runs it changes at least LEAST_CHANGED percent of the
predictions on D_f, and it moves A_f at least a quarter of the way from Original's to Retrain's, where these differ by
more than half a point. If it does less, its score says how much less, from -1 (nothing) to 0. A lost model scores -1.

SISA is Retrain on shards and keeps the data set's own training. CaMU keeps its published settings. The optimiser of
NegGrad, SCRUB and Unroll is Adam throughout. SGD, searched before, kept the model only within a factor of two or three
of the learning rate. Every finished trial is a file under <results-dir>/tuning/. The table beside them,
<dataset>-<task>.csv, ranks the trials.
"""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from config import Config
from data import derive_seed, make_split, make_splits
from harness.cells import Cell, circumstances, names, provenance, run_cell
from harness.datasets import load
from harness.plan import Plan, check, refuse_settings
from harness.runner import run_all
from harness.store import UserError, require, save_atomically
from harness.tasks import parse_tasks
from hyperparameters import FAMILIES, HYPERPARAMETERS, SEARCHED, search_space
from metrics import accuracy, tug_of_war
from models import restore
from reporting.summary import moved
from training import frozen_outputs, outputs_now

METHODS = tuple(method for method, table in HYPERPARAMETERS.items() if SEARCHED in table)
SETTINGS = {name for method in METHODS for name in HYPERPARAMETERS[method][SEARCHED]}
REFERENCES = ("Retrain", "Original")
DATASETS = [name for name, family in FAMILIES.items() if family != "CIFAR"]
FINALISTS = 3
HOLDS = 0.5  # the worst ToW of a finalist: one that is below makes room for the next best
LEAST_A_R = 50  # percent, on WATCHED samples of D_r
WATCHED = 2000
LEAST_CHANGED = 0.2  # percent of the predictions on D_f


@dataclass(frozen=True)
class Arguments(Config):
    """The settings of the search; those of a run, with other defaults."""

    methods: tuple[str, ...] = METHODS
    """the baselines to tune"""
    seeds: tuple[int, ...] = (100, 101, 102)
    """at least 100: lower seeds are for reporting. All points run with the first, the best few with the others"""
    trials: int = 20
    """points tried for every baseline, data set and task"""


@dataclass(frozen=True)
class Trial(Cell):
    """A cell with hyperparameters of its own, from the pre-unlearning model with this pretraining seed."""

    number: int = 0
    model: int = 0

    def path(self, config):
        folder = Path(config.results_dir, "tuning", self.dataset, self.task.name, self.method)
        return folder / f"trial{self.number}-model{self.model}-seed{self.seed}.json"


class Lost(Exception):
    """A trial has lost its model."""


def search(arguments):
    config = replace(check(arguments), study="plain", save_models=False)
    check_arguments(arguments)
    tasks = parse_tasks(config.tasks)
    for name in config.dataset:
        dataset = load(name, config.data_root, None, config.label_noise, not config.quiet)
        plans = [Plan(dataset, [], config) for _ in range(2)]
        plans[1].pretrained_spec |= {"pretraining_seed": 1}
        for plan in plans:
            plan.provenance = provenance(config, "-m benchmarks.tune")
        for task in tasks:
            make_splits(plans[0].dataset, task, config.seeds[0])  # says what is wrong with a task
        points = draw_and_run(plans, tasks, config)
        run_finalists(plans, tasks, points, config)
        for task in tasks:
            write_table(plans, task, points, config)


def check_arguments(arguments):
    require(min(arguments.seeds) >= 100, lambda: f"--seeds {min(arguments.seeds)}: tuning uses seeds of at least 100")
    refuse_settings(arguments, ("study", "dry_run", "checkpoint", "model", "image_size", "time_limit"), "the search")
    several = [text for text in arguments.tasks if ">" in text]
    require(not several, lambda: f"--tasks {several[0]}: the search is for tasks of one request")
    untuned = [method for method in arguments.methods if method not in METHODS]
    require(not untuned, lambda: f"--methods {untuned[0]}: has no search; choose from {', '.join(METHODS)}")
    unknown = [name for name in arguments.dataset if name not in DATASETS]
    require(not unknown, lambda: f"--dataset {unknown[0]}: no search for this; choose from {', '.join(DATASETS)}")


def draw_and_run(plans, tasks, config):
    """Draw and run all points with the first seed, a round at a time: (task, method) -> its points.

    In a round each of the studies draws one point, and these run side by side. The draws follow from the results
    before them alone, so a search that is started again finds what it has finished.
    """
    seed, plan = config.seeds[0], plans[0]
    studies = {(task, method): new_study(task, method) for task in tasks for method in config.methods}
    points = {pair: [] for pair in studies}
    run_trials(plan, [(trial(plan, task, method, seed), {}) for task in tasks for method in REFERENCES])
    for number in range(config.trials):
        drawn = {pair: ask(study, pair[1], plan.dataset.name) for pair, study in studies.items()}
        calls = []
        for (task, method), (_, point) in drawn.items():
            points[task, method].append(point)
            calls.append((trial(plan, task, method, seed, number), point))
        run_trials(plan, calls)
        for (task, method), (asked, _) in drawn.items():
            studies[task, method].tell(asked, score(plans, [trial(plan, task, method, seed, number)]))
    return points


def new_study(task, method):
    try:
        import optuna
    except ImportError:
        raise UserError("the search needs Optuna: python -m pip install -r requirements-search.txt")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive_seed("search", task.name, method) % 2**32)
    return optuna.create_study(direction="maximize", sampler=sampler)


def ask(study, method, dataset):
    """Draw a point of the method's search space: Optuna's trial, and the hyperparameters."""
    asked, point = study.ask(), {}
    for name, value in search_space(method, dataset).items():
        if not isinstance(value, tuple):
            point[name] = value
            continue
        how, *bounds = value
        if how == "choice":
            point[name] = asked.suggest_categorical(name, bounds)
        elif how == "int":
            point[name] = asked.suggest_int(name, *bounds)
        else:
            point[name] = float(f"{asked.suggest_float(name, *bounds, log=True):.2g}")  # as it will stand in the row
    return asked, point


def trial(plan, task, method, seed, number=0):
    model = plan.pretrained_spec.get("pretraining_seed", 0)
    return Trial(plan.dataset.name, task, method, seed, number=number, model=model)


def run_trials(plan, calls):
    """Put trials with their points into the plan, and run those that are not finished."""
    for run, point in calls:
        plan.add(run, make_splits(plan.dataset, run.task, run.seed), **point)
    plan.refuse_unlike()
    plan.prepare()
    todo = {run: partial(plan.unlearning, run) for run in plan.todo("cells")}
    for run, result in run_all(run_trial, todo, plan.config, f"{plan.dataset.name}: search"):
        plan.keep(run, result)


def run_trial(cell, spec, dataset, f_o_state, **more):
    """`run_cell`, with `changed_f` among the metrics: percent of the predictions on D_f that differ from f_o's.

    A trial that loses its model has no metrics.
    """
    dataset = dataset.to(spec["device"])
    split = make_split(dataset, cell.task, cell.seed)
    started = time.perf_counter()

    def watch(f_u):
        index = split.remain[:WATCHED]
        if accuracy(outputs_now(f_u, split.train, index), split.train.labels[index]) < LEAST_A_R:
            raise Lost

    try:
        record, _, (outputs,) = run_cell(cell, spec, dataset, f_o_state, watch=watch, **more)
    except Lost:
        seconds = time.perf_counter() - started
        return {**names(cell), "metrics": {}, "time_s": seconds, "config": spec, **circumstances(spec, more["jobs"])}
    f_o = restore(dataset.model, len(dataset.classes), f_o_state, spec["device"])
    before = frozen_outputs(f_o, split.train, split.forget).argmax(1).cpu()
    record["metrics"]["changed_f"] = 100 * (before != outputs["forget"].argmax(1)).double().mean().item()
    return record


def score(plans, runs):
    """The worst ToW of a point's runs, each against Retrain of its seed; of a point that does not count, -1 to 0."""
    ours, retrain, original = ([metrics_of(plans, run, method) for run in runs] for method in (None, *REFERENCES))
    if not all(ours):
        return -1.0
    done = effect(*(pd.DataFrame(metrics).mean() for metrics in (ours, retrain, original)))
    return min(map(tug_of_war, ours, retrain)) if done == 1 else done - 1


def effect(ours, retrain, original):
    """How much of the least that counts a point does, 0 to 1, from means over its runs."""
    moved_f = moved(ours.A_f, original.A_f, retrain.A_f)
    return float(min(1, max(0, moved_f), ours.changed_f / LEAST_CHANGED))


def metrics_of(plans, run, method=None):
    """A trial's metrics, or Retrain's or Original's for it. Retrain does not depend on the pre-unlearning model."""
    if method:
        run = replace(run, method=method, number=0, model=0 if method == "Retrain" else run.model)
    return plans[run.model].records[run]["metrics"]


def run_finalists(plans, tasks, points, config):
    """Run the best points with the other seeds, and with all seeds from the second pre-unlearning model."""
    finalists = {pair: [] for pair in points}
    while chosen := next_finalists(plans, points, finalists, config):
        for plan, seeds in zip(plans, (config.seeds[1:], config.seeds)):
            references = REFERENCES if plan is plans[0] else ("Original",)
            calls = [(trial(plan, t, method, seed), {}) for t in tasks for method in references for seed in seeds]
            calls += [(trial(plan, *pair, seed, n), points[pair][n]) for pair, n in chosen for seed in seeds]
            run_trials(plan, calls)
        for pair, number in chosen:
            finalists[pair].append(number)


def next_finalists(plans, points, finalists, config):
    """[((task, method), number of the point)]: as many as are needed for FINALISTS that hold, as long as there are."""
    chosen = []
    for pair, drawn in points.items():
        first = {n: score(plans, [trial(plans[0], *pair, config.seeds[0], n)]) for n in range(len(drawn))}
        holding = [n for n in finalists[pair] if score(plans, runs_of(plans, pair, n)) >= HOLDS]
        others = [n for n in ranked(first, drawn) if n not in finalists[pair]]
        chosen += [(pair, n) for n in others[: FINALISTS - len(holding)]]
    return chosen


def runs_of(plans, pair, number):
    """All runs of a point that are in the plans."""
    same = (*pair, number)
    return [run for plan in plans for run in plan.records if (run.task, run.method, run.number) == same]


def ranked(scores, drawn):
    """The numbers of the points that count, the best first; a point that was drawn twice is one."""
    distinct = {}
    for number in sorted(scores, key=lambda number: (-scores[number], number)):
        distinct.setdefault(str(drawn[number]), number)
    return [number for number in distinct.values() if scores[number] > 0]


def write_table(plans, task, points, config):
    """Write the table of a task's trials: of each method those with the most runs first, by their score."""
    numbers = [(method, n) for (other, method), drawn in points.items() if other == task for n in range(len(drawn))]
    rows = [table_row(plans, task, method, n, points[task, method][n], config.seeds[0]) for method, n in numbers]
    frame = pd.DataFrame(rows).sort_values(["method", "runs", "score"], ascending=[True, False, False])
    path = Path(config.results_dir) / "tuning" / f"{plans[0].dataset.name}-{task.name}.csv"
    save_atomically(path, frame.round({name: 4 for name in frame if name not in SETTINGS}).to_csv(index=False).encode())
    print(f"\n{plans[0].dataset.name}, {task.name}: best of {config.trials} trials ({path})")
    best = frame.drop_duplicates("method").set_index("method")
    print(best[["score", "runs", "time/Retrain"]].round(4).to_string())


def table_row(plans, task, method, number, point, seed):
    """A trial's score over its runs, the metrics and the time of its first run, and its hyperparameters."""
    runs = runs_of(plans, (task, method), number)
    first, retrain = (
        plans[0].records[trial(plans[0], task, *which)] for which in ((method, seed, number), ("Retrain", seed))
    )
    metrics = {name: first["metrics"].get(name, math.nan) for name in (*retrain["metrics"], "changed_f")}
    ranked_by = {"method": method, "trial": number, "runs": len(runs), "score": score(plans, runs)}
    return ranked_by | metrics | {"time/Retrain": first["time_s"] / retrain["time_s"]} | point


if __name__ == "__main__":
    harness.scripts.run_script(search, Arguments, __doc__)
