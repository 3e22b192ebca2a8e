"""A committed cell that is made again on any x86 processor with AVX2 is the same to the last digit."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from harness.store import digest, load_tensors

RESULTS = ROOT / "results"
CPUINFO = Path("/proc/cpuinfo")
AVX2 = platform.machine() == "x86_64" and CPUINFO.exists() and " avx2 " in CPUINFO.read_text()


def committed(dataset):
    """The records of a data set's committed cells that were made with portable kernels."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob(f"cells/{dataset}/*/*/seed*.json")]
    return [record for record in records if record["config"].get("kernels") == "portable"]


def make_again(folder, dataset, tasks, methods, *more):
    """Run the command that a user would, and compare metrics, configuration and f_o with the committed cells'."""
    options = ["--dataset", dataset, "--kernels", "portable", "--tasks", *tasks, "--methods", *methods, "--quiet"]
    folders = ["--results-dir", "runs", "--checkpoints-dir", "checkpoints", *more]
    command = [sys.executable, str(ROOT / "main.py"), *options, *folders]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("checkpoints/*/pretrained*"))  # the committed one was used
    for task in tasks:
        for method in methods:
            path = f"cells/{dataset}/{task}/{method}/seed0.json"
            ours, theirs = (json.loads((root / path).read_text()) for root in (folder / "runs", RESULTS))
            for name in ("metrics", "config", "f_o"):
                assert ours[name] == theirs[name]


@pytest.mark.slow
@pytest.mark.skipif(not AVX2, reason="portable kernels need an x86 processor with AVX2")
def test_four_committed_cells_are_made_again_to_the_last_digit(tmp_path):
    make_again(tmp_path, "OptDigits", ("class0", "random10"), ("T-S", "CaMU"))


@pytest.mark.slow
@pytest.mark.skipif(not AVX2, reason="portable kernels need an x86 processor with AVX2")
def test_a_committed_cell_of_digit_is_made_again_to_the_last_digit(tmp_path, real_data):
    more = ("--data-root", str(real_data))
    make_again(tmp_path, "Digit", ("class0",), ("CaMU",), *more)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("models/*/*.pt")), ids=lambda path: path.parent.name)
def test_the_committed_models_are_those_that_the_committed_cells_started_from(path):
    stored, records = load_tensors(path), committed(path.parent.name)
    known = {(record["f_o"]["digest"], f"pretrained-{record['config']['pretrained']}.pt") for record in records}
    assert known == {(digest(stored["state"]), path.name)}
