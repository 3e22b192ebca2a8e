"""Samples of a user's own, from whatever holds them in Python, and what they must be."""

import os

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from harness.store import UserError


def check_samples(x, y, name):
    """Raise a UserError unless x, (N, ...), is finite and y, (N,), has a label from 0 for each of its samples."""
    for values in (x, y):
        if not isinstance(values, torch.Tensor):
            raise UserError(f"{name} must be tensors, and one is a {type(values).__name__}")
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"{name}: labels are {y.dtype} of {tuple(y.shape)}; they must be whole numbers, one a sample")
    if x.dim() < 2 or len(x) != len(y) or not len(x):
        raise UserError(f"{name}: x is of {tuple(x.shape)} and has {len(y)} labels; it must be (samples, ...)")
    if x.is_floating_point() and not (finite := x.flatten(1).isfinite().all(1)).all():
        raise UserError(f"{name}: sample {int((~finite).nonzero()[0])} holds nan or infinity")
    if y.min() < 0:
        raise UserError(f"{name}: label {int(y.min())} is below 0; labels count from 0")


def check_labels(y):
    """The labels that occur in y, sorted; a UserError if it is one only."""
    if len(known := y.unique()) < 2:
        raise UserError(f"all labels are {int(y[0])}: unlearning needs at least two classes")
    return known


def positions(values, device):
    """Whole numbers of any kind, in a list, an array or a tensor, as a LongTensor, (n,)."""
    try:
        found = torch.as_tensor(list(values) if isinstance(values, (range, set, tuple)) else values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"what to forget must be whole numbers, and is a {type(values).__name__} ({error})")
    found = found if found.numel() else found.long()  # torch makes floats of an empty list
    if found.dim() != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"what to forget is {found.dtype} of {tuple(found.shape)}; it must be whole numbers, (n,)")
    return found.long()


def read_samples(samples, name, progress):
    """(x, y) on the CPU from whatever holds samples; x is a tensor, or several in a dict or tuple."""
    dataset = samples.dataset if isinstance(samples, DataLoader) else samples  # a loader may shuffle
    if isinstance(dataset, TensorDataset):
        *x, y = dataset.tensors
        dataset = x[0] if len(x) == 1 else tuple(x), y
    if not (isinstance(dataset, (tuple, list)) and len(dataset) == 2):
        dataset = read_dataset(dataset, name, progress)
    x, y = of_each(tensor, dataset[0]), tensor(dataset[1])
    return x, y.long() if y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32) else y


def tensor(values):
    values = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
    return values.detach().cpu()


def of_each(function, *xs):
    """`function` of samples that are one tensor, or of each part of those that have several."""
    if isinstance(xs[0], dict):
        return {key: function(*(x[key] for x in xs)) for key in xs[0]}
    return tuple(map(function, *xs)) if isinstance(xs[0], tuple) else function(*xs)


def read_dataset(dataset, name, progress):
    """All samples of a Dataset or Subset, stacked."""
    try:
        first, _ = sample(dataset[0])
        parts = list(first.values()) if isinstance(first, dict) else first if isinstance(first, tuple) else [first]
        size = sum(torch.as_tensor(part).nbytes for part in parts) * len(dataset)
    except (TypeError, LookupError, ValueError, RuntimeError, StopIteration) as error:
        raise UserError(f"{name} must be (x, y), or hold (tensor, label) for each sample ({error})")
    if size > (free := free_memory()):
        raise UserError(f"{name} needs {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
    shown = {"desc": f"reading {name}, {size / 1e6:.0f} MB", "disable": None if progress else True, "leave": False}
    try:
        batches = [sample(batch) for batch in tqdm(DataLoader(dataset, batch_size=500), **shown)]
    except RuntimeError as error:
        raise UserError(f"{name}: samples differ in shape: resize or pad them ({' '.join(str(error).split())})")
    xs, ys = zip(*batches)
    return of_each(lambda *parts: torch.cat(parts), *xs), torch.cat(ys)


def sample(item):
    """(x, label) of what a Dataset gives: a tuple, or a dict with the label among the inputs."""
    if isinstance(item, dict):
        label = next(key for key in ("labels", "label") if key in item)  # as Hugging Face's data sets call it
        return {key: value for key, value in item.items() if key != label}, item[label]
    x, label = item[0], item[1]
    return tuple(x) if isinstance(x, list) else x, label  # a DataLoader makes lists of tuples


def free_memory():
    """Bytes of memory that are free; infinity where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return float("inf")


def packed(x, y, name, inputs):
    """((x, y), unpack), x one tensor; several become one of (N, entries), which `unpack` takes apart for the net."""
    parts = list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, tuple) else [x]
    for part in parts:
        whole = not part.is_floating_point()
        if inputs == "embedding" and not whole:
            raise UserError(f'{name} is {part.dtype}; inputs "embedding" is for whole numbers, such as tokens')
        if inputs == "values" and (len(parts) > 1 or (whole and part.dtype != torch.uint8)):
            what = f"of {len(parts)} parts" if len(parts) > 1 else f"{part.dtype}"
            raise UserError(f'{name} is {what}: for tokens say inputs="embedding", else give one tensor of floats')
        if len(part) != len(parts[0]):
            raise UserError(f"{name}: the parts of x have {len(parts[0])} and {len(part)} samples")
    if isinstance(x, torch.Tensor):
        return (x.long() if inputs == "embedding" else x, y), None
    forms = [(part.shape[1:], part.dtype) for part in parts]
    sizes = [shape.numel() for shape, _ in forms]

    def unpack(batch):
        found = [part.view(-1, *shape).to(dtype) for part, (shape, dtype) in zip(batch.split(sizes, 1), forms)]
        return dict(zip(x, found)) if isinstance(x, dict) else found

    return (torch.cat([part.flatten(1).long() for part in parts], 1), y), unpack
