"""A committed cell that is made again on any x86 processor with AVX2 is the same to the last digit."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from harness.store import digest, load_tensors

CPUINFO = Path("/proc/cpuinfo")
AVX2 = platform.machine() == "x86_64" and CPUINFO.exists() and " avx2 " in CPUINFO.read_text()


def committed(dataset):
    """The records of a data set's committed cells that were made with portable kernels."""
    paths = (ROOT / "results/cells" / dataset).glob("*/*/seed*.json")
    records = [json.loads(path.read_text()) for path in paths]
    return [record for record in records if record["config"].get("kernels") == "portable"]


@pytest.mark.slow
@pytest.mark.skipif(not AVX2, reason="portable kernels need an x86 processor with AVX2")
def test_four_committed_cells_are_made_again_to_the_last_digit(tmp_path):
    methods, tasks = ("T-S", "CaMU"), ("class0", "random10")
    options = ["--dataset", "OptDigits", "--kernels", "portable", "--tasks", *tasks, "--methods", *methods, "--quiet"]
    folders = ["--results-dir", "runs", "--checkpoints-dir", "checkpoints"]
    command = [sys.executable, str(ROOT / "main.py"), *options, *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("checkpoints/*/pretrained*"))  # the committed one was used
    for task in tasks:
        for method in methods:
            place = f"cells/OptDigits/{task}/{method}/seed0.json"
            ours, theirs = (json.loads((root / place).read_text()) for root in (tmp_path / "runs", ROOT / "results"))
            for name in ("metrics", "config", "f_o"):
                assert ours[name] == theirs[name]


@pytest.mark.parametrize("path", sorted((ROOT / "results/models").glob("*/*.pt")), ids=lambda path: path.parent.name)
def test_the_committed_models_are_those_that_the_committed_cells_started_from(path):
    stored, records = load_tensors(path), committed(path.parent.name)
    known = {(record["f_o"]["digest"], f"pretrained-{record['config']['pretrained']}.pt") for record in records}
    assert known == {(digest(stored["state"]), path.name)} and len(records) >= 18
