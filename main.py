"""Pretrain (or load) -> for each task, seed and method: unlearn -> evaluate -> save; then one table a task."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from baselines import METHODS
from config import ABLATION, Config, UserError, hyperparameters, parse_override, run_script, training_row
from data import Dataset, load, load_or_set_aside, load_tensors, make_split, parse_tasks, save_tensors
from experiment import (
    Cell,
    Job,
    cell_spec,
    check_writable,
    finished,
    key,
    partial_files,
    prepare_shard,
    pretrain,
    pretrained_spec,
    resolve_device,
    run_cell,
    run_jobs,
    run_relearning,
    save_record,
    shards_spec,
)
from metrics import gap
from summary import flat, relearning_extremes

SMALLEST_IMAGE = 33  # up to 32 pixels ResNet-18 ends in one pixel, of which a batch of one sample has no variance
# A study is the trees of cells it needs.
STUDIES = {
    "plain": ("cells",),
    "ablation": ("cells", "ablation"),
    "relearn": ("cells", "relearn"),
    "efficiency": ("efficiency",),
    "paper": ("cells", "ablation", "relearn", "efficiency"),
}


def main(config):
    config = check(config)
    tasks = parse_tasks(config.tasks)
    plans = [plan(name, tasks, config) for name in config.dataset]
    for one in plans:
        make_shared(one, config)
        run(one, config)
        for task in tasks:
            print_tables(one, task, config)
    trees = ", ".join(STUDIES[config.study])
    print(f"\nCells, one JSON file for each data set, task, method and seed: {config.results_dir}/ ({trees})")
    if config.save_models or "relearn" in STUDIES[config.study]:
        print(f"Unlearned models: {config.checkpoints_dir}/unlearned/")
    print(f"Tables and figures beside the paper's: python report.py --results-dir {config.results_dir}")


def check(config):
    """Everything that can be said before data are read; returns the settings with "all" methods spelt out."""
    for name in ("dataset", "tasks", "methods", "seeds"):
        if not getattr(config, name):
            raise UserError(f"--{name} is empty; give at least one")
        config = replace(config, **{name: tuple(dict.fromkeys(getattr(config, name)))})
    for name in config.dataset:
        if Path(name).name != name:
            raise UserError(f"--dataset {name}: give the folder's name alone, and the folder it is in as --data-root")
    methods = tuple(METHODS) if config.methods == ("all",) else config.methods
    for method in methods:
        if method not in METHODS:
            raise UserError(f"no method {method!r}; choose from {', '.join(METHODS)}, or all alone")
    if config.study not in STUDIES:
        raise UserError(f"--study {config.study}: must be one of {', '.join(STUDIES)}")
    for name in ("jobs", "threads", "batch_size", "pretrain_epochs", "retrain_epochs", "image_size"):
        value, least = getattr(config, name), SMALLEST_IMAGE if name == "image_size" else 1
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if min(config.seeds) < 0:
        raise UserError(f"--seeds {min(config.seeds)}: must not be negative")
    if config.gpus_per_cell < 0:
        raise UserError(f"--gpus-per-cell {config.gpus_per_cell:g}: must not be negative")
    if config.cluster and "efficiency" in STUDIES[config.study]:
        raise UserError(f"--study {config.study} times cells on one quiet machine; run it without --cluster")
    for text in config.override:
        parse_override(text)
    resolve_device(config)
    check_writable(config.results_dir)
    check_writable(config.checkpoints_dir)
    return replace(config, methods=methods)


@dataclass
class Plan:
    """A data set with all cells that are asked of it: those to run, and the records of those that are there.

    Attributes
    ----------
    dataset : Dataset
    spec : dict
        Determines the pre-unlearning model.
    specs : dict of Cell to dict
    records : dict of Cell to dict
        Filled as cells finish.
    checkpoint : dict
        The pre-unlearning model.
    prepared : dict of str to list
        By method, what its preparation step made.
    """

    dataset: Dataset
    spec: dict
    specs: dict
    records: dict
    checkpoint: dict
    prepared: dict


def plan(name, tasks, config):
    """Load a data set, list its cells with their specifications, and find the finished ones."""
    dataset = load(name, config.data_root, config.image_size, progress=not config.quiet)
    parts = f"{len(dataset.train):,} training and {len(dataset.test):,} test images, {len(dataset.classes)} classes"
    side = dataset.train.side or dataset.train.pixels.shape[-1]
    print(f"{name}: {parts}; model {dataset.model} at {side}x{side}")
    one = Plan(dataset, pretrained_spec(dataset, dataset.fingerprint(), config), {}, {}, {}, {})
    for tree in STUDIES[config.study]:
        for task in tasks:
            for seed in config.seeds:
                split = make_split(dataset, task, seed)
                for method in tree_methods(tree, config):
                    cell = Cell(name, task, method, seed, tree)
                    one.specs[cell] = cell_spec(cell, dataset, split, one.spec, config)
                    record = finished(cell.path(config), one.specs[cell], config.overwrite)
                    if record is not None:
                        one.records[cell] = record
    return one


def tree_methods(tree, config):
    """The methods a tree of a study has; the ablation's other rows, Retrain and CaMU, stand in the plain tree."""
    if tree == "ablation":
        return tuple(ABLATION)
    if config.study == "ablation":
        return ("Retrain", "CaMU")
    return config.methods


def make_shared(one, config):
    """Make what several cells need, once: the pre-unlearning model, and what methods prepare before any request."""
    name = one.dataset.name
    folder = Path(config.checkpoints_dir) / name
    one.checkpoint = make_once(folder, {"pretrained": (one.spec, pretrain, {})}, one, config)[0]
    found = one.checkpoint["accuracy"]
    print(
        f"{name}: pre-unlearning model, accuracy {found['train']:.2f} % on the training and {found['test']:.2f} % on "
        "the test images"
    )
    missing = {
        one.specs[cell]["method"] for cell in one.specs if cell not in one.records or needs_model(cell, one, config)
    }
    training = training_row(name, one.dataset.model, config.pretrain_epochs, config.retrain_epochs)
    for method in sorted(missing):
        if hasattr(METHODS[method], "prepare_shard"):
            row = hyperparameters(method, name, "random", training, config.override)
            parts = {
                f"{method}-shard{shard}": (
                    shards_spec(one.spec, row),
                    prepare_shard,
                    {"shard": shard, "method": method, "row": row},
                )
                for shard in range(row["shards"])
            }
            one.prepared[method] = [part["states"] for part in make_once(folder, parts, one, config)]


def make_once(folder, wanted, one, config):
    """Checkpoints by name: loaded where they are, else made and kept.

    Parameters
    ----------
    folder : Path
    wanted : dict
        name -> (what determines it, the function that makes it, its arguments besides the specification and the data).
    """
    made, jobs = {}, []
    for name, (spec, function, arguments) in wanted.items():
        path = folder / f"{name}-{key(spec)}.pt"
        made[name] = load_or_set_aside(path, load_tensors)
        if made[name] is None:
            partial = path.with_suffix(".partial.pt")

            def keep(checkpoint, name=name, path=path, partial=partial):
                made[name] = checkpoint
                save_tensors(path, checkpoint)
                remove(partial)

            arguments = {**arguments, "spec": spec, "dataset": one.dataset, "partial": partial}
            jobs.append(Job(name, function, lambda arguments=arguments: arguments, keep))
    run_jobs(jobs, config, f"{one.dataset.name}: preparing")
    return list(made.values())


def remove(partial):
    for path in partial_files(partial):
        path.unlink(missing_ok=True)


def needs_model(cell, one, config):
    """Whether the cell's unlearned model is to be kept, for the user or for relearning, and is not there."""
    relearning = replace(cell, tree="relearn")
    wanted = config.save_models or (relearning in one.specs and relearning not in one.records)
    if cell.tree != "cells" or not wanted:
        return False
    stored = load_or_set_aside(cell.model_path(config), load_tensors)
    return stored is None or stored["config"] != one.specs[cell]


def run(one, config):
    """Run the cells that are not finished, tree by tree."""
    for tree in STUDIES[config.study]:
        cells = [cell for cell in one.specs if cell.tree == tree]
        todo = [cell for cell in cells if cell not in one.records or needs_model(cell, one, config)]
        make = relearning_job if tree == "relearn" else unlearning_job
        alone = replace(config, jobs=1) if tree == "efficiency" else config
        run_jobs([make(cell, one, alone) for cell in todo], alone, f"{one.dataset.name}: {tree}")


def unlearning_job(cell, one, config):
    spec = one.specs[cell]
    # the trees do not share it: a timing goes on from no run with other work beside it
    partial = cell.model_path(config).parent / f"{key(spec)}-{cell.tree}.partial.pt"
    store = needs_model(cell, one, config)

    def keep(result):
        record, stored = result
        if store:
            save_tensors(cell.model_path(config), stored)
        if cell not in one.records:
            save_record(cell.path(config), record)
            one.records[cell] = record
        remove(partial)

    arguments = {
        "cell": cell,
        "spec": spec,
        "dataset": one.dataset,
        "f_o_state": one.checkpoint["state"],
        "prepared": one.prepared.get(spec["method"]),
        "partial": partial,
        "jobs": None if config.cluster else config.jobs,
    }
    return Job(f"{cell.task.name} {cell.method} seed {cell.seed}", run_cell, lambda: arguments, keep)


def relearning_job(cell, one, config):
    def arguments():
        path = cell.model_path(config)
        stored = load_tensors(path)
        if stored["config"] != one.specs[replace(cell, tree="cells")]:
            raise UserError(f"{path} is of another configuration: has another run the same --checkpoints-dir?")
        return {"cell": cell, "spec": one.specs[cell], "dataset": one.dataset, "stored": stored}

    def keep(record):
        save_record(cell.path(config), record)
        one.records[cell] = record

    return Job(f"{cell.task.name} {cell.method} seed {cell.seed}", run_relearning, arguments, keep)


def print_tables(one, task, config):
    for tree in STUDIES[config.study]:
        records = [one.records[cell] for cell in one.specs if cell.tree == tree and cell.task == task]
        if tree == "relearn":
            print_relearning(one.dataset.name, task, records)
        else:
            if tree == "ablation":
                base = [one.records[c] for c in one.specs if c.tree == "cells" and c.task == task]
                records += [record for record in base if record["method"] in ("Retrain", "CaMU")]
            print_table(one.dataset.name, task, records, tree)


def print_table(name, task, records, tree):
    """One row a method: the task's metrics in percent (mean ± std over the seeds), gap to Retrain and time."""
    frame = pd.DataFrame([{"method": r["method"], **r["metrics"], "time_s": r["time_s"]} for r in records])
    conditions = {m: [r.get("conditions") for r in records if r["method"] == m] for m in frame["method"]}
    groups = frame.groupby("method", sort=False)
    means, stds = groups.mean(), groups.std(ddof=0)
    seeds = groups.size().max()
    columns = [column for column in means if column != "time_s"]
    shown = pd.DataFrame(index=means.index)
    for column in columns:
        spread = [f" ± {std:.2f}" if seeds > 1 else "" for std in stds[column]]
        shown[column] = [f"{mean:.2f}{text}" for mean, text in zip(means[column], spread)]
    retrain = means.loc["Retrain"] if "Retrain" in means.index else None
    rows = [row for _, row in means.iterrows()]
    if retrain is not None:
        shown["gap"] = [f"{gap(row, retrain, task.metrics_kind):.2f}" for row in rows]
    shown["time_s"] = [f"{row['time_s']:.2f}" for row in rows]
    if retrain is not None:
        alike = [comparable(conditions[method] + conditions["Retrain"]) for method in means.index]
        ratios = [f"{row['time_s'] / retrain['time_s']:.3f}" for row in rows]
        shown["time/Retrain"] = [ratio if same else "–" for ratio, same in zip(ratios, alike)]
    study = "" if tree == "cells" else f" {tree},"
    print(f"\n{name}, {task.name}:{study} {seeds} seed{'s' if seeds > 1 else ''}, metrics in percent")
    print(shown.rename_axis(None).to_string())
    for method, row in means.iterrows():
        if retrain is not None and method != "Retrain":
            print(f"  {method}: {in_words(row, retrain, task.metrics_kind)}")


def comparable(conditions):
    """Whether times were all taken under the same conditions."""
    return None not in conditions and all(one == conditions[0] for one in conditions)


def in_words(row, retrain, kind):
    """What a row of the table says about forgetting and about what was to be kept, beside Retrain.

    Parameters
    ----------
    row, retrain : mapping of metric to float
    kind : str
        "random" or "class".
    """
    forgotten, kept = ("A_f", "A_ts") if kind == "random" else ("A_ts_f", "A_ts_r")
    above, kept_above = row[forgotten] - retrain[forgotten], row[kept] - retrain[kept]
    how = next(word for bound, word in ((0.3, "as"), (2, "slightly"), (float("inf"), "clearly")) if abs(above) <= bound)
    verdict = "forgotten as by Retrain" if how == "as" else f"{how} {'under' if above > 0 else 'over'}-forgotten"
    return f"{forgotten} {beside(above)} Retrain: {verdict}; {kept} {beside(kept_above)} Retrain"


def beside(points):
    return "level with" if abs(points) < 0.05 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def print_relearning(name, task, records):
    """One row a method: how far A_r and A_f move at most while D_r is learned again, mean over the seeds."""
    extremes = relearning_extremes(pd.DataFrame([{"tree": "relearn", **flat(record)} for record in records]))
    methods = dict.fromkeys(record["method"] for record in records)
    shown = pd.DataFrame(
        {f"max |Δ{metric}|": [extremes[name, method, metric][0] for method in methods] for metric in ("A_r", "A_f")},
        index=list(methods),
    ).round(2)
    print(f"\n{name}, {task.name}: relearning, percentage points")
    print(shown.to_string())


if __name__ == "__main__":
    try:
        run_script(main, tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues with what is not finished", file=sys.stderr)
        sys.exit(130)
