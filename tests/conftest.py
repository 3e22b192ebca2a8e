import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models
from config import Config
from data import Images, Split

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


@pytest.fixture
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


@pytest.fixture
def toy_model():
    return models.build("CNN", 4, seed=1).eval()


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
