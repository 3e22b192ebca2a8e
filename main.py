"""Section 4 of the paper: pretrain, unlearn with every method, evaluate, and print the tables of each task.

Every finished cell (data set, task, method, seed) is one JSON file; a run that is started again skips what is finished.
"""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
import time
from dataclasses import replace
from functools import partial

from config import STUDIES, Config
from harness.architectures import with_architecture
from harness.cells import run_audit, run_cell, run_relearning
from harness.datasets import load
from harness.plan import Plan, check, without_effect
from harness.runner import run_all
from harness.tasks import parse_tasks
from reporting.summary import frame, rows_of, summarise, write_csv
from reporting.tables import terminal_table


def main(config):
    config, started = check(config), time.monotonic()
    tasks = parse_tasks(config.tasks)
    plans = []
    for name in config.dataset:  # section 4.1: data sets, models, baselines, and what is to be forgotten
        dataset = load(name, config.data_root, config.image_size, config.label_noise, not config.quiet)
        dataset = with_architecture(dataset, config)
        print("\n".join([describe(dataset), *without_effect(config, dataset)]))
        plans.append(Plan(dataset, tasks, config))
    if config.dry_run:
        print("\n".join(plan.listing() for plan in plans))
        return
    for plan in plans:
        plan.refuse_unlike()
    for plan in plans:
        plan.prepare()  # the pre-unlearning model f_o: trained, or loaded from an earlier run
        for tree in STUDIES[config.study]:  # sections 4.2.1 cells, 4.2.2 efficiency, 4.3 ablation, 4.4 relearn
            run(plan, tree, config, started)
        for task in tasks:
            print_tables(plan, task, config)
    folder, trees = config.results_dir, ", ".join(STUDIES[config.study])
    print(f"\nCells: {folder}/cells.csv, and one JSON file each in {folder}/ ({trees})")
    print(f"Tables and figures beside the paper's: python report.py --results-dir {config.results_dir}")


def run(plan, tree, config, started):
    """Compute every unfinished cell of a tree, and save each at once: unlearn, audit, or learn D_r again."""
    if tree in ("efficiency", "audit"):
        config = replace(config, jobs=1, cluster="")  # timed cells run alone; audits are short
    runs = {"audit": (run_audit, plan.auditing), "relearn": (run_relearning, plan.relearning)}
    function, arguments = runs.get(tree, (run_cell, plan.unlearning))
    todo = plan.by_value(cell for cell in plan.todo(tree) if plan.is_ready(cell))
    calls = {cell: lambda cell=cell: arguments(cell) for cell in todo}
    starts = partial(plan.has_time_for, started=started)
    try:
        for cell, result in run_all(function, calls, config, f"{plan.dataset.name}: {tree}", starts):
            plan.keep(cell, result)
            write_csv(config.results_dir, every_s=10)
    finally:
        write_csv(config.results_dir)
    if left := plan.todo(tree):
        left = plan.by_value(left)
        print(f"{plan.dataset.name}: --time-limit leaves {len(left)} cells of {tree}/ undone; next is {left[0]}")


def describe(dataset):
    images = f"{len(dataset.train):,} training and {len(dataset.test):,} test images, {len(dataset.classes)} classes"
    side = dataset.train.side or dataset.train.pixels.shape[-1]
    return f"{dataset.name}: {images}; model {dataset.model} at {side}x{side}"


def print_tables(plan, task, config):
    """One table per tree, and per request: a row per method, means over the seeds."""
    records = {cell: record for cell, record in plan.records.items() if cell.task == task}
    rows = [row for cell, record in records.items() for row in rows_of(cell.tree, record)]
    stats = summarise(frame(rows)) if {row["tree"] for row in rows} - {"audit"} else {}  # --time-limit may stop all
    places = dict.fromkeys(key[:3] for key in stats)
    for place in sorted(places, key=lambda place: STUDIES[config.study].index(place[0])):
        print(f"\n{terminal_table(stats, place)}")


if __name__ == "__main__":
    harness.scripts.run_script(main, Config, __doc__)
