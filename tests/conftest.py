"""What several test modules share: runs of a few seconds, and builders of small data."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from config import Config
from data import Dataset, Images, Split
from harness.cells import key
from harness.store import save_record

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    root = os.environ.get("CAMU_DATA_ROOT")
    if not root:
        pytest.skip("needs the real data sets: set CAMU_DATA_ROOT to the folder that holds them")
    return Path(root)


@pytest.fixture
def run_main(tmp_path):
    """`python main.py` as a user runs it, its files under tmp_path."""

    def run(*arguments, env=None):
        folders = [f"--{name}-dir={tmp_path / name}" for name in ("results", "checkpoints")]
        folders = [f for f in folders if not any(f.split("=")[0] in str(a) for a in arguments)]
        command = [sys.executable, str(ROOT / "main.py"), *folders, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **(env or {})})

    return run


@pytest.fixture
def small_config(tmp_path):
    """A run of seconds: one epoch of everything."""
    return Config(
        results_dir=str(tmp_path / "results"),
        checkpoints_dir=str(tmp_path / "checkpoints"),
        pretrain_epochs=1,
        retrain_epochs=1,
        quiet=True,
    )


@pytest.fixture
def toy_split():
    """400 noisy 28x28 images of 4 classes, 40 of them to be forgotten."""
    return make_toy_split()


def make_toy_split(count=400, classes=4, forgotten_class=None, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 100, (count, 1, 28, 28), generator=rng, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, 7 * k : 7 * k + 7] += 120
    images = Images(pixels, labels)
    forgotten = torch.arange(count) % 10 == 3 if forgotten_class is None else labels == forgotten_class
    gone = () if forgotten_class is None else (forgotten_class,)
    return Split(images, forgotten.nonzero().squeeze(1), (~forgotten).nonzero().squeeze(1), classes, "CNN", gone)


def loaded(batches, images, index):
    """(rows, x, y) of every batch that `data.shuffled_batches` yields for the samples `index`."""
    for rows, crops in batches:
        yield rows, images.batch(index[rows], crops), images.labels[index[rows]]


def colour_images(count=160, side=16, classes=4, seed=0):
    """uint8 images (count, 3, side, side) and labels: noise with a bright band that tells the class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 100, (count, 3, side, side), generator=rng, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, side * k // classes : side * (k + 1) // classes] += 120
    return pixels, labels


def make_toy_dataset():
    """Images as of `make_toy_split`: 400 to train on and 100 to test with."""
    return Dataset("Toy", "CNN", make_toy_split().train, make_toy_split(100, seed=1).train, tuple("abcd"))


@pytest.fixture
def toy_config(small_config, monkeypatch):
    """`small_config` on the toy data set: a cell takes a fraction of a second."""
    monkeypatch.setattr("main.load", lambda *_, **__: make_toy_dataset())
    quick = ("CaMU.repeats=1", "SISA.shards=2", "SISA.slices=2")
    return replace(small_config, dataset=("Toy",), tasks=("class0",), override=quick)


class SmallNet(torch.nn.Module):
    """A model with batch normalisation for inputs of `features` numbers: (B, ...) -> logits (B, classes), (B, 6)."""

    def __init__(self, features, classes=4):
        super().__init__()
        linear = torch.nn.Linear(features, 6, bias=False)
        self.features = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.BatchNorm1d(6))
        self.head = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(6, classes))

    def forward(self, x):
        representation = self.features(x)
        return self.head(representation), representation


@pytest.fixture
def toy_model():
    return models.build("CNN", 4, seed=1).eval()


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write_tree(root, name="Own", mode="RGB", sizes=((20, 30), (64, 48)), classes=("cat", "dog", "eel"), per_class=4):
    """An image folder root/name/{train,test}/<class>/<i>.png of noise, brighter by the class; returns root."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for k, label in enumerate(classes):
            folder = root / name / part / label
            folder.mkdir(parents=True)
            for i in range(per_class):
                width, height = sizes[i % len(sizes)]
                shape = (height, width, 3) if mode == "RGB" else (height, width)
                pixels = rng.integers(0, 80, shape, dtype=np.uint8) + np.uint8(50 * k)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


QUIET = {"device": "a processor", "threads": 1, "jobs": 1}  # conditions under which times were taken


def write_cell(folder, tree, dataset, task, method, seed, **content):
    """A cell's file, made by hand: `content` has its metrics, time_s, conditions ... beside the names."""
    path = folder / tree / dataset / task / method / f"seed{seed}.json"
    config = {"method": method, "seed": seed, "device": "cpu", "threads": 1, "batch_size": 32}
    names = {"dataset": dataset, "task": task, "method": method, "seed": seed}
    save_record(path, {**names, "config": config, "versions": {"torch": "2"}} | content)


# Metrics of (seed 0, seed 1): Retrain's are 99, 98, 97 and 50 on average.
RANDOM = {
    "Retrain": {"A_r": (98, 100), "A_f": (98, 98), "A_ts": (97, 97), "MIA": (49, 51)},
    "NegGrad": {"A_r": (97, 97), "A_f": (95, 95), "A_ts": (97.5, 97.5), "MIA": (53, 53)},
    "SCRUB": {"A_r": (99.5, 99.5), "A_f": (99, 99), "A_ts": (96, 96), "MIA": (52, 52)},
    "CaMU": {"A_r": (98, 99), "A_f": (96, 98), "A_ts": (96.5, 96.5), "MIA": (50, 50)},
}


def write_random(folder, dataset="Digit", tree="cells", methods=RANDOM, task="random10"):
    """Two seeds of each method, made by hand."""
    for method, values in methods.items():
        for seed in (0, 1):
            metrics = {name: pair[seed] for name, pair in values.items()}
            write_cell(folder, tree, dataset, task, method, seed, metrics=metrics, time_s=1.0, conditions=QUIET)


def records(folder):
    """Path relative to `folder` -> the record, of all cells below it; audits aside."""
    paths = [path for path in sorted(folder.rglob("seed*.json")) if "audit" not in path.parts]
    return {path.relative_to(folder): json.loads(path.read_text()) for path in paths}


def write_audit(folder, dataset, task, method, seed, **metrics):
    """The audit of a cell that `write_cell` has made, compared with Retrain's if that is there."""
    config_of = {}
    for name in (method, "Retrain"):
        path = folder / "cells" / dataset / task / name / f"seed{seed}.json"
        config_of[name] = key(json.loads(path.read_text())["config"]) if path.exists() else None
    config = {"cell": config_of[method]} | ({"retrain": config_of["Retrain"]} if method != "Retrain" else {})
    names = {"dataset": dataset, "task": task, "method": method, "seed": seed}
    path = folder / "audit" / dataset / task / method / f"seed{seed}.json"
    save_record(path, {**names, "metrics": metrics, "config": config})
