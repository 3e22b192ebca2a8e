"""The pages made from the cells: report.md, and the generated blocks of README.md and the pages beside report.md."""

import itertools
import json
import re
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from camu import CAMU
from config import TREES
from harness.store import bytes_of, explained, require, save_atomically
from metrics import METRICS
from reporting import claims, summary, tables
from reporting.summary import PAPER_DATASETS, PAPER_TASKS, in_order

INTRODUCTION = """\
# Results

This page is made by `python report.py` from the cells beside it. How to read the tables:

- An entry is the mean over the seeds, with the population standard deviation where there are several, and their number.
  Metrics are in percent. n/a: the value could not be read off the paper's text.
- ↑ means that the highest value is best, ↓ the lowest, ≈ the closest to Retrain's. **Bold** is the best of a row,
  <ins>underlined</ins> the second best. Values that are equal as shown share a mark. Retrain and Original,
  the model before unlearning, are never marked.
- <del>Struck out</del> is a method that has lost its model: its A_r is more than 20 points under Retrain's. It is never
  marked. Neither is a method that forgets nothing (see [the claims](#the-papers-claims)).
- `gap` is the mean of the absolute differences to Retrain in A_r, A_f, A_ts, MIA and, in class removal, A_ts_r and
  A_ts_f. It is in percentage points, between means over the seeds that both have. It is ours; the paper has none.
- `MIA_diff` is the mean of |MIA − Retrain's MIA| over data sets and tasks; their number stands in brackets.
- `A_r_clean` and `A_f_clean` are CIFAR's accuracies without the training transform of the published protocol."""
GLANCE_REMARK = """\
Each method's `gap` to Retrain, a row per data set and task. “CaMU's time” is relative to Retrain's. The last column is
the largest difference between our Retrain and the paper's, in points."""
CLAIMS_REMARK = """\
What the paper's text says about CaMU, checked against the cells. CaMU is ranked among the methods besides Retrain that
keep their model, on the seeds that all of them have. If one of the paper's methods is missing, nothing is ranked. A
method that forgets nothing is passed over too: A_f has moved less than a quarter of the way from Original's to
Retrain's, where these are more than half a point apart. (Closer ones differ by chance.)"""
AUDIT_REMARK = """\
Ours: the paper has none of it. RMIA asks how well a stronger attack tells D_f from test samples (of the forgotten
classes, in class removal): 50 is chance, Retrain's value is what unlearning should give, Original's what there was to
remove. `JS_f` is the divergence from Retrain's outputs on D_f in bits, `churn` the percentage of test predictions that
differ from Retrain's. Floor is Retrain from other weights and in another order,
one seed. `ToW` is 1 where accuracies equal Retrain's."""
SISA_REMARK = (
    "Its MIA values for SISA are those of an attack that always answers “non-member”: they say nothing of SISA."
)
REMARKS = {
    "Table 4": f"The paper's printed averages agree with its entries, except for T-S. {SISA_REMARK}",
    "Table 6": "The paper's entries could not be read off. Retrain, Original and CaMU are those of the plain run.",
    "Table 12": f"The paper's printed averages do not follow from the entries of its own table. {SISA_REMARK}",
}
TITLES = {"cells": "effectiveness", "ablation": "ablation", "efficiency": "time", "relearn": "relearning"}
PICTURES = {
    "relearning": "How far A_r and A_f are from their values before, while the unlearned model learns D_r again.",
    "audit": "RMIA_AUC: unlearning takes it from Original's (dotted) to Retrain's (line, with its std).",
    "bars": "The metrics minus Retrain's. Retrain's own values stand below the names.",
    "gap-time": "Gap against time relative to Retrain's. Lower left is better. The dotted line is Original's gap.",
}
BLOCK = "<!-- generated: {0} -->\n\n{1}\n\n<!-- end of {0} -->"


def report(cells, figures):
    """The text of report.md, of the cells from `summary.read_cells` and with the figures of these names."""
    stats, paper = summary.summarise(cells), summary.read_paper_values()
    datasets = [name for name in PAPER_DATASETS if name in set(cells.dataset)]
    parts = [
        INTRODUCTION,
        missing(cells) if datasets else "",
        "## At a glance",
        GLANCE_REMARK,
        glance(cells, stats, paper),
    ]
    parts += ["## The paper's claims", CLAIMS_REMARK, tables.claims_table(cells)] if datasets else []
    if audits := tables.audit_table(stats, pairs_of(cells)):
        parts += ["## The audit", AUDIT_REMARK, audits]
    for name, (tree, tasks, metrics) in tables.TABLES.items():
        table = tables.paper_table(stats, paper, name, datasets)
        if table:
            what = "membership inference" if metrics == ("MIA",) else TITLES[tree]
            its_cells = cells[cells.task.isin(tasks) & cells.dataset.isin(datasets) & (cells.tree == tree)]
            tasks = in_order(set(its_cells.task), PAPER_TASKS)
            parts += [f"## {name}: {what}, {', '.join(tasks)}", table, REMARKS.get(name, "")]
            timed = sorted(set(its_cells.conditions) - {""}) if tree == "efficiency" else []
            parts += [f"Measured on: {'; '.join(timed)}." if timed else "", made_by(its_cells)]
    parts += [text for name in PICTURES for text in pictures(name, figures)]
    for dataset, name in sorted({*zip(cells.dataset, cells.task.map(summary.without_request))}):
        if dataset not in PAPER_DATASETS or name not in PAPER_TASKS:
            parts += other_section(dataset, name, cells, stats)
    return "\n\n".join(part for part in [*parts, made_with(cells)] if part) + "\n"


def missing(cells):
    """One line on the data sets, and one on the tables of the paper, that have no cell."""
    measured = {*zip(cells.tree, cells.task)}
    names = [name for name, (tree, tasks, _) in tables.TABLES.items() if not measured & {(tree, t) for t in tasks}]
    datasets = [name for name in PAPER_DATASETS if name not in set(cells.dataset)]
    return "\n".join(f"- Without any cell: {', '.join(absent)}." for absent in (datasets, names) if absent)


def glance(cells, stats, paper):
    """A row for every (data set, task)."""
    return tables.glance_table(stats, paper, pairs_of(cells))


def pairs_of(cells):
    """Every (data set, task), those of the paper first."""
    paper = [(dataset, task) for task in PAPER_TASKS for dataset in PAPER_DATASETS]
    return in_order({*zip(cells.dataset, cells.task)}, paper)


def made_by(cells):
    """The commands that made cells, as these record them."""
    commands = sorted(set(cells.command) - {""})
    made = "Made by:\n\n" + "\n".join(f"    {command}" for command in commands) if commands else ""
    return "\n\n".join(text for text in (made, started_from(cells)) if text)


def started_from(cells):
    """The pre-unlearning models that cells started from, as these record them: digest and accuracy on the test set."""
    known = cells[cells.f_o.map(bool) & ~cells.method.isin(("Retrain", "Floor", "SISA"))]
    models = {}
    for dataset, f_o in zip(known.dataset, known.f_o):
        models.setdefault(dataset, set()).add(f"{f_o['digest']} ({f_o['accuracy']['test']:.2f} %)")
    several = [dataset for dataset, digests in models.items() if len(digests) > 1]
    text = "; ".join(f"{dataset} {', '.join(sorted(digests))}" for dataset, digests in models.items())
    warning = f" **Not one model alone**: {', '.join(several)}." if several else ""
    return f"Pre-unlearning models (accuracy on the test set): {text}.{warning}" if text else ""


def pictures(name, figures):
    """All pictures of one sort, under a heading that says how to read them."""
    drawn = [figure for figure in figures if re.match(rf"{name}-(random|class|ids)", figure)]
    drawn = in_order(drawn, [f"{name}-{task}" for task in PAPER_TASKS])
    links = [f"![{figure}](figures/{quote(figure)}.png)\n\n([SVG](figures/{quote(figure)}.svg))" for figure in drawn]
    return [f"## Pictures: {name}", PICTURES[name], *links] if drawn else []


def other_section(dataset, name, cells, stats):
    """Everything there is of a data set and task that the paper does not have, after each request of several."""
    its_cells = cells[(cells.dataset == dataset) & (cells.task.map(summary.without_request) == name)]
    for tree in in_order(set(its_cells.tree), TREES):
        made = its_cells[its_cells.tree == tree]
        places = [(tree, dataset, task) for task in dict.fromkeys(made.task)]
        methods = in_order({key[3] for key in stats if key[:3] in places}, tables.ROWS)
        measured = {place: tables.measured_metrics(stats, place) for place in places}
        rows = [row for place in places for row in tables.metric_rows(stats, place, measured[place], methods)]
        title = f"## Not in the paper: {dataset}, {name} ({tree})"
        yield from [title, tables.stats_table(rows, methods), made_by(made)]


def made_with(cells):
    """The versions and machines behind the cells, and which tables mix machines or settings."""
    cells = summary.with_base(cells)  # the ablation's tables show plain cells too
    made = cells.versions.map(lambda versions: ", ".join(f"{name} {value}" for name, value in versions.items()))
    apart = ("seed", "forget_set", "method", "hyperparameters", "weights")
    common = [
        json.dumps({k: v for k, v in config.items() if k not in apart}, sort_keys=True) for config in cells.config
    ]
    lines = ["## Made with", "", *(f"- {text}" for text in sorted(set(made)) if text)]
    method = [config.get("method") for config in cells.config]  # an ablation's is CaMU
    rows = [json.dumps(rows_apart_from_ablation(config), sort_keys=True) for config in cells.config]
    compared = (
        ("machine or version", made, summary.PLACE),
        ("pre-unlearning model or setting", common, summary.PLACE),
        ("set of hyperparameters", rows, ["dataset", "task", "ran"]),  # in any study
    )
    for text, column, place in compared:
        counts = cells.assign(made=column, ran=method).groupby(place)["made"].nunique()
        if several := ["/".join(names) for names in counts.index[counts > 1]]:
            lines += ["", f"**More than one {text}**: {', '.join(several)}."]
    return "\n".join(lines)


def rows_apart_from_ablation(config):
    """A cell's hyperparameters, for each of its requests, without what an ablation changes."""
    rows = config.get("hyperparameters", {})
    return [{k: v for k, v in row.items() if k not in CAMU} for row in (rows if isinstance(rows, list) else [rows])]


def blocks(results_dir):
    """The generated blocks of the pages: name -> markdown."""
    cells, paper = summary.read_cells(results_dir), summary.read_paper_values()
    stats = summary.summarise(cells)
    retrain = cells[(cells.tree == "cells") & (cells.method == "Retrain") & cells.task.isin(summary.MAIN_TASKS)]
    retrain = retrain[retrain.dataset.isin(PAPER_DATASETS)]
    compared = cells.merge(retrain[["dataset", "task"]].drop_duplicates())
    return {
        "main results": glance(compared, stats, paper),
        "claims": claims_by_place(cells),
        "search": search(Path(results_dir, "tuning")),
        "studies": studies(Path(results_dir)),
        "device": devices(Path(results_dir, "device")),
    }


def claims_by_place(cells):
    """In how many places each claim holds that is measured somewhere, and how many are not."""
    by_claim = {}
    for claim, _, holds, _ in claims.answers(cells):
        by_claim.setdefault(claim, []).extend([] if holds is None else [holds])
    rows = [[claim, f"{sum(answers)} of {len(answers)}"] for claim, answers in by_claim.items() if answers]
    rows.append([f"{len(by_claim) - len(rows)} others", "not measured"])
    return tables.markdown_table(["Claim", "Holds in"], rows, left=2)


def search(folder):
    """The worst ToW of the best setting found ("none": none counts) and its number of runs, by data set and task."""
    tables_by_name = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    best = {name: table.drop_duplicates("method").set_index("method") for name, table in tables_by_name.items()}
    methods = in_order({method for won in best.values() for method in won.index}, tables.ROWS)
    rows = []
    for name, won in best.items():
        shown = {m: f"{won.score[m]:.4f} ({won.runs[m]})" if won.score[m] > 0 else "none" for m in won.index}
        rows.append([*name.split("-"), *(shown.get(method, "–") for method in methods)])
    return tables.markdown_table(["Data", "Task", *methods], rows, left=2)


def studies(results_dir):
    """The side studies: folders of cells of their own, a row per method."""
    shown, rows = (*METRICS, "RMIA_AUC"), []
    for folder in sorted({path.parents[4] for path in results_dir.glob("*/**/cells/*/*/*/seed*.json")}):
        stats = summary.summarise(summary.read_cells(folder))
        for place in dict.fromkeys(key[:4] for key in stats):
            values = tables.at(stats, place[:3], place[3])
            seeds = max(stat.seeds for stat in values.values())
            figures = [tables.text(values.get(name), "") for name in shown]
            rows.append([folder.relative_to(results_dir).as_posix(), *place[1:], str(seeds), *figures])
    return tables.markdown_table(["Folder", "Data", "Task", "Method", "Seeds", *shown], rows, left=4)


def devices(folder):
    """What `benchmarks.device` measured, a column per file."""
    columns = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        same = [line["same"] for line in lines if line.get("what") == "captured equals eager"]
        shown = {"Methods and models with equal bits, captured and eager": f"{sum(same)} of {len(same)}"}
        shown |= {rate_name(line): f"{line['images_per_s']:,}" for line in lines if "images_per_s" in line}
        columns[lines[0]["device"]] = shown
    names = dict.fromkeys(itertools.chain(*columns.values()))
    rows = [[name, *(shown.get(name, "–") for shown in columns.values())] for name in names]
    return tables.markdown_table(["Images/s in training", *columns], rows)


def rate_name(line):
    if "processes" in line:
        return f"{line['model']}, {line['processes']} processes, {'with' if line['mps'] else 'without'} MPS"
    return f"{line['model']}, {line['precision']}, {line['way']}"


def fill(path, texts):
    """Write the generated blocks of a page anew, by their names; a UserError if it has none or an unknown one."""
    with explained(f"--pages {path}", OSError, ValueError):
        page = bytes_of(path).decode()
    names = re.findall(r"<!-- generated: (.*?) -->", page)
    unknown = [name for name in names if name not in texts or f"<!-- end of {name} -->" not in page]
    require(
        names and not unknown,
        f"--pages {path}: no generated block, or no end of {unknown}; there are {', '.join(texts)}",
    )
    for name in names:
        old = re.escape(f"<!-- generated: {name} -->") + ".*?" + re.escape(f"<!-- end of {name} -->")
        page = re.sub(old, lambda _, name=name: BLOCK.format(name, texts[name]), page, flags=re.DOTALL)
    save_atomically(path, page.encode())
