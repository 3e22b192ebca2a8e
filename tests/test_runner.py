"""Many cells: interrupted, in parallel, on a cluster. The numbers must be those of an undisturbed run."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, make_toy_dataset, records
from joblib.externals.loky import get_reusable_executor

import main
import training
from harness.runner import run_all
from harness.store import UserError


def results(folder):
    """Every cell's content but what may differ between runs: times, and how many ran at once."""

    def timeless(record):
        found = {name: value for name, value in record.items() if name not in ("time_s", "conditions", "checksum")}
        return found | {"requests": [timeless(after) for after in record.get("requests", [])]}

    return {str(path): timeless(record) for path, record in records(folder).items()}


@pytest.fixture
def config(toy_config):
    return replace(toy_config, methods=("Retrain", "SISA", "CaMU"))


def elsewhere(config, folder, **changes):
    return replace(config, results_dir=f"{folder}/runs", checkpoints_dir=f"{folder}/checkpoints", **changes)


def double(value, progress=None):
    return 2 * value


def end_itself(value):
    if value == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_arguments_are_made_when_a_call_is_started_and_results_come_as_they_finish(small_config):
    events = []

    def arguments(i):
        events.append(f"start {i}")
        return {"value": i}

    for purpose, result in run_all(double, {i: lambda i=i: arguments(i) for i in range(3)}, small_config, "x"):
        events.append(f"end {purpose}: {result}")
    assert events == ["start 0", "end 0: 0", "start 1", "end 1: 2", "start 2", "end 2: 4"]
    assert not list(run_all(double, {}, replace(small_config, cluster="nowhere"), "nothing to do"))


@pytest.mark.slow
def test_any_number_of_jobs_gives_the_same_results(config, tmp_path):
    main.main(config)
    main.main(parallel := elsewhere(config, tmp_path / "two", jobs=2))
    assert results(tmp_path / "two/runs") == results(tmp_path / "results")
    kept = {path.name.rpartition("-")[0] for path in (tmp_path / "two/checkpoints/Toy").glob("*.pt")}
    assert kept == {"pretrained", "SISA-shard0", "SISA-shard1", "references"}
    assert {record["conditions"]["jobs"] for record in records(tmp_path / "two").values()} == {2}
    calls = {i: lambda i=i: {"value": i} for i in range(3)}
    with pytest.raises(UserError, match=r"one of the 2 processes was ended .* with fewer --jobs"):
        list(run_all(end_itself, calls, parallel, "dying"))


def run_saving_often(config, die_at=None):
    """In a process of its own: main, on the toy data, keeping the state of every training after each epoch.

    Is killed at a number of times that a file is begun or put in its place. Ends with status 99 where a file is written
    in its place, in which a kill would leave a part of it.
    """
    moments = itertools.count(1)

    def look(event, arguments):
        begun = event == "open" and "w" in str(arguments[1])
        if begun and str(arguments[0]).endswith((".json", ".pt")):
            os._exit(99)
        placed = event == "os.rename" or (begun and str(arguments[0]).endswith(".tmp"))
        if placed and next(moments) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    training.SAVE_EVERY_S = 0
    main.load = lambda *_, **__: make_toy_dataset()
    main.main(config)
    get_reusable_executor().shutdown()  # or this process waits for idle workers at its end


KILLS = {  # what is run, and at which saved file each run is killed: at 30 in all
    "plain": ({"methods": ("Retrain", "SISA"), "save_models": True}, (1, 2, 8, 5, 3, 12, 10, 9, 11, 7, 6, 4, 2)),
    "ablation": ({"study": "ablation"}, (3, 6, 9, 2, 5)),
    "requests": ({"tasks": ("class0>class1",), "methods": ("Retrain", "CaMU")}, (6, 4, 8, 5, 7)),
    "relearning": ({"study": "relearn", "methods": ("Original", "CaMU")}, (3, 6, 4, 2, 5)),
    "two jobs": ({"methods": ("Retrain", "CaMU"), "jobs": 2}, (4, 6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_any_moment_nothing_is_lost(config, tmp_path, kind):
    changes, moments = KILLS[kind]
    config = replace(config, pretrain_epochs=2, retrain_epochs=2, **changes)
    assert run_processes([(config, None)]) == [0]
    killed, seen = elsewhere(config, tmp_path / "killed"), {}
    for die_at in moments:
        assert run_processes([(killed, die_at)])[0] in (-signal.SIGKILL, 0)
        there = set((tmp_path / "killed/runs").rglob("seed*.json"))
        for path in there:
            json.loads(path.read_text())  # in full or not at all
            assert seen.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"{path} was run twice"
        assert seen.keys() == there, "a finished cell was lost"
    assert seen and run_processes([(killed, None)]) == [0]
    assert results(tmp_path / "killed/runs") == results(tmp_path / "results")
    assert not list(tmp_path.rglob("*.damaged")) and not list(tmp_path.rglob("*.partial*.pt"))
    if kind == "plain":
        models = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.pt")}
        assert len(models) == 1 + 2 + 1 + 2 + 2  # f_o, shards, references, unlearned models, outputs
        assert all((tmp_path / "killed" / place).read_bytes() == content for place, content in models.items())


@pytest.mark.slow
def test_two_runs_in_one_folder_are_killed_and_lose_nothing(config, tmp_path):
    config = replace(config, methods=("Retrain", "CaMU"), pretrain_epochs=2, retrain_epochs=2)
    assert run_processes([(config, None)]) == [0]
    killed = elsewhere(config, tmp_path / "killed")
    for moments in ((2, 3), (4, 1), (3, 6)):
        assert set(run_processes([(killed, die_at) for die_at in moments])) <= {-signal.SIGKILL, 0}
    assert run_processes([(killed, None)] * 2) == [0, 0]
    assert results(tmp_path / "killed/runs") == results(tmp_path / "results")
    assert not list(tmp_path.rglob("*.damaged"))


def run_processes(calls):
    """`run_saving_often` with each of the arguments, side by side: the exit statuses."""
    context = multiprocessing.get_context("forkserver")  # processes that have the modules already
    context.set_forkserver_preload(["main"])
    processes = [context.Process(target=run_saving_often, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_ctrl_c_ends_the_cells_in_progress_and_says_how_to_continue(tmp_path):
    folders = [f"--results-dir={tmp_path / 'runs'}", f"--checkpoints-dir={tmp_path / 'checkpoints'}"]
    options = "--tasks random10 --methods Boundary CaMU --override CaMU.epochs=5000 --pretrain-epochs 1 --jobs 2"
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *folders, *options.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where pytest runs in the background
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "runs").rglob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=60)[0]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, output
    assert "interrupted; the same command continues" in output and "Traceback" not in output
    assert "it/s" not in output and "cell/s" not in output  # no bars where there is no terminal


@pytest.mark.slow
def test_ray_gives_the_same_results_and_survives_a_dying_worker(config, tmp_path):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
    config = replace(config, methods=("SISA", "CaMU"))
    main.main(config)
    main.main(cluster := elsewhere(config, tmp_path / "ray", cluster="local", jobs=2))
    assert results(tmp_path / "ray/runs") == results(tmp_path / "results")
    assert {record["conditions"] for record in records(tmp_path / "ray").values()} == {None}

    mark = tmp_path / "died once"

    def die_once(value, mark=str(mark)):
        if value == 1 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return value * value

    found = dict(run_all(die_once, {i: lambda i=i: {"value": i} for i in range(4)}, cluster, "dying"))
    assert mark.exists() and found == {0: 0, 1: 1, 2: 4, 3: 9}
    ray.shutdown()


class FakeRay(SimpleNamespace):
    """Ray as far as it is used, computing at once."""

    def __init__(self, **resources):
        super().__init__(stored=[], given=[], is_initialized=lambda: True)
        self.nodes = lambda: [{"Alive": True, "Resources": resources}, {"Alive": False, "Resources": {"CPU": 99}}]
        self.cluster_resources = lambda: resources
        self.put = lambda value: self.stored.append(value) or ("object", value)
        self.wait = lambda running: (running[:1], running[1:])
        self.get = lambda reference: reference

    def remote(self, **options):
        self.options = options

        def task(named, purpose, function, **given):
            self.given.append(given)
            return named(purpose, function, **{k: v[1] if k == "dataset" else v for k, v in given.items()})

        return lambda named: SimpleNamespace(remote=lambda *a, **given: task(named, *a, **given))


def test_a_cluster_gets_shared_objects_once_and_no_path_of_this_machine(small_config, monkeypatch, capsys):
    ray, dataset = FakeRay(CPU=4), ["images"]
    monkeypatch.setitem(sys.modules, "ray", ray)
    calls = {i: lambda i=i: {"dataset": dataset, "value": i, "partial": "here"} for i in range(3)}

    def function(dataset, value):
        return dataset, value

    config = replace(small_config, cluster="address", threads=2)
    found = dict(run_all(function, calls, config, "x"))
    assert found == {i: (dataset, i) for i in range(3)} and ray.stored == [dataset]
    assert ray.options == {"num_cpus": 2, "num_gpus": 0, "max_retries": 3} and "waiting" not in capsys.readouterr().out
    dict(run_all(function, calls, replace(config, gpus_per_cell=0.5), "x"))
    waiting = capsys.readouterr().out
    assert waiting.startswith("no node of the cluster has 2 CPUs (--threads) and 0.5 GPUs (--gpus-per-cell)")
    assert waiting.endswith("waiting for one\n")


def test_no_ray_and_no_cluster_are_said(small_config, monkeypatch):
    def refuse(**_):
        raise ConnectionError("no\n answer")

    calls = {0: lambda: {"value": 0}}
    config = replace(small_config, cluster="10.0.0.1:6379")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse))
    with pytest.raises(UserError, match=r"--cluster 10\.0\.0\.1:6379: no Ray cluster answers: no answer"):
        list(run_all(double, calls, config, "x"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-ray\.txt"):
        list(run_all(double, calls, config, "x"))


def children(pid):
    """The processes that one has started, from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has /proc")
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_outlives_a_run_that_is_ended_from_outside(tmp_path, number, status):
    options = [
        "--jobs",
        "2",
        "--methods",
        "Boundary",
        "--seeds",
        *map(str, range(300)),
        "--pretrain-epochs",
        "1",
        "--quiet",
    ]
    command = [sys.executable, str(ROOT / "main.py"), *options]
    given = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **given) as running:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/cells/*/*/*/seed*.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = children(running.pid)
        assert len(workers) >= 2
        running.send_signal(number)
        running.wait(30)
        said = running.stderr.read() if number == signal.SIGTERM else ""
    assert running.returncode == status
    if number == signal.SIGTERM:
        assert "interrupted; the same command continues with what is not finished" in said and "Traceback" not in said
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(map(alive, workers))
