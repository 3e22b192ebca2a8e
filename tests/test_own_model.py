"""CaMU on any torch classifier, and every example of the README."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import torchvision
from conftest import ROOT, make_toy_split

import camu
import main
import models
from config import UserError, hyperparameters, settings
from data import tensor_split

ADDED_METHOD = re.compile(r'`("Finetune": finetune,)`.*?\n\n( {4}"Finetune": .*?)\n', re.DOTALL)
NETS = {
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
}


def colour_images(count=160, seed=0):
    """Float images of 4 classes, a bright band each, that a small network tells apart after a few steps."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = torch.rand(count, 3, 16, 16, generator=rng)
    for k in range(4):
        x[y == k, :, 4 * k : 4 * k + 4] += 1
    return x - 0.75, y


def train_net(net, x, y, epochs=6):
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    own = norms[0].momentum
    for norm in norms:
        norm.momentum = 0.1  # MobileNet's 0.01 wants more steps than a test has
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    for norm in norms:
        norm.momentum = own  # as a user's net has it: at 0.1 the repeats of one sample would rewrite its statistics
    return net.eval()


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x)[0].argmax(1) == y).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_torchvision_model_forgets_a_class_and_keeps_the_rest(name):
    x, y = colour_images()
    torch.manual_seed(0)
    f_o = models.Represented(train_net(NETS[name](), x, y, epochs=16 if "mobile" in name else 6), layer="avgpool")
    before = accuracy(f_o, x, y)
    assert before > 0.9
    split = tensor_split(x, y, (y == 2).nonzero()[:, 0])
    assert split.kind == "class" and split.forgotten_classes == (2,)
    row = hyperparameters("CaMU", "own", split.kind)
    f_u = camu.unlearn(f_o, split, settings(row, seed=0))
    assert accuracy(f_u, x[y == 2], y[y == 2]) < 0.05
    assert accuracy(f_u, x[y != 2], y[y != 2]) > before - 0.05
    assert accuracy(f_o, x, y) == before
    logits, z = f_u(x[:3])
    assert logits.shape == (3, 4) and z.shape[0] == 3 and z.dim() == 2
    few = tensor_split(x, y, [5])
    assert few.kind == "few" and few.forgotten_classes == ()
    f_u = camu.unlearn(f_o, few, settings(hyperparameters("CaMU", "own", few.kind), seed=0))
    assert accuracy(f_u, x, y) > before - 0.02


def test_unknown_layer_is_refused():
    with pytest.raises(UserError, match=r"no layer 'pool'; its layers are .*avgpool"):
        models.Represented(NETS["resnet18"](), layer="pool")


@pytest.mark.parametrize("forget", [[], [1, 1], [-1], [160], list(range(160))])
def test_bad_indices_are_refused(forget):
    x, y = colour_images()
    with pytest.raises(UserError):
        tensor_split(x, y, torch.tensor(forget, dtype=torch.long))


def readme_blocks(containing):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if containing in block]


@pytest.mark.slow
def test_readme_own_model(tmp_path, monkeypatch):
    (code,) = readme_blocks("Represented")
    x, y = colour_images(80)
    net = train_net(torchvision.models.mobilenet_v3_small(num_classes=10), x, y, epochs=1)
    torch.save(net.state_dict(), tmp_path / "my_weights.pt")
    torch.save((x, y), tmp_path / "my_training_set.pt")
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert len(list(tmp_path.glob("unlearned*.pt"))) == 2
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_readme_loads_a_saved_model(tmp_path):
    (code,) = readme_blocks("models.load")
    common = ("--tasks", "class0", "--methods", "CaMU", "--save-models", "--pretrain-epochs", "1", "--quiet")
    command = [sys.executable, str(ROOT / "main.py"), *common]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    (tmp_path / "predict.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    done = subprocess.run([sys.executable, "predict.py"], cwd=tmp_path, capture_output=True, text=True)
    assert re.fullmatch(r"tensor\(\[\d(, \d){4}\]\)\n", done.stdout), done.stderr


def test_readme_added_method(tmp_path):
    """The example of a method of one's own, added to a copy of the repository as the README says, run and reported."""
    (code,) = readme_blocks("def unlearn(")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("baselines/*.py"), ROOT / "results" / "paper_values.csv"):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(path, copied)
    (tmp_path / "baselines/finetune.py").write_text(code)
    line, row = ADDED_METHOD.search((ROOT / "README.md").read_text()).groups()
    insert(tmp_path / "baselines/__init__.py", "from baselines import ", "finetune, ")
    insert(tmp_path / "baselines/__init__.py", "METHODS = {\n", f"    {line}\n")
    insert(tmp_path / "config.py", "HYPERPARAMETERS = {\n", f"{row}\n")
    options = (
        "--tasks",
        "class0",
        "--methods",
        "Retrain",
        "Finetune",
        "--pretrain-epochs",
        "1",
        "--retrain-epochs",
        "1",
    )
    for command in (("main.py", *options), ("report.py", "--results-dir", "runs")):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs/cells/OptDigits/class0/Finetune/seed0.json").read_text())["config"]
    assert (config["method"], config["hyperparameters"]) == ("Finetune", {"epochs": 2, "lr": 1e-3})
    assert "| Finetune |" in (tmp_path / "runs/report.md").read_text()


def test_the_added_method_learns():
    (code,) = readme_blocks("def unlearn(")
    module = {}
    exec(code, module)
    split = make_toy_split()
    f_o = models.build("CNN", 4, seed=0).eval()
    f_u = module["unlearn"](f_o, split, settings({"epochs": 1, "lr": 1e-3}, seed=0))
    assert accuracy(f_u, split.train.batch(split.remain), split.train.labels[split.remain]) > 0.5


def insert(path, after, text):
    before, found, rest = path.read_text().partition(after)
    assert found
    path.write_text(before + found + text + rest)


def test_gap_in_words():
    retrain = {"A_f": 98.0, "A_ts": 97.0, "A_ts_f": 0.0, "A_ts_r": 99.0}
    row = {"A_f": 98.4, "A_ts": 96.9, "A_ts_f": 40.0, "A_ts_r": 99.0}
    assert main.in_words(row, retrain, "random") == (
        "A_f 0.4 points above Retrain: slightly under-forgotten; A_ts 0.1 points below Retrain"
    )
    assert main.in_words(row, retrain, "class") == (
        "A_ts_f 40.0 points above Retrain: clearly under-forgotten; A_ts_r level with Retrain"
    )
    assert "over-forgotten" in main.in_words(row | {"A_f": 97.0}, retrain, "random")
    assert "forgotten as by Retrain" in main.in_words(row | {"A_f": 98.1}, retrain, "random")
