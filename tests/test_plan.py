"""Which cells are asked for, finished or of another configuration, and what the unfinished ones need."""

import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import make_toy_dataset

import harness.plan
from baselines import METHODS
from camu import ABLATION
from harness import cells
from harness.cells import Cell
from harness.plan import Plan, check, differences, without_effect
from harness.store import UserError, digest, load_tensors, read_record, save_record, save_tensors
from harness.tasks import parse_task, parse_tasks

BASE = {"Retrain", "Original", "CaMU"}  # what the ablation stands beside


@pytest.fixture
def make_plan(toy_config, monkeypatch):
    """A plan for the toy data set; the functions that train are stood in for."""
    made = []

    def pretrain(dataset, spec, partial, progress):
        made.append(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.with_suffix(".0-0.pt").touch()
        return {"state": {"w": torch.ones(2)}, "accuracy": {"train": 99.791, "test": 98}}

    def prepare_shard(shard, method, row, dataset, spec, partial, progress):
        made.append(partial)
        return {"states": [{"shard": shard}]}

    monkeypatch.setattr(cells, "pretrain", pretrain)
    monkeypatch.setattr(cells, "prepare_shard", prepare_shard)

    def make(**changes):
        config = check(replace(toy_config, **changes))
        return Plan(make_toy_dataset(), parse_tasks(config.tasks), config)

    def audit_references(dataset, spec, row, prepared, partial, progress):
        made.append(partial)
        return {"train": torch.ones(400), "test": torch.ones(100)}

    monkeypatch.setattr(cells, "audit_references", audit_references)
    make.made = made
    return make


def finish(plan, *finished):
    """Keep a result made by hand for every cell, or those given."""
    loaded, plan.f_o = plan.f_o, {"state": {"w": torch.zeros(2)}, "accuracy": {"train": 99.0, "test": 98.0}}
    for cell in finished or plan.specs:
        spec = plan.specs[cell]
        conditions = {"device": cells.device_name("cpu"), "threads": plan.config.threads, "jobs": 1}
        record = {**cells.names(cell), "metrics": {}, "time_s": 12.34, "config": spec, "conditions": conditions}
        plan.keep(cell, (record, {"state": {}, "config": spec}, [{}]))
    plan.f_o = loaded


def cell(method="Retrain", tree="cells", seed=0):
    return Cell("Toy", parse_task("class0"), method, seed, tree)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": ()}, "--dataset is empty"),
        ({"tasks": ()}, "--tasks is empty"),
        ({"methods": ()}, "--methods is empty"),
        ({"seeds": ()}, "--seeds is empty"),
        ({"seeds": (0, -1)}, "--seeds -1: must be from 0 to"),
        ({"dataset": ("../Photos",)}, "--dataset '../Photos': give the folder's name alone"),
        *((({"dataset": (name,)}), "--dataset ") for name in ("..", ".git", "a\nb", "a|b", "$x$", "a" * 300, "<b>")),
        ({"threads": 10**30}, f"--threads 1{'0' * 29}: must be from 1 to 1024"),
        ({"seeds": (10**400,)}, "--seeds 1000"),
        ({"lr": math.nan}, "--lr nan: must be from"),
        ({"override": ("CaMU.epochs=2", "CaMU.epochs=3")}, "--override CaMU.epochs is there twice"),
        ({"override": ("Boundary.lr=1e40",)}, "lr must be a number from 0 to 1000000"),
        ({"override": ("CaMU.repeats=100000000",)}, "repeats must be a whole number from 1 to 99999"),
        ({"jobs": 0}, "--jobs 0: must be from 1 to 1024"),
        ({"threads": 0}, "--threads 0: must be from 1 to 1024"),
        ({"batch_size": 0}, "--batch-size 0: must be from 1 to"),
        ({"pretrain_epochs": 0}, "--pretrain-epochs 0: must be from 1"),
        ({"retrain_epochs": -1}, "--retrain-epochs -1: must be from 1"),
        ({"image_size": 32}, "--image-size 32: must be from 33 to 4096"),
        ({"time_limit": 0.0}, "--time-limit 0.0: must be from 0.001"),
        ({"label_noise": 100.0}, "--label-noise 100.0: must be from 0 to 99.9"),
        ({"gpus_per_cell": -1}, "--gpus-per-cell -1: must be from 0 to"),
        ({"cluster": "local", "study": "paper"}, "--study paper times cells on one quiet machine"),
        ({"override": ("CaMU.lr_ce=fast",)}, "lr_ce must be a number from 0 to 1000000"),
        ({"results_dir": "/proc/nothing"}, "/proc/nothing cannot be written to"),
        ({"checkpoints_dir": "/proc/nothing"}, "/proc/nothing cannot be written to"),
    ],
)
def test_bad_settings_are_named(small_config, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(replace(small_config, **changes))


def test_settings_that_change_nothing_are_said(small_config):
    def named(**changes):
        lines = without_effect(check(replace(small_config, **changes)), make_toy_dataset())
        return [line.partition(" has no effect: ")[0] for line in lines]

    override = ("SCRUB.lr=1e-4", "CaMU.epochs=1", "SISA.shards=2")
    found = named(methods=("CaMU",), image_size=64, gpus_per_cell=0.5, override=override)
    idle = ["--gpus-per-cell", "--image-size", "--retrain-epochs", *(f"--override {override[k]}" for k in (0, 2))]
    assert found == idle
    assert named(study="ablation", methods=("CaMU", "SCRUB"), override=override[:1]) == ["--methods", idle[3]]
    assert named(study="efficiency", save_models=True) == ["--save-models"]
    assert named(study="floor", methods=("CaMU",), retrain_epochs=None) == ["--study floor"]
    assert not named() and not named(study="paper", save_models=True, kernels="portable", device="cpu")


def test_more_shards_than_samples_are_refused(make_plan):
    with pytest.raises(UserError, match="SISA: 401 shards are more than the 400 training samples"):
        make_plan(override=("SISA.shards=401",))


def test_what_is_there_twice_counts_once_and_all_methods_are_spelt_out(small_config):
    config = check(replace(small_config, seeds=(1, 0, 1), tasks=("class0", "class0"), methods=("CaMU", "all")))
    assert (config.seeds, config.tasks) == ((1, 0), ("class0",))
    assert config.methods == ("Retrain", "Original", "NegGrad", "Boundary", "T-S", "SCRUB", "SISA", "Unroll", "CaMU")


@pytest.mark.parametrize(
    "study, expected",
    [
        ("plain", {"cells": {"SISA"}, "audit": {"SISA"}}),
        ("floor", {"cells": {"SISA"}, "audit": {"SISA"}}),  # there is none without Retrain
        ("ablation", {"ablation": set(ABLATION), "cells": BASE, "audit": BASE | set(ABLATION)}),
        ("relearn", {"cells": {"SISA"}, "audit": {"SISA"}, "relearn": {"SISA"}}),
        ("efficiency", {"efficiency": {"SISA"}}),
        (
            "paper",
            {"ablation": set(ABLATION), "audit": {"SISA", *ABLATION}}
            | {tree: {"SISA"} for tree in ("cells", "relearn", "efficiency")},
        ),
    ],
)
def test_every_study_asks_for_its_cells(make_plan, study, expected):
    plan = make_plan(study=study, methods=("SISA",), seeds=(0, 1))
    assert plan.specs.keys() == {cell(m, tree, seed) for tree in expected for m in expected[tree] for seed in (0, 1)}


def test_a_cell_of_the_same_configuration_is_finished(make_plan):
    plan = make_plan(methods=("Retrain", "CaMU"))
    assert plan.todo("cells") == [cell("Retrain"), cell("CaMU")]
    finish(plan, cell("CaMU"))
    again = make_plan(methods=("Retrain", "CaMU"), jobs=2)
    assert again.todo("cells") == [cell("Retrain")] and not again.unlike
    assert again.records[cell("CaMU")].items() >= plan.provenance.items()


def test_a_cell_of_another_configuration_is_refused_unless_it_may_be_overwritten(make_plan):
    finish(make_plan(methods=("Retrain",)))
    other = make_plan(methods=("Retrain",), batch_size=64)
    message = (
        r"class0/Retrain/seed0\.json was made with another configuration \(batch_size: 32 -> 64, .*--overwrite.*--res"
    )
    with pytest.raises(UserError, match=message):
        other.refuse_unlike()
    allowed = make_plan(methods=("Retrain",), batch_size=64, overwrite=True)
    allowed.refuse_unlike()
    assert allowed.todo("cells") == [cell()]
    finish(allowed)
    assert json.loads(cell().path(allowed.config).read_text())["config"]["batch_size"] == 64


def test_differences_name_the_inner_entries():
    old, new = {"seed": 0, "row": {"lr": 1, "epochs": 2}, "a": 1}, {"seed": 0, "row": {"lr": 3, "epochs": 2}, "b": None}
    assert differences(old, new) == ["a: 1 -> None", "lr: 1 -> 3"]


def test_a_record_names_the_pre_unlearning_model_that_its_cell_started_from(make_plan, tmp_path):
    plan = make_plan(methods=("CaMU",))
    finish(plan)
    record = json.loads(cell("CaMU").path(plan.config).read_text())
    assert record["f_o"] == {"digest": digest({"w": torch.zeros(2)}), "accuracy": {"train": 99.0, "test": 98.0}}
    assert "f_o" not in json.loads(cell("CaMU", "audit").path(plan.config).read_text())


def test_a_model_that_came_with_the_repository_is_not_trained_again(make_plan, monkeypatch, tmp_path):
    monkeypatch.setattr(harness.plan, "MODELS", tmp_path)
    plan = make_plan(methods=("Retrain",))
    known = {"state": {"w": torch.zeros(2)}, "accuracy": {"train": 1.0, "test": 2.0}}
    save_tensors(tmp_path / "Toy" / f"pretrained-{cells.key(plan.pretrained_spec)}.pt", known)
    plan.prepare()
    assert make_plan.made == [] and plan.f_o["accuracy"] == known["accuracy"]
    other = make_plan(methods=("Retrain",), pretrain_epochs=3)
    other.prepare()
    assert len(make_plan.made) == 1


def test_what_another_run_has_saved_in_the_meantime_is_not_replaced(make_plan):
    ours, theirs = make_plan(methods=("CaMU",)), make_plan(methods=("CaMU",), override=("CaMU.epochs=7",))
    finish(theirs, cell("CaMU"))
    saved = cell("CaMU").path(ours.config).read_bytes()
    with pytest.raises(
        UserError, match=r"made with another configuration \(epochs: 7 -> .* by python main.py .*use --overwrite"
    ):
        finish(ours, cell("CaMU"))
    assert cell("CaMU").path(ours.config).read_bytes() == saved
    finish(make_plan(methods=("CaMU",), overwrite=True), cell("CaMU"))
    assert cell("CaMU").path(ours.config).read_bytes() != saved


def test_runs_side_by_side_make_a_checkpoint_once(make_plan, monkeypatch):
    plans, pretrain = [make_plan(methods=("Retrain",)) for _ in range(2)], cells.pretrain
    monkeypatch.setattr(cells, "pretrain", lambda **given: time.sleep(0.3) or pretrain(**given))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Plan.prepare, plans))
    assert len(make_plan.made) == 1 and all(plan.f_o["accuracy"]["test"] == 98 for plan in plans)


def test_a_damaged_cell_is_made_again(make_plan, capsys):
    finish(plan := make_plan(methods=("Retrain",)))
    cell().path(plan.config).write_text("{")
    assert make_plan(methods=("Retrain",)).todo("cells") == [cell()]
    assert "seed0.json.damaged, to be made again" in capsys.readouterr().out


def test_saved_models_follow_their_cells(make_plan):
    """A missing one is made again beside the finished record, which stays as it is."""
    finish(plan := make_plan(methods=("Retrain",)))
    path, model = cell().path(plan.config), cell().model_path(plan.config)
    assert not model.exists()
    save_record(path, read_record(path.read_bytes(), path) | {"time_s": 56.78})
    before = path.read_text()
    plan = make_plan(methods=("Retrain",), save_models=True)
    assert plan.todo("cells") == [cell()]
    finish(plan)
    assert path.read_text() == before and load_tensors(model)["config"] == plan.specs[cell()]
    assert not make_plan(methods=("Retrain",), save_models=True).todo("cells")
    elsewhere = {"methods": ("Retrain",), "results_dir": f"{plan.config.results_dir}-2", "batch_size": 64}
    with pytest.raises(UserError, match=r"seed0\.pt holds a model of another configuration; use --overwrite"):
        make_plan(**elsewhere, save_models=True).refuse_unlike()
    make_plan(**elsewhere).refuse_unlike()
    finish(other := make_plan(methods=("Retrain",), save_models=True, batch_size=64, overwrite=True))
    assert load_tensors(model)["config"] == other.specs[cell()]


def test_a_cell_that_ends_at_other_numbers_when_it_is_made_again_is_replaced(make_plan):
    """As on another processor: the record, the model and the outputs are of one and the same model."""
    finish(plan := make_plan(methods=("Retrain",)))
    path = cell().path(plan.config)
    record = read_record(path.read_bytes(), path)
    save_record(path, record | {"metrics": {"A_r": 12.34}, "time_s": 56.78})
    finish(make_plan(methods=("Retrain",), save_models=True))
    again = read_record(path.read_bytes(), path)
    assert again["metrics"] == record["metrics"] and again["time_s"] != 56.78


def test_relearning_needs_the_models_only_until_it_is_finished(make_plan):
    again = cell(tree="relearn")
    finish(plan := make_plan(methods=("Retrain",), study="relearn"), cell())
    assert plan.relearning(again)["stored"]["config"] == plan.specs[cell()]
    cell().model_path(plan.config).unlink()
    assert make_plan(methods=("Retrain",), study="relearn").todo("cells") == [cell()]
    finish(plan, again)
    plan = make_plan(methods=("Retrain",), study="relearn")
    assert not plan.todo("cells") and not plan.todo("relearn")
    assert plan.records[again]["f_o"] == plan.records[cell()]["f_o"] != {}


def test_relearning_takes_no_model_of_another_configuration(make_plan):
    plan = make_plan(methods=("Retrain",), study="relearn")
    save_tensors(cell().model_path(plan.config), {"config": plan.specs[cell()] | {"batch_size": 64}})
    with pytest.raises(UserError, match=r"seed0\.pt is of another configuration"):
        plan.relearning(cell(tree="relearn"))


def test_a_timing_does_not_go_on_from_an_interrupted_plain_run_and_has_no_cell_beside_it(make_plan):
    plan = make_plan(methods=("Retrain",), study="paper", jobs=4)
    plan.f_o = {"state": {}}
    plain, timed = (plan.unlearning(cell(tree=tree)) for tree in ("cells", "efficiency"))
    assert plain["partial"] != timed["partial"] and (plain["jobs"], timed["jobs"]) == (4, 1)
    plan.config = replace(plan.config, cluster="local")
    assert plan.unlearning(cell())["jobs"] is None


def test_states_of_an_interrupted_cell_go_when_it_is_finished(make_plan):
    plan = make_plan(methods=("Retrain", "SISA"))
    states = [plan.partial_path(cell()), plan.partial_path(cell("SISA")).with_suffix(".0-1.pt")]
    for state in states:
        save_tensors(state, {})
    finish(plan, cell("SISA"))
    assert [state.exists() for state in states] == [True, False]


def test_checkpoints_are_made_once_for_what_is_not_finished(make_plan, capsys):
    plan = make_plan(methods=("Retrain", "SISA"))
    plan.prepare()
    assert "model, accuracy 99.79 % (train), 98.00 % (test)" in capsys.readouterr().out
    assert plan.prepared == {"SISA": [[{"shard": 0}], [{"shard": 1}]]} and len(make_plan.made) == 4
    folder = make_plan.made[0].parent
    names = sorted(path.name.rpartition("-")[0] for path in folder.glob("*.pt"))
    assert names == ["SISA-shard0", "SISA-shard1", "pretrained", "references"]  # and no partial state

    make_plan(methods=("Retrain", "SISA"), seeds=(1,)).prepare()
    assert len(make_plan.made) == 4
    make_plan(methods=("Retrain",), pretrain_epochs=2).prepare()
    assert len(make_plan.made) == 5
    next(folder.glob("SISA-shard1*")).write_bytes(b"no tensors")
    make_plan(methods=("Retrain", "SISA")).prepare()
    assert len(make_plan.made) == 6 and len(list(folder.glob("*.damaged"))) == 1


def test_finished_cells_need_no_checkpoint(make_plan, tmp_path):
    """Nor its folder; nor does relearning. CaMU needs no shards."""
    finish(plan := make_plan(methods=("SISA",), study="relearn"), cell("SISA"), cell("SISA", "audit"))
    plan.prepare()
    make_plan(methods=("SISA",)).prepare()
    assert plan.todo("relearn") and not make_plan.made and not (tmp_path / "checkpoints/Toy").exists()
    make_plan(methods=("CaMU",), override=("SISA.shards=401",)).prepare()  # for 400 samples
    assert len(make_plan.made) == 1
    with pytest.raises(UserError, match="SISA: 401 shards are more than the 400 training samples"):
        make_plan(methods=("SISA",), override=("SISA.shards=401",))


def test_an_audit_reads_outputs_and_they_are_made_again_where_they_are_missing(make_plan):
    finish(plan := make_plan(methods=("Retrain", "CaMU")), cell(), cell("CaMU"))
    assert not plan.todo("cells") and plan.todo("audit") == [cell(tree="audit"), cell("CaMU", "audit")]
    found = plan.auditing(cell("CaMU", "audit"))
    assert (found["outputs"], found["retrain"], found["references"]) == ([{}], [{}], None)
    assert plan.auditing(cell(tree="audit"))["retrain"] is None  # it is not compared with itself
    assert all(map(plan.is_ready, plan.todo("audit")))
    plan.outputs_path(cell()).unlink()
    assert plan.todo("cells") == [cell()]  # CaMU's audit needs it too
    assert not any(map(plan.is_ready, plan.todo("audit")))  # as long as a time limit keeps it away
    finish(plan, cell(tree="audit"))
    assert plan.todo("cells") == [cell()]
    finish(plan, cell("CaMU", "audit"))
    assert not plan.todo("cells") and not plan.todo("audit")


def test_an_audit_from_more_is_kept_and_one_from_less_or_of_another_cell_is_made_again(make_plan):
    finish(make_plan(methods=("Retrain", "SISA", "CaMU")))
    one = cell("CaMU", "audit")
    assert one in make_plan(methods=("CaMU",)).records and one in make_plan(methods=("Retrain", "CaMU")).records
    quick = ("SISA.shards=3", "SISA.slices=2", "CaMU.repeats=1")
    assert one not in make_plan(methods=("Retrain", "SISA", "CaMU"), override=quick).records
    finish(plan := make_plan(methods=("Retrain", "CaMU"), batch_size=64, overwrite=True))
    assert set(plan.specs[one]) == {"cell", "retrain"}
    assert one not in make_plan(methods=("Retrain", "SISA", "CaMU"), batch_size=64).records


def test_what_an_earlier_audit_has_besides_is_kept_if_it_is_of_the_same_cell(make_plan):
    quick = ("SISA.shards=2", "SISA.slices=2", "CaMU.repeats=1")
    finish(make_plan(methods=("Retrain", "SISA", "CaMU")))
    changed = make_plan(methods=("Retrain", "CaMU"), retrain_epochs=2, overwrite=True)
    one = cell("CaMU", "audit")
    assert one in changed.todo("audit") and changed.auditing(one)["earlier"]["config"].keys() >= {"references"}
    other = make_plan(methods=("CaMU",), override=(*quick, "CaMU.epochs=1"), overwrite=True)
    assert other.auditing(one)["earlier"] is None


def test_the_ablation_needs_no_shards_and_one_shard_is_no_reference(make_plan):
    plan = make_plan(study="ablation", methods=tuple(METHODS))
    assert not any("references" in plan.specs[one] for one in plan.specs if one.tree == "audit")
    assert plan.specs[cell("Finetune", "audit")]["cell"] == cells.key(plan.specs[cell("Finetune", "ablation")])
    quick = ("SISA.shards=1", "SISA.slices=2", "CaMU.repeats=1")
    assert "references" not in make_plan(methods=("SISA",), override=quick).specs[cell("SISA", "audit")]


def test_damaged_references_are_made_again_from_the_shards(make_plan):
    make_plan(methods=("Retrain", "SISA")).prepare()
    (path,) = make_plan.made[0].parent.glob("references*.pt")
    path.write_bytes(b"no tensors")
    finish(plan := make_plan(methods=("Retrain", "SISA")), cell(), cell("SISA"))
    plan.prepare()
    assert len(plan.references["train"]) == 400 and plan.prepared == {"SISA": [[{"shard": 0}], [{"shard": 1}]]}
    again = make_plan(methods=("Retrain", "SISA"))
    again.prepare()
    assert len(again.references["test"]) == 100 and again.prepared == {}  # the shards are not even loaded


def test_one_seed_of_retrain_has_a_floor(make_plan):
    plan = make_plan(methods=("Retrain", "CaMU"), seeds=(3, 1), study="floor")
    assert [c for c in plan.specs if c.method == "Floor"] == [cell("Floor", tree, 3) for tree in ("cells", "audit")]
    assert plan.specs[cell("Floor", "audit", 3)]["retrain"] == cells.key(plan.specs[cell(seed=3)])


def test_a_dry_run_lists_what_is_done_missing_and_unlike_and_the_last_times_here(make_plan, tmp_path):
    finish(plan := make_plan(methods=("Retrain", "CaMU"), seeds=(0, 1, 2)), cell(), cell(seed=2), cell("CaMU"))
    path = cell(seed=2).path(plan.config)
    save_record(path, read_record(path.read_bytes(), path) | {"time_s": 56.78})
    os.utime(cell().path(plan.config), (1e9, 1e9))
    text = make_plan(methods=("Retrain", "CaMU", "SISA"), seeds=(0, 1, 2), dry_run=True).listing().splitlines()
    assert "done, missing, or made with another configuration" in text[0]
    assert [line.split() for line in text[2:]] == [
        ["cells", "class0", "Retrain", "0", "2", "1", "56.8", "-"],
        ["cells", "class0", "CaMU", "0", "1", "2", "12.3", "-"],
        ["cells", "class0", "SISA", "-", "0", "1", "2", "-", "-"],
    ]
    (line,) = make_plan(methods=("CaMU",), batch_size=64, dry_run=True).listing().splitlines()[2:]
    assert re.fullmatch(r" *cells +class0 +CaMU +- +- +12\.3 +0 \(batch_size: 32 -> 64, pretrained: .*\)", line)
    assert make_plan(methods=("CaMU",), threads=2, dry_run=True).listing().split().count("12.3") == 0
    content = read_record(path.read_bytes(), path)
    content["conditions"]["device"] = "another processor"
    save_record(path, content)
    assert "12.3" in make_plan(methods=("Retrain",), dry_run=True).listing()  # of the newest cell made here


def test_a_dry_run_makes_no_folder(make_plan, tmp_path):
    make_plan(dry_run=True).listing()
    assert not list(tmp_path.iterdir())
