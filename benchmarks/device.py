"""The first minutes on any GPU: is every captured step right there, and how fast is the card kept busy?

    python -m benchmarks.device --out device --data-root data --dataset CIFAR10 --time-limit 400

1. Every method by captured steps and by eager ones: the same bits after an epoch of at least 50 steps, on the CNN and
   on ResNet-18.
2. Training steps of both models: images/s, eager and captured, in float32 and bf16, and the share of the card's own
   matrix-product rate that they reach. Then the CNN in --jobs processes at once, images/s in all: they take turns
   unless CUDA's multi-process service runs (`nvidia-cuda-mps-control -d`; --mps says so in the results).
3. The first run: all methods on OptDigits, with the audit.
4. With --dataset: as many cells of that run as fit into --time-limit seconds, the important ones first.

Everything goes to one folder at once: `device.jsonl`, a line for each measurement, and the cells. It needs nothing but
the repository, its requirements and the data. Without a GPU it runs on the CPU, where nothing is captured.
"""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
import json
import multiprocessing
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import main as program
import models
from baselines import METHODS
from benchmarks.speed import peak_gflops, seconds, step_gflop
from config import Config
from data import Images, generator, whole_split
from harness import graphs
from harness.cells import device_name, in_precision, use_machine
from harness.store import check_writable, require
from hyperparameters import hyperparameters_of, settings, training_row
from training import train

BARRIER_S = 120  # the longest that one process waits for the others: one that has failed never comes
STEPS = 50  # at least, of the epoch that captured and eager runs are compared after


@dataclass(frozen=True)
class Arguments:
    """The settings of the benchmark."""

    out: str = "device"
    """the folder for everything that is measured"""
    dataset: str = ""
    """a data set to compute cells of; none by default"""
    data_root: str = "data"
    """where it is"""
    time_limit: float = 400
    """seconds for its cells"""
    images: int = 20_000
    """images of ResNet-18's epoch that is timed, and of the CNN's twenty"""
    jobs: int = 8
    """processes that train the CNN at once"""
    mps: bool = False
    """say in the results that CUDA's multi-process service runs"""


def main(arguments):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(arguments.out)
    check_writable(out)

    def tell(**line):
        with open(out / "device.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    use_machine({"device": device.type, "threads": torch.get_num_threads()})
    tell(device=device_name(device.type), torch=torch.__version__)
    for name, images in cases(32 * STEPS + 300, device).items():
        for method in METHODS:
            tell(what="captured equals eager", model=name, method=method, same=same_bits(method, name, images))
    for name, images in cases(arguments.images, device).items():
        for precision in ("float32", "bf16"):
            for line in rates(name, images, precision):
                tell(what="training", model=name, precision=precision, **line)
    rate, beside = side_by_side(arguments.jobs, arguments.images), {"processes": arguments.jobs, "mps": arguments.mps}
    tell(what="training side by side", model="CNN", **beside, images_per_s=round(rate))
    folders = {"results_dir": str(out / "cells"), "checkpoints_dir": str(out / "checkpoints"), "quiet": True}
    tell(what="first run", seconds=seconds(lambda: program.main(Config(**folders))))
    if arguments.dataset:
        given = {"dataset": (arguments.dataset,), "data_root": arguments.data_root, "time_limit": arguments.time_limit}
        tell(what=arguments.dataset, seconds=seconds(lambda: program.main(Config(**folders, **given))))


def cases(count, device):
    """Model -> noise of its shape, with labels: the CNN's, and ResNet-18's as CIFAR's at 224 pixels, augmented."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=rng)
    gray, colour = (torch.randint(0, 256, (count, *shape), generator=rng, dtype=torch.uint8) for shape in SHAPES)
    cropped = Images(colour, labels, side=224 if device.type == "cuda" else 33, normalise=True, augment=True)
    return {"CNN": Images(gray, labels).to(device), "ResNet-18": cropped.to(device)}


SHAPES = (1, 28, 28), (3, 32, 32)


def same_bits(method, model, images):
    """Whether an epoch of a method ends at the same weights by captured steps as by eager ones."""
    split = whole_split(images, 10, model).next(torch.arange(200))
    row = hyperparameters_of(method, "own", "random", training_row("own", model)) | {"epochs": 1}
    row |= {"shards": 2, "slices": 1} if method == "SISA" else {"repeats": STEPS // 4} if method == "CaMU" else {}
    chosen = settings(row, seed=0, test_accuracy=-1.0)  # which no stop reaches
    f_o = models.build(model, 10, seed=1, device=images.device).eval()
    if method == "SISA":
        chosen.prepared = [METHODS[method].prepare_shard(k, images, model, 10, chosen) for k in range(2)]
    captured = METHODS[method].unlearn(f_o, split, chosen)
    with eagerly():
        eager = METHODS[method].unlearn(f_o, split, chosen)
    pairs = zip(captured.state_dict().values(), eager.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@contextmanager
def eagerly():
    """No step is captured."""
    replaced, graphs.Captured = graphs.Captured, lambda step: step
    try:
        yield
    finally:
        graphs.Captured = replaced


def rates(name, images, precision):
    """Images/s of training, captured and eager, and the share of the peak that they reach."""
    model = models.build(name, 10, seed=0, device=images.device)
    index, crops = torch.arange(32, device=images.device), images.draw_crops(32, generator("crops"))
    x, y = images.batch(index, crops), images.labels[index]
    gflop = step_gflop(lambda: F.cross_entropy(model(x)[0], y).backward()) / 32
    peak = peak_gflops(8192 if images.device.type == "cuda" else 512, images.device, precision)
    for way in ("captured", "eager"):
        with eagerly() if way == "eager" else nullcontext():
            rate = training_rate(name, images, precision)
        share = float(f"{rate * gflop / peak:.2g}")  # the CNN's is far below a percent
        yield {"way": way, "images_per_s": round(rate), "share_of_peak": share, "peak_gflops": round(peak)}


def training_rate(name, images, precision, wait=lambda: None):
    """Images/s of an epoch, of twenty for the CNN, so that the capture itself does not count."""
    model, epochs = models.build(name, 10, seed=0, device=images.device), 20 if name == "CNN" else 1

    def learn(count, epochs):
        samples = torch.arange(count, device=images.device)
        with in_precision({"device": images.device.type, "precision": precision}):
            train(model, images, samples, epochs=epochs, lr=1e-3, batch_size=32, rng=generator("rate"))

    learn(min(32 * 8, len(images)), 1)  # kernels are chosen and memory is allocated in the first steps
    wait()
    return epochs * len(images) / seconds(lambda: learn(len(images), epochs))


def side_by_side(processes, count):
    """Images/s in all of several processes that train the CNN at once."""
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(processes, timeout=BARRIER_S), context.Array("d", processes)
    workers = [context.Process(target=train_beside, args=(k, count, start, rates)) for k in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    require(not any(worker.exitcode for worker in workers), "one of the processes side by side has failed")
    return sum(rates)


def train_beside(number, count, start, rates):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_machine({"device": device.type, "threads": 1})
    rates[number] = training_rate("CNN", cases(count, device)["CNN"], "float32", start.wait)


if __name__ == "__main__":
    harness.scripts.run_script(main, Arguments, __doc__)
