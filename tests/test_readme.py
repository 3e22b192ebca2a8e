"""Every example of the README, as a newcomer types it."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import torchvision
from conftest import ROOT, colour_images, make_toy_split

import camu
import models
from hyperparameters import settings
from metrics import accuracy, predict

README = (ROOT / "README.md").read_text()


def block(containing):
    """The one Python example with this text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in code]
    return found


@pytest.mark.slow
def test_own_model(tmp_path, monkeypatch, capsys):
    code = block("camu.compare")
    net = torchvision.models.mobilenet_v3_small(num_classes=10)
    torch.save(net.state_dict(), tmp_path / "my_weights.pt")
    images = [(pixels / 255, labels) for pixels, labels in (colour_images(48), colour_images(24))]
    torch.save(images, tmp_path / "my_data.pt")
    (tmp_path / "example.py").write_text(code + block("Represented"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(camu, "TUPLES", 96)
    made = runpy.run_path("example.py")
    assert list(made["result"].table.index) == ["CaMU", "SCRUB", "Retrain"] and "A_ts_f" in capsys.readouterr().out
    net.load_state_dict(torch.load("unlearned.pt", weights_only=True))
    assert made["split"].earlier_classes == (1,) and made["split"].forgotten_classes == (2,)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_an_added_method_is_run_and_reported(tmp_path):
    """In a copy of the repository, changed just as the README says."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("[bhr]*/*.py"), ROOT / "results" / "paper_values.csv"):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(path, copied)
    (tmp_path / "baselines/naive.py").write_text(block("def unlearn("))
    line, row = re.search(r'`("Naive": naive,)`.*?\n\n( {4}"Naive": .*?)\n', README, re.DOTALL).groups()
    insert(tmp_path / "baselines/__init__.py", "from baselines import ", "naive, ")
    insert(tmp_path / "baselines/__init__.py", '    "CaMU": camu,\n', f"    {line}\n")
    insert(tmp_path / "hyperparameters.py", "HYPERPARAMETERS = {\n", f"{row}\n")
    options = [
        "--tasks",
        "class0",
        "--methods",
        "Retrain",
        "Naive",
        "--pretrain-epochs",
        "1",
        "--retrain-epochs",
        "1",
    ]
    for command in (("main.py", *options), ("report.py", "--results-dir", "runs")):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs/cells/OptDigits/class0/Naive/seed0.json").read_text())["config"]
    assert (config["method"], config["hyperparameters"]) == ("Naive", {"epochs": 2, "lr": 1e-3})
    assert "| Retrain | Naive |\n" in (tmp_path / "runs/report.md").read_text()


def insert(path, after, text):
    before, found, rest = path.read_text().partition(after)
    assert found
    path.write_text(before + found + text + rest)


def test_the_added_method_learns():
    module = {}
    exec(block("def unlearn("), module)
    split = make_toy_split()
    f_o = models.build("CNN", 4, seed=0).eval()
    f_u = module["unlearn"](f_o, split, settings({"epochs": 1, "lr": 1e-3}, seed=0))
    assert accuracy(predict(f_u, split.train)[split.remain], split.train.labels[split.remain]) > 50
