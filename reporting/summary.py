"""Finished cells -> numbers. The only place that averages: over seeds, to Retrain, times and relearning."""

import json
import math
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from audit import AUDIT
from config import BESIDE_ABLATION, TREES
from harness.cells import key
from harness.store import UserError, bytes_of, explained, locked, read_record, require, save_atomically
from metrics import FEWEST, METRICS, gap, tug_of_war

PAPER_VALUES = Path(__file__).parent.parent / "results" / "paper_values.csv"
PAPER_DATASETS = ("Digit", "Fashion", "CIFAR10", "CIFAR100")
PAPER_TASKS = ("random10", "class0", "random15", "random20", "class1", "class2")
MAIN_TASKS = PAPER_TASKS[:2]
REFERENCES = ("Retrain", "Floor", "Original")  # what methods are compared with, never ranked among them
CLEAN = ("A_r_clean", "A_f_clean")
MOVES = ("moved_A_r", "moved_A_f")
MEASURED = (*METRICS, *CLEAN, *AUDIT, "start_A_r", *MOVES, "attacked")  # the columns of cells that are averaged
NOISY = ("MIA", "MIA_diff", *AUDIT[:2], "gap")  # what is noise with fewer than FEWEST samples
PLACE = ["tree", "dataset", "task"]
CELL = ["dataset", "task", "method", "seed"]
REQUEST = r" \((\d+) of (\d+)\)$"  # what `rows_of` adds to a task's name
DIRECTIONS = {**dict.fromkeys(("A_r", "A_f", "MIA", *AUDIT[:2], *CLEAN), "≈")}
DIRECTIONS |= dict.fromkeys(("A_ts", "A_ts_r", "ToW"), "↑")  # all others: ↓
DECIMALS = {"JS_f": 3}  # that are shown; 2 of all others
LOST = 20  # points of A_r under Retrain's from which a model counts as lost
LEAST_MOVED = 0.25  # of the way from Original's A_f to Retrain's
CLOSE = 0.5  # points: where these two are not farther apart, there is no way to go


class Stat(NamedTuple):
    """Mean and population std over `seeds` seeds."""

    mean: float
    std: float
    seeds: int


def read_cells(results_dir):
    """All finished cells as `frame` gives them; a UserError if there is none, or one that cannot be read."""
    rows = []
    for tree in TREES:
        with explained(f"{results_dir} cannot be read", OSError):
            paths = sorted(Path(results_dir, tree).glob("*/*/*/seed*.json"))
        for path in paths:
            with explained(f"{path} is no sound cell, remove it and run main.py again", Exception):
                rows += rows_of(tree, read_record(bytes_of(path), path))
    none = f"{results_dir} holds no cells; make some with main.py --results-dir {results_dir}"
    require(any(row["tree"] != "audit" for row in rows), none)
    return frame(rows)


def write_csv(results_dir, every_s=0):
    """Write all finished cells to `cells.csv` in their folder, a row each. One that cannot be read is named instead.

    A table that was written less than `every_s` seconds ago is left as it is: of many cells, writing takes a while.
    """
    folder = Path(results_dir)
    with suppress(FileNotFoundError):
        if time.time() - (folder / "cells.csv").stat().st_mtime < every_s:
            return
    if not any(folder.glob("*/*/*/*/seed*.json")):
        return
    with locked(folder):
        try:
            cells = read_cells(folder)
        except UserError as error:
            print(f"{folder / 'cells.csv'} is not written: {error}")
            return
        for name in ("config", "versions"):
            cells[name] = cells[name].map(json.dumps)
        cells["f_o"] = [known.get("digest", "") for known in cells.f_o]
        save_atomically(folder / "cells.csv", cells.drop(columns="curves").to_csv(index=False).encode(errors="replace"))


def frame(rows):
    """A DataFrame of `rows_of` cells with all metrics as columns, nan where there is none. Audits join their cells."""
    audits = {tuple(row[name] for name in CELL): row for row in rows if row["tree"] == "audit"}
    made = [row for row in rows if row["tree"] in ("cells", "ablation")]
    keys = {tuple(row[name] for name in CELL): key(row["config"]) for row in made}
    cells = pd.DataFrame([row | audited(row, audits, keys) for row in rows if row["tree"] != "audit"])
    return cells.reindex(columns=[*cells, *(name for name in MEASURED if name not in cells)])


def audited(row, audits, keys):
    """The audit's metrics of a cell's row, unless it, or the Retrain that it was compared with, has been made anew."""
    dataset, task, method, seed = (row[name] for name in CELL)
    audit = audits.get((dataset, task, method, seed), {"config": {}})
    if row["tree"] not in ("cells", "ablation") or audit["config"].get("cell") != keys[dataset, task, method, seed]:
        return {}
    retrain = keys.get((dataset, task, "Retrain", seed))
    current = AUDIT if audit["config"].get("retrain") == retrain else AUDIT[:2]
    return {name: audit[name] for name in current if name in audit}


def rows_of(tree, record):
    """A cell's record as rows: one, or one for the model after each of its requests, numbered in the task's name."""
    requests = record.get("requests", [])
    tasks = [f"{record['task']} ({number} of {len(requests)})" for number in range(1, len(requests) + 1)]
    return [row(tree, record | {"task": task} | after) for task, after in zip(tasks, requests)] or [row(tree, record)]


def without_request(task):
    """A task's name without the number of its request."""
    return re.sub(REQUEST, "", task)


def after_last_request(cells):
    """The cells without those of earlier requests, each under its task's own name, as relearning has it."""
    numbers = cells.task.str.extract(REQUEST).fillna("")
    last = cells[numbers[0] == numbers[1]]
    return last.assign(task=last.task.map(without_request))


def row(tree, record):
    """One row: names, metrics, `attacked`, `time_s`, `conditions` (text), `config`, `versions`, `f_o`, `command`.

    Relearning has `curves` ({"A_r": [...], "A_f": [...]}), `start_A_r`, and the largest |difference to the start|:
    `moved_A_r`, `moved_A_f`.
    """
    curves = {name: record[name] for name in ("A_r", "A_f")} if "A_r" in record else {}
    made = record.get("conditions")
    return {
        "tree": tree,
        **{name: record[name] for name in ("dataset", "task", "method", "seed")},
        **record.get("metrics", {}),
        **({"start_A_r": curves["A_r"][0]} if curves else {}),
        **{f"moved_{name}": max(abs(value - values[0]) for value in values) for name, values in curves.items()},
        **{name: record.get(name, math.nan) for name in ("attacked", "time_s")},
        "conditions": f"{made['device']}, threads a cell: {made['threads']}, jobs: {made['jobs']}" if made else "",
        "curves": curves,
        **{name: record.get(name, {}) for name in ("config", "versions", "f_o")},
        "command": f"{record['command']}  # commit {record['commit']}" if "command" in record else "",
    }


def summarise(cells):
    """Everything that is measured, averaged: (tree, dataset, task, method, metric) -> Stat.

    The metrics are those of the cells; of relearning `start_A_r`, `moved_A_r` and `moved_A_f`; and `time_s`. `gap`,
    `MIA_diff` (|MIA - Retrain's MIA|), `ToW` and `ratio` (of the times) compare with Retrain on the seeds that both
    have. They come from the means and have no std (nan), but `ToW` is taken seed by seed. Times are those under the
    conditions of most of Retrain's cells; others are left out, and without recorded conditions there is no ratio. The
    ablation gets the plain run's Retrain, Original and CaMU.
    """
    stats = {}
    for place, group in with_base(cells).groupby(PLACE, sort=False):
        timed = group[group.method == "Retrain"] if "Retrain" in set(group.method) else group
        conditions = timed.conditions.mode()[0]
        group = group.assign(time_s=group.time_s.where(group.conditions == conditions)).set_index("seed")
        retrain = group[group.method == "Retrain"]
        for method, rows in group.groupby("method", sort=False):
            values = {name: stat(rows[name].dropna()) for name in (*MEASURED, "time_s")}
            if method != "Retrain":
                values |= distances(rows, retrain)
            values["ratio"] = time_ratio(rows, retrain if conditions else retrain[:0])
            stats |= {(*place, method, name): value for name, value in values.items() if value.seeds}
    return stats


def stat(values):
    return Stat(float(values.mean()), float(values.std(ddof=0)), len(values))


def distances(cells, retrain):
    """A method's `gap`, `MIA_diff` and `ToW`, over the seeds that it and Retrain have; cells indexed by seed."""
    names = [name for name in METRICS if name in retrain and retrain[name].notna().any()]
    ours, theirs = (rows[names].dropna() for rows in (cells, retrain))
    seeds = ours.index.intersection(theirs.index) if names else []
    if not len(seeds):
        return {}
    ours, theirs = ours.loc[seeds], theirs.loc[seeds]
    tow = stat(pd.Series([tug_of_war(ours.loc[seed], theirs.loc[seed]) for seed in seeds]))
    ours, theirs = ours.mean(), theirs.mean()
    differences = {"gap": gap(ours, theirs), "MIA_diff": float(abs(ours["MIA"] - theirs["MIA"]))}
    return {name: Stat(value, math.nan, len(seeds)) for name, value in differences.items()} | {"ToW": tow}


def time_ratio(cells, retrain):
    """The mean time over Retrain's, on the seeds that both were timed with."""
    ours, theirs = cells.time_s.dropna().align(retrain.time_s.dropna(), join="inner")
    return Stat(float(ours.mean() / theirs.mean()), math.nan, len(ours))


def with_base(cells):
    """The cells with those of the plain run that the ablation's stand beside: its seeds of them."""
    ablated = cells.loc[cells.tree == "ablation", ["dataset", "task", "seed"]].drop_duplicates()
    plain = cells[(cells.tree == "cells") & cells.method.isin(BESIDE_ABLATION)]
    base = plain.merge(ablated, on=["dataset", "task", "seed"]).assign(tree="ablation")
    return pd.concat([cells, base]).drop_duplicates([*PLACE, "method", "seed"], ignore_index=True)


def on_common_seeds(cells):
    """Of every tree, data set and task the cells of those seeds that all methods there have."""
    parts = []
    for _, group in cells.groupby(PLACE):
        common = set.intersection(*group.groupby("method")["seed"].agg(set))
        parts.append(group[group.seed.isin(common)])
    return pd.concat(parts) if parts else cells


def mean_mia_difference(stats, pairs, method):
    """MIA_diff over those (dataset, task) for which it is there, and their number; None without any."""
    keys = [("cells", *pair, method, "MIA_diff") for pair in pairs]
    means = [stats[key].mean for key in keys if key in stats]
    return (sum(means) / len(means), len(means)) if means else None


def relearning_curves(cells):
    """How `metric` ("A_r", "A_f") differs from before relearning after each `epoch` (0: before), in points."""
    columns = ["dataset", "task", "method", "metric", "epoch"]
    moves = [
        (cell.dataset, cell.task, cell.method, metric, epoch, value - values[0])
        for cell in cells[cells.tree == "relearn"].itertuples()
        for metric, values in cell.curves.items()
        for epoch, value in enumerate(values)
    ]
    groups = pd.DataFrame(moves, columns=[*columns, "value"]).groupby(columns)["value"]
    return pd.DataFrame([(*key, *stat(values)) for key, values in groups], columns=[*columns, "mean", "std", "seeds"])


def is_lost(stats, place, method):
    """Whether a method has lost its model at a (tree, dataset, task): A_r more than 20 points under Retrain's."""
    name = "start_A_r" if place[0] == "relearn" else "A_r"
    ours, retrain = (stats.get((*place, m, name)) for m in (method, "Retrain"))
    return None not in (ours, retrain) and not ours.mean >= retrain.mean - LOST


def forgot_nothing(stats, place, method):
    """Whether a method has moved A_f by less than counts (see `moved`) at a (tree, dataset, task)."""
    accuracies = [stats.get((*place, m, "A_f")) for m in (method, "Original", "Retrain")]
    return None not in accuracies and moved(*(stat.mean for stat in accuracies)) < 1


def moved(a_f, original, retrain):
    """How far A_f has moved from Original's towards Retrain's, divided by the least that counts as unlearning.

    That is a quarter of the way. Where the two are no more than half a point apart there is no way, and it is 1.
    """
    way = original - retrain
    return (original - a_f) / way / LEAST_MOVED if abs(way) > CLOSE else 1.0


def few_samples(stats, place):
    """How many samples MIA attacked at a (tree, dataset, task), if they are too few to say anything; else 0."""
    counts = [stat.mean for key, stat in stats.items() if key[:3] == place and key[4] == "attacked"]
    return round(min(counts)) if counts and min(counts) < FEWEST else 0


def costs(values, direction, decimals=2):
    """The numbers that methods are compared by, at the decimals shown; less is better.

    `direction` is "↑" if the highest is best, "↓" the lowest, "≈" the closest to Retrain.
    """
    others = {method: value for method, value in values.items() if method not in REFERENCES}
    if direction == "≈":
        if "Retrain" not in values:
            return {}
        others = {method: abs(value - values["Retrain"]) for method, value in others.items()}
    sign = -1 if direction == "↑" else 1
    return {method: round(sign * value, decimals) for method, value in others.items()}


def rank(values, metric, skipped=()):
    """Which entries of a row are marked: method -> 1 for the best, 2 for the second best.

    Retrain, Original and the methods of `skipped` are passed over. With fewer than two left, none is marked.
    """
    ranked = {m: value for m, value in values.items() if m not in skipped}
    cost = costs(ranked, DIRECTIONS.get(metric, "↓"), DECIMALS.get(metric, 2))
    if len(cost) < 2:
        return {}
    best = sorted(set(cost.values()))[:2]
    return {method: best.index(own) + 1 for method, own in cost.items() if own in best}


def read_paper_values(path=PAPER_VALUES):
    """(table, dataset, task, metric, method) -> the paper's value; `ratio` and `MIA_diff` follow from its entries."""
    paper = {tuple(row[:5]): row[5] for row in pd.read_csv(path).itertuples(index=False, name=None)}
    for (*where, metric, method), value in list(paper.items()):
        retrain = paper.get((*where, metric, "Retrain"))
        if metric == "time_s" and retrain:
            paper[*where, "ratio", method] = value / retrain
        if metric == "MIA" and retrain and method != "Retrain":
            paper[*where, "MIA_diff", method] = abs(value - retrain)
    return paper


def in_order(names, first):
    """`names`, those of `first` in its order before the others, sorted."""
    return [name for name in dict.fromkeys(first) if name in names] + sorted(set(names) - set(first))
