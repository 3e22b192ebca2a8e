"""Samples of a user's own, from whatever holds them in Python, and what they must be."""

import math
import os

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)
from tqdm import tqdm

from harness.store import UserError, explained, require


def is_whole(values):
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def check_samples(x, y, name):
    """Raise a UserError unless x, (N, ...), is finite and y, (N,), has a label from 0 for each of its samples."""
    for values in (x, y):
        require(isinstance(values, torch.Tensor), f"{name} must be tensors, and one is a {type(values).__name__}")
    require(
        y.dim() == 1 and is_whole(y),
        f"{name}: labels are {y.dtype} of {tuple(y.shape)}; they must be whole numbers, one a sample",
    )
    require(
        x.dim() > 1 and len(x) == len(y) > 0,
        f"{name}: x is of {tuple(x.shape)} and has {len(y)} labels; it must be (samples, ...)",
    )
    if x.is_floating_point() and not (finite := x.flatten(1).isfinite().all(1)).all():
        raise UserError(f"{name}: sample {int((~finite).nonzero()[0])} holds nan or infinity")
    require(y.min() >= 0, lambda: f"{name}: label {int(y.min())} is below 0; labels count from 0")


def check_labels(y):
    """The labels that occur in y, sorted; a UserError if it is one only."""
    known = y.unique()
    require(len(known) > 1, f"all labels are {int(y[0])}: unlearning needs at least two classes")
    return known


def positions(values, device):
    """Whole numbers of any kind, in a list, an array or a tensor, as a LongTensor, (n,)."""
    must = f"what to forget must be whole numbers, and is a {type(values).__name__}"
    with explained(must, TypeError, ValueError, RuntimeError):
        index = torch.as_tensor(list(values) if isinstance(values, (range, set, tuple)) else values, device=device)
    index = index if index.numel() else index.long()  # torch makes floats of an empty list
    require(
        index.dim() == 1 and is_whole(index),
        f"what to forget is {index.dtype} of {tuple(index.shape)}; it must be whole numbers, (n,)",
    )
    return index.long()


def read_samples(samples, name, progress):
    """(x, y) on the CPU from whatever holds samples; x is a tensor, or several in a dict or tuple."""
    dataset, collate = samples, stacked
    if isinstance(samples, DataLoader):  # it may shuffle: its dataset gives the samples in order
        ordinary = isinstance(samples.sampler, (SequentialSampler, RandomSampler))
        ordinary &= samples.batch_sampler is None or type(samples.batch_sampler) is BatchSampler
        require(ordinary, f"{name}: a DataLoader with a sampler of its own; give a Subset of its dataset instead")
        dataset = samples.dataset
        collate = stacked if samples.collate_fn in (default_collate, default_convert) else samples.collate_fn
    if type(dataset) is TensorDataset and collate is stacked:
        *x, y = dataset.tensors
        dataset = x[0] if len(x) == 1 else tuple(x), y
    if not (isinstance(dataset, (tuple, list)) and len(dataset) == 2):
        dataset = read_dataset(dataset, name, progress, collate)
    with explained(f"{name} must be numbers", TypeError, ValueError):
        x, y = of_each(tensor, dataset[0]), tensor(dataset[1])
    return x, y.long() if is_whole(y) else y


def tensor(values):
    """A tensor on the CPU from one, or from what numpy can read."""
    if not isinstance(values, torch.Tensor):
        values = np.ascontiguousarray(values)
        values = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    return values.detach().cpu()


def of_each(function, *xs):
    """`function` of samples that are one tensor, or of each part of those that have several."""
    if isinstance(xs[0], dict):
        return {key: function(*(x[key] for x in xs)) for key in xs[0]}
    return tuple(map(function, *xs)) if isinstance(xs[0], tuple) else function(*xs)


def read_dataset(dataset, name, progress, collate):
    """All samples of a Dataset or Subset, as what `collate` makes of a list of them."""
    with explained(f"{name} must be (x, y), or hold (tensor, label) for each sample", Exception):
        first, count = sample(dataset[0])[0], len(dataset)
        size, free = sum(torch.as_tensor(part).nbytes for part in parts_of(first).values()) * count, free_memory()
    require(size <= free, f"{name} needs {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
    shown = {"desc": f"reading {name}, {size / 1e6:.0f} MB", "disable": None if progress else True, "leave": False}
    items = [dataset[number] for number in tqdm(range(count), **shown)]
    cannot = f"{name}: samples cannot be put together, pad or resize them"
    with explained(cannot, TypeError, ValueError, RuntimeError):
        return sample(collate(items))


def stacked(items):
    """One (x, y) of many: their parts stacked."""
    xs, ys = zip(*map(sample, items))
    return of_each(lambda *parts: torch.stack([torch.as_tensor(part) for part in parts]), *xs), torch.as_tensor(ys)


def sample(item):
    """(x, label) of what a Dataset gives: a dict with the label among the inputs, (x, label, ...), or (*x, label)."""
    if isinstance(item, dict):
        label = next(key for key in ("labels", "label") if key in item)  # as Hugging Face's data sets call it
        return {key: value for key, value in item.items() if key != label}, item[label]
    if len(item) > 2 and torch.as_tensor(item[1]).dim() > 0 and not isinstance(item[0], dict):
        return tuple(item[:-1]), item[-1]
    return item[0], item[1]


def free_memory():
    """Bytes of memory that are free; infinity where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return float("inf")


def packed(parts, inputs):
    """(x, unpack) for {"train": x, "test": x}: x of several parts becomes one tensor of (N, entries) in each.

    `unpack` takes such a batch apart for the net; it is None where x is one tensor.
    """
    forms = {name: {key: form(part, name, inputs) for key, part in parts_of(x).items()} for name, x in parts.items()}
    differ = f"train has {forms['train']} and test {forms['test']}; they must be alike"
    require(forms["train"] == forms["test"], f"the parts of x, their shapes and types: {differ}")
    for name, x in parts.items():
        counts = {len(part) for part in parts_of(x).values()}
        require(len(counts) == 1, f"{name}: the parts of x have {' and '.join(map(str, sorted(counts)))} samples")
    if isinstance(parts["train"], torch.Tensor):
        return {name: x.long() if inputs == "embedding" else x for name, x in parts.items()}, None
    known = forms["train"]
    require(inputs == "embedding", f'train is of {len(known)} parts: for tokens say inputs="embedding", or give one')
    sizes = [math.prod(shape) for shape, _ in known.values()]

    def unpack(batch):
        cut = zip(known.items(), batch.split(sizes, 1))
        inputs = {key: part.view(-1, *shape).to(dtype) for (key, (shape, dtype)), part in cut}
        return inputs if isinstance(parts["train"], dict) else list(inputs.values())

    joined = {
        name: torch.cat([parts_of(x)[key].reshape(len(parts_of(x)[key]), -1).long() for key in known], 1)
        for name, x in parts.items()
    }
    return joined, unpack


def parts_of(x):
    """The parts of x by their names, or numbers."""
    return x if isinstance(x, dict) else dict(enumerate(x)) if isinstance(x, tuple) else {0: x}


def form(part, name, inputs):
    """The shape of a sample's part, and its type; a UserError if it is not for these `inputs`."""
    whole = is_whole(part) or part.dtype == torch.bool
    require(whole or inputs == "values", f'{name} is {part.dtype}; inputs "embedding" is for whole numbers')
    values = part.is_floating_point() or inputs == "embedding"
    require(values, f'{name} is {part.dtype}: for tokens say inputs="embedding", else give floats')
    require(part.dim() > 0, f"{name} is one number; it must be (samples, ...)")
    return tuple(part.shape[1:]), part.dtype
