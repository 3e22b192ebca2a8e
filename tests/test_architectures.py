"""Architectures and checkpoints of one's own on the command line."""

import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import ROOT, write_tree
from torch import nn

import models
from config import Config
from harness.architectures import check_architecture, own_weights, pretrained_weights, with_architecture
from harness.cells import load_model, pretrained_spec
from harness.datasets import load
from harness.store import UserError, digest, save_tensors

SOURCE = """
from torch import nn

def build(classes):
    body = nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 32)
    return nn.Sequential(*body, nn.ReLU(), nn.Linear(32, classes))

def gray(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

def two(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))

def none(classes):
    pass

def broken(classes):
    raise ValueError("no such net")
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of photos, and a net beside it; the current folder is theirs."""
    write_tree(tmp_path, "Photos", sizes=((40, 40), (50, 33)), per_class=12)
    (tmp_path / "my_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return load("Photos", tmp_path)


def config(**changes):
    return Config(dataset=("Photos",), **{"model": "my_net.py:build", "layer": "5"} | changes)


def test_a_net_of_a_file_or_of_torchvision_is_built_from_its_name_alone(photos):
    dataset = with_architecture(photos, config())
    built = [models.build(dataset.model, 3, seed) for seed in (0, 0, 1)]
    weights = [model.state_dict()["model.4.weight"] for model in built]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    logits, z = built[0](dataset.train.batch(torch.arange(2)))
    assert logits.shape == (2, 3) and z.shape == (2, 32)
    dataset = with_architecture(photos, config(model="torchvision:mobilenet_v3_small", layer="avgpool"))
    assert models.build(dataset.model, 3, 0).eval()(dataset.train.batch(torch.arange(2)))[1].shape == (2, 576)


def test_the_layers_output_is_pooled_as_asked(photos):
    dataset = with_architecture(photos, config(layer="0", pool="mean"))
    assert models.build(dataset.model, 3, 0)(dataset.train.batch(torch.arange(2)))[1].shape == (2, 8)
    assert dataset.model != with_architecture(photos, config(layer="0")).model


def test_torchvisions_weights_come_under_a_fresh_head(photos, monkeypatch):
    """Without the download: `get_state_dict` gives those of a net of a thousand classes."""
    known = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda self, **_: known)
    asked = config(model="torchvision:resnet18", layer="avgpool", weights="DEFAULT")
    check_architecture(asked)
    first, other = (models.build(with_architecture(photos, asked).model, 3, seed).model for seed in (0, 1))
    assert torch.equal(first.conv1.weight, known["conv1.weight"]) and torch.equal(first.bn1.weight, other.bn1.weight)
    assert first.fc.weight.shape == (3, 512) and not torch.equal(first.fc.weight, other.fc.weight)


def test_weights_that_cannot_be_downloaded_are_named(photos, monkeypatch):
    def offline(self, **_):
        raise URLError("no network")

    pretrained_weights.cache_clear()
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", offline)
    with pytest.raises(UserError, match=r"--weights DEFAULT cannot be loaded: .*no network"):
        with_architecture(photos, config(model="torchvision:resnet18", layer="avgpool", weights="DEFAULT"))


def test_another_source_is_another_model(photos, tmp_path):
    before = with_architecture(photos, config()).model
    assert with_architecture(photos, config()).model == before
    (tmp_path / "my_net.py").write_text(SOURCE.replace("stride=4", "stride=3"))
    assert with_architecture(photos, config()).model != before
    assert with_architecture(photos, Config()) is photos


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": ""}, "--model and --layer belong together"),
        ({"model": ""}, "--model and --layer belong together"),
        ({"model": "my_net.py:nope"}, "--model my_net.py:nope: module .* has no attribute"),
        ({"model": "other.py:build"}, "write torchvision:<name>, or <file>.py:<function> for a file that is there"),
        ({"model": "resnet50"}, "write torchvision:<name>, or"),
        ({"model": "torchvision:resnet51"}, "torchvision has no such classifier"),
        ({"weights": "DEFAULT"}, "--weights DEFAULT are torchvision's, and --model is my_net.py:build"),
        ({"model": "torchvision:resnet18", "weights": "BEST"}, "--weights BEST: resnet18 has IMAGENET1K_V1, DEFAULT"),
        ({"model": "", "layer": "", "pool": "mean"}, "--pool and --weights go with --model"),
        ({"checkpoint": "nowhere.pt"}, "--checkpoint nowhere.pt: there is no such file"),
    ],
)
def test_what_is_wrong_is_said_before_data_are_read(photos, changes, message):
    with pytest.raises(UserError, match=message):
        check_architecture(config(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": "9"}, "the model has no layer '9'; its layers are 0, 1"),
        (
            {"model": "my_net.py:gray", "layer": "0"},
            r"gray cannot be built for images of \(3, 64, 64\): .*channels",
        ),
        ({"model": "my_net.py:broken", "layer": "0"}, "cannot be built .*: no such net"),
        ({"model": "my_net.py:none", "layer": "0"}, "the model is a NoneType; it must be an nn.Module"),
        ({"model": "torchvision:vit_b_16", "layer": "encoder", "pool": "first"}, "Wrong image height! Expected 224"),
        ({"model": "my_net.py:two", "layer": "0"}, r"gives \(2, 2\) for 2 images of 3 classes"),
    ],
)
def test_a_net_that_does_not_fit_the_images_is_refused(photos, changes, message):
    with pytest.raises(UserError, match=message):
        with_architecture(photos, config(**changes))


def test_a_file_may_import_its_neighbours_and_define_dataclasses(photos, tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 8")
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\nimport beside\n"
    (tmp_path / "my_net.py").write_text(f"{head}@dataclass\nclass Size:\n    width: int = beside.WIDTH\n{SOURCE}")
    assert with_architecture(photos, config()).model.startswith("my_net.py:build@5#")


def test_a_model_is_not_loaded_with_another_source(photos, tmp_path):
    name = with_architecture(photos, config()).model
    (tmp_path / "my_net.py").write_text(SOURCE.replace("ReLU", "Tanh"))
    with pytest.raises(UserError, match=r"--model my_net.py:build: the file has changed since this model was made"):
        models.build(name, 3, 0)


def test_a_checkpoint_of_nan_is_refused(photos):
    state = models.build(with_architecture(photos, config()).model, 3, seed=5).model.state_dict()
    torch.save(state | {"4.weight": state["4.weight"] / 0}, "weights.pt")
    with pytest.raises(UserError, match=r"--checkpoint weights.pt holds nan or infinity"):
        own_weights("weights.pt", with_architecture(photos, config()))


WRAPS = ("", "state_dict", "model_state_dict", "model")


@pytest.mark.parametrize("wrap", [lambda s, key=key: {key: s, "epoch": 3} if key else s for key in WRAPS])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_is_taken_as_people_save_them(photos, wrap, prefix):
    dataset = with_architecture(photos, config())
    net = models.build(dataset.model, 3, seed=5).model
    torch.save(wrap({prefix + name: value for name, value in net.state_dict().items()}), "weights.pt")
    found = own_weights("weights.pt", dataset)
    assert all(torch.equal(found[f"model.{name}"], value) for name, value in net.state_dict().items())


def test_a_model_file_of_the_program_is_a_checkpoint_too(photos):
    dataset = with_architecture(photos, config())
    state = models.build(dataset.model, 3, seed=5).state_dict()
    save_tensors(Path("stored.pt"), {"model": dataset.model, "classes": 3, "members": 0, "config": {}, "state": state})
    found = own_weights("stored.pt", dataset)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    content = bytearray(Path("stored.pt").read_bytes())
    content[len(content) // 2] ^= 1  # among the weights: torch reads it as if nothing was wrong
    Path("stored.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"--checkpoint stored.pt cannot be read.*: the checksum is wrong"):
        own_weights("stored.pt", dataset)
    (committed,) = (ROOT / "results/models/OptDigits").glob("*.pt")
    assert digest(own_weights(committed, load("OptDigits", "."))) == "1bf7e371faf0c9e9"  # as in the cells' files


@pytest.mark.parametrize(
    "content, message",
    [
        (nn.Linear(3, 2).state_dict(), "does not fit --model .*Missing key"),
        ([1, 2], "holds no state dict"),
        ({"a": 1}, "holds no state dict"),
        (nn.Linear(3, 2), "cannot be read, save a state dict with torch.save: "),
    ],
)
def test_a_checkpoint_that_is_none_of_the_model_is_refused(photos, content, message):
    torch.save(content, "weights.pt")
    with pytest.raises(UserError, match=message):
        own_weights("weights.pt", with_architecture(photos, config()))


@pytest.mark.slow
def test_all_methods_run_from_an_own_checkpoint_of_an_own_net(photos, run_main, tmp_path):
    dataset = with_architecture(photos, config())
    torch.save(models.build(dataset.model, 3, seed=5).model.state_dict(), "weights.pt")
    options = ["--dataset", "Photos", "--data-root", ".", "--model", "my_net.py:build", "--layer", "5", "--quiet"]
    options += ["--checkpoint", "weights.pt", "--tasks", "class0", "--retrain-epochs", "2", "--save-models"]
    run_main(*options)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/cells/Photos/class0/*/*.json")]
    assert len(records) == 9
    checkpoint = {record["config"]["pretrained"] for record in records}
    f_o = {record["f_o"]["digest"] for record in records}
    assert len(checkpoint) == len(f_o) == 1
    model = load_model("checkpoints/unlearned/Photos/class0/CaMU/seed0.pt")
    assert model(dataset.train.batch(torch.arange(2)))[0].shape == (2, 3)
    given = config(checkpoint="weights.pt")
    assert "epochs" not in pretrained_spec(dataset, "x", given) and "epochs" in pretrained_spec(dataset, "x", config())
