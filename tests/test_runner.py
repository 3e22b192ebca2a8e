"""Many cells: interrupted, in parallel, on a cluster. The numbers must be those of an undisturbed run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

import main
from config import UserError
from data import parse_task
from experiment import Job, check_writable, key, run_jobs

QUICK = ("--pretrain-epochs", "1", "--retrain-epochs", "1", "--quiet")


def results(folder):
    """Every cell's content but what may differ between runs: times, and how many ran at once."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {k: v for k, v in record.items() if k not in ("time_s", "conditions")}
    return found


def start(tmp_path, name, *arguments):
    folders = [f"--results-dir={tmp_path / name}", f"--checkpoints-dir={tmp_path / name}-checkpoints"]
    command = [sys.executable, str(ROOT / "main.py"), *folders, *QUICK, *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where pytest runs in the background
    )


def test_runs_that_start_together_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_writable, [tmp_path / "runs"] * 400))
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    arguments = (
        "--methods",
        "Retrain",
        "Boundary",
        "SISA",
        "CaMU",
        "--tasks",
        "class0",
        "--override",
        "CaMU.repeats=1",
    )
    began = time.monotonic()
    whole = start(tmp_path, "whole", *arguments)
    assert whole.wait() == 0, whole.stdout.read()
    duration = time.monotonic() - began
    rng, seen = random.Random(0), {}
    for _ in range(10):
        run = start(tmp_path, "killed", *arguments)
        try:
            run.wait(rng.uniform(0.5, 1.0) * duration)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
        for path in (tmp_path / "killed").rglob("*.json"):
            json.loads(path.read_text())  # in full or not at all
            written = seen.setdefault(path, path.stat().st_mtime_ns)
            assert path.stat().st_mtime_ns == written, f"{path} was run twice"
        assert seen.keys() == set((tmp_path / "killed").rglob("*.json")), "a finished cell was lost"
    last = start(tmp_path, "killed", *arguments)
    assert last.wait() == 0, last.stdout.read()
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.damaged"))


def test_a_damaged_state_of_an_interrupted_training_is_set_aside(small_config):
    config = replace(small_config, tasks=("class0",), methods=("Retrain",))
    main.main(config)
    (path,) = Path(config.results_dir).rglob("*.json")
    undisturbed = json.loads(path.read_text())
    cell = main.Cell("OptDigits", parse_task("class0"), "Retrain", 0)
    partial = cell.model_path(config).parent / f"{key(undisturbed['config'])}-cells.partial.pt"
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(b"no tensors")
    path.unlink()
    main.main(config)
    assert json.loads(path.read_text())["metrics"] == undisturbed["metrics"]
    assert partial.with_name(partial.name + ".damaged").exists() and not partial.exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(tmp_path):
    run = start(tmp_path, "stopped", "--tasks", "random10", "--seeds", "0", "1", "2", "--jobs", "2")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "stopped").rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 130, output
    assert "interrupted; the same command continues" in output and "Traceback" not in output


@pytest.mark.slow
def test_any_number_of_jobs_gives_the_same_results(small_config, tmp_path):
    config = replace(small_config, tasks=("class0",), methods=("Retrain", "SISA", "T-S", "CaMU"))
    main.main(config)
    parallel = {"results_dir": str(tmp_path / "two"), "checkpoints_dir": str(tmp_path / "two-checkpoints"), "jobs": 2}
    main.main(replace(config, **parallel))
    assert results(tmp_path / "two") == results(tmp_path / "results")
    kept = {path.name for path in (tmp_path / "two-checkpoints/OptDigits").iterdir()}
    assert len(kept) == 1 + 5 and not any("partial" in name for name in kept)


def end_itself(value):
    if value == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_a_killed_worker_is_said_in_one_line(small_config):
    jobs = [Job(str(i), end_itself, lambda i=i: {"value": i}, lambda _: None) for i in range(3)]
    with pytest.raises(UserError, match=r"one of the 2 processes was ended .* with fewer --jobs"):
        run_jobs(jobs, replace(small_config, jobs=2), "dying")


@pytest.mark.slow
def test_studies(small_config, tmp_path, capsys):
    config = replace(small_config, tasks=("class0",), methods=("Retrain", "SISA", "CaMU"), study="paper")
    main.main(config)
    trees = {path.parts[0] for path in (p.relative_to(tmp_path / "results") for p in tmp_path.rglob("seed0.json"))}
    assert trees == {"cells", "ablation", "relearn", "efficiency"}
    found = results(tmp_path / "results")
    assert len(found) == 3 + 3 + 3 + 3
    for method in ("Retrain", "SISA", "CaMU"):
        curve = found[f"relearn/OptDigits/class0/{method}/seed0.json"]
        cell = found[f"cells/OptDigits/class0/{method}/seed0.json"]
        assert len(curve["A_r"]) == len(curve["A_f"]) == 11
        assert (curve["A_r"][0], curve["A_f"][0]) == (cell["metrics"]["A_r"], cell["metrics"]["A_f"])
        assert found[f"efficiency/OptDigits/class0/{method}/seed0.json"]["metrics"] == cell["metrics"]
    tuned = found["ablation/OptDigits/class0/Finetune/seed0.json"]
    assert tuned["metrics"]["A_f"] > 50  # nothing asks it to forget
    assert tuned["config"]["hyperparameters"]["align_forget"] is False
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    shutil.rmtree(tmp_path / "checkpoints/unlearned")  # as after a fresh clone: what is finished needs no model
    main.main(config)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert not (tmp_path / "checkpoints/unlearned").exists()
    assert "relearning, percentage points" in capsys.readouterr().out


def test_unknown_study_is_refused(small_config):
    with pytest.raises(UserError, match="--study magic: must be one of plain, ablation"):
        main.main(replace(small_config, study="magic"))


@pytest.mark.slow
def test_ray_gives_the_same_results_and_survives_a_dying_worker(small_config, tmp_path):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
    config = replace(small_config, tasks=("class0",), methods=("Retrain", "SISA", "CaMU"))
    main.main(config)
    other = {"results_dir": str(tmp_path / "ray"), "checkpoints_dir": str(tmp_path / "ray-checkpoints")}
    cluster = replace(config, **other, cluster="local", jobs=2)
    main.main(cluster)
    assert results(tmp_path / "ray") == results(tmp_path / "results")

    mark, kept = tmp_path / "died once", []

    def die_once(value, mark=str(mark)):
        if value == 1 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return value * value

    jobs = [Job(str(i), die_once, lambda i=i: {"value": i}, kept.append) for i in range(4)]
    run_jobs(jobs, cluster, "dying")
    assert mark.exists() and sorted(kept) == [0, 1, 4, 9]
    ray.shutdown()


def test_ray_missing_is_said(small_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-ray\.txt"):
        main.main(replace(small_config, cluster="local"))


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="the settings are for processors with AVX2")
def test_the_readmes_settings_give_its_bits_on_this_processor_too():
    readme = (ROOT / "README.md").read_text()
    (given,) = re.findall(r"    export (ATEN_.*)\n    python -m benchmarks.bits", readme)
    (expected,) = re.findall(r"benchmarks.bits .*fingerprint: (\w{16})\n", readme)
    environment = os.environ | dict(pair.split("=") for pair in given.split())
    command = [sys.executable, "-m", "benchmarks.bits"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout == expected + "\n", done.stderr
