"""The program as a user runs it: what it prints, what it writes, and how it ends."""

import ast
import json
import re
import resource
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, records, write_tree
from PIL import Image

import main
from camu import ABLATION
from data import Images
from harness import cells
from harness.datasets import load
from harness.store import UserError
from reporting.summary import write_csv

QUICK = ("--pretrain-epochs", "1", "--retrain-epochs", "1", "--quiet")


def run_as_script(name, *arguments):
    """What `python name arguments` does, in this process."""
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.fixture(autouse=True)
def kept_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.slow
def test_a_first_run(tmp_path, capsys, monkeypatch):
    """All methods on the data set that needs no download, with the settings of config.py but for shorter trainings."""
    monkeypatch.chdir(tmp_path)
    shorter = [f"{method}.epochs=1" for method in ("NegGrad", "T-S", "SCRUB", "Unroll", "CaMU")]
    run_as_script("main.py", "--pretrain-epochs", "3", "--retrain-epochs", "2", "--override", *shorter)
    found = records(tmp_path / "runs")
    assert len(found) == 2 * 9
    for path in found:
        audit = json.loads(Path(tmp_path, "runs/audit", *path.parts[1:]).read_text())["metrics"]
        assert list(audit) == ["RMIA_AUC", "RMIA_TPR1", *(["JS_f", "churn"] if "Retrain" not in path.parts else [])]
    for record in found.values():
        class_removal = ["A_ts_r", "A_ts_f"] if record["task"] == "class0" else []
        assert list(record["metrics"]) == ["A_r", "A_f", "A_ts", *class_removal, "MIA"]
        assert all(0 <= value <= 100 for value in record["metrics"].values())
    forgotten = found[Path("cells/OptDigits/class0/CaMU/seed0.json")]["metrics"]
    assert forgotten["A_f"] == 0 and forgotten["A_ts_r"] > 90  # A_f of the model before is near 100
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "OptDigits: 1,437 training and 360 test images, 10 classes; model CNN at 28x28"
    assert re.search(r"pre-unlearning model, accuracy \d+\.\d\d % \(train\), \d+\.\d\d % \(test\)", lines[1])
    plain = [line for line in lines if not line.startswith("(Retrain is faster")]  # so short trainings may say that
    assert len(plain) <= 40 and max(map(len, plain)) <= 80, printed.out
    for task in ("random10", "class0"):
        assert re.search(
            rf"\nOptDigits, {task}: 1 seed, metrics in percent, time ÷ Retrain's \d+\.\d\d s\n", printed.out
        )
    assert "Cells: runs/cells.csv, and one JSON file each in runs/ (cells, audit)" in lines
    table = pd.read_csv("runs/cells.csv")
    assert len(table) == 18 and table.RMIA_AUC.notna().all() and table.f_o.nunique() == 1
    assert lines[-1] == "Tables and figures beside the paper's: python report.py --results-dir runs"
    assert "it/s" not in printed.err and "cell/s" not in printed.err  # no bars where there is no terminal


def test_every_record_says_how_it_was_made(toy_config, tmp_path):
    main.main(replace(toy_config, methods=("CaMU",)))
    (record,) = records(tmp_path / "results").values()
    assert record["command"].startswith("python main.py --dataset Toy --tasks class0 --methods CaMU --seeds 0 --study ")
    assert record["commit"] == cells.commit()


def test_the_table_of_all_cells_is_current_after_every_cell(toy_config, tmp_path, monkeypatch):
    """Those of an earlier run stay in it. A cell that cannot be read is named, and stops nothing."""
    main.main(replace(toy_config, methods=("Original",)))
    seen = []
    monkeypatch.setattr(main, "write_csv", lambda folder, **_: write_csv(folder) or seen.append(read_csv(folder)))
    main.main(replace(toy_config, methods=("CaMU", "Boundary")))
    assert [len(table) for table in seen[:2]] == [2, 3]
    assert set(seen[-1].method) == {"Original", "CaMU", "Boundary"} and seen[-1].A_r.notna().all()
    (tmp_path / "results/cells.csv").unlink()
    main.main(replace(toy_config, methods=("CaMU",)))  # which is finished
    assert len(read_csv(tmp_path / "results")) == 3
    (tmp_path / "results/cells/Toy/class0/Original/seed0.json").write_text("{}")
    main.main(replace(toy_config, methods=("Unroll",)))
    assert set(read_csv(tmp_path / "results").method) == {"Original", "CaMU", "Boundary"}


def read_csv(folder):
    return pd.read_csv(Path(folder, "cells.csv"))


def test_finished_cells_need_no_work(toy_config, tmp_path, monkeypatch, capsys):
    """Without their models too: nothing is trained or prepared, no checkpoint folder made, no cell touched."""
    config = replace(toy_config, methods=("SISA", "CaMU"))
    main.main(config)
    table = capsys.readouterr().out.partition("class0: 1 seed")[2]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    shutil.rmtree(tmp_path / "checkpoints")
    for name in ("pretrain", "prepare_shard", "run_cell"):
        monkeypatch.setattr(cells, name, lambda name=name, **_: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(main, "run_cell", cells.run_cell)
    main.main(replace(config, seeds=(0, 0)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")} == before
    assert not list((tmp_path / "checkpoints").iterdir())
    printed = capsys.readouterr().out
    assert printed.partition("class0: 1 seed")[2] == table and "pre-unlearning model" not in printed


def test_cells_of_another_configuration_are_refused_before_any_work(toy_config, tmp_path, monkeypatch):
    config = replace(toy_config, methods=("Retrain",))
    main.main(config)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "pretrain", lambda **_: pytest.fail("trained"))
        with pytest.raises(UserError, match=r"batch_size: 32 -> 64.*--overwrite"):
            main.main(replace(config, batch_size=64))
    main.main(replace(config, batch_size=64, overwrite=True))
    (record,) = records(tmp_path / "results").values()
    assert record["config"]["batch_size"] == 64


def test_a_dry_run_lists_the_cells_of_all_data_sets_and_does_nothing(toy_config, tmp_path, monkeypatch, capsys):
    main.main(replace(toy_config, methods=("Retrain",)))
    capsys.readouterr()
    for name in ("pretrain", "prepare_shard", "run_cell"):
        monkeypatch.setattr(cells, name, lambda **_: pytest.fail("trained"))
    config = replace(toy_config, methods=("Retrain", "SISA"), dry_run=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    main.main(config)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    text = capsys.readouterr().out.partition("other configuration\n")[2]
    rows = [line.split() for line in text.splitlines()]
    assert [row[:5] for row in rows] == [
        ["cells", "class0", "Retrain", "0", "-"],
        ["cells", "class0", "SISA", "-", "0"],
    ]
    assert re.fullmatch(r"\d+\.\d", rows[0][5]) and rows[1][5] == "-"
    main.main(replace(config, batch_size=64))
    assert re.search(r"Retrain +- +- +\d+\.\d +0 \(batch_size: 32 -> 64, ", capsys.readouterr().out)
    main.main(replace(config, results_dir=str(tmp_path / "none"), checkpoints_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_of_all_studies(toy_config, tmp_path, capsys):
    config = replace(toy_config, methods=("Retrain", "CaMU"), study="paper")
    main.main(config)
    found = records(tmp_path / "results")
    kinds = {(path.parts[0], path.parts[3]) for path in found}
    others = {("ablation", name) for name in ABLATION} | {("cells", "Floor")}
    assert kinds == others | {(t, m) for t in ("cells", "relearn", "efficiency") for m in ("Retrain", "CaMU")}
    for method in ("Retrain", "CaMU"):
        curve, cell, timed = (
            found[Path(tree, "Toy/class0", method, "seed0.json")] for tree in ("relearn", "cells", "efficiency")
        )
        assert len(curve["A_r"]) == len(curve["A_f"]) == 11 and timed["metrics"] == cell["metrics"]
        assert (curve["A_r"][0], curve["A_f"][0]) == (cell["metrics"]["A_r"], cell["metrics"]["A_f"])
    printed = capsys.readouterr().out
    for text in (
        "class0: 1 seed",
        "ablation, 1 seed",
        "efficiency, 1 seed",
        "relearn, 1 seed, the most that accuracies",
    ):
        assert f"Toy, class0: {text.removeprefix('class0: ')}" in printed
    assert "(cells, ablation, audit, relearn, efficiency)" in printed
    floor = json.loads((tmp_path / "results/audit/Toy/class0/Floor/seed0.json").read_text())["metrics"]
    assert floor.keys() == {"JS_f", "churn"}  # RMIA needs SISA's shards
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    shutil.rmtree(tmp_path / "checkpoints")  # as after a fresh clone
    main.main(config)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_timing_has_nothing_beside_it(toy_config, monkeypatch):
    jobs = []
    monkeypatch.setattr(main, "run_all", lambda function, calls, config, *_: jobs.append(config.jobs) or [])
    monkeypatch.setattr("harness.plan.Plan.prepare", lambda _: None)
    monkeypatch.setattr(main, "print_tables", lambda *_: None)
    main.main(replace(toy_config, study="paper", jobs=2))
    assert jobs == [2, 2, 1, 2, 1]


def test_a_limited_run_starts_what_fits_in_the_order_of_value_and_is_gone_on_with(
    toy_config, tmp_path, monkeypatch, capsys
):
    """Seed by seed, Retrain and CaMU first. A cell is not started if its last time is longer than what is left."""
    config = replace(toy_config, methods=("T-S", "CaMU", "Retrain"), seeds=(0, 1), time_limit=50.0)
    started, clock = [], iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))

    def run_cell(function=main.run_cell, **given):
        started.append((given["cell"].method, given["cell"].seed))
        record, *rest = function(**given)
        return record | {"time_s": 45.0 if given["cell"].method == "CaMU" else 1.0}, *rest

    monkeypatch.setattr(main, "run_cell", run_cell)
    main.main(config)  # looks at the clock once a cell: at 10, 20 ... seconds
    assert started == [("CaMU", 0), ("Retrain", 0), ("T-S", 0)]  # at 40 s CaMU would need 45
    printed = capsys.readouterr().out
    assert "Toy: --time-limit leaves 3 cells of cells/ undone; next is class0 CaMU seed 1" in printed
    assert "Toy, class0: 1 seed" in printed
    audits = sorted((tmp_path / "results/audit/Toy/class0").glob("*/seed*.json"))
    assert [path.parent.name for path in audits] == ["CaMU", "Retrain", "T-S"]

    main.main(replace(config, time_limit=None))
    assert started[3:] == [("CaMU", 1), ("Retrain", 1), ("T-S", 1)]
    assert len(list((tmp_path / "results/audit/Toy/class0").glob("*/seed*.json"))) == 6


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision_is_part_of_a_cell_and_changes_its_numbers(toy_config, tmp_path, precision):
    main.main(replace(toy_config, methods=("CaMU", "T-S"), precision=precision))
    found = records(tmp_path / "results")
    tf32 = " with TF32 convolutions" if precision == "float32" and torch.cuda.is_available() else ""
    assert all(record["config"]["precision"] == precision + tf32 for record in found.values())
    assert found[Path("cells/Toy/class0/CaMU/seed0.json")]["metrics"]["A_r"] > 50


@pytest.mark.slow
def test_own_data_run_end_to_end(run_main, tmp_path):
    write_tree(tmp_path / "photos", per_class=8, sizes=((30, 20), (40, 40)))
    own = ("--dataset", "Own", "--data-root", tmp_path / "photos", "--image-size", "33", *QUICK)
    few = ("--methods", "SISA", "CaMU", "--override", "CaMU.repeats=2", "SISA.shards=2", "SISA.slices=1")
    done = run_main(*own, "--tasks", "random20", "class1", *few)
    assert done.returncode == 0, done.stderr
    assert "Own: 24 training and 24 test images, 3 classes; model ResNet-18 at 33x33" in done.stdout
    assert len(records(tmp_path / "results")) == 2 * 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--dataset", "Nowhere"), "no data set 'Nowhere'"),
        (("--tasks", "random100"), "100 % is not between 0 and 100"),
        (("--tasks", "everything"), "task 'everything' is unknown"),
        (("--tasks", "class12"), "no class 12; its classes are 0 to 9"),
        (("--seeds",), "--seeds is empty"),
        (("--override", "CaMU.lr=1"), "CaMU has no 'lr', only epochs"),
        (("--results-dir", "/proc/nothing"), "/proc/nothing cannot be written to"),
        pytest.param(
            ("--device", "cuda"),
            "no such CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
        ),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, arguments, message):
    folders = [f"--{name}-dir={tmp_path / name}" for name in ("results", "checkpoints")]
    with pytest.raises(SystemExit) as ended:
        run_as_script("main.py", *folders, *arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err and "accuracy" not in printed.out


def test_a_choice_that_does_not_exist_is_named_with_those_that_do(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        run_as_script("main.py", "--methods", "CaMU", "Magic")
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and "invalid choice 'Magic' for argument '--methods'" in printed
    assert "'SCRUB'" in printed and "--help" in printed


def test_a_full_disk_ends_in_one_line(tmp_path, capsys):
    """Files cannot grow beyond a limit, as if the disk was full: the checkpoint does not fit."""
    folders = (f"--results-dir={tmp_path / 'runs'}", f"--checkpoints-dir={tmp_path / 'full'}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            run_as_script("main.py", *folders, *QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count("\n") == 1
    assert re.match(r"error: .*/full/OptDigits/pretrained-.* cannot be written: File too large", printed)
    assert [path.name for path in (tmp_path / "full/OptDigits").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "program, module, name",
    [
        ("main.py", "config.py", "Config"),
        ("report.py", "report.py", "Settings"),
        ("benchmarks/tune.py", "benchmarks/tune.py", "Arguments"),
        ("benchmarks/speed.py", "benchmarks/speed.py", "Arguments"),
    ],
)
def test_help_explains_every_field(capsys, monkeypatch, program, module, name):
    """With the text that stands below the field in the source."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        run_as_script(program, "--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ast.get_docstring(ast.parse((ROOT / program).read_text())).split("\n")[0] in shown
    (found,) = [
        node
        for node in ast.parse((ROOT / module).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    fields = found.body[1:]
    assert len(fields) % 2 == 0 and len(fields) >= 4
    for field, text in zip(fields[::2], fields[1::2]):
        assert isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr), f"{ast.unparse(field)}: no text below"
        assert f" --{field.target.id.replace('_', '-')}" in shown
        assert len(text.value.value) > 10 and " ".join(text.value.value.split()) in shown


@pytest.mark.slow
def test_digit(real_data, toy_config, tmp_path, monkeypatch):
    """The path of the paper's main data set, on a part of its images."""
    whole = load("Digit", real_data)
    train, test = (Images(part.pixels[:n], part.labels[:n]) for part, n in ((whole.train, 6000), (whole.test, 2000)))
    monkeypatch.setattr(main, "load", lambda *_, **__: replace(whole, train=train, test=test))
    main.main(replace(toy_config, dataset=("Digit",), methods=("CaMU",), override=(), pretrain_epochs=3))
    (record,) = records(tmp_path / "results").values()
    assert record["metrics"]["A_f"] < 5 and record["metrics"]["A_ts_r"] > 90


@pytest.mark.slow
def test_cifar(real_data, tmp_path, capsys):
    """Some real CIFAR-10 images through ResNet-18 and the 224-pixel transforms."""
    for part, count in (("train", 7), ("test", 3)):
        strips = sorted((real_data / "strips/cifar10" / part).glob("*-00.webp"))[:3]
        if not strips:
            pytest.skip("needs CIFAR-10")
        for strip in strips:
            folder = tmp_path / "root/CIFAR10" / part / strip.stem
            folder.mkdir(parents=True)
            image = Image.open(strip).convert("RGB")
            for i in range(count):
                image.crop((0, 32 * i, 32, 32 * i + 32)).save(folder / f"{i}.png")
    folders = (f"--{name}-dir={tmp_path / name}" for name in ("results", "checkpoints"))
    few = ("--tasks", "random10", "--methods", "CaMU", "--override", "CaMU.epochs=1")
    run_as_script("main.py", "--dataset", "CIFAR10", "--data-root", tmp_path / "root", *folders, *few, *QUICK)
    assert "model ResNet-18 at 224x224" in capsys.readouterr().out
    (record,) = records(tmp_path / "results").values()
    assert list(record["metrics"]) == ["A_r", "A_f", "A_ts", "MIA", "A_r_clean", "A_f_clean"]
