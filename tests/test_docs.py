"""The worked example of a deletion request, run as it stands on its page."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

PAGE = (ROOT / "docs" / "deletion-request.md").read_text()


def steps():
    """The page's code and commands in order: ("python", code), ("sh", command) or ("table", lines)."""
    for python, indented in re.findall(r"```python\n(.*?)```|((?:^    [^\n]*\n)+)", PAGE, re.DOTALL | re.MULTILINE):
        text = python or re.sub("^    ", "", indented, flags=re.MULTILINE)
        yield "python" if python else "sh" if text.startswith(("python ", "ls ")) else "table", text


def table(text):
    """Method -> column -> entry of a table of the terminal."""
    header, *rows = [line.split() for line in text.strip().splitlines()[1:] if line.strip()]
    return {row[0]: dict(zip(header, [*row[1 : len(header)], " ".join(row[len(header) :])])) for row in rows}


@pytest.mark.slow
def test_the_deletion_request(tmp_path):
    """The same tables come out, up to what another processor rounds differently."""
    (tmp_path / "demo").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed, compared = "", 0
    for kind, text in steps():
        if kind == "table":
            shown, found = table(text), table(printed[printed.index("Scans, ids-request") :].partition("\n\n")[0])
            assert shown.keys() == found.keys() and shown["Retrain"].keys() == found["Retrain"].keys()
            for method in shown:
                for metric in ("A_r", "A_f", "A_ts"):
                    assert float(found[method][metric]) == pytest.approx(float(shown[method][metric]), abs=15), method
            compared += 1
        elif text.startswith("from torch import nn"):
            (tmp_path / "demo" / "my_net.py").write_text(text)
        else:
            text = text.replace("python ", f"{sys.executable} {ROOT}/") if kind == "sh" else text
            command = [sys.executable, "-c", text] if kind == "python" else ["sh", "-c", text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            printed = done.stdout
            print(printed)
    assert compared == 2 and (tmp_path / "demo/runs/figures/audit-ids-request-other.png").is_file()
    before, after = (torch.load(tmp_path / "demo" / name, weights_only=True) for name in ("weights.pt", "unlearned.pt"))
    assert before.keys() == after.keys() and not torch.equal(before["9.weight"], after["9.weight"])
