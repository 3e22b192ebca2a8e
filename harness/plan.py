"""The cells of a run on one data set: which are finished, and what the others need."""

import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from baselines import METHODS
from camu import ABLATION
from config import BESIDE_ABLATION, STUDIES
from data import make_splits
from harness import cells, store
from harness.architectures import check_architecture
from harness.cells import Cell
from harness.runner import run_all
from harness.store import UserError, load_or_set_aside, load_tensors, read_record, read_tensors, require
from harness.tasks import NAME
from hyperparameters import HYPERPARAMETERS, check_overrides, hyperparameters_of, parse_override, training_row

MODELS = Path(__file__).parent.parent / "results" / "models"
RANGES = {  # what the settings may be, at least and at most
    **dict.fromkeys(("pretrain_epochs", "retrain_epochs", "batch_size"), (1, 10**6)),
    **dict.fromkeys(("jobs", "threads"), (1, 1024)),
    "gpus_per_cell": (0, 1024),
    "seeds": (0, 2**63 - 1),
    "image_size": (33, 4096),  # at 32 or less ResNet-18 ends in one pixel, and a batch of one sample has no variance
    "lr": (1e-30, 1e6),
    "label_noise": (0, 99.9),
    "time_limit": (1e-3, 1e9),
    "trials": (1, 10**6),  # of the search
}


def check(config):
    """Check all that can be checked before data are read; return the settings with "all" methods spelt out."""
    for name in ("dataset", "tasks", "methods", "seeds"):
        require(getattr(config, name), f"--{name} is empty; give at least one")
        config = replace(config, **{name: tuple(dict.fromkeys(getattr(config, name)))})
    odd = METHODS.keys() ^ HYPERPARAMETERS.keys()
    require(not odd, f"{', '.join(sorted(odd))}: a method must be both in METHODS and in HYPERPARAMETERS")
    for name in config.dataset:
        if not re.fullmatch(NAME, name):
            where = "give the folder's name alone, and the folder it is in as --data-root"
            raise UserError(f"--dataset {name[:200]!r}: {where}; the name may have no / \\ | < > ` $ *")
    for name, (least, most) in RANGES.items():
        given = getattr(config, name, None)
        for value in given if isinstance(given, tuple) else (given,):
            require(
                value is None or least <= value <= most,
                f"--{name.replace('_', '-')} {str(value)[:30]}: must be from {least:g} to {most:g}",
            )
    require(
        not config.cluster or "efficiency" not in STUDIES[config.study],
        f"--study {config.study} times cells on one quiet machine; run it without --cluster",
    )
    check_overrides(config.override)
    check_architecture(config)
    config = cells.choose_gpu(config)
    cells.resolve_device(config)
    if not config.dry_run:
        store.check_writable(config.results_dir)
        store.check_writable(config.checkpoints_dir)
    return replace(config, methods=tuple(METHODS) if "all" in config.methods else config.methods)


def refuse_settings(config, names, what):
    """Raise a UserError if a setting that `what`, another program, does not have is not at its default."""
    for name in names:
        usual = getattr(type(config)(), name)
        require(getattr(config, name) == usual, f"--{name.replace('_', '-')}: {what} has none; main.py has")


def without_effect(config, dataset):
    """Settings that change nothing in this run, each with the reason."""
    idle = {
        "--gpus-per-cell": config.gpus_per_cell and not config.cluster and "it goes with --cluster",
        "--pretrain-epochs": config.pretrain_epochs and config.checkpoint and "the model comes from --checkpoint",
        "--image-size": config.image_size and dataset.train.side is None and "the CNN's images have 28 pixels",
        "--methods": config.study == "ablation" and config.methods != tuple(METHODS) and "the ablation has its own",
        "--save-models": config.save_models and "cells" not in STUDIES[config.study] and "timed models are not kept",
        "--kernels": config.kernels != "native" and cells.resolve_device(config) != "cpu" and "it is for processors",
    }
    asked = {*(BESIDE_ABLATION if config.study == "ablation" else config.methods)}
    asked |= {"CaMU"} if "ablation" in STUDIES[config.study] else set()
    takes = {m for m in asked for row in HYPERPARAMETERS[m].values() if row.get("epochs", 0) is None}
    idle["--retrain-epochs"] = config.retrain_epochs and not takes and "it is for Retrain and SISA"
    idle["--study floor"] = config.study == "floor" and "Retrain" not in asked and "a second Retrain needs a first"
    for text in config.override:
        method = parse_override(text)[0]
        idle[f"--override {text}"] = method not in asked and f"{method} is not among the methods"
    return [f"{name} has no effect: {reason}" for name, reason in idle.items() if reason]


class Plan:
    """The cells of a run on one data set.

    `specs` maps each cell to what determines it, `records` finished cells to their records, `unlike` those made with
    another configuration to what differs.
    """

    def __init__(self, dataset, tasks, config):
        self.dataset, self.config = dataset, config
        self.pretrained_spec = cells.pretrained_spec(dataset, dataset.fingerprint(), config)
        self.specs, self.records, self.unlike, self.prepared = {}, {}, {}, {}
        self.f_o = self.references = None
        self.provenance = cells.provenance(config)
        for task in tasks:
            for seed in config.seeds:
                splits = make_splits(dataset, task, seed)
                for tree in STUDIES[config.study]:
                    for method in self.methods(tree, seed):
                        self.add(Cell(dataset.name, task, method, seed, tree), splits)

    def methods(self, tree, seed):
        """The ablation has its own methods; the plain tree has what they are compared with. Floor has one seed."""
        if tree == "ablation":
            return tuple(ABLATION)
        methods = BESIDE_ABLATION if self.config.study == "ablation" else self.config.methods
        floor = self.config.study in ("floor", "paper") and tree in ("cells", "audit") and seed == self.config.seeds[0]
        methods += ("Floor",) if floor and "Retrain" in methods else ()
        return methods + (tuple(ABLATION) if tree == "audit" and "ablation" in STUDIES[self.config.study] else ())

    def add(self, cell, splits, **hyperparameters):
        """Ask for a cell, with `hyperparameters` in place of the table's, and find out whether it is finished."""
        if cell.tree == "audit":
            spec = self.audit_spec(cell)
        else:
            spec = cells.cell_spec(cell, self.dataset, splits, self.pretrained_spec, self.config)
        if hyperparameters:
            spec["hyperparameters"] |= hyperparameters
        self.specs[cell] = spec
        record = load_or_set_aside(cell.path(self.config), read_record)
        if record is not None and record["config"] == (record["config"] | spec if cell.tree == "audit" else spec):
            self.records[cell] = record
        elif record is not None and not self.config.overwrite and cell.tree != "audit":
            self.unlike[cell] = differences(record["config"], spec)

    def audited(self, cell):
        """The cell that an audit is about."""
        return replace(cell, tree="ablation" if cell.method in ABLATION else "cells")

    def audit_spec(self, cell):
        """What an audit is made from, as far as it is there: an earlier one that was made from more counts too."""
        audited, retrain = self.audited(cell), replace(cell, tree="cells", method="Retrain")
        spec = {"cell": cells.key(self.specs[audited])}
        if retrain in self.specs and retrain != audited:
            spec["retrain"] = cells.key(self.specs[retrain])
        if replace(retrain, method="SISA") in self.specs:
            references, row = self.shards("SISA")
            spec |= {"references": cells.key(references)} if row["shards"] > 1 else {}
        return spec

    def shards(self, method):
        """What determines a method's preparation before any request, and its hyperparameters."""
        training = training_row(self.dataset.name, self.dataset.model, self.config)
        row = hyperparameters_of(method, self.dataset.name, "random", training, self.config.override)
        shards, samples = row["shards"], len(self.dataset.train)
        require(shards <= samples, f"{method}: {shards} shards are more than the {samples} training samples")
        spec = {name: value for name, value in self.pretrained_spec.items() if name != "checkpoint"}
        return spec | row, row

    def refuse_unlike(self):
        """Raise a UserError if a cell or model of another configuration is there, and is not to be overwritten."""
        if self.unlike:
            cell, changes = next(iter(self.unlike.items()))
            made = (load_or_set_aside(cell.path(self.config), read_record) or {}).get("command")
            unlike = f"{cell.path(self.config)} was made with another configuration ({', '.join(changes)})"
            unlike += f", by {made}" if made else ""
            raise UserError(f"{unlike}; use --overwrite to redo it, or another --results-dir")
        for cell in self.specs:  # a damaged model was set aside
            if not self.config.overwrite and self.needs_model(cell) and cell.model_path(self.config).exists():
                held = f"{cell.model_path(self.config)} holds a model of another configuration"
                raise UserError(f"{held}; use --overwrite to replace it, or another --checkpoints-dir")

    def todo(self, tree):
        """The cells of a tree that are not finished, or whose unlearned model or outputs are needed and missing."""
        return [cell for cell in self.specs if cell.tree == tree and self.is_due(cell)]

    def is_due(self, cell):
        return cell not in self.records or self.needs_model(cell) or self.needs_outputs(cell)

    def needs_outputs(self, cell):
        """Whether an audit that is not finished reads the cell's outputs, and they are missing."""
        if cell.tree not in ("cells", "ablation"):
            return False
        audits = [audit for audit in self.specs if audit.tree == "audit"]
        beside = [audit for audit in audits if (audit.task, audit.seed) == (cell.task, cell.seed)]
        readers = [a for a in beside if cell.method in ("Retrain", a.method) and a not in self.records]
        return bool(readers) and self.outputs(cell) is None

    def outputs_path(self, cell):
        path = cell.model_path(self.config).with_stem(f"seed{cell.seed}-{cells.key(self.specs[cell])}")
        return Path(self.config.checkpoints_dir, "outputs", *path.parts[-4:])

    def outputs(self, cell):
        """The outputs after each request; None where they are missing."""
        stored = load_or_set_aside(self.outputs_path(cell), read_tensors)
        return None if stored is None else stored["requests"]

    def needs_model(self, cell):
        """Whether the unlearned model must be kept, for the user or for relearning, and is missing."""
        relearning = replace(cell, tree="relearn")
        wanted = self.config.save_models or (relearning in self.specs and relearning not in self.records)
        if cell.tree != "cells" or not wanted:
            return False
        stored = load_or_set_aside(cell.model_path(self.config), read_tensors)
        return stored is None or stored["config"] != self.specs[cell]

    def prepare(self):
        """Load or make what unfinished cells need: the pre-unlearning model, SISA's shards, the audit's references."""
        todo = [cell for tree in STUDIES[self.config.study] if tree != "relearn" for cell in self.todo(tree)]
        auditing = any("references" in self.specs[cell] for cell in todo if cell.tree == "audit")
        todo = [cell for cell in todo if cell.tree != "audit"]
        if todo and self.f_o is None:
            if self.config.checkpoint:
                self.f_o = cells.take_checkpoint(self.dataset, self.pretrained_spec, self.config.checkpoint)
            else:
                self.f_o = self.make_once(cells.pretrain, {"pretrained": (self.pretrained_spec, {})})["pretrained"]
            accuracies = {part: f"{value:.2f} % ({part})" for part, value in self.f_o["accuracy"].items()}
            print(f"{self.dataset.name}: pre-unlearning model, accuracy {', '.join(accuracies.values())}")
        if auditing:
            references, row = self.shards("SISA")
            self.references = load_or_set_aside(self.checkpoint_path("references", references), read_tensors)
        missing = auditing and self.references is None
        for method in sorted({self.specs[cell]["method"] for cell in todo} | ({"SISA"} if missing else set())):
            if hasattr(METHODS[method], "prepare_shard"):
                spec, chosen = self.shards(method)
                more = {"method": method, "row": chosen}
                shards = {f"{method}-shard{k}": (spec, more | {"shard": k}) for k in range(chosen["shards"])}
                made = self.make_once(cells.prepare_shard, shards)
                self.prepared[method] = [part["states"] for part in made.values()]
        if missing:
            wanted = {"references": (references, {"row": row, "prepared": self.prepared["SISA"]})}
            self.references = self.make_once(cells.audit_references, wanted)["references"]

    def make_once(self, function, wanted):
        """Checkpoints by name, loaded where they exist, else made by `function` and kept.

        `wanted` has for each name what determines it, and the function's arguments besides that and the data.
        """
        paths = {name: self.checkpoint_path(name, spec) for name, (spec, _) in wanted.items()}
        partials = {name: path.with_suffix(".partial.pt") for name, path in paths.items()}

        def arguments(name):
            spec, more = wanted[name]
            return {"spec": spec, "dataset": self.dataset, "partial": partials[name], **more}

        with store.locked(next(iter(paths.values())).parent):  # another run that needs them waits until they are there
            made = {name: load_or_set_aside(path, read_tensors) or self.committed(path) for name, path in paths.items()}
            calls = {name: partial(arguments, name) for name in wanted if made[name] is None}
            for name, checkpoint in run_all(function, calls, self.config, f"{self.dataset.name}: preparing"):
                made[name] = checkpoint
                store.save_tensors(paths[name], checkpoint)
                cells.remove_partial(partials[name])
        return made

    def committed(self, path):
        """A checkpoint that came with the repository, or None."""
        return load_or_set_aside(MODELS / self.dataset.name / path.name, read_tensors)

    def checkpoint_path(self, name, spec):
        return Path(self.config.checkpoints_dir, self.dataset.name, f"{name}-{cells.key(spec)}.pt")

    def unlearning(self, cell):
        """The arguments of `cells.run_cell`."""
        jobs = None if self.config.cluster else 1 if cell.tree == "efficiency" else self.config.jobs
        prepared = self.prepared.get(self.specs[cell]["method"])
        shared = {"dataset": self.dataset, "f_o_state": self.f_o["state"], "prepared": prepared}
        return {"cell": cell, "spec": self.specs[cell], "partial": self.partial_path(cell), "jobs": jobs, **shared}

    def relearning(self, cell):
        """The arguments of `cells.run_relearning`."""
        path = cell.model_path(self.config)
        stored = load_tensors(path)
        require(
            stored["config"] == self.specs[replace(cell, tree="cells")],
            f"{path} is of another configuration: has another run the same --checkpoints-dir?",
        )
        return {"cell": cell, "spec": self.specs[cell], "dataset": self.dataset, "stored": stored}

    def auditing(self, cell):
        """The arguments of `cells.run_audit`."""
        spec, audited = self.specs[cell], self.audited(cell)
        retrain = self.outputs(replace(cell, tree="cells", method="Retrain")) if "retrain" in spec else None
        references = (self.references["train"], self.references["test"]) if "references" in spec else None
        earlier = load_or_set_aside(cell.path(self.config), read_record)
        earlier = earlier if earlier and earlier["config"]["cell"] == spec["cell"] else None
        compared = {"outputs": self.outputs(audited), "retrain": retrain, "references": references, "earlier": earlier}
        return {"cell": cell, "spec": spec, "dataset": self.dataset, **compared}

    def partial_path(self, cell):
        """Where an unlearning keeps its state. A timing never continues a plain run."""
        return cell.model_path(self.config).parent / f"{cells.key(self.specs[cell])}-{cell.tree}.partial.pt"

    def keep(self, cell, result):
        """Save what a cell's call returned."""
        record, stored, outputs = result if isinstance(result, tuple) else (result, None, None)
        known = self.records.get(cell)
        if known is None or known.get("metrics") != record.get("metrics"):  # another machine may end at other bits
            start = {"f_o": self.f_o_known(cell)} if cell.tree != "audit" else {}
            record |= start | self.provenance
            with store.locked(Path(self.config.results_dir)):
                self.look_again(cell)
                store.save_record(cell.path(self.config), record)
            self.records[cell] = record
        if outputs and cell.tree in ("cells", "ablation") and replace(cell, tree="audit") in self.specs:
            store.save_tensors(self.outputs_path(cell), {"requests": outputs})
        if self.needs_model(cell):
            store.save_tensors(cell.model_path(self.config), stored)
        cells.remove_partial(self.partial_path(cell))

    def look_again(self, cell):
        """Refuse to replace what another run, with another configuration, has saved in the meantime."""
        if not self.config.overwrite and cell.tree != "audit":
            record = load_or_set_aside(cell.path(self.config), read_record)
            if record is not None and record["config"] != self.specs[cell]:
                self.unlike = {cell: differences(record["config"], self.specs[cell])}
                self.refuse_unlike()

    def f_o_known(self, cell):
        """What a record says of the pre-unlearning model: the digest of its weights, and its accuracies in percent."""
        if cell.tree == "relearn":  # it starts from the plain cell's model, and needs no f_o itself
            return self.records[replace(cell, tree="cells")].get("f_o", {})
        return {"digest": store.digest(self.f_o["state"]), "accuracy": self.f_o["accuracy"]}

    def listing(self):
        """For --dry-run: a table of the seeds that are done, missing, or made with another configuration."""
        groups, todo = {}, {cell for tree in STUDIES[self.config.study] for cell in self.todo(tree)}
        for cell in [cell for cell in self.specs if cell.tree != "audit"]:  # audits take no time
            groups.setdefault((cell.tree, cell.task.name, cell.method), []).append(cell)
        rows = []
        for names, group in groups.items():
            done = [str(cell.seed) for cell in group if cell not in todo]
            missing = [cell for cell in group if cell in todo and cell not in self.unlike]
            missing = [f"{cell.seed}{' (its model or outputs)' if cell in self.records else ''}" for cell in missing]
            unlike = [f"{cell.seed} ({', '.join(self.unlike[cell])})" for cell in group if cell in self.unlike]
            done, missing, unlike = (" ".join(seeds) or "-" for seeds in (done, missing, unlike))
            seconds = self.last_time(group[0])
            rows.append([*names, done, missing, "-" if seconds is None else f"{seconds:.1f}", unlike])
        columns = ["tree", "task", "method", "seeds done", "seeds missing", "seconds", "other configuration"]
        title = f"{self.dataset.name}: done, missing, or made with another configuration; seconds last taken here"
        return f"{title}\n{pd.DataFrame(rows, columns=columns).to_string(index=False)}"

    def is_ready(self, cell):
        """Whether the cells that an audit or a relearning is about are finished, and what it reads of them is there."""
        if cell.tree not in ("audit", "relearn"):
            return True
        needed = {self.audited(cell)}
        if "retrain" in self.specs[cell]:
            needed.add(replace(cell, tree="cells", method="Retrain"))
        return not any(map(self.is_due, needed))

    def by_value(self, todo):
        """In the order in which they are worth most: seed by seed, Retrain and CaMU first, SISA last."""
        rank = {"Retrain": 0, "CaMU": 0, "SISA": 2}
        return sorted(todo, key=lambda cell: (self.config.seeds.index(cell.seed), rank.get(cell.method, 1)))

    def has_time_for(self, cell, started):
        """Whether what is left of the time limit suffices for a cell, as far as is known. An audit takes no time."""
        spent = time.monotonic() - started
        return (
            self.config.time_limit is None
            or cell.tree == "audit"
            or spent + (self.last_time(cell) or 0) < self.config.time_limit
        )

    def last_time(self, cell):
        """Seconds that the newest cell of the same method and task took, if made on this machine on as many threads."""
        device = cells.device_name(cells.resolve_device(self.config))
        wanted = {"device": device, "threads": self.config.threads}
        for path in sorted(cell.path(self.config).parent.glob("seed*.json"), key=lambda p: -p.stat().st_mtime):
            record = load_or_set_aside(path, read_record) or {}
            if wanted.items() <= (record.get("conditions") or {}).items():
                return record["time_s"]
        return None


def differences(old, new):
    """ "name: old -> new" for every entry in which two specifications differ, nested ones by their inner names."""
    changes = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after)
        elif before != after:
            changes.append(f"{name}: {before} -> {after}")
    return changes
