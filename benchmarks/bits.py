"""Whether two machines compute the same bits: a fingerprint of the CNN after one epoch of training on OptDigits.

    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE
    python -m benchmarks.bits

prints the first 16 digits of the SHA-256 of all its weights. These settings give all x86-64 processors with AVX2 the
same kernels of torch, oneDNN and MKL, so the digits agree between machines. Without them they differ from one kind of
processor to the next.
"""

import hashlib

import torch

import data
import models
from harness.cells import use_machine
from harness.datasets import load
from hyperparameters import TRAINING
from training import train


def fingerprint():
    """16 hexadecimal digits."""
    use_machine({"threads": 1, "device": "cpu"})
    images = load("OptDigits", "data").train
    model = models.build("CNN", 10, seed=0)
    everything = torch.arange(len(images))
    lr = TRAINING["OptDigits"]["lr"]
    train(model, images, everything, epochs=1, lr=lr, batch_size=32, rng=data.generator("bits"))
    weights = b"".join(value.numpy().tobytes() for value in models.cpu_state(model).values())
    return hashlib.sha256(weights).hexdigest()[:16]


if __name__ == "__main__":
    print(fingerprint())
