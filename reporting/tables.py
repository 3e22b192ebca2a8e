"""Tables from the numbers of `summary.summarise`: for the terminal, and in markdown beside the paper's values."""

from audit import AUDIT
from baselines import METHODS
from camu import ABLATION
from config import BESIDE_ABLATION
from metrics import METRICS, attack_error
from reporting import summary
from reporting.claims import answers
from reporting.summary import (
    CLEAN,
    DIRECTIONS,
    MAIN_TASKS,
    MOVES,
    PAPER_TASKS,
    REFERENCES,
    Stat,
    few_samples,
    forgot_nothing,
    is_lost,
    rank,
)

# The paper's tables: the tree of the cells, the tasks and the metrics.
TABLES = {
    "Table 2": ("cells", ("random10",), ("A_r", "A_f", "A_ts")),
    "Table 3": ("cells", ("class0",), ("A_ts_r", "A_ts_f")),
    "Table 4": ("cells", MAIN_TASKS, ("MIA",)),
    "Table 5": ("efficiency", MAIN_TASKS, ("time_s", "ratio")),
    "Table 6": ("ablation", ("random10",), ("A_r", "A_f", "A_ts", "MIA")),
    "Table 7": ("ablation", ("class0",), ("A_ts_r", "A_ts_f", "MIA")),
    "Figures 4 and 5": ("relearn", PAPER_TASKS, MOVES),
    "Table 8": ("cells", ("random15",), ("A_r", "A_f", "A_ts")),
    "Table 9": ("cells", ("random20",), ("A_r", "A_f", "A_ts")),
    "Table 10": ("cells", ("class1",), ("A_ts_r", "A_ts_f")),
    "Table 11": ("cells", ("class2",), ("A_ts_r", "A_ts_f")),
    "Table 12": ("cells", PAPER_TASKS[2:], ("MIA",)),
    "Table 13": ("efficiency", PAPER_TASKS[2:], ("time_s", "ratio")),
}
ROWS = (*REFERENCES, *ABLATION, *(method for method in METHODS if method not in REFERENCES))
LABELS = {"time_s": "time [s]", "ratio": "time ÷ Retrain's", "moved_A_r": "A_r moved", "moved_A_f": "A_f moved"}
NOT_BESIDE = ("MIA", *AUDIT, "ToW", "time_s", "ratio")  # have tables of their own
MARKS = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}
TOO_LONG = 1.5  # times Retrain's time from which a line says so
VERDICTS = {True: "holds", False: "**does not**", None: "not measured"}


def terminal_table(stats, place):
    """One row per method: means over the seeds in percent, gap and time beside Retrain's, and how much it forgets.

    `stats` is from `summarise`, `place` is (tree, dataset, task).
    """
    tree, dataset, task = place
    by_method = {method: at(stats, place, method) for method in ROWS if at(stats, place, method)}
    retrain = by_method.get("Retrain", {})
    other_time = "time_s" if "ratio" in retrain else "ratio"
    measured = measured_metrics(stats, place)
    left_out = {*CLEAN, *AUDIT[1:], other_time} | ({"A_ts"} if "A_ts_r" in measured else set())
    shown = [name for name in measured if name not in left_out]
    words = ["forgets"] if "A_r" in retrain else []
    rows = [["", *({"ratio": "time", "RMIA_AUC": "RMIA"}.get(name, name) for name in shown), *words]]
    for method, values in by_method.items():
        noisy = summary.NOISY if few_samples(stats, place) else ()
        numbers = ["noise" if name in noisy else text(values.get(name), "-").replace(" ", "") for name in shown]
        rows.append([method, *numbers, *(forgets(stats, place, method) for _ in words)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    seeds = max(stat.seeds for values in by_method.values() for stat in values.values())
    title = f"{dataset}, {task}:{'' if tree == 'cells' else f' {tree},'} {seeds} seed{'s' if seeds > 1 else ''}, "
    title += "the most that accuracies moved, in points" if tree == "relearn" else "metrics in percent"
    title += f", time ÷ Retrain's {retrain['time_s'].mean:.2f} s" if "ratio" in retrain else ""
    lines = (" ".join(entry.rjust(width) for entry, width in zip(row, widths)) for row in rows)
    return "\n".join([title, *lines, *without(by_method, shown, tree), *longer(by_method), *noise(stats, place)])


def noise(stats, place):
    """One line on attacks on too few samples."""
    count = few_samples(stats, place)
    if not count:
        return []
    samples = f"{count} sample{'s' if count > 1 else ''}"
    return [f"(MIA attacks {samples}: what it says of so few is noise, ± {attack_error(count):.0f} points)"]


def longer(by_method):
    """One line on methods that are of no use, because training again is faster."""
    slow = {m: values["ratio"].mean for m, values in by_method.items() if m not in REFERENCES and "ratio" in values}
    slow = [f"{method} took {ratio:.1f} times as long" for method, ratio in slow.items() if ratio > TOO_LONG]
    return [f"(Retrain is faster: {', '.join(slow)})"] if slow else []


def without(by_method, shown, tree):
    """One line on what a table cannot have."""
    lacks = [] if "Retrain" in by_method else ["no Retrain, so no gap, ToW, JS_f and churn"]
    lacks += [] if "RMIA_AUC" in shown else ["no SISA, whose shards RMIA compares with"]
    return [f"({'; '.join(lacks)})"] if lacks and tree == "cells" else []


def at(stats, place, method):
    """All of a method's numbers at a (tree, dataset, task), by metric."""
    return {key[4]: stat for key, stat in stats.items() if key[:4] == (*place, method)}


def text(stat, missing="missing", decimals=2):
    """ "mean", with several seeds "mean ± std"."""
    if stat is None:
        return missing
    std = f" ± {stat.std:.{decimals}f}" if stat.seeds > 1 and stat.std == stat.std else ""
    return f"{stat.mean:.{decimals}f}{std}"


def forgets(stats, place, method):
    """How much a method forgets, in words: its accuracy on what was to be forgotten, beside Retrain's."""
    if method in REFERENCES:
        return "-"
    if is_lost(stats, place, method):
        return "model lost"
    name = "A_ts_f" if (*place, method, "A_ts_f") in stats else "A_f"
    more = stats[*place, "Retrain", name].mean - stats[*place, method, name].mean
    if abs(more) <= 0.3:
        return "as Retrain"
    return ("far " if abs(more) > 2 else "") + ("more" if more > 0 else "less")


def markdown_table(header, rows, left=1):
    """A markdown table whose first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def stats_table(rows, methods):
    return markdown_table(["Data", "Task", "Metric", "", *methods], rows, left=4)


def entries(stats, place, metric, methods):
    """One row's entries: "mean ± std (seeds)", the best two marked, lost models struck out."""
    values = {m: stats[*place, m, metric] for m in methods if (*place, m, metric) in stats}
    lost = [method for method in values if is_lost(stats, place, method)]
    marks = rank({method: stat.mean for method, stat in values.items()}, metric, unranked(stats, place, values))
    texts = {m: text(stat, decimals=summary.DECIMALS.get(metric, 2)) for m, stat in values.items()}
    shown = {m: f"{MARKS[marks.get(m, 0)].format(texts[m])} ({stat.seeds})" for m, stat in values.items()}
    shown |= {method: f"<del>{shown[method]}</del>" for method in lost}
    if metric in summary.NOISY and few_samples(stats, place):
        shown = dict.fromkeys(shown, "noise")
    if metric in ("gap", "MIA_diff", "ToW", "JS_f", "churn"):
        shown["Retrain"] = "–"
    return [shown.get(method, "missing") for method in methods]


def unranked(stats, place, methods):
    """Those that no row marks at a (tree, dataset, task): they have lost their model, or forget nothing."""
    return [m for m in methods if is_lost(stats, place, m) or forgot_nothing(stats, place, m)]


def measured_metrics(stats, place):
    """The metrics that a (tree, dataset, task) has, in order."""
    names = {key[4] for key in stats if key[:3] == place}
    return [name for name in (*METRICS, *CLEAN, *MOVES, *AUDIT, "gap", "ToW", "time_s", "ratio") if name in names]


def metric_rows(stats, place, metrics, methods, published=None):
    """The rows of one data set and task: ours, and below it the paper's where `published` has the metric."""
    rows = []
    for metric in metrics:
        label = f"{LABELS.get(metric, metric)} {DIRECTIONS.get(metric, '↓')}"
        rows.append([*place[1:], label, "here", *entries(stats, place, metric, methods)])
        values = [(published or {}).get((*place[1:], metric, method)) for method in methods]
        if set(values) != {None}:
            texts = ["n/a" if value is None else f"{value:.2f}" for value in values]
            rows.append([*place[1:], label, "paper", *texts])
    return rows


def paper_table(stats, paper, name, datasets):
    """One of the paper's tables with what there is of it, "" without any cell.

    `stats` and `paper` are from `summarise` and `read_paper_values`, `name` is one of TABLES.
    """
    tree, tasks, metrics = TABLES[name]
    methods = [*BESIDE_ABLATION[:2], *ABLATION, "CaMU"] if tree == "ablation" else list(METHODS)
    published = {key[1:]: value for key, value in paper.items() if f"Table {key[0]}" == name}
    rows = []
    for dataset, task in [(dataset, task) for task in tasks for dataset in datasets]:
        known = measured_metrics(stats, (tree, dataset, task))
        more = [m for m in known if tree == "cells" and metrics != ("MIA",) and m not in NOT_BESIDE]
        shown = dict.fromkeys((*metrics, *more, *(["gap"] if tree == "ablation" else [])))
        rows += metric_rows(stats, (tree, dataset, task), shown, methods, published) if known else []
    if rows and metrics == ("MIA",):
        rows += mia_rows(stats, published, [(dataset, task) for task in tasks for dataset in datasets])
    return stats_table(rows, methods) if rows else ""


def audit_table(stats, pairs):
    """The audit of each (dataset, task) of `pairs` that has one; "" without any."""
    methods = [method for method in ROWS if method not in ABLATION]
    rows = []
    for place in (("cells", *pair) for pair in pairs):
        known = measured_metrics(stats, place)
        rows += metric_rows(stats, place, [name for name in (*AUDIT, "ToW") if name in known], methods) if known else []
    return stats_table(rows, methods) if rows else ""


def mia_rows(stats, published, pairs):
    """The average differences of MIA to Retrain: ours, as the paper prints them, and from the paper's entries."""
    theirs = {("cells", *pair, m, metric): Stat(value, 0, 1) for (*pair, metric, m), value in published.items()}
    every = [key[1:3] for key in theirs if key[3:] == ("Retrain", "MIA")]
    ours = {m: difference for m in METHODS if (difference := summary.mean_mia_difference(stats, pairs, m))}
    most = max((count for _, count in ours.values()), default=0)  # an average over fewer is not compared
    skipped = [method for pair in pairs for method in unranked(stats, ("cells", *pair), ours)]
    marks = rank({method: value for method, (value, count) in ours.items() if count == most}, "MIA_diff", skipped)
    derived = {m: difference for m in METHODS if (difference := summary.mean_mia_difference(theirs, every, m))}
    sources = {
        "here": {m: f"{MARKS[marks.get(m, 0)].format(f'{value:.2f}')} ({count})" for m, (value, count) in ours.items()},
        "paper, as printed": {key[3]: f"{v:.2f}" for key, v in published.items() if key[2] == "MIA_diff_printed"},
        "paper, from its entries": {m: f"{value:.2f}" for m, (value, n) in derived.items() if n == len(every)},
    }
    return [
        ["all", "all", "MIA_diff ↓", source, *("–" if m == "Retrain" else differences.get(m, "n/a") for m in METHODS)]
        for source, differences in sources.items()
    ]


def glance_table(stats, paper, pairs):
    """A row for each (dataset, task) of `pairs`: the gaps, CaMU's time, and how far Retrain is from the paper's."""
    methods = [method for method in METHODS if method != "Retrain"]
    rows = []
    for dataset, task in pairs:
        gaps = entries(stats, ("cells", dataset, task), "gap", methods)
        time = text(stats.get(("efficiency", dataset, task, "CaMU", "ratio")), "–")
        published = {key[3]: v for key, v in paper.items() if (*key[1:3], key[4]) == (dataset, task, "Retrain")}
        ours = at(stats, ("cells", dataset, task), "Retrain")
        off = [(abs(ours[name].mean - published[name]), name) for name in METRICS if name in ours and name in published]
        rows.append([dataset, task, *gaps, time, "{:.2f} ({})".format(*max(off)) if off else "–"])
    return markdown_table(
        ["Data", "Task", *methods, "CaMU's time", "Retrain's largest difference to the paper"], rows, left=2
    )


def claims_table(cells):
    """What `claims.answers` found, a row per claim and place."""
    rows = [[claim, where, VERDICTS[holds], figures] for claim, where, holds, figures in answers(cells)]
    return markdown_table(["Claim", "Where (seeds)", "Here", ""], rows, left=4)
