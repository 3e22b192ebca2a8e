"""Running many pure functions: one after another, side by side on this machine, or on a Ray cluster."""

import ctypes
import itertools
import os
import signal
import warnings
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import joblib
from tqdm import tqdm

from harness.scripts import PORTABLE, interruptions
from harness.store import UserError, explained

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent dies
SHARED = ("dataset", "f_o_state", "prepared")  # arguments of many calls, sent to a cluster once


def run_all(function, calls, config, title, starts=lambda purpose: True):
    """Call a pure function many times, `config.jobs` at a time, with a bar; yield (purpose, result) as they finish.

    `calls` has for each purpose a callable that returns the arguments as a dict, called when the call is started. It is
    not started if `starts(purpose)` then says no.
    """
    if not calls:
        return
    run = on_cluster if config.cluster else side_by_side if config.jobs > 1 else one_by_one
    started = ((purpose, arguments) for purpose, arguments in calls.items() if starts(purpose))
    with tqdm(total=len(calls), desc=title, unit="cell", disable=True if config.quiet else None) as bar:
        for purpose, result in run(function, started, config, bar):
            yield purpose, result
            bar.update()
            if interruptions:
                raise KeyboardInterrupt(*interruptions)


def one_by_one(function, calls, config, bar):
    for purpose, arguments in calls:
        bar.set_postfix_str(str(purpose))
        yield purpose, function(**arguments(), progress=not config.quiet)


def side_by_side(function, calls, config, bar):
    # joblib replaces a process whose memory has grown; nothing is lost
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    ways = {"return_as": "generator_unordered", "pre_dispatch": config.jobs}
    parallel = joblib.Parallel(config.jobs, "loky", **ways, initializer=die_with, initargs=(os.getpid(),))
    try:
        yield from parallel(joblib.delayed(named)(p, function, **arguments()) for p, arguments in calls)
    except BrokenProcessPool:
        message = f"one of the {config.jobs} processes was ended from outside, as happens when memory runs out"
        raise UserError(f"{message}; the same command, with fewer --jobs, continues with what is not finished")


def named(purpose, function, **arguments):
    return purpose, function(**arguments)


def die_with(parent):
    """Let this process end with the one that started it, even if that is killed."""
    with suppress(OSError, AttributeError, TypeError):  # Linux alone has this
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def on_cluster(function, calls, config, bar):
    """Through Ray, whose workers need no file of this machine: data and models travel as objects.

    A task whose worker dies is started again, up to three times. Workers keep no state of long trainings, for another
    machine may take over.
    """
    ray = start_ray(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= config.threads and node.get("GPU", 0) >= config.gpus_per_cell for node in nodes):
        wanted = f"{config.threads} CPUs (--threads) and {config.gpus_per_cell:g} GPUs (--gpus-per-cell)"
        print(f"no node of the cluster has {wanted}, which a cell takes: waiting for one", flush=True)
    run = ray.remote(num_cpus=config.threads, num_gpus=config.gpus_per_cell, max_retries=3)(named)
    at_a_time = max(config.jobs, int(ray.cluster_resources().get("CPU", 1) // config.threads))
    references, running = {}, []

    def shared(value):
        if id(value) not in references:
            references[id(value)] = ray.put(value)
        return references[id(value)]

    while True:
        for purpose, arguments in itertools.islice(calls, at_a_time - len(running)):
            given = {k: shared(v) if k in SHARED else v for k, v in arguments().items() if k != "partial"}
            running.append(run.remote(purpose, function, **given))
        if not running:
            return
        (done, *_), running = ray.wait(running)
        yield ray.get(done)


def start_ray(config):
    """Connect to the cluster, or start one here; its workers get a copy of this folder's modules."""
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray: python -m pip install -r requirements-ray.txt")
    if not ray.is_initialized():
        kept_back = [".git", ".venv", "data", "checkpoints", "runs", "results", "tests", "*.ipynb"]
        failed = f"--cluster {config.cluster}: no Ray cluster answers"
        with explained(failed, ConnectionError, ValueError, RuntimeError):
            ray.init(
                address=None if config.cluster == "local" else config.cluster,
                num_cpus=config.jobs * config.threads if config.cluster == "local" else None,
                runtime_env={
                    "working_dir": str(Path(__file__).resolve().parent.parent),
                    "excludes": kept_back,
                    "env_vars": PORTABLE if config.kernels == "portable" else {},
                },
                log_to_driver=False,
                include_dashboard=False if config.cluster == "local" else None,
                logging_level="ERROR",
            )
    return ray
