"""Finished cells -> numbers: means over seeds, the gap to Retrain, times, relearning; and the paper's values."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from baselines import METHODS
from config import UserError
from metrics import METRICS, gap

PAPER_VALUES = Path(__file__).parent / "results" / "paper_values.csv"
PAPER_METHODS = ("Retrain", "NegGrad", "Boundary", "T-S", "SCRUB", "SISA", "Unroll", "CaMU")
PAPER_DATASETS = ("Digit", "Fashion", "CIFAR10", "CIFAR100")
PAPER_TASKS = ("random10", "class0", "random15", "random20", "class1", "class2")
MAIN_TASKS = PAPER_TASKS[:2]
CLEAN = ("A_r_clean", "A_f_clean")
DIRECTIONS = {**dict.fromkeys(("A_r", "A_f", "MIA", *CLEAN), "≈"), "A_ts": "↑", "A_ts_r": "↑"}  # all others: ↓


def read_cells(results_dir):
    """All finished cells.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    DataFrame
        One row a cell: `tree`, `dataset`, `task`, `method`, `seed`, the metrics (nan where a cell has none), `time_s`,
        `conditions` (text, "" where not recorded), `curves` (of relearning: {"A_r": [...], "A_f": [...]}), `config`
        and `versions`.

    Raises
    ------
    UserError
        There is no cell, or one that cannot be read.
    """
    found = []
    for tree in ("cells", "ablation", "relearn", "efficiency"):
        for path in sorted(Path(results_dir, tree).glob("*/*/*/seed*.json")):
            try:
                found.append({"tree": tree, **flat(json.loads(path.read_text(encoding="utf-8")))})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is no sound cell ({error!r}); remove it and run main.py again")
    if not found:
        raise UserError(f"{results_dir} holds no cells; make some with main.py --results-dir {results_dir}")
    return pd.DataFrame(found)


def flat(record):
    """A cell's record as one row of `read_cells`, without its tree."""
    return {
        **{name: record[name] for name in ("dataset", "task", "method", "seed")},
        **record.get("metrics", {}),
        "time_s": record.get("time_s", math.nan),
        "conditions": _conditions(record.get("conditions")),
        "curves": {name: record[name] for name in ("A_r", "A_f")} if "A_r" in record else None,
        "config": record.get("config", {}),
        "versions": record.get("versions", {}),
    }


def _conditions(found):
    if not found:
        return ""
    counts = [f"{found[name]} {name if found[name] != 1 else name[:-1]}" for name in ("threads", "jobs")]
    return f"{found['device']}, {counts[0]} a cell, {counts[1]} at a time"


def kind(task):
    """ "random" or "class": which of `metrics.METRICS` a task has."""
    return "class" if task.startswith("class") else "random"


def with_base(cells):
    """The cells with those of the plain run that the ablation's stand beside: its seeds of Retrain and CaMU."""
    ablated = cells.loc[cells.tree == "ablation", ["dataset", "task", "seed"]].drop_duplicates()
    plain = cells[(cells.tree == "cells") & cells.method.isin(["Retrain", "CaMU"])]
    base = plain.merge(ablated, on=["dataset", "task", "seed"]).assign(tree="ablation")
    return pd.concat([cells, base]).drop_duplicates(["tree", "dataset", "task", "method", "seed"], ignore_index=True)


def summarise(cells):
    """Mean, population std and number of seeds of every metric, and the gap to Retrain.

    Parameters
    ----------
    cells : DataFrame
        From `read_cells`.

    Returns
    -------
    dict
        (tree, dataset, task, method, metric) -> (mean, std, seeds), for the trees "cells" and "ablation"; the latter
        has the former's Retrain and CaMU as well (see `with_base`). The metrics "gap" and "MIA_diff" (|MIA - Retrain's|
        of the means) have no std (nan), and are over the seeds that the method and Retrain both have.
    """
    plain = with_base(cells[cells.tree.isin(["cells", "ablation"])])
    names = [name for name in (*METRICS["class"], *CLEAN) if name in plain]
    if plain.empty or not names:
        return {}
    place = ["tree", "dataset", "task", "method"]
    found = _statistics(plain.melt(place, names, "metric").dropna(subset="value").groupby([*place, "metric"])["value"])
    for group, here in plain.groupby(place[:3]):
        retrain = here[here.method == "Retrain"]
        for method, rows in here[here.method != "Retrain"].groupby("method"):
            to_retrain, mia, seeds = distances(rows, retrain, kind(group[2]))
            if seeds:
                found[*group, method, "gap"] = (to_retrain, math.nan, seeds)
                found[*group, method, "MIA_diff"] = (mia, math.nan, seeds)
    return found


def _statistics(groups):
    return {key: (float(v.mean()), float(v.std(ddof=0)), int(v.count())) for key, v in groups}


def distances(cells, retrain, kind):
    """How far a method is from Retrain, from the means over the seeds that both have.

    Parameters
    ----------
    cells, retrain : DataFrame
        One row a cell with its `seed` and metrics: the method's and Retrain's of one data set and task.
    kind : str
        "random" or "class".

    Returns
    -------
    tuple
        (`metrics.gap`, |MIA - Retrain's MIA|, number of those seeds); nan twice where it is 0.
    """
    ours, theirs = (rows.set_index("seed").reindex(columns=METRICS[kind]).dropna() for rows in (cells, retrain))
    seeds = ours.index.intersection(theirs.index)
    ours, theirs = ours.loc[seeds].mean(), theirs.loc[seeds].mean()
    return gap(ours, theirs, kind), float(abs(ours["MIA"] - theirs["MIA"])), len(seeds)


def summarise_times(cells, tree="efficiency"):
    """Time and time relative to Retrain, only between cells measured under the same conditions.

    Returns
    -------
    dict
        (dataset, task, conditions, method) -> (mean, std, seeds, ratio); the ratio is over the seeds that Retrain has
        under these conditions too, nan without any or where the conditions were not recorded.
    """
    timed = cells[(cells.tree == tree) & cells.time_s.notna()].set_index("seed")
    groups = dict(list(timed.groupby(["dataset", "task", "conditions", "method"])["time_s"]))

    def ratio(key):
        ours, retrain = groups[key].align(groups.get((*key[:3], "Retrain"), groups[key][:0]), join="inner")
        return float(ours.mean() / retrain.mean()) if key[2] else math.nan

    return {key: (*stats, ratio(key)) for key, stats in _statistics(groups.items()).items()}


def mia_difference(stats, pairs, methods=tuple(METHODS)):
    """MIA_diff: the mean of |MIA - Retrain's MIA| over those pairs of data set and task for which both are there.

    Parameters
    ----------
    stats : dict
        From `summarise`, for its entries of the metric "MIA_diff".
    pairs : sequence of (dataset, task)
    methods : sequence of str

    Returns
    -------
    dict
        method -> (MIA_diff, number of pairs it is over); methods without any are left out.
    """
    found = {}
    for method in methods:
        keys = [("cells", *pair, method, "MIA_diff") for pair in pairs]
        differences = [stats[key][0] for key in keys if key in stats]
        if differences:
            found[method] = (float(np.mean(differences)), len(differences))
    return found


def relearning_curves(cells):
    """How A_r and A_f differ from before relearning, after each epoch.

    Returns
    -------
    DataFrame
        Columns `dataset`, `task`, `method`, `metric` ("A_r", "A_f"), `epoch` (0: before), `mean`, `std`, `seeds`.
    """
    columns = ["dataset", "task", "method", "metric", "epoch"]
    rows = [
        (cell.dataset, cell.task, cell.method, metric, epoch, value - values[0])
        for cell in cells[cells.tree == "relearn"].itertuples()
        for metric, values in cell.curves.items()
        for epoch, value in enumerate(values)
    ]
    found = _statistics(pd.DataFrame(rows, columns=[*columns, "value"]).groupby(columns)["value"])
    return pd.DataFrame([(*key, *stats) for key, stats in found.items()], columns=[*columns, "mean", "std", "seeds"])


def relearning_extremes(cells):
    """The largest |difference to before| while D_r is learned again.

    Parameters
    ----------
    cells : DataFrame
        From `read_cells`, of one task.

    Returns
    -------
    dict
        (dataset, method, metric) -> (mean, std, seeds).
    """
    rows = [
        (cell.dataset, cell.method, metric, max(abs(value - values[0]) for value in values))
        for cell in cells[cells.tree == "relearn"].itertuples()
        for metric, values in cell.curves.items()
    ]
    columns = ["dataset", "method", "metric"]
    return _statistics(pd.DataFrame(rows, columns=[*columns, "value"]).groupby(columns)["value"])


def gap_and_time(cells):
    """The points of the scatter: every method's gap and its time relative to Retrain.

    Returns
    -------
    DataFrame
        Columns `dataset`, `task`, `method`, `conditions`, `gap`, `ratio`, `tree` (that the times are from: see
        `timed_tree`); only where both are there.
    """
    stats, times = summarise(cells), {tree: summarise_times(cells, tree) for tree in ("efficiency", "cells")}
    rows = [
        (dataset, task, method, conditions, stats["cells", dataset, task, method, "gap"][0], ratio, tree)
        for tree, found in times.items()
        for (dataset, task, conditions, method), (_, _, _, ratio) in found.items()
        if tree == timed_tree(cells, dataset, task)
        and ("cells", dataset, task, method, "gap") in stats
        and not math.isnan(ratio)
    ]
    return pd.DataFrame(rows, columns=["dataset", "task", "method", "conditions", "gap", "ratio", "tree"])


def timed_tree(cells, dataset, task):
    """Where times are taken from: the paper's tables only from the timings on a quiet machine, others from what is
    there."""
    here = cells[(cells.dataset == dataset) & (cells.task == task)]
    quiet = in_paper(dataset, task) or "efficiency" in set(here.tree)
    return "efficiency" if quiet else "cells"


def in_paper(dataset, task):
    return dataset in PAPER_DATASETS and task in PAPER_TASKS


def costs(values, direction):
    """What methods are compared by: less is better, equal is what is equal at the two decimals shown.

    Parameters
    ----------
    values : dict of method to float
    direction : str
        "↑" highest, "↓" lowest, "≈" closest to Retrain is best.

    Returns
    -------
    dict of method to float
        Without Retrain; empty where the comparison needs Retrain and it is not there.
    """
    others = {method: value for method, value in values.items() if method != "Retrain"}
    if direction == "≈":
        if "Retrain" not in values:
            return {}
        others = {method: abs(value - values["Retrain"]) for method, value in others.items()}
    sign = -1 if direction == "↑" else 1
    return {method: round(sign * value, 2) for method, value in others.items()}


def rank(values, metric):
    """Which entries of a row are marked.

    Parameters
    ----------
    values : dict of method to float
    metric : str
        Decides the direction.

    Returns
    -------
    dict of method to int
        1 for the best, 2 for the second best (see `costs`); Retrain is never marked, and with fewer than two methods
        to compare there is none.
    """
    found = costs(values, DIRECTIONS.get(metric, "↓"))
    if len(found) < 2:
        return {}
    best = sorted(set(found.values()))[:2]
    return {method: best.index(cost) + 1 for method, cost in found.items() if cost in best}


def read_paper_values(path=PAPER_VALUES):
    """(table, dataset, task, metric, method) -> the paper's value."""
    frame = pd.read_csv(path)
    return {(row.table, row.dataset, row.task, row.metric, row.method): row.value for row in frame.itertuples()}
