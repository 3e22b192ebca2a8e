"""How much faster this repository is than the ordinary way, both measured here and now, in turn.

The ordinary way: a torchvision data set with ToTensor, a DataLoader with batch 32 and 3 workers, a model in torch's
default layout with the textbook order convolution-ReLU-pooling, Adam with its default arguments. For CaMU, as in the
authors' published code, one such loader gives the remain images beside another for the tuples, and the frozen teacher
and the student run separately on every batch.

    python -m benchmarks.speed --data-root data      # on Digit
    python -m benchmarks.speed                       # on generated images of the same shape

prints one JSON line a case: `ours_s` and `reference_s` are medians over the repeats, `ratio` is the median of the
ratios of neighbouring runs, `images_per_s` and `share_of_peak` are ours; the peak is the largest matrix-product rate
measured at the start (float32, in GFLOP/s).
"""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
import copy
import json
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import camu
import models
from data import Dataset as OurDataset
from data import Images, Split, generator, make_split
from harness.datasets import load
from harness.store import require
from harness.tasks import parse_task
from hyperparameters import hyperparameters_of, settings, training_row
from training import train


@dataclass(frozen=True)
class Arguments:
    """The settings of the benchmark."""

    data_root: str | None = None
    """where MNIST is; without it, generated images of the same shape"""
    repeats: int = 3
    """runs of each side of a case"""
    threads: int = 0
    """torch threads; 0: torch's own choice"""
    cases: tuple[str, ...] = ("cnn_train_epoch", "camu_digit_random10")
    """which cases to run"""


class GeneratedDigits(Dataset):
    """torchvision's MNIST in all but its content: `data`, `targets`, and (PIL image, label) through a transform."""

    def __init__(self, pixels, labels):
        self.data, self.targets, self.transform = pixels, labels, ToTensor()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index].numpy(), mode="L")), int(self.targets[index])


def both_data_sets(data_root):
    """The same images twice: as this repository holds them, and as the ordinary way does."""
    if data_root:
        return load("Digit", data_root), MNIST(data_root, train=True, transform=ToTensor())
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (70_000, 1, 28, 28), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 70_000))
    parts = [Images(pixels[part], labels[part]) for part in (slice(60_000), slice(60_000, None))]
    dataset = OurDataset("Digit", "CNN", *parts, tuple(map(str, range(10))))
    return dataset, GeneratedDigits(pixels[:60_000, 0], labels[:60_000])


class TextbookCNN(nn.Module):
    """models.CNN as it is usually written."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1568, 256),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 10))

    def forward(self, x):
        z = self.features(x)
        return self.head(z), z


def loader(dataset):
    return DataLoader(dataset, batch_size=32, shuffle=True, num_workers=3)


def reference_epoch(dataset):
    model = TextbookCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for x, y in loader(dataset):
        optimizer.zero_grad()
        F.cross_entropy(model(x)[0], y).backward()
        optimizer.step()


class Tuples(Dataset):
    """The counterfactual part of the joint dataset as lists of tensors."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return [column[index] for column in self.columns]


def reference_camu(teacher, dataset, split, row):
    """CaMU with two loaders side by side, as published: the tuples, and the images drawn from the remaining data."""
    student = copy.deepcopy(teacher)
    kl_optimizer, ce_optimizer = (
        torch.optim.Adam(student.parameters(), lr=row[name], weight_decay=1e-4) for name in ("lr_kl", "lr_ce")
    )
    forget, remain = split.forget.tolist(), split.remain.tolist()
    drawn = Subset(dataset, [remain[i] for i in torch.randperm(len(remain))[: len(forget)].tolist()])
    x_f, y_f = (torch.cat(column) for column in zip(*loader(Subset(dataset, forget))))
    x_c = torch.cat([x + torch.rand_like(x) for x, _ in loader(drawn)])
    y_c = (y_f + torch.randint(1, 10, y_f.shape)) % 10
    tuples, remaining = loader(Tuples(x_f, x_c, y_c)), loader(drawn)
    for _ in range(row["epochs"]):
        for (x_f, x_c, y_c), (x_r, y_r) in zip(tuples, remaining):
            with torch.no_grad():
                p_r, p_c = teacher(x_r)[1].softmax(1), teacher(x_c)[1].softmax(1)
            loss = 0.5 * F.kl_div(student(x_r)[1].log_softmax(1), p_r, reduction="sum")
            loss = loss + 0.5 * F.kl_div(student(x_f)[1].log_softmax(1), p_c, reduction="sum")
            kl_optimizer.zero_grad()
            loss.backward()
            kl_optimizer.step()
            loss = 0.9 * F.cross_entropy(student(x_r)[0], y_r) + 0.01 * F.cross_entropy(student(x_f)[0], y_c)
            ce_optimizer.zero_grad()
            loss.backward()
            ce_optimizer.step()


def seconds(run):
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_gflops(side, device="cpu", precision="float32", rounds=10):
    """The matrix-product rate, the best of several products: in TF32, as the convolutions, for float32 on CUDA."""
    a = torch.rand(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    best = min(seconds(lambda: a @ a) for _ in range(rounds))
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side**3 / best / 1e9


def step_gflop(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def cases(dataset, reference):
    """name -> (ours, reference, images read by ours, GFLOP ours needs)"""
    images = dataset.train
    everything = torch.arange(len(images))
    model = models.build("CNN", 10, seed=0)
    sample = images.batch(everything[:32])
    per_image = step_gflop(lambda: F.cross_entropy(model(sample)[0], images.labels[:32]).backward()) / 32

    def our_epoch():
        fresh = models.build("CNN", 10, seed=0)
        train(fresh, images, everything, epochs=1, lr=1e-3, batch_size=32, rng=generator("speed"))

    split: Split = make_split(dataset, parse_task("random10"), seed=0)
    row = hyperparameters_of("CaMU", "Digit", split.kind, training_row("Digit", "CNN"))
    # both sides start from a model in the layout that its side is trained in
    teacher = TextbookCNN()
    f_o = models.build("CNN", 10, seed=0)
    forwards = step_gflop(lambda: model(sample)) / 32
    tuples = len(split.forget)
    camu_gflop = tuples * (2 * forwards + row["epochs"] * 4 * per_image)
    return {
        "cnn_train_epoch": (our_epoch, lambda: reference_epoch(reference), len(images), len(images) * per_image),
        "camu_digit_random10": (
            lambda: camu.unlearn(f_o, split, settings(row, seed=0)),
            lambda: reference_camu(teacher, reference, split, row),
            2 * row["epochs"] * tuples,
            camu_gflop,
        ),
    }


def main(arguments):
    require(arguments.repeats >= 1, f"--repeats {arguments.repeats}: must be at least 1")
    require(arguments.threads >= 0, f"--threads {arguments.threads}: must be at least 0")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset, reference = both_data_sets(arguments.data_root)
    known = cases(dataset, reference)
    for name in arguments.cases:
        require(name in known, f"--cases {name}: choose from {', '.join(known)}")
    peak = peak_gflops(2048)
    for name in arguments.cases:
        ours, theirs, images, gflop = known[name]
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(arguments.repeats)]
        ours_s, reference_s = (statistics.median(column) for column in zip(*pairs))
        line = {
            "name": name,
            "ours_s": round(ours_s, 2),
            "reference_s": round(reference_s, 2),
            "ratio": round(statistics.median(b / a for a, b in pairs), 2),
            "images_per_s": round(images / ours_s),
            "share_of_peak": round(gflop / ours_s / peak, 3),
            "peak_gflops": round(peak, 1),
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    harness.scripts.run_script(main, Arguments, __doc__)
