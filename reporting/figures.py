"""The figures of the report, for half a page's width: relearning, gap against time, metrics beside Retrain's."""

import io
import textwrap
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from baselines import METHODS
from harness.store import save_atomically
from metrics import METRICS
from reporting.summary import (
    PAPER_DATASETS,
    PAPER_TASKS,
    REFERENCES,
    after_last_request,
    in_order,
    is_lost,
    relearning_curves,
    summarise,
)

# Okabe and Ito's colours, with grey for Original and wine for their yellow, which is too pale on white; three more for
# methods of a user.
PALETTE = ("#000000", "#999999", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#882255", "#D55E00")
COLOURS = dict(zip(METHODS, cycle((*PALETTE, "#117733", "#332288", "#AA4499"))))
MARKERS = dict(zip(METHODS, cycle("oXs^vDP>*<ph")))
OTHERS = [method for method in METHODS if method != "Retrain"]
STYLE = {"font.size": 7, "axes.titlesize": 7, "axes.linewidth": 0.6, "grid.linewidth": 0.5, "grid.color": "#DDDDDD"}
STYLE |= {"axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"legend.frameon": False, "legend.columnspacing": 1.2, "legend.handlelength": 2.2, "svg.hashsalt": "camu"}
RETRAIN_LINE = {"color": COLOURS["Retrain"], "linewidth": 1}
ORIGINAL_LINE = {"color": COLOURS["Original"], "linewidth": 1, "linestyle": ":"}
RETRAIN_BAND = {"color": COLOURS["Retrain"], "alpha": 0.15}


def draw_figures(cells):
    """All figures that there are cells for, by name; those of data sets and tasks not in the paper end in "-other".

    Of several requests the last one counts.
    """
    cells = after_last_request(cells)
    curves, stats = relearning_curves(cells), summarise(cells)
    figures = {}
    for task in in_order(set(cells.task), PAPER_TASKS):
        names = in_order(set(cells.dataset[cells.task == task]), PAPER_DATASETS)
        paper = [name for name in names if name in PAPER_DATASETS and task in PAPER_TASKS]
        for end, datasets in (("", paper), ("-other", [name for name in names if name not in paper])):
            figures[f"relearning-{task}{end}"] = draw_relearning(curves, task, datasets, stats)
            figures[f"gap-time-{task}{end}"] = draw_gap_time(stats, task, datasets)
            figures[f"bars-{task}{end}"] = draw_bars(stats, task, datasets)
            figures[f"audit-{task}{end}"] = draw_audit(stats, task, datasets)
    return {name: figure for name, figure in figures.items() if figure}


def save_figure(figure, path):
    """Write path.png and path.svg, with the same bytes for the same figure."""
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        picture = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(picture, format=suffix, dpi=300, metadata=metadata)
        save_atomically(path.with_name(f"{path.name}.{suffix}"), picture.getbuffer())


@matplotlib.rc_context(STYLE)
def draw_relearning(curves, task, datasets, stats):
    """How A_r and A_f differ from before relearning: a row per data set, a line per method; None without any.

    `curves` is from `relearning_curves`, `stats` from `summarise`.
    """
    curves = curves[(curves.task == task) & curves.dataset.isin(datasets)]
    datasets = [name for name in datasets if name in set(curves.dataset)]
    if not datasets:
        return None
    handles = {m: Line2D([], [], **style(m)) for m in METHODS if m in set(curves.method)}
    figure, axes = panels(handles, len(datasets), columns=2, sharex=True)
    for row, dataset in zip(axes, datasets):
        rows = curves[curves.dataset == dataset]
        set_title(row[0], stats, ("relearn", dataset, task), rows.seeds, set(METHODS) - set(rows.method))
        for axis, metric in zip(row, ("A_r", "A_f")):
            draw_curves(axis, rows[rows.metric == metric])
            set_value_axis(axis, f"Δ{metric} [points]")
    for axis in axes[-1]:
        axis.set(xlabel="epoch of relearning", xticks=range(0, curves.epoch.max() + 1, 2))
    return figure


def draw_curves(axis, curves):
    """Lines in bands of the std. To tell equal lines apart, CaMU's is wide, and each method marks its own epochs."""
    for i, method in enumerate(METHODS):
        x, mean, std = curves[curves.method == method].sort_values("epoch")[["epoch", "mean", "std"]].to_numpy().T
        axis.fill_between(x, mean - std, mean + std, color=COLOURS[method], alpha=0.12, linewidth=0)
        axis.plot(x, mean, **style(method, marker=""), label=method)
        own = slice(1 + i % max(1, len(x) - 1), None, len(METHODS))
        axis.plot(x[own], mean[own], **style(method, linestyle="", zorder=3))


def style(method, size=4, opacity="FF", **changes):
    """A method's line with its markers; linestyle="" or marker="" leaves one of them out."""
    width, order = {"Retrain": (1.2, 2.2), "CaMU": (2, 2)}.get(method, (0.9, 2.1))
    size *= {"*": 1.4, "P": 1.15}.get(MARKERS[method], 1)
    drawn = {
        "color": COLOURS[method],
        "linewidth": width,
        "linestyle": {"Retrain": "--", "Original": ":"}.get(method, "-"),
    }
    drawn |= {"marker": MARKERS[method], "markersize": size, "markeredgewidth": 0.9, "zorder": order}
    return drawn | {"markeredgecolor": COLOURS[method], "markerfacecolor": COLOURS[method] + opacity} | changes


@matplotlib.rc_context(STYLE)
def draw_gap_time(stats, task, datasets):
    """Gap to Retrain against time relative to Retrain's: a panel per data set, a point per method; None without any.

    Original is a line. Gap and time come from the same cells: those of the tree "efficiency". A data set or task that
    is not the paper's has those of the plain run where there are no others, and its title says so. `stats` is from
    `summarise`.
    """
    points = {place: pairs for place, pairs in (gap_and_ratio(stats, name, task) for name in datasets) if pairs}
    if not points:
        return None
    handles = {"Retrain": Line2D([], [], **RETRAIN_LINE, linestyle="", marker="|", markersize=9)}
    methods = [method for method in OTHERS if any(method in pairs for pairs in points.values())]
    looks = {m: ORIGINAL_LINE if m == "Original" else style(m, 7, "40", linestyle="") for m in methods}
    handles |= {m: Line2D([], [], **look) for m, look in looks.items()}
    figure, axes = panels(handles, len(points), sharex=True)
    for axis, (place, pairs) in zip(axes[:, 0], points.items()):
        for method, (gap, ratio) in pairs.items():
            if method == "Original":  # it takes no time
                axis.axhline(gap.mean, **ORIGINAL_LINE, zorder=1)
                continue
            # see-through: points on one another can be told apart
            axis.plot(ratio.mean, gap.mean, **style(method, 7, "40", linestyle=""), label=method)
        axis.axvline(1, **RETRAIN_LINE, zorder=1)
        set_value_axis(axis, "gap to Retrain [points]")
        seeds = [value.seeds for pair in pairs.values() for value in pair]
        note = "" if place[0] == "efficiency" else ", times of the plain run"
        set_title(axis, stats, place, seeds, set(OTHERS) - set(pairs), note)
    axis.set(xscale="log", xlabel="time ÷ Retrain's time, log scale", xmargin=0.08)
    subs = (1, 2, 5) if axis.get_xlim()[0] > 0.001 else (1,)
    axis.xaxis.set(major_locator=LogLocator(subs=subs), major_formatter="{x:g}", minor_locator=NullLocator())
    return figure


def gap_and_ratio(stats, dataset, task):
    """The (tree, dataset, task) of the cells to draw, and (gap, ratio) of the methods that have both."""
    timed = any(key[:3] == ("efficiency", dataset, task) for key in stats)
    paper = dataset in PAPER_DATASETS and task in PAPER_TASKS
    place = ("efficiency" if timed or paper else "cells", dataset, task)
    pairs = {method: [stats.get((*place, method, name)) for name in ("gap", "ratio")] for method in OTHERS}
    return place, {method: pair for method, pair in pairs.items() if None not in pair}


@matplotlib.rc_context(STYLE)
def draw_bars(stats, task, datasets):
    """Differences of all metrics to Retrain, with the std: a panel per data set, a bar per method; None without any.

    A marker ends each bar, so that one of height 0 is visible. What is missing has none. Retrain is the zero line, in a
    band of its std.
    """
    datasets = [name for name in datasets if ("cells", name, task, "Retrain", "A_r") in stats]
    if not datasets:
        return None
    zero = Line2D([], [], **RETRAIN_LINE)
    several = any(stats["cells", name, task, "Retrain", "A_r"].seeds > 1 for name in datasets)
    handles = {"Retrain ± std": (Line2D([], [], **RETRAIN_BAND, linewidth=6), zero)} if several else {"Retrain": zero}
    handles |= {method: Line2D([], [], **style(method, 3, linestyle="")) for method in OTHERS}
    figure, axes = panels(handles, len(datasets))
    for axis, dataset in zip(axes[:, 0], datasets):
        place = ("cells", dataset, task)
        values = {key[3:]: value for key, value in stats.items() if key[:3] == place and key[4] in METRICS}
        metrics = [name for name in METRICS if ("Retrain", name) in values]
        retrain, std = np.array([values["Retrain", name][:2] for name in metrics]).T
        axis.axhline(0, **RETRAIN_LINE)
        axis.bar(range(len(metrics)), 2 * std, 0.92, -std, **RETRAIN_BAND, label="Retrain")
        for i, method in enumerate(OTHERS):
            x = np.arange(len(metrics)) + 0.9 * ((i + 0.5) / len(OTHERS) - 0.5)
            mean, std = np.array([values.get((method, name), (np.nan, np.nan))[:2] for name in metrics]).T
            axis.bar(x, mean - retrain, 0.3 / len(OTHERS), color=COLOURS[method], label=method)
            axis.errorbar(x, mean - retrain, std, **style(method, 3, linestyle=""), ecolor="#444444", elinewidth=0.6)
        axis.set_xticks(range(len(metrics)), [f"{name}\n{value:.1f}" for name, value in zip(metrics, retrain)])
        axis.grid(False, axis="x")
        set_value_axis(axis, "difference to Retrain\n[points]")
        missing = [method for method in OTHERS if any((method, name) not in values for name in metrics)]
        seeds = [value.seeds for (method, _), value in values.items() if method in METHODS]
        set_title(axis, stats, place, seeds, missing)
    axis.set_xlabel("metric, with Retrain's value [%]")
    return figure


@matplotlib.rc_context(STYLE)
def draw_audit(stats, task, datasets):
    """RMIA_AUC on the way from Original's to Retrain's: a panel per data set, a mark per method; None without any."""
    datasets = [name for name in datasets if ("cells", name, task, "Retrain", "RMIA_AUC") in stats]
    if not datasets:
        return None
    handles = {"Retrain": Line2D([], [], **RETRAIN_LINE), "Original": Line2D([], [], **ORIGINAL_LINE)}
    figure, axes = panels(handles, len(datasets))
    for axis, dataset in zip(axes[:, 0], datasets):
        place = ("cells", dataset, task)
        auc = {m: stats[*place, m, "RMIA_AUC"] for m in METHODS if (*place, m, "RMIA_AUC") in stats}
        retrain, methods = auc["Retrain"], [method for method in auc if method not in REFERENCES]
        axis.axvspan(retrain.mean - retrain.std, retrain.mean + retrain.std, **RETRAIN_BAND, linewidth=0)
        axis.axvline(retrain.mean, **RETRAIN_LINE)
        if "Original" in auc:
            axis.axvline(auc["Original"].mean, **ORIGINAL_LINE)
        for row, method in enumerate(methods):
            axis.errorbar(auc[method].mean, row, xerr=auc[method].std, **style(method, 4, linestyle=""), label=method)
        axis.set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
        set_title(axis, stats, place, [stat.seeds for stat in auc.values()], set(METHODS) - set(auc))
    axes[-1, 0].set_xlabel("RMIA_AUC [%]")
    return figure


def panels(handles, rows, columns=1, sharex=False):
    """A figure of half a page's width, with the legend below its panels."""
    figure = Figure((3.5, 1.65 * rows + 0.6), layout="constrained")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure, figure.subplots(rows, columns, sharex=sharex, squeeze=False)


def set_title(axis, stats, place, seeds, missing, note=""):
    """Name the data set, how many seeds the panel shows, and the methods that are missing or have lost their model."""
    span = "–".join(str(count) for count in sorted({min(seeds), max(seeds)}))
    text = f"{place[1]} ({span} seed{'' if span == '1' else 's'}{note})"
    for word, methods in (("missing", missing), ("lost", [m for m in METHODS if is_lost(stats, place, m)])):
        text += f"; {word}: {', '.join(in_order(methods, METHODS))}" if methods else ""
    axis.set_title(textwrap.fill(text, 54, break_on_hyphens=False), loc="left")


def set_value_axis(axis, label):
    """Logarithmic beyond 1 if a value is beyond 5, which would press all others together on a linear axis."""
    low, high = axis.dataLim.intervaly
    if max(-low, high) > 5:
        axis.set_yscale("symlog", linthresh=1)
        steps = (1, 3, 10, 30, 100) if -low * high < 225 else (1, 10, 100)
        axis.yaxis.set(major_locator=FixedLocator([*np.negative(steps), 0, *steps]), major_formatter="{x:g}")
        label += ",\nlog scale beyond 1"
    axis.set(ylabel=label, ymargin=0.08)  # a new scale alone does not set the limits anew
