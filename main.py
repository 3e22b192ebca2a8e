"""Pretrain (or load) -> for each task, seed and method: unlearn -> evaluate -> save; then one table a task."""

import os
import sys

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is reproducible only with this set beforehand

import pandas as pd
import tyro
from tqdm import tqdm

from baselines import METHODS
from config import Config, UserError, parse_override
from data import load, make_split, parse_task
from experiment import (
    Cell,
    cell_path,
    cell_spec,
    check_writable,
    finished,
    key,
    model_path,
    pretrained_model,
    pretrained_spec,
    resolve_device,
    run_cell,
    save_model,
    save_record,
)
from metrics import METRICS, gap


def main(config):
    check(config)
    tasks = [parse_task(text) for text in config.tasks]
    plans = [plan(name, tasks, config) for name in config.dataset]
    for dataset, spec, cells in plans:
        records = run(dataset, spec, cells, config)
        for task in tasks:
            print_table(dataset.name, task, [record for record in records if record["task"] == task.name])
    print(f"Saved under {config.results_dir}/cells, one JSON file for each data set, task, method and seed.")


def check(config):
    """Everything that can be said before data are read."""
    for name in ("dataset", "tasks", "methods", "seeds"):
        if not getattr(config, name):
            raise UserError(f"--{name} is empty; give at least one")
    for method in config.methods:
        if method not in METHODS:
            raise UserError(f"no method {method!r}; choose from {', '.join(METHODS)}")
    for name in ("jobs", "batch_size", "image_size", "pretrain_epochs", "retrain_epochs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if config.threads < 0 or min(config.seeds) < 0:
        raise UserError("--threads and --seeds must not be negative")
    for text in config.override:
        parse_override(text)
    resolve_device(config.device)
    check_writable(config.results_dir)
    check_writable(config.checkpoints_dir)


def plan(name, tasks, config):
    """Load a data set and list its cells with their specifications and, for finished ones, their records."""
    dataset = load(name, config.data_root, config.image_size, progress=not config.quiet)
    parts = f"{len(dataset.train):,} training and {len(dataset.test):,} test images, {len(dataset.classes)} classes"
    side = dataset.train.side or dataset.train.pixels.shape[-1]
    print(f"{name}: {parts}; model {dataset.model} at {side}x{side}")
    spec = pretrained_spec(dataset, dataset.fingerprint(), config)
    cells = []
    for task in tasks:
        for seed in dict.fromkeys(config.seeds):
            split = make_split(dataset, task, seed)
            for method in dict.fromkeys(config.methods):
                cell = Cell(name, task, method, seed)
                own_spec = cell_spec(cell, dataset, split, spec, config)
                cells.append((cell, own_spec, finished(cell_path(config, cell), own_spec, config.overwrite)))
    return dataset, spec, cells


def run(dataset, spec, cells, config):
    """Run the cells that are not finished; return the records of all."""
    checkpoint = pretrained_model(dataset, spec, config)
    print(
        f"{dataset.name}: pre-unlearning model, accuracy {checkpoint['accuracy']['train']:.2f} % on the training and "
        f"{checkpoint['accuracy']['test']:.2f} % on the test images"
    )
    records = []
    bar = tqdm(cells, f"{dataset.name}: cells", unit="cell", disable=True if config.quiet else None)
    for cell, own_spec, record in bar:
        bar.set_postfix_str(f"{cell.task.name} {cell.method} seed {cell.seed}")
        path = model_path(config, cell)
        if record is None or (config.save_models and not path.exists()):
            partial = path.with_name(f"{key(own_spec)}.partial.pt")
            record, state = run_cell(cell, own_spec, dataset, checkpoint["state"], partial, not config.quiet)
            if config.save_models:
                save_model(path, dataset, state, own_spec)
            save_record(cell_path(config, cell), record)
        records.append(record)
    return records


def print_table(name, task, records):
    """One row a method: the task's metrics in percent (mean ± std over the seeds), gap to Retrain and time."""
    names = METRICS[task.metrics_kind]
    frame = pd.DataFrame([{"method": r["method"], **r["metrics"], "time_s": r["time_s"]} for r in records])
    groups = frame.groupby("method", sort=False)
    means, stds = groups.mean(), groups.std(ddof=0)
    seeds = groups.size().max()
    columns = [column for column in frame.columns if column != "method"]
    shown = pd.DataFrame(index=means.index)
    for column in columns:
        if column == "time_s":
            shown["gap"] = (
                [f"{gap(row, means.loc['Retrain'], task.metrics_kind):.2f}" for _, row in means[list(names)].iterrows()]
                if "Retrain" in means.index
                else "n/a"
            )
        shown[column] = [
            f"{mean:.2f}" + (f" ± {std:.2f}" if seeds > 1 else "") for mean, std in zip(means[column], stds[column])
        ]
    print(f"\n{name}, {task.name} ({seeds} seed{'s' if seeds > 1 else ''}; metrics in percent)")
    print(shown.rename_axis(None).to_string() + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except UserError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
