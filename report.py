"""Finished cells -> report.md: every table of the paper beside its values, and the figures."""

import io
import itertools
import json
import math
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

import claims
from baselines import METHODS
from config import ABLATION, DATASETS, FAMILIES, FEW, UserError, hyperparameters, run_script, training_row
from data import save_atomically
from experiment import check_writable
from metrics import METRICS
from summary import (
    CLEAN,
    DIRECTIONS,
    MAIN_TASKS,
    PAPER_DATASETS,
    PAPER_TASKS,
    gap_and_time,
    in_paper,
    kind,
    mia_difference,
    rank,
    read_cells,
    read_paper_values,
    relearning_curves,
    relearning_extremes,
    summarise,
    summarise_times,
    timed_tree,
)

# The paper's tables: the task and the metrics of each.
RANDOM_METRICS, CLASS_METRICS = ("A_r", "A_f", "A_ts"), ("A_ts_r", "A_ts_f")
EFFECTIVENESS_TABLES = {
    2: ("random10", RANDOM_METRICS),
    3: ("class0", CLASS_METRICS),
    8: ("random15", RANDOM_METRICS),
    9: ("random20", RANDOM_METRICS),
    10: ("class1", CLASS_METRICS),
    11: ("class2", CLASS_METRICS),
}
MIA_TABLES = {4: MAIN_TASKS, 12: PAPER_TASKS[2:]}
TIME_TABLES = {5: MAIN_TASKS, 13: PAPER_TASKS[2:]}
ABLATION_TABLES = {6: ("random10", (*RANDOM_METRICS, "MIA")), 7: ("class0", (*CLASS_METRICS, "MIA"))}
RELEARNING_FIGURES = {"random10": 4, "class0": 5}
ABLATION_METHODS = ("Retrain", *ABLATION, "CaMU")

# The rows "Average Diff" of tables 4 and 12, which paper_values.csv does not hold; Unroll and CaMU of table 4 are lost.
PAPER_MIA_DIFF = {
    4: {"NegGrad": 4.38, "Boundary": 4.43, "T-S": 8.89, "SCRUB": 5.30, "SISA": 10.23},
    12: {"NegGrad": 1.25, "Boundary": 2.41, "T-S": 5.19, "SCRUB": 3.70, "SISA": 6.32, "Unroll": 1.48, "CaMU": 1.82},
}
MIA_REMARKS = {
    4: "The paper's printed averages are those of its entries (but for T-S); Unroll's and CaMU's could not be read "
    "off, its text says 4.09 for CaMU.",
    12: "The paper's printed averages do not follow from the entries of its own table (NegGrad: 1.25 printed, 6.07 "
    "from the entries; CaMU: 1.82 and 3.88): quoted as printed.",
}
SISA_REMARK = (
    "The paper's MIA values of SISA are, to within 0.6, what an attack that always answers “non-member” scores: they "
    "say nothing about SISA's models."
)

ORDERS = {"dataset": (*PAPER_DATASETS, *DATASETS), "task": PAPER_TASKS, "method": (*METHODS, *ABLATION)}
MARKS = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}
MISSING, NOT_AVAILABLE = "missing", "n/a"

# Okabe and Ito's colours, their yellow, too pale for lines on white, replaced by grey. One a method, everywhere.
COLOURS = {
    "Retrain": "#000000",
    "NegGrad": "#E69F00",
    "Boundary": "#56B4E9",
    "T-S": "#009E73",
    "SCRUB": "#0072B2",
    "SISA": "#CC79A7",
    "Unroll": "#999999",
    "CaMU": "#D55E00",
}
MARKERS = {
    "Retrain": "o",
    "NegGrad": "s",
    "Boundary": "^",
    "T-S": "v",
    "SCRUB": "D",
    "SISA": "P",
    "Unroll": "X",
    "CaMU": "*",
}
ADDED = [method for method in METHODS if method not in COLOURS]  # methods of one's own
COLOURS |= dict(zip(ADDED, itertools.cycle(("#882255", "#117733", "#AA4499"))))
MARKERS |= dict(zip(ADDED, itertools.cycle(("<", ">", "p", "h"))))
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "camu",  # the same picture is the same file
}
WIDTH = 7.2  # inches: the text width of a page


@dataclass(frozen=True)
class Settings:
    """Where the cells are."""

    results_dir: str = "results"
    """the folder with cells/, ablation/, relearn/ and efficiency/; report.md and figures/ are written there"""
    readme: str | None = None
    """a file whose results section, between two marks, is to be written anew as well"""


def main(settings):
    cells = read_cells(settings.results_dir)
    folder = Path(settings.results_dir)
    check_writable(folder / "figures")
    figures = draw_figures(cells)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / name)
    save_atomically(folder / "report.md", report(cells, set(figures), settings.results_dir).encode())
    print(f"{len(cells)} cells: wrote {folder / 'report.md'} and {len(figures)} figures (PNG and SVG)")
    if settings.readme:
        write_readme(Path(settings.readme), readme_section(settings.results_dir))


# ---------------------------------------------------------------------------------------------------- the tables


def markdown_table(header, rows):
    """A markdown table; all columns but the first ones, up to the one with an empty title, are right-aligned."""
    left = header.index("") + 1 if "" in header else 1
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def entry(stats, mark=0):
    """ "mean ± std (seeds)", marked; "missing" without statistics."""
    if stats is None:
        return MISSING
    mean, std, seeds = stats[:3]
    spread = "" if math.isnan(std) else f" ± {std:.2f}"
    return MARKS[mark].format(f"{mean:.2f}{spread}") + f" ({seeds})"


def entries(found, metric, methods):
    """The entries of one row: `found` has (mean, std, seeds) by method."""
    marks = rank({method: stats[0] for method, stats in found.items()}, metric)
    return [entry(found.get(method), marks.get(method, 0)) for method in methods]


def paper_entries(paper, place, methods):
    values = [paper.get((*place, method)) for method in methods]
    return [NOT_AVAILABLE if value is None else f"{value:.2f}" for value in values]


def label(metric):
    return f"{metric} {DIRECTIONS.get(metric, '↓')}"


def metric_rows(stats, place, metrics, methods, paper=None, table=None, extra=True):
    """The rows of one data set and task.

    Parameters
    ----------
    stats : dict
        From `summarise`.
    place : tuple
        (tree, dataset, task).
    metrics : sequence of str
        The table's; each has a row of ours and, with `paper`, one of the paper's.
    methods : sequence of str
    paper : dict, optional
        From `read_paper_values`.
    table : int, optional
    extra : bool
        Add the task's other metrics, which the paper's table does not have, where there are any; the gap always is.

    Returns
    -------
    list of list of str
    """

    def found(metric):
        return {method: stats[*place, method, metric] for method in methods if (*place, method, metric) in stats}

    shown = list(metrics)
    if extra:
        shown += [name for name in (*METRICS[kind(place[2])], *CLEAN) if name not in metrics and found(name)]
    rows = []
    for metric in shown:
        rows.append([place[1], label(metric), "here", *entries(found(metric), metric, methods)])
        if paper and metric in metrics:
            published = paper_entries(paper, (table, place[1], place[2], metric), methods)
            rows.append([place[1], label(metric), "paper", *published])
    gaps = entries(found("gap"), "gap", methods)
    if "Retrain" in methods:
        gaps[methods.index("Retrain")] = "–"
    return [*rows, [place[1], label("gap"), "here", *gaps]]


def effectiveness_table(stats, paper, number, datasets=PAPER_DATASETS, extra=True):
    """Tables 2, 3 and 8 to 11; with `extra` False only the paper's metrics and the gap."""
    task, metrics = EFFECTIVENESS_TABLES[number]
    methods = list(METHODS)
    rows = [
        row
        for dataset in datasets
        for row in metric_rows(stats, ("cells", dataset, task), metrics, methods, paper, number, extra)
    ]
    return markdown_table(["Data", "Metric", "", *methods], rows)


def ablation_table(stats, datasets, task, metrics):
    """Tables 6 and 7, whose values in the paper cannot be read off."""
    methods = list(ABLATION_METHODS)
    rows = [row for d in datasets for row in metric_rows(stats, ("ablation", d, task), metrics, methods)]
    return markdown_table(["Data", "Metric", "", *methods], rows)


def mia_table(stats, paper, number):
    """Tables 4 and 12, with the row of average differences."""
    methods = list(METHODS)
    pairs = [(dataset, task) for task in MIA_TABLES[number] for dataset in PAPER_DATASETS]
    rows = []
    for dataset, task in pairs:
        keys = {method: ("cells", dataset, task, method, "MIA") for method in methods}
        found = {method: stats[key] for method, key in keys.items() if key in stats}
        rows.append([task, dataset, "here", *entries(found, "MIA", methods)])
        rows.append([task, dataset, "paper", *paper_entries(paper, (number, dataset, task, "MIA"), methods)])
    rows.append(["**MIA_diff ↓**", "all", "here", *difference_entries(stats, pairs, methods)])
    published = PAPER_MIA_DIFF[number]
    printed = [f"{published[method]:.2f}" if method in published else NOT_AVAILABLE for method in methods]
    printed[methods.index("Retrain")] = "–"
    rows.append(["**MIA_diff ↓**", "all", "paper, as printed", *printed])
    derived = mia_difference(paper_mia_differences(paper, number), pairs, methods)
    texts = [f"{derived[m][0]:.2f}" if m in derived and derived[m][1] == len(pairs) else NOT_AVAILABLE for m in methods]
    texts[methods.index("Retrain")] = "–"
    rows.append(["**MIA_diff ↓**", "all", "paper, from its entries", *texts])
    return markdown_table(["Task", "Data", "", *methods], rows)


def paper_mia_differences(paper, number):
    """The entries of the paper's table `number` as `summary.summarise` has those of cells."""
    entries = {key: value for key, value in paper.items() if key[0] == number and key[3] == "MIA"}
    return {
        ("cells", dataset, task, method, "MIA_diff"): (abs(value - entries[number, dataset, task, "MIA", "Retrain"]),)
        for (_, dataset, task, _, method), value in entries.items()
        if method != "Retrain" and (number, dataset, task, "MIA", "Retrain") in entries
    }


def difference_entries(stats, pairs, methods):
    """MIA_diff of every method, with the pairs it is over; only methods over the most pairs are compared."""
    found = mia_difference(stats, pairs, methods)
    most = max((count for _, count in found.values()), default=0)
    marks = rank({method: value for method, (value, count) in found.items() if count == most}, "MIA_diff")
    shown = {m: f"{MARKS[marks.get(m, 0)].format(f'{v:.2f}')} ({n} of {len(pairs)})" for m, (v, n) in found.items()}
    return ["–" if method == "Retrain" else shown.get(method, MISSING) for method in methods]


def time_rows(times, dataset, task, letters):
    """One data set and task: under each set of conditions a row of seconds and one relative to Retrain."""
    methods = list(METHODS)
    rows = []
    for conditions in sorted({key[2] for key in times if key[:2] == (dataset, task)}):
        keys = {method: (dataset, task, conditions, method) for method in methods}
        found = {method: times[key] for method, key in keys.items() if key in times}
        name = f"here ({letters[conditions]})"
        rows.append([task, dataset, name, *entries(found, "time_s", methods)])
        ratios = [f"{found[m][3]:.3f}" if m in found and not math.isnan(found[m][3]) else MISSING for m in methods]
        rows.append([task, dataset, f"÷ Retrain ({letters[conditions]})", *ratios])
    return rows or [[task, dataset, "here", *[MISSING] * len(methods)]]


def paper_time_rows(paper, dataset, task, number):
    methods = list(METHODS)
    place = (number, dataset, task, "time_s")
    retrain = paper.get((*place, "Retrain"))
    values = [paper.get((*place, method)) for method in methods]
    ratios = [NOT_AVAILABLE if None in (value, retrain) else f"{value / retrain:.3f}" for value in values]
    return [
        [task, dataset, "paper", *paper_entries(paper, place, methods)],
        [task, dataset, "paper, ÷ Retrain", *ratios],
    ]


def condition_letters(times):
    """A letter for every set of conditions, in alphabetical order."""
    return {text: chr(ord("A") + i) for i, text in enumerate(sorted({key[2] for key in times}))}


def letters_line(letters):
    texts = [f"{letter}: {text or 'conditions not recorded'}" for text, letter in letters.items()]
    return f"Conditions: {'; '.join(texts)}. Times under different conditions are never divided by one another."


def time_table(times, paper, number, datasets=PAPER_DATASETS, keep=lambda name: True):
    """Tables 5 and 13, from the timings on a quiet machine; the rows whose third column is to be kept."""
    times = {key: value for key, value in times.items() if key[0] in datasets and key[1] in TIME_TABLES[number]}
    letters = condition_letters(times)
    rows = [
        row
        for task in TIME_TABLES[number]
        for dataset in datasets
        for row in (*time_rows(times, dataset, task, letters), *paper_time_rows(paper, dataset, task, number))
        if keep(row[2])
    ]
    table = markdown_table(["Task", "Data", "", *METHODS], rows)
    return f"{table}\n\n{letters_line(letters)}" if letters else table


def ratio_table(times, paper, number, datasets):
    """The rows of `time_table` that are relative to Retrain, and those that are missing."""
    return time_table(times, paper, number, datasets, lambda name: "÷" in name or name == "here")


def relearning_table(cells, datasets):
    """The largest |difference to before|; `cells` are those of one task."""
    extremes, methods, rows = relearning_extremes(cells), list(METHODS), []
    for dataset in datasets:
        for metric in ("A_r", "A_f"):
            keys = {method: (dataset, method, metric) for method in methods}
            found = {method: extremes[key] for method, key in keys.items() if key in extremes}
            rows.append([dataset, f"max \\|Δ{metric}\\| ↓", "here", *entries(found, "change", methods)])
    return markdown_table(["Data", "Metric", "", *methods], rows)


def claims_table(cells):
    """What `claims.answers` found, a row a claim and place."""
    rows = [[text, place, VERDICTS[holds], figures] for text, place, holds, figures in claims.answers(cells)]
    return markdown_table(["Claim", "Where", "Here", ""], rows)


# --------------------------------------------------------------------------------------------------- the commands


def commands(cells, results_dir):
    """The exact commands that remake cells; what is spelt in capitals is to be chosen from the list that follows."""
    groups = {}
    for cell in cells.itertuples():
        groups.setdefault(_options(cell), []).append(cell)
    lines = []
    for options, group in groups.items():
        text, named = "python main.py", []
        for option, column in (("dataset", "dataset"), ("tasks", "task"), ("methods", "method"), ("seeds", "seed")):
            values = in_order({getattr(cell, column) for cell in group}, ORDERS.get(column, ()))
            if option == "methods" and group[0].tree == "ablation":
                continue  # the study runs its methods all together
            if option == "tasks":
                values = ["ids:FILE" if str(value).startswith("ids-") else value for value in values]
            word = option.upper().rstrip("S")
            text += f" --{option} {word if len(values) > 1 else shlex.quote(str(values[0]))}"
            if len(values) > 1:
                named.append(f"{word}: {', '.join(map(str, values))}")
        folder = Path(results_dir)
        text += f"{options} --results-dir {shlex.quote(folder.name if folder.is_absolute() else str(folder))}"
        lines.append(f"- `{text}`" + (f" ({'; '.join(named)})" if named else ""))
    return "\n".join(lines)


def _options(cell):
    """The options besides what the cell is named by: those that determine its numbers and differ from the defaults."""
    config = cell.config
    study = {"ablation": "ablation", "relearn": "relearn", "efficiency": "efficiency"}.get(cell.tree)
    options = f" --study {study}" if study else ""
    for name in ("threads", "device"):
        options += f" --{name} {config[name]}" if name in config else ""
    if config.get("batch_size", 32) != 32:
        options += f" --batch-size {config['batch_size']}"
    changed = _overrides(cell)
    return options + (f" --override {' '.join(changed)}" if changed else "")


def _overrides(cell):
    """The hyperparameters of a cell that are not those of the table, as --override takes them."""
    row = cell.config.get("hyperparameters", {})
    method = cell.config.get("method", cell.method)
    if cell.dataset not in FAMILIES or not row:
        return []  # own data: the table's row depends on the model and size of the data, which a cell does not name
    few = cell.task.startswith("ids-") or (kind(cell.task) == "random" and float(cell.task[6:]) < 100 * FEW)
    task_kind = "few" if few else kind(cell.task)
    table = hyperparameters(method, cell.dataset, task_kind, training_row(cell.dataset, "CNN"), task=cell.task)
    return [f"{method}.{name}={row[name]:g}" for name in table if name in row and row[name] != table[name]]


# ---------------------------------------------------------------------------------------------------- the figures


def draw_figures(cells):
    """All figures that there are cells for: name -> Figure."""
    curves, points, stats = relearning_curves(cells), gap_and_time(cells), summarise(cells)
    figures = {}
    for task, group, datasets in figure_groups(cells):
        for name, draw, numbers in (
            ("relearning", draw_relearning, curves),
            ("gap-time", draw_gap_time, points),
            ("bars", draw_bars, stats),
        ):
            with matplotlib.rc_context(STYLE):
                figure = draw(numbers, task, datasets)
            if figure:
                figures[figure_name(name, task, group)] = figure
    return figures


def figure_groups(cells):
    """(task, "paper" or "other", data sets) of all figures: the paper's data sets together, all others together."""
    for task in in_order(set(cells.task), PAPER_TASKS):
        here = in_order(set(cells.dataset[cells.task == task]), ORDERS["dataset"])
        for group in ("paper", "other"):
            datasets = [name for name in here if in_paper(name, task) == (group == "paper")]
            if datasets:
                yield task, group, datasets


def figure_name(name, task, group):
    return f"{name}-{task}" if group == "paper" else f"{name}-{task}-other"


def in_order(names, first):
    return [name for name in dict.fromkeys(first) if name in names] + sorted(set(names) - set(first))


def save_figure(figure, path):
    """Write the PNG and the SVG, the same bytes for the same figure."""
    for name, options in (
        ("png", {"dpi": 200, "metadata": {"Software": None}}),
        ("svg", {"metadata": {"Date": None, "Creator": None}}),
    ):
        picture = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(picture, format=name, **options)
        save_atomically(path.with_name(f"{path.name}.{name}"), picture.getbuffer())


def draw_relearning(curves, task, datasets):
    """Differences of A_r and A_f to before relearning against the epoch, a line a method; None without any."""
    curves = curves[(curves.task == task) & curves.dataset.isin(datasets)]
    datasets = [name for name in datasets if name in set(curves.dataset)]
    if not datasets:
        return None
    width = min(WIDTH, 2.2 + 1.9 * len(datasets))
    figure = Figure((width, 4.4), layout="constrained")
    axes = figure.subplots(2, len(datasets), sharex=True, sharey="row", squeeze=False)
    for row, metric in zip(axes, ("A_r", "A_f")):
        for axis, dataset in zip(row, datasets):
            here = curves[(curves.dataset == dataset) & (curves.metric == metric)]
            for method in METHODS:
                line = here[here.method == method].sort_values("epoch")
                if len(line):
                    low, high = line["mean"] - line["std"], line["mean"] + line["std"]
                    axis.fill_between(line.epoch, low, high, color=COLOURS[method], alpha=0.15, linewidth=0)
                    axis.plot(line.epoch, line["mean"], label=method, **line_style(method))
        shown = curves[curves.metric == metric]
        if shown["mean"].abs().max() > 3:
            set_symlog(row[0])
        row[0].set_ylabel(f"Δ{metric} [percentage points]")
    for axis, dataset in zip(axes[0], datasets):
        set_title(axis, dataset, curves[curves.dataset == dataset], wrap=34 if len(datasets) < 3 else 22)
    for axis in axes[1]:
        axis.set_xlabel("epoch of relearning")
        axis.set_xticks(range(0, curves.epoch.max() + 1, 2))
    add_legend(figure, set(curves.method), lines=True)
    return figure


def line_style(method):
    width = 1.8 if method == "CaMU" else 1.1
    return {
        "color": COLOURS[method],
        "marker": MARKERS[method],
        "markersize": 6 if MARKERS[method] == "*" else 3.5,
        "linewidth": width,
        "linestyle": "--" if method == "Retrain" else "-",
    }


def set_title(axis, dataset, found, methods=tuple(METHODS), note="", wrap=44):
    """Name the data set, the seeds behind the picture where known, and the methods that are missing in it."""
    seeds = sorted(set(found.seeds)) if "seeds" in found else []
    span = "–".join(map(str, dict.fromkeys((*seeds[:1], *seeds[-1:]))))
    count = f" ({span} seed{'' if span == '1' else 's'})" if seeds else ""
    missing = [method for method in methods if method not in set(found.method)]
    lost = f"\nmissing: {', '.join(missing)}" if missing else ""
    lines = f"{dataset}{count}{note}{lost}".split("\n")
    axis.set_title("\n".join(textwrap.fill(line, wrap, break_long_words=False) for line in lines))


def add_legend(figure, methods, lines=False, **style):
    shown = [method for method in METHODS if method in methods]
    if lines:
        handles = [Line2D([], [], label=method, **(line_style(method) | style)) for method in shown]
    else:
        handles = [Patch(color=COLOURS[method], label=method) for method in shown]
    narrow = figure.get_figwidth() < WIDTH
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if narrow else 8, columnspacing=1.2)


def panels(count, height):
    """A figure with one panel a data set, two beside each other."""
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure((WIDTH if columns == 2 else 4.6, height * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def draw_gap_time(points, task, datasets):
    """Gap against time relative to Retrain, a point a method (and set of conditions); None without any."""
    points = points[(points.task == task) & points.dataset.isin(datasets)]
    datasets = [name for name in datasets if name in set(points.dataset)]
    if not datasets:
        return None
    figure, axes = panels(len(datasets), 2.3)
    others = [method for method in METHODS if method != "Retrain"]
    for axis, dataset in zip(axes, datasets):
        here = points[points.dataset == dataset]
        for method in others:
            found = here[here.method == method]
            if len(found):
                style = {"color": COLOURS[method], "marker": MARKERS[method], "markeredgecolor": "#333333"}
                size = 11 if MARKERS[method] == "*" else 7
                axis.plot(
                    found.ratio, found.gap, linestyle="", markersize=size, markeredgewidth=0.5, label=method, **style
                )
        axis.axvline(1, color=COLOURS["Retrain"], linestyle="--", linewidth=1)
        axis.text(1, 0.98, " Retrain's time", transform=axis.get_xaxis_transform(), fontsize=7, va="top")
        set_log(axis, "x", [*here.ratio, 1, 2.5])
        if (here.gap > 0).all():
            set_log(axis, "y", here.gap)
        axis.set(xlabel="time ÷ Retrain's time", ylabel="gap to Retrain [points]")
        note = "" if set(here.tree) == {"efficiency"} else "\ntimes of the plain run"
        set_title(axis, dataset, here, others, note)
    add_legend(figure, set(points.method) - {"Retrain"}, lines=True, linestyle="")
    return figure


def set_log(axis, which, values):
    """A logarithmic axis, over at least a decade so that there are figures to read."""
    low, high = min(values) / 1.4, max(values) * 1.4
    spare = max(1.0, math.sqrt(10 * low / high))
    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}lim")(low / spare, high * spare)
    subs = (1, 2, 5) if high * spare / (low / spare) < 200 else (1,)
    set_ticks(getattr(axis, f"{which}axis"), LogLocator(subs=subs))


def set_ticks(ticks, locator):
    """Labelled as plain numbers, with none between them."""
    ticks.set_major_locator(locator)
    ticks.set_minor_locator(NullLocator())
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_bars(stats, task, datasets):
    """The task's metrics less Retrain's, a bar a method with the std over seeds, a cross where missing; None without.

    The metrics themselves would be bars of one height: methods differ by points, or tenths of them.
    """
    keys = [key for key in stats if key[0] == "cells" and key[2] == task and key[1] in datasets]
    frame = pd.DataFrame([(key[1], key[3], stats[key][2]) for key in keys], columns=["dataset", "method", "seeds"])
    datasets = [name for name in datasets if name in set(frame[frame.method == "Retrain"].dataset)]
    if not datasets:
        return None
    figure, axes = panels(len(datasets), 2.4)
    metrics = METRICS[kind(task)]
    wide = 0.84 / len(METHODS)
    for axis, dataset in zip(axes, datasets):
        retrain = [stats["cells", dataset, task, "Retrain", metric][0] for metric in metrics]
        for i, method in enumerate(METHODS):
            found = [stats.get(("cells", dataset, task, method, metric)) for metric in metrics]
            places = np.arange(len(metrics)) + (i - (len(METHODS) - 1) / 2) * wide
            there = [k for k, value in enumerate(found) if value]
            lost = [k for k, value in enumerate(found) if not value]
            heights = [found[k][0] - retrain[k] for k in there]
            errors = [found[k][1] for k in there]
            bars = {"yerr": errors, "error_kw": {"elinewidth": 0.6, "ecolor": "#444444"}, "label": method}
            axis.bar(places[there], heights, wide, color=COLOURS[method], **bars)
            axis.plot(places[lost], [0] * len(lost), "x", color=COLOURS[method], markersize=3.5, markeredgewidth=1)
        axis.axhline(0, color=COLOURS["Retrain"], linewidth=0.8)
        axis.set_xticks(range(len(metrics)), [f"{name}\n{value:.1f}" for name, value in zip(metrics, retrain)])
        axis.set_ylabel("difference to Retrain\n[percentage points]")
        axis.grid(False, axis="x")
        if max(abs(value) for value in axis.dataLim.intervaly) > 5:
            set_symlog(axis)
        set_title(axis, dataset, frame[frame.dataset == dataset])
    add_legend(figure, set(frame.method))
    return figure


def set_symlog(axis):
    """An axis linear up to 1 and logarithmic beyond: one value far out would press all others onto the zero line."""
    axis.set_yscale("symlog", linthresh=1)
    set_ticks(axis.yaxis, FixedLocator([-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]))


# ----------------------------------------------------------------------------------------------------- the report

INTRODUCTION = """\
# Results

Made by `python report.py` from the cells beside this file, and from nothing else. How to read it:

- An entry is the mean ± population standard deviation over the seeds, with the number of seeds in brackets; metrics
  are in percent. “missing”: no such cell. A row “paper” has the published value, “n/a” where none could be read off.
- **Bold** is the best of a row, <ins>underlined</ins> the second best: ≈ closest to Retrain, ↑ highest, ↓ lowest.
  Retrain itself is never marked; entries that are equal at two decimals share a mark. Of the averages `MIA_diff`, only
  those over the most data sets and tasks are compared.
- `gap`: the mean over all effectiveness metrics of the task (random removal: {random}; class removal: {kinds}) of the
  absolute difference to Retrain, between means over the seeds that both have (in brackets), in percentage points. It
  is ours, the paper has none. `MIA_diff` is the mean absolute difference to Retrain's MIA over data sets and tasks; in
  brackets how many of them it is over.
- Rows without a paper line below them are not in the paper's table. `A_r_clean` and `A_f_clean` are without the
  training transform, through which the published protocol evaluates CIFAR's training samples.
- A command makes the cell where it is not there yet: to make one again, give it a --results-dir of its own.
  What is in capitals is to be chosen from the lists behind it. It says nothing of --pretrain-epochs and --image-size:
  where they were given, they have to be given again."""

CLAIMS_REMARK = (
    "What the paper's text says of CaMU, held against the cells. Places are among the seven methods besides Retrain; a "
    "claim on places is answered only where all of them have been measured, on the seeds that all of them have (their "
    "number in brackets)."
)
VERDICTS = {True: "holds", False: "**does not**", None: "not measured"}
ABLATION_REMARK = (
    "Paper: n/a throughout; which of its printed values belongs to which column could not be read off. Retrain and "
    "CaMU are those of the plain run, on the same seeds."
)
RELEARNING_PICTURE = (
    "relearning",
    "Relearning",
    "Every unlearned model is trained on all of D_r again: differences of A_r and A_f to before, mean over the seeds, "
    "shaded ± std. Where a method moves by more than 3 points, the axis is linear up to 1 and logarithmic beyond. In "
    "the table: the largest absolute difference on the way, in percentage points. A model that has diverged, of "
    "accuracy 0 on D_r, cannot learn again: it shows as a line at 0.",
)
# The file's name, what it is called, and how it is read.
PICTURES = (
    (
        "bars",
        "Metrics beside Retrain's",
        "Means over the seeds less Retrain's, which stand below the names; the thin lines are ± std, Retrain's own on "
        "the zero line; a cross there is a missing entry. Where a bar or its line reaches beyond 5 points, the axis is "
        "linear up to 1 and logarithmic beyond.",
    ),
    (
        "gap-time",
        "Gap against time",
        "Lower left is better. The time is relative to Retrain's under the same conditions; methods without a gap or "
        "such a time are named as missing. A method timed under several conditions has a point for each.",
    ),
)
UNLIKE_MACHINES = (
    "Sums are rounded otherwise on another processor, so that the pre-unlearning model, trained on each, has other "
    "weights there."
)
README_MARKS = ("<!-- results: written by report.py -->", "<!-- end of the results -->")
README_LEGEND = (
    "Mean ± population standard deviation over the seeds (their number in brackets), in percent; rows “paper”: the "
    "published values, n/a where they could not be read off. **Bold**: best, <ins>underlined</ins>: second best "
    "(≈ closest to Retrain, ↑ highest, ↓ lowest). `gap`: the mean difference to Retrain over all metrics, on the seeds "
    "that both have."
)


def report(cells, figures, results_dir="results"):
    """The text of report.md.

    Parameters
    ----------
    cells : DataFrame
        From `read_cells`.
    figures : collection of str
        The names of those that were drawn.
    results_dir : str
        For the commands.

    Returns
    -------
    str
    """
    stats, paper = summarise(cells), read_paper_values()
    parts = [INTRODUCTION.format(random=", ".join(METRICS["random"]), kinds=", ".join(METRICS["class"]))]
    parts += ["## The paper's claims", CLAIMS_REMARK, claims_table(cells)]
    for number in (2, 3, 4, 5, 6, 7):
        parts += table_section(number, cells, stats, paper, results_dir)
    for task in PAPER_TASKS:
        if task in RELEARNING_FIGURES or "relearn" in set(paper_cells(cells, [task]).tree):
            parts += relearning_section(task, cells, results_dir)
    for number in (8, 9, 10, 11, 12, 13):
        parts += table_section(number, cells, stats, paper, results_dir)
    for task in PAPER_TASKS:
        parts += picture_section(task, cells, figures)
    parts += other_sections(cells, stats, figures, results_dir)
    return "\n\n".join([*parts, made_with(cells)]) + "\n"


def section(title, found, results_dir, *texts):
    """A heading, the texts, and how to remake the cells `found`; without any cell, that they are missing."""
    if found.empty:
        return [f"## {title}", "Missing: there is no cell for this."]
    return [f"## {title}", *texts, "To remake a cell:", commands(found, results_dir)]


def paper_cells(cells, tasks, tree=None):
    chosen = cells.task.isin(tasks) & cells.dataset.isin(PAPER_DATASETS)
    return cells[chosen & (cells.tree == tree)] if tree else cells[chosen]


def table_section(number, cells, stats, paper, results_dir):
    """One of the paper's tables 2 to 13."""
    if number in EFFECTIVENESS_TABLES:
        task = EFFECTIVENESS_TABLES[number][0]
        found, title = paper_cells(cells, [task], "cells"), describe(task)
        texts = [effectiveness_table(stats, paper, number)]
    elif number in MIA_TABLES:
        tasks = MIA_TABLES[number]
        found, title = paper_cells(cells, tasks, "cells"), f"membership inference ({', '.join(tasks)})"
        texts = [mia_table(stats, paper, number), MIA_REMARKS[number], SISA_REMARK]
    elif number in TIME_TABLES:
        tasks = TIME_TABLES[number]
        found, title = paper_cells(cells, tasks, "efficiency"), f"time in seconds ({', '.join(tasks)})"
        texts = [time_table(summarise_times(cells), paper, number)]
    else:
        task, metrics = ABLATION_TABLES[number]
        found, title = paper_cells(cells, [task], "ablation"), f"ablation, {describe(task)}"
        texts = [ablation_table(stats, PAPER_DATASETS, task, metrics), ABLATION_REMARK]
    return section(f"Table {number}: {title}", found, results_dir, *texts)


def describe(task):
    if match := re.fullmatch(r"random(\S+)", task):
        return f"random removal of {match[1]} % ({task})"
    return f"removal of class {task.removeprefix('class')} ({task})" if kind(task) == "class" else task


def relearning_section(task, cells, results_dir):
    number = RELEARNING_FIGURES.get(task)
    title = f"{f'Figure {number}: relearning' if number else 'Relearning'}, {describe(task)}"
    found = paper_cells(cells, [task], "relearn")
    texts = [picture(f"relearning-{task}", title), RELEARNING_PICTURE[2], relearning_table(found, PAPER_DATASETS)]
    return section(title, found, results_dir, *texts)


def picture(name, title, folder="figures"):
    """A figure with a link to its SVG."""
    path = f"{folder}/{quote(name)}"
    return f"![{title}]({path}.png)\n\n([SVG]({path}.svg))"


def picture_section(task, cells, figures):
    """The bars and the gap against time of one of the paper's tasks."""
    there = set(paper_cells(cells, [task], "cells").dataset)
    if not there:
        return [f"## Pictures: {describe(task)}", "Missing: there is no cell for this."]
    lost = [name for name in PAPER_DATASETS if name not in there]
    texts = [f"Missing altogether: {', '.join(lost)}."] if lost else []
    for name, title, remark in PICTURES:
        drawn = f"{name}-{task}" in figures
        texts += [picture(f"{name}-{task}", f"{title}, {task}"), remark] if drawn else [f"Missing: {title}."]
    return [f"## Pictures: {describe(task)}", *texts]


def other_pairs(cells):
    """What there are cells of beyond the paper's data sets and tasks: (data set, task), in order."""
    return [(name, task) for task, group, names in figure_groups(cells) if group == "other" for name in names]


def other_sections(cells, stats, figures, results_dir):
    """All that is not in the paper: its tables, MIA_diff by data set, and its pictures."""
    pairs = other_pairs(cells)
    parts = [text for pair in pairs for text in other_section(*pair, cells, stats, results_dir)]
    methods, rows = list(METHODS), []
    for dataset in dict.fromkeys(dataset for dataset, _ in pairs):
        own = [pair for pair in pairs if pair[0] == dataset]
        rows.append([dataset, ", ".join(task for _, task in own), "here", *difference_entries(stats, own, methods)])
    if rows:
        table = markdown_table(["Data", "Tasks", "", *methods], rows)
        parts += ["## Not in the paper: MIA_diff ↓", table]
    for task in dict.fromkeys(task for _, task in pairs):
        drawn = [part for part in (RELEARNING_PICTURE, *PICTURES) if figure_name(part[0], task, "other") in figures]
        if drawn:
            parts.append(f"## Not in the paper: pictures, {describe(task)}")
        for name, title, remark in drawn:
            parts += [picture(figure_name(name, task, "other"), f"{title}, {task}"), remark]
    return parts


def other_section(dataset, task, cells, stats, results_dir):
    """The tables of one data set and task that are not in the paper."""
    found = cells[(cells.dataset == dataset) & (cells.task == task)]
    methods, metrics = list(METHODS), METRICS[kind(task)]
    header = ["Data", "Metric", "", *methods]
    texts = [markdown_table(header, metric_rows(stats, ("cells", dataset, task), metrics, methods))]
    tree = timed_tree(cells, dataset, task)
    times = {key: value for key, value in summarise_times(cells, tree).items() if key[:2] == (dataset, task)}
    letters = condition_letters(times)
    texts.append(f"Time in seconds, {'on a quiet machine' if tree == 'efficiency' else 'during the plain run'}:")
    texts.append(markdown_table(["Task", "Data", "", *methods], time_rows(times, dataset, task, letters)))
    texts += [letters_line(letters)] if letters else []
    if "ablation" in set(found.tree):
        texts += ["Ablation:", ablation_table(stats, [dataset], task, metrics)]
    if "relearn" in set(found.tree):
        texts += ["Relearning:", relearning_table(found, [dataset])]
    return section(f"Not in the paper: {dataset}, {describe(task)}", found, results_dir, *texts)


def made_with(cells):
    """What the cells were computed with."""
    made = cells.versions.map(lambda found: ", ".join(f"{name} {value}" for name, value in found.items()))
    lines = ["## Made with", "", *(f"- {text}" for text in sorted(set(made[made != ""])) or ["not recorded"])]
    counts = cells.assign(made=made).groupby(["tree", "dataset", "task"])["made"].nunique()
    several = ["/".join(names) for names in counts.index[counts > 1]]
    if several:
        lines += ["", f"**Made with more than one of these**: {', '.join(several)}. {UNLIKE_MACHINES}"]
    mixed = mixed_configurations(cells)
    if mixed:
        lines += ["", f"**Not one configuration over the seeds and methods**: {', '.join(mixed)}."]
    return "\n".join(lines)


def mixed_configurations(cells):
    """The entries that are of unlike things.

    Those whose cells differ in more than the seed and its forget set; and the tasks whose methods differ in more than
    the method, such as in the pre-unlearning model.
    """
    by_seed, by_method = {"seed", "forget_set"}, {"seed", "forget_set", "method", "hyperparameters"}
    found = []
    for place, apart in ((["tree", "dataset", "task", "method"], by_seed), (["tree", "dataset", "task"], by_method)):
        texts = [
            json.dumps({name: value for name, value in config.items() if name not in apart}, sort_keys=True)
            for config in cells.config
        ]
        counts = cells.assign(text=texts).groupby(place)["text"].nunique()
        found += ["/".join(names) for names in counts.index[counts > 1]]
    return found


def there_and_missing(cells, tasks, tree):
    """The paper's data sets with a cell, and a sentence on those without any."""
    found = set(paper_cells(cells, tasks, tree).dataset)
    datasets = [name for name in PAPER_DATASETS if name in found]
    lost = [name for name in PAPER_DATASETS if name not in found]
    return datasets, f"Missing: {', '.join(lost)}." if lost else ""


def readme_section(results_dir="results"):
    """The main results for the README, from the cells alone: tables 2 and 3, relearning, and time relative to Retrain.

    Parameters
    ----------
    results_dir : str
        As seen from the README: it begins the links.

    Returns
    -------
    str
        Markdown; what there is no cell of is said to be missing.
    """
    cells, paper = read_cells(results_dir), read_paper_values()
    stats, parts = summarise(cells), [README_LEGEND]
    for number in (2, 3):
        task = EFFECTIVENESS_TABLES[number][0]
        datasets, lost = there_and_missing(cells, [task], "cells")
        table = effectiveness_table(stats, paper, number, datasets, extra=False) if datasets else ""
        parts += [f"**Table {number}: {describe(task)}**", table, lost]
    folder = quote((Path(results_dir) / "figures").as_posix())
    for task, number in RELEARNING_FIGURES.items():
        there = not paper_cells(cells, [task], "relearn").empty
        title = f"Figure {number}: relearning, {describe(task)}"
        parts.append(picture(f"relearning-{task}", title, folder) if there else f"{title}: missing, no cell for this.")
    datasets, lost = there_and_missing(cells, TIME_TABLES[5], "efficiency")
    ratios = ratio_table(summarise_times(cells), paper, 5, datasets) if datasets else ""
    parts += ["**Time relative to Retrain (table 5)**", ratios, lost]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_readme(path, text):
    """Put `text` between the marks of a file.

    Raises
    ------
    UserError
        The file cannot be read, or has not the two marks in their order.
    """
    first, last = README_MARKS
    try:
        before, _, rest = path.read_text(encoding="utf-8").partition(first)
    except OSError as error:
        raise UserError(f"--readme {path}: {error.strerror}")
    _, found, after = rest.partition(last)
    if not found:
        raise UserError(f"--readme {path}: no lines {first!r} and, below it, {last!r} to write between")
    save_atomically(path, f"{before}{first}\n\n{text}\n{last}{after}".encode())
    print(f"wrote the results section of {path}")


if __name__ == "__main__":
    run_script(main, tyro.cli(Settings, description=__doc__))
