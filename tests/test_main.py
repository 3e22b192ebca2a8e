import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from conftest import ROOT, same_weights
from test_data import write_tree

import main
import models
from baselines import METHODS
from config import Config, UserError, hyperparameters, parse_override, run_script, training_row
from data import generator, load, parse_task, save_tensors
from experiment import Cell, differences, load_or_set_aside, read_record, use_machine
from metrics import METRICS
from training import train

QUICK = ("--pretrain-epochs", "1", "--retrain-epochs", "1", "--quiet")


def records(folder):
    return {path.relative_to(folder): json.loads(path.read_text()) for path in sorted(folder.rglob("seed*.json"))}


def test_default_run(run_main, tmp_path):
    """`python main.py` as committed: no download, a table a task, a JSON file a cell."""
    done = run_main()
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "results")
    assert len(found) == 2 * len(METHODS)
    for record in found.values():
        names = METRICS["class" if record["task"] == "class0" else "random"]
        assert list(record["metrics"]) == list(names)
        assert all(0 <= value <= 100 for value in record["metrics"].values())
        assert record["time_s"] > 0 and record.keys() >= {"dataset", "task", "method", "seed", "config", "versions"}
        assert record["versions"].keys() == {"python", "torch", "device", "subnormal numbers"}
    forgotten = found[Path("cells/OptDigits/class0/CaMU/seed0.json")]
    assert forgotten["metrics"]["A_f"] == 0 and forgotten["metrics"]["A_ts_r"] > 95  # A_f of f_o is 100
    assert re.search(r"pre-unlearning model, accuracy \d+\.\d\d %", done.stdout)
    for text in ("OptDigits, random10", "OptDigits, class0", "A_ts_f", "gap", "time_s", f"{tmp_path}/results/ (cells)"):
        assert text in done.stdout
    assert "it/s" not in done.stderr  # no bars where there is no terminal


def test_cells_compute_with_vanishing_numbers_as_zero():
    use_machine({"threads": 1, "device": "cpu"})
    assert torch.tensor([1e-39]).mul(1).count_nonzero() == 0


def test_finished_cells_are_reused_and_others_refused(small_config, capsys, monkeypatch):
    config = replace(small_config, tasks=("class0",), methods=("Retrain",))
    main.main(config)
    path = Cell("OptDigits", parse_task("class0"), "Retrain", 0).path(config)
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("main.run_cell", lambda **_: pytest.fail("run again"))
        main.main(replace(config, seeds=(0, 0)))
        with pytest.raises(UserError, match=r"batch_size: 32 -> 64.*--overwrite"):
            main.main(replace(config, batch_size=64))
    assert path.read_text() == before
    main.main(replace(config, batch_size=64, overwrite=True))
    assert json.loads(path.read_text())["config"]["batch_size"] == 64
    assert "OptDigits, class0: 1 seed" in capsys.readouterr().out


def test_numbers_do_not_depend_on_what_ran_before(small_config, tmp_path):
    alone = replace(small_config, tasks=("random10",), methods=("CaMU",), results_dir=str(tmp_path / "alone"))
    main.main(replace(small_config, seeds=(1, 0), methods=("Retrain", "CaMU")))
    main.main(alone)
    (place, record), *rest = records(tmp_path / "alone").items()
    assert not rest
    assert record["metrics"] == records(tmp_path / "results")[place]["metrics"]


def test_saved_model_predicts_as_it_was_evaluated(small_config, tmp_path):
    config = replace(small_config, tasks=("class0",), methods=("Retrain", "SISA"), save_models=True)
    main.main(config)
    dataset = load("OptDigits", "")
    for place, record in records(tmp_path / "results").items():
        path = tmp_path / "checkpoints/unlearned" / place.relative_to("cells").with_suffix(".pt")
        model = models.load(path)
        predicted = model(dataset.test.batch(torch.arange(360)))[0].argmax(1)
        found = 100 * (predicted == dataset.test.labels).double().mean().item()
        assert found == pytest.approx(record["metrics"]["A_ts"])


def test_saved_model_follows_its_cell(small_config):
    config = replace(small_config, tasks=("class0",), methods=("Retrain",), save_models=True)
    cell = Cell("OptDigits", parse_task("class0"), "Retrain", 0)
    main.main(config)
    main.main(replace(config, batch_size=64, overwrite=True))
    stored = torch.load(cell.model_path(config), weights_only=True)
    assert stored["config"] == read_record(cell.path(config))["config"] and stored["config"]["batch_size"] == 64


def test_own_data_run_end_to_end(run_main, tmp_path):
    write_tree(tmp_path / "photos", per_class=12, sizes=((30, 20), (40, 40)))
    own = ("--dataset", "Own", "--data-root", tmp_path / "photos", "--image-size", "33", *QUICK)
    few = ("--methods", "Retrain", "SISA", "CaMU", "--override", "CaMU.repeats=2", "SISA.shards=2")
    done = run_main(*own, "--tasks", "random20", "class1", *few)
    assert done.returncode == 0, done.stderr
    assert "Own: 36 training and 36 test images, 3 classes; model ResNet-18 at 33x33" in done.stdout
    assert len(records(tmp_path / "results")) == 2 * 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--dataset", "Nowhere"), "no data set 'Nowhere'"),
        (("--methods", "Magic"), "no method 'Magic'; choose from Retrain"),
        (("--tasks", "random0"), "0 % is not between 0 and 100"),
        (("--tasks", "random100"), "100 % is not between 0 and 100"),
        (("--tasks", "everything"), "task 'everything' is unknown"),
        (("--tasks", "class12"), "no class 12; its classes are 0 to 9"),
        (("--seeds",), "--seeds is empty"),
        (("--tasks",), "--tasks is empty"),
        (("--device", "tpu"), "--device tpu: must be auto, cpu or cuda"),
        (("--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--override", "CaMU.lr_ce=fast"), "'fast' is no number"),
        (("--image-size", "32"), "--image-size 32: must be at least 33"),
        (("--dataset", "../Photos"), "--dataset ../Photos: give the folder's name alone"),
        (("--gpus-per-cell", "-1"), "--gpus-per-cell -1: must not be negative"),
        (("--results-dir", "/proc/nothing"), "/proc/nothing cannot be written to"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, arguments, message):
    folders = [f"--{name}-dir={tmp_path / name}" for name in ("results", "checkpoints")]
    with pytest.raises(SystemExit) as ended:
        run_script(main.main, tyro.cli(Config, args=[*folders, *arguments]))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err and "accuracy" not in printed.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_asked_for_in_vain(run_main):
    done = run_main("--device", "cuda")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no CUDA device" in done.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("CaMU.lr=1", "CaMU has no 'lr', only epochs"),
        ("Magic.lr=1", "no method 'Magic'"),
        ("CaMU.epochs=1.5", "CaMU.epochs=1.5: epochs must be a whole number of at least 1"),
        ("SISA.shards=0", "SISA.shards=0: shards must be a whole number of at least 1"),
        ("CaMU.lr_ce=-1", "lr_ce must be a number of at least 0"),
        ("CaMU.lr_ce=nan", "lr_ce must be a number of at least 0"),
        ("NegGrad.a=5", "a must be from 0 to 1"),
        ("T-S.remain_fraction=7", "remain_fraction must be from 0 to 1"),
        ("SCRUB.temperature=0", "temperature must be above 0"),
    ],
)
def test_bad_overrides(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_override(text)


def test_full_disk_ends_in_one_line(run_main, tmp_path):
    """Files cannot grow beyond a limit, as if the disk was full: the checkpoint does not fit."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        f"sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'main.py'; runpy.run_path({str(ROOT / 'main.py')!r}, "
        "run_name='__main__')"
    )
    options = ("--pretrain-epochs", "1", "--quiet", "--checkpoints-dir", str(tmp_path / "full"))
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.match(r"error: .*/full/OptDigits/pretrained-.* cannot be written: File too large", done.stderr)
    assert not list((tmp_path / "full/OptDigits").iterdir())


def test_help_explains_every_field(run_main):
    text = run_main("--help").stdout
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize("content", ['{"metrics": ', "{}", "[]", "3"])
def test_damaged_cell_is_set_aside(tmp_path, capsys, content):
    path = tmp_path / "seed0.json"
    path.write_text(content)
    assert load_or_set_aside(path, read_record) is None
    assert (tmp_path / "seed0.json.damaged").exists() and "is damaged" in capsys.readouterr().out


def test_what_cannot_be_read_for_another_reason_is_not_set_aside(tmp_path):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "seed0.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=f"{path} cannot be read: .*Permission denied"):
        load_or_set_aside(path, refuse)
    assert path.exists()


def test_a_timing_does_not_go_on_from_an_interrupted_plain_run(small_config):
    """Its seconds were counted beside other work."""
    cells = [Cell("OptDigits", parse_task("class0"), "Retrain", 0, tree) for tree in ("cells", "efficiency")]
    one = main.Plan(None, {}, {cell: {"method": "Retrain"} for cell in cells}, {}, {"state": {}}, {})
    first, second = (main.unlearning_job(cell, one, small_config).arguments()["partial"] for cell in cells)
    assert first != second


def test_the_table_divides_no_times_of_unlike_conditions(capsys):
    quiet = {"device": "a processor", "threads": 1, "jobs": 1}
    conditions = {"Retrain": quiet, "T-S": quiet, "SCRUB": quiet | {"jobs": 2}, "CaMU": None}
    metrics = {"A_r": 90.0, "A_f": 80.0, "A_ts": 85.0, "MIA": 50.0}
    found = [{"method": m, "metrics": metrics, "time_s": 8.0, "conditions": c} for m, c in conditions.items()]
    main.print_table("Digit", parse_task("random10"), found, "cells")
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[3:7]}
    assert rows == {"Retrain": "1.000", "T-S": "1.000", "SCRUB": "–", "CaMU": "–"}


def test_relearning_takes_no_model_of_another_configuration(small_config):
    cell = Cell("OptDigits", parse_task("class0"), "Retrain", 0)
    again = replace(cell, tree="relearn")
    one = main.Plan(None, {}, {cell: {"method": "Retrain"}, again: {}}, {}, {}, {})
    save_tensors(cell.model_path(small_config), {"config": {"method": "Retrain", "batch_size": 64}})
    with pytest.raises(UserError, match=r"seed0\.pt is of another configuration"):
        main.relearning_job(again, one, small_config).arguments()


def test_differences_name_the_inner_entries():
    old = {"seed": 0, "hyperparameters": {"lr": 1, "epochs": 2}}
    assert differences(old, {"seed": 0, "hyperparameters": {"lr": 3, "epochs": 2}}) == ["lr: 1 -> 3"]


def test_hyperparameter_rows():
    mnist = training_row("Digit", "CNN")
    assert hyperparameters("CaMU", "Digit", "class", mnist)["epochs"] == 2
    assert hyperparameters("CaMU", "CIFAR100", "class", training_row("CIFAR100", "ResNet-18"))["repeats"] == 10
    assert hyperparameters("CaMU", "CIFAR10", "class", training_row("CIFAR10", "ResNet-18"))["repeats"] == 1
    assert hyperparameters("Retrain", "Digit", "random", mnist) == {"epochs": 20, "lr": 1e-3}
    assert hyperparameters("CaMU", "Digit", "class", mnist, ("CaMU.lr_ce=1e-4",))["lr_ce"] == 1e-4
    assert parse_override("CaMU.epochs=3") == ("CaMU", "epochs", 3)


def test_interrupted_training_continues_bit_for_bit(tmp_path, toy_split, monkeypatch):

    def run(epochs_until_kill=None, partial=None):
        model = models.build("CNN", 4, seed=0)

        def after(epoch):
            if epoch == epochs_until_kill:
                raise KeyboardInterrupt

        rest = {"epochs": 4, "lr": 1e-3, "batch_size": 32, "rng": generator("resume"), "partial": partial}
        train(model, toy_split.train, toy_split.remain, **rest, after=after)
        return model

    monkeypatch.setattr("training.SAVE_EVERY_S", 0)
    partial = tmp_path / "partial.pt"
    with pytest.raises(KeyboardInterrupt):
        run(epochs_until_kill=3, partial=partial)
    assert torch.load(partial, weights_only=True)["epoch"] == 2
    assert same_weights(run(partial=partial), run())


@pytest.mark.slow
def test_digit(real_data, run_main, tmp_path):
    """The path of the paper's main data set, at a fraction of its epochs."""
    quick = ("--pretrain-epochs", "1", "--methods", "CaMU", "--tasks", "class0", "--quiet")
    done = run_main("--dataset", "Digit", "--data-root", real_data, *quick)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "results").values()
    assert record["metrics"]["A_f"] <= 0.1 and record["metrics"]["A_ts_r"] > 97


@pytest.mark.slow
def test_cifar(real_data, run_main, tmp_path):
    """Some real CIFAR-10 images through ResNet-18 and the 224-pixel transforms."""
    from PIL import Image

    for part, count in (("train", 20), ("test", 10)):
        strips = sorted((real_data / "strips/cifar10" / part).glob("*-00.webp"))[:3]
        if not strips:
            pytest.skip("needs CIFAR-10")
        for strip in strips:
            folder = tmp_path / "root/CIFAR10" / part / strip.stem
            folder.mkdir(parents=True)
            image = Image.open(strip).convert("RGB")
            for i in range(count):
                image.crop((0, 32 * i, 32, 32 * i + 32)).save(folder / f"{i}.png")
    few = ("--tasks", "random10", "--methods", "Retrain", "CaMU", "--override", "CaMU.epochs=1")
    arguments = ("--dataset", "CIFAR10", "--data-root", tmp_path / "root", *few, *QUICK)
    done = run_main(*arguments, env={"OMP_NUM_THREADS": str(os.cpu_count())})
    assert done.returncode == 0, done.stderr
    assert "model ResNet-18 at 224x224" in done.stdout
    for record in records(tmp_path / "results").values():
        assert record["metrics"].keys() >= {"A_r", "A_f", "A_ts", "MIA", "A_r_clean", "A_f_clean"}
