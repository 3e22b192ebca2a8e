"""Loading data sets: OptDigits, torchvision's, and image folders with their cache."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageFolder
from tqdm import tqdm

from data import Dataset, Images, generator
from harness.store import UserError, load_or_set_aside, load_tensors, save_tensors
from hyperparameters import FAMILIES

CNN_DATASETS = ("OptDigits", "Digit", "Fashion")
RESNET_DATASETS = ("CIFAR10", "CIFAR100")
TORCHVISION = {"Digit": MNIST, "Fashion": FashionMNIST, "CIFAR10": CIFAR10, "CIFAR100": CIFAR100}
CNN_SIDE = 28
FEWEST_TEST_IMAGES = 3  # 40 % of them train the membership attack: at least one


def load(name, root, image_size=None, label_noise=0, progress=False):
    """Load a data set by its name in the configuration, on the CPU, with `label_noise` percent of wrong labels.

    Looked for under `root`: torchvision's own files, then the image-folder tree ``<name>/{train,test}/<class>/*``;
    else a built-in set is downloaded by torchvision, which verifies its checksums. OptDigits needs no files.
    `image_size` is the side of ResNet-18's images: 224 for CIFAR and 64 for own data unless given. A UserError names
    a damaged file, or the places that were searched.
    """
    return mislabelled(_load(name, Path(root), image_size, progress), label_noise)


def _load(name, root, image_size, progress):
    if name == "OptDigits":
        return _optdigits()
    tree = root / name
    if name in TORCHVISION:
        found = _torchvision(name, root, download=False)
        if found is None and not (tree / "train").is_dir():
            found = _torchvision(name, root, download=True)
        if found is not None:
            return _built_in(name, *found, image_size)
    missing = [part for part in ("train", "test") if not (tree / part).is_dir()]
    if len(missing) == 1:
        raise UserError(f"{name}: {tree} has no folder {missing[0]}/<class>/")
    if missing:
        wanted = f"{tree / 'train'}/<class>/ and {tree / 'test'}/<class>/"
        raise UserError(f"no data set {name!r}: neither one of {', '.join(FAMILIES)} nor an image folder with {wanted}")
    return _image_folder(name, tree, image_size, progress)


def mislabelled(dataset, percent):
    """Give so many percent of the training samples another label, always the same ones: mistakes to be memorised."""
    train, classes = dataset.train, len(dataset.classes)
    rng = generator("label noise", dataset.name, float(percent))
    chosen = torch.randperm(len(train), generator=rng)[: round(len(train) * percent / 100)]
    labels = train.labels.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=rng)) % classes
    return replace(dataset, train=replace(train, labels=labels))


def _optdigits():
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(pixels, size=(CNN_SIDE, CNN_SIDE), mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    parts = [Images(pixels[part], labels[part]) for part in (train, test)]
    return Dataset("OptDigits", "CNN", *parts, tuple(str(k) for k in range(10)))


def _torchvision(name, root, download):
    """torchvision's (train, test), or None where its files are not there."""
    kind = TORCHVISION[name]
    try:
        return [kind(root, train=part, download=download) for part in (True, False)]
    except Exception as error:  # torchvision raises anything from AssertionError to URLError here
        if not download and isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        where = root / (f"{kind.__name__}/raw" if name in CNN_DATASETS else kind.base_folder)
        reason = " ".join(str(error).split()) or type(error).__name__
        if not download:
            raise UserError(f"{name}: a file in {where} is damaged ({reason}); delete the folder to download it again")
        places = f"neither intact files of torchvision's in {where} nor the image folder {root / name}/train"
        raise UserError(f"{name}: found {places}, and the download failed ({reason})")


def _built_in(name, train, test, image_size):
    if name in CNN_DATASETS:
        for part, count in ((train, 60_000), (test, 10_000)):
            shape, labels = tuple(part.data.shape), len(part.targets)
            if (*shape, labels) != (count, 28, 28, count):
                found = f"{shape} images and {labels} labels instead of {count}"
                raise UserError(f"{name}: {part.raw_folder} is damaged: {found}; delete it to download it again")
        parts = [Images(part.data[:, None], part.targets.long()) for part in (train, test)]
        return Dataset(name, "CNN", *parts, tuple(train.classes))
    parts = [(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), part.targets) for part in (train, test)]
    return _resnet_dataset(name, *parts, tuple(train.classes), image_size or 224, published_protocol=True)


def _resnet_dataset(name, train, test, classes, side, **rest):
    both = ((*train, True), (*test, False))
    parts = [Images(x, torch.as_tensor(y).long(), side, normalise=True, augment=augment) for x, y, augment in both]
    return Dataset(name, "ResNet-18", *parts, classes, **rest)


def _image_folder(name, tree, image_size, progress):
    built_in = name in FAMILIES
    listings = {}
    for part in ("train", "test"):
        try:
            listings[part] = ImageFolder(tree / part)
        except FileNotFoundError as error:
            raise UserError(f"{name}: {' '.join(str(error).split())}")
    train, test = listings["train"], listings["test"]
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise UserError(f"{name}: {tree}/train and {tree}/test must hold the same classes; only one has {odd}")
    if len(train.classes) < 2:
        raise UserError(f"{name}: {tree}/train holds one class, {train.classes[0]}; at least two are needed")
    if len(test) < FEWEST_TEST_IMAGES:
        needed = f"the membership attack needs at least {FEWEST_TEST_IMAGES}"
        raise UserError(f"{name}: {tree}/test holds {len(test)} images; {needed}")
    tensors = _cached_pixels(name, tree, listings, image_size, progress)
    orders = {part: torch.randperm(len(tensors[part]), generator=generator("order", part)) for part in tensors}
    parts = [(tensors[p][orders[p]], torch.tensor(listings[p].targets)[orders[p]]) for p in ("train", "test")]
    files = tuple(os.path.relpath(path, tree / "train") for path, _ in train.samples)
    rest = {"files": files, "order": orders["train"]}
    if tensors["train"].shape[1] == 1:
        parts = [Images(pixels, labels) for pixels, labels in parts]
        return Dataset(name, "CNN", *parts, tuple(train.classes), **rest)
    side = image_size or (224 if built_in else 64)
    return _resnet_dataset(name, *parts, tuple(train.classes), side, published_protocol=built_in, **rest)


def _cached_pixels(name, tree, listings, image_size, progress):
    """The images as {"train": uint8 (N, C, H, W), "test": ...}, from the cache beside the tree if current."""
    digest = hashlib.sha256(repr((image_size, torchvision.__version__)).encode())
    for listing in listings.values():
        for path, _ in listing.samples:
            stat = os.stat(path)
            digest.update(repr((os.path.relpath(path, tree), stat.st_size, stat.st_mtime_ns)).encode())
    state = digest.hexdigest()
    cache = tree.with_name(tree.name + ".cache.pt")
    stored = load_or_set_aside(cache, load_tensors)
    if stored is not None and stored["state"] == state:
        return {part: stored[part] for part in ("train", "test")}
    tensors = _decode(name, listings, image_size, progress)
    try:
        save_tensors(cache, {"state": state, **tensors})
    except UserError:
        print(f"{name}: decoded images are not cached, {cache.parent} cannot be written", flush=True)
    return tensors


def _decode(name, listings, image_size, progress):
    samples = [(part, path) for part, listing in listings.items() for path, _ in listing.samples]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding Python's lock
        headers = list(pool.map(lambda sample: _open(sample[1], header_only=True), samples))
        gray = all(mode in ("1", "L", "LA") for mode, _ in headers)
        small = max(max(size) for _, size in headers) <= 32
        mode, side = "RGB", 32 if name in RESNET_DATASETS else image_size or 64
        if name in CNN_DATASETS or (gray and small):
            mode, side = "L", CNN_SIDE
        decoded = pool.map(lambda sample: _pixels(sample[1], mode, side), samples)
        arrays = {part: [] for part in listings}
        shown = {"desc": f"{name}: decoding", "total": len(samples), "disable": None if progress else True}
        for (part, _), pixels in zip(samples, tqdm(decoded, **shown)):
            arrays[part].append(pixels)
    stacked = {part: torch.from_numpy(np.stack(images)) for part, images in arrays.items()}
    return {part: images.permute(0, 3, 1, 2).contiguous() for part, images in stacked.items()}


def _pixels(path, mode, side):
    image = _open(path).convert(mode)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, -1)


def _open(path, header_only=False):
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: images of mode {image.mode} are not read, only those of 8 bits a channel")
            if header_only:
                return image.mode, image.size
            image.load()
            return image
    except UserError:
        raise
    except Exception as error:  # each of PIL's readers raises its own, from OSError to SyntaxError
        raise UserError(f"{path}: not a readable image ({' '.join(str(error).split())})")
