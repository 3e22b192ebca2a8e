"""Loading data sets: OptDigits, torchvision's, arrays in a file, and image folders with their cache."""

import hashlib
import inspect
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageFolder
from tqdm import tqdm

from data import Dataset, Images, generator
from harness.store import UserError, explained, load_or_set_aside, read_tensors, require, save_tensors
from hyperparameters import FAMILIES

CNN_DATASETS = ("OptDigits", "Digit", "Fashion")
RESNET_DATASETS = ("CIFAR10", "CIFAR100")
TORCHVISION = {"Digit": MNIST, "Fashion": FashionMNIST, "CIFAR10": CIFAR10, "CIFAR100": CIFAR100}
CNN_SIDE = 28
MOST_CLASSES = 100_000
FEWEST_TEST_SAMPLES = 3  # 40 % of them train the membership attack: at least one


def load(name, root, image_size=None, label_noise=0, progress=False):
    """Load a data set by its name in the configuration, on the CPU, with `label_noise` percent of wrong labels.

    A set of the paper is read from torchvision's files under `root`, else from its image folder there, else downloaded.
    Any other name is looked for as ``<name>.npz`` (x_train, y_train, x_test, y_test), then as an image folder,
    ``<name>/{train,test}/<class>/*``, where ``val`` may stand for ``test``, or ``<name>/<class>/*`` alone, a fifth of
    which becomes the test set. Then torchvision loads the data set of this name, such as SVHN, if its labels are one
    whole number each. It checks what it downloads. OptDigits needs no files. `image_size` is the side of ResNet-18's
    images: 224 for CIFAR and 64 for own data unless given. A UserError names a damaged file, or the places that were
    searched.
    """
    return mislabelled(_load(name, Path(root), image_size, progress), label_noise)


def _load(name, root, image_size, progress):
    if name == "OptDigits":
        return _optdigits()
    tree = root / name
    if name in TORCHVISION:
        parts = _torchvision(name, root, download=False)
        if parts is None and not (tree / "train").is_dir():
            parts = _torchvision(name, root, download=True)
        if parts is not None:
            return _built_in(name, *parts, image_size)
    if (root / f"{name}.npz").is_file():
        return _from_images(name, *_arrays(root / f"{name}.npz"), image_size, progress)
    if tree.is_dir():
        return _image_folder(name, tree, image_size, progress)
    if isinstance(getattr(torchvision.datasets, name, None), type):
        return _from_images(name, *_torchvision_images(name, root, progress), image_size, progress)
    known = f"one of {', '.join(FAMILIES)} or a class of torchvision.datasets"
    searched = f"{tree}/train/<class>/ with {tree}/test/<class>/, {tree}/<class>/, or {tree}.npz"
    raise UserError(f"no data set {name!r}: it is neither {known}, nor is there {searched}")


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
    source = TORCHVISION[name]
    try:
        return [source(root, train=part, download=download) for part in (True, False)]
    except Exception as error:  # torchvision raises anything from AssertionError to URLError here
        if not download and isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        where = root / (f"{source.__name__}/raw" if name in CNN_DATASETS else source.base_folder)
        reason = " ".join(str(error).split()) or type(error).__name__
        require(download, f"{name}: a file in {where} is damaged ({reason}); delete the folder to download it again")
        searched = f"neither intact files of torchvision's in {where} nor the image folder {root / name}/train"
        raise UserError(f"{name}: found {searched}, and the download failed ({reason})")


def _built_in(name, train, test, image_size):
    if name in CNN_DATASETS:
        for part, count in ((train, 60_000), (test, 10_000)):
            shape, labels = tuple(part.data.shape), len(part.targets)
            if (*shape, labels) != (count, 28, 28, count):
                held = f"{shape} images and {labels} labels instead of {count}"
                raise UserError(f"{name}: {part.raw_folder} is damaged: {held}; delete it to download it again")
        parts = [Images(part.data[:, None], part.targets.long()) for part in (train, test)]
        return Dataset(name, "CNN", *parts, tuple(train.classes))
    parts = [(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), part.targets) for part in (train, test)]
    return _resnet_dataset(name, *parts, tuple(train.classes), image_size or 224, published_protocol=True)


def _resnet_dataset(name, train, test, classes, side, **rest):
    both = ((*train, True), (*test, False))
    parts = [Images(x, torch.as_tensor(y).long(), side, normalise=True, augment=augment) for x, y, augment in both]
    return Dataset(name, "ResNet-18", *parts, classes, **rest)


def _arrays(path):
    """({"train": [(image, label), ...], "test": ...}, names of the classes) from an npz file."""
    names = ("x_train", "y_train", "x_test", "y_test")
    unreadable = explained(f"{path} cannot be read", OSError, ValueError, zipfile.BadZipFile)
    with unreadable, np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in names if name in stored}
    missing = [name for name in names if name not in arrays]
    require(not missing, lambda: f"{path} has no {missing[0]}; it must hold {', '.join(names)}")
    parts = {}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
        if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
            x = x.transpose(0, 2, 3, 1)
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            wanted = "uint8 of (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
            raise UserError(f"{path}: x_{part} is {x.dtype} of {x.shape}; it must be {wanted}")
        require(
            len(x) == len(y) and np.issubdtype(y.dtype, np.integer),
            f"{path}: y_{part} must be {len(x)} whole numbers, and is {y.dtype} of {y.shape}",
        )
        require(len(x), f"{path}: x_{part} is empty")
        images = [Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image) for image in x]
        parts[part] = list(zip(images, y.tolist()))
    return parts, None


def _torchvision_images(name, root, progress):
    """The same from a torchvision data set of images with one whole number each as label."""
    source, parts, classes = getattr(torchvision.datasets, name), {}, None
    known = inspect.signature(source).parameters
    require(
        "split" in known or "train" in known,
        f"{name}: torchvision's has no training and test part; give the images as a folder",
    )
    for part in ("train", "test"):
        given = {"train": part == "train"} if "train" in known else {"split": part}
        given |= {"split": "balanced"} if name == "EMNIST" else {}
        with explained(f"{name}: torchvision cannot load its {part} part from {root}", Exception):
            dataset = source(root, **given, **({"download": True} if "download" in known else {}))
        classes = getattr(dataset, "classes", None)
        shown = {"desc": f"{name}: reading", "disable": None if progress else True}
        parts[part] = [dataset[i] for i in tqdm(range(len(dataset)), **shown)]
        image, label = parts[part][0][:2]
        require(
            isinstance(image, Image.Image) and isinstance(label, (int, np.integer)) and not isinstance(label, bool),
            f"{name}: a label is {type(label).__name__}; only sets with one class per image are read",
        )
    return parts, classes


def _from_images(name, parts, classes, image_size, progress):
    """A data set from {"train": [(image, label), ...], "test": ...}, images of PIL. Labels count from 0."""
    labels = {part: torch.tensor([int(label) for _, label in samples]) for part, samples in parts.items()}
    lowest, highest = (int(bound(torch.cat(list(labels.values())))) for bound in (torch.min, torch.max))
    if lowest < 0 or not 0 < highest < MOST_CLASSES:
        rule = f"they must count from 0, at least two and at most {MOST_CLASSES:,} classes"
        raise UserError(f"{name}: labels go from {lowest} to {highest}; {rule}")
    check_test_samples(name, len(parts["test"]))
    if absent := sorted(set(range(highest + 1)) - set(labels["train"].tolist())):
        print(f"{name}: class {absent[0]} has no training sample: are the labels without gaps, from 0?")
    images = {part: [image for image, _ in samples] for part, samples in parts.items()}
    classes = tuple(map(str, classes or range(highest + 1)))
    return _shuffled(name, _decode(name, images, image_size, progress), labels, classes, image_size)


def check_test_samples(name, count):
    if count < FEWEST_TEST_SAMPLES:
        needed = f"the membership attack needs at least {FEWEST_TEST_SAMPLES}"
        raise UserError(f"{name}: the test set holds {count} samples; {needed}")


def _shuffled(name, pixels, labels, classes, image_size, files=()):
    """The data set in a fixed random order: it may come sorted by class, and the attack reads the first samples."""
    orders = {part: torch.randperm(len(pixels[part]), generator=generator("order", part)) for part in pixels}
    parts = [(pixels[part][order], labels[part][order]) for part, order in orders.items()]
    rest = {"files": files, "order": orders["train"]}
    if pixels["train"].shape[1] == 1:
        return Dataset(name, "CNN", *(Images(*part) for part in parts), classes, **rest)
    built_in = name in FAMILIES
    side = image_size or (224 if built_in else 64)
    return _resnet_dataset(name, *parts, classes, side, published_protocol=built_in, **rest)


def _image_folder(name, tree, image_size, progress):
    listings, classes = _listings(name, tree)
    require(len(classes) >= 2, lambda: f"{name}: {tree} holds one class, {classes[0]}; at least two are needed")
    check_test_samples(name, len(listings["test"]))
    pixels = _cached_pixels(name, tree, listings, image_size, progress)
    labels = {part: torch.tensor([label for _, label in samples]) for part, samples in listings.items()}
    below = tree / "train" if (tree / "train").is_dir() else tree
    files = tuple(Path(path).relative_to(below).as_posix() for path, _ in listings["train"])
    return _shuffled(name, pixels, labels, classes, image_size, files)


class VisibleFolders(ImageFolder):
    """An image folder whose hidden folders are no classes."""

    def find_classes(self, directory):
        classes = [label for label in super().find_classes(directory)[0] if not label.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"{directory} has no folder for a class")
        return classes, {label: number for number, label in enumerate(classes)}


def refuse_loops(name, folder):
    """Raise a UserError if a link leads to a folder that is there already: its images would count many times."""
    seen = {}
    for path, _, _ in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            raise UserError(f"{name}: {path} is {seen[real]} again, through a link")
        seen[real] = path


def _listings(name, tree):
    """{"train": [(path, label), ...], "test": ...} of a tree, and the names of its classes."""

    def listing(folder):
        refuse_loops(name, folder)
        with explained(name, FileNotFoundError):
            listed = VisibleFolders(folder)
        broken = [path for path, _ in listed.samples if not os.path.isfile(path)]
        require(not broken, lambda: f"{name}: {broken[0]} is no file: a link to nothing, or a pipe")
        images = {path for path, _ in listed.samples}
        skipped = [path for path in map(str, folder.rglob("*")) if path not in images and os.path.isfile(path)]
        if skipped:
            print(f"{name}: {len(skipped)} files are skipped, no images in a class's folder, such as {min(skipped)}")
        return listed

    present = [part for part in ("train", "test", "val") if (tree / part).is_dir()]
    if not present:
        return _cut(listing(tree))
    if "train" not in present or len(present) == 1:
        missing = "train" if "train" not in present else "test (or val)"
        raise UserError(f"{name}: {tree} has no folder {missing}/<class>/")
    train, test = listing(tree / "train"), listing(tree / present[1])
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise UserError(f"{name}: {test.root} and {train.root} must hold the same classes; only one has {odd}")
    return {"train": train.samples, "test": test.samples}, tuple(train.classes)


def _cut(listing):
    """A folder of classes alone, cut into four fifths for training and one for the test, class by class."""
    cannot = f"{listing.root} cannot be cut into train and test, make the two folders yourself"
    with explained(cannot, ValueError):  # too few images of a class
        parts = train_test_split(listing.samples, test_size=0.2, stratify=listing.targets, random_state=0)
    return dict(zip(("train", "test"), map(sorted, parts))), tuple(listing.classes)


def _cached_pixels(name, tree, listings, image_size, progress):
    """The images as {"train": uint8 (N, C, H, W), "test": ...}, from the cache beside the tree if current."""
    digest = hashlib.sha256(repr((image_size, PIL.__version__, "upright")).encode())
    for samples in listings.values():
        for path, _ in samples:
            stat = os.stat(path)
            digest.update(repr((os.path.relpath(path, tree), stat.st_size, stat.st_mtime_ns)).encode())
    state = digest.hexdigest()
    cache = tree.with_name(tree.name + ".cache.pt")
    stored = load_or_set_aside(cache, read_tensors)
    if stored is not None and stored["state"] == state:
        return {part: stored[part] for part in ("train", "test")}
    paths = {part: [path for path, _ in samples] for part, samples in listings.items()}
    tensors = _decode(name, paths, image_size, progress)
    try:
        save_tensors(cache, {"state": state, **tensors})
    except UserError:
        print(f"{name}: decoded images are not cached, {cache.parent} cannot be written", flush=True)
    return tensors


def _decode(name, sources, image_size, progress):
    """{"train": uint8 (N, C, side, side), "test": ...} of images of PIL or paths to them."""
    samples = [(part, source) for part, part_sources in sources.items() for source in part_sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding Python's lock
        headers = list(pool.map(lambda sample: _open(sample[1], header_only=True), samples))
        gray = all(mode in ("1", "L", "LA") for mode, _ in headers)
        small = max(max(size) for _, size in headers) <= 32
        mode, side = "RGB", 32 if name in RESNET_DATASETS else image_size or 64
        if name in CNN_DATASETS or (gray and small):
            mode, side = "L", CNN_SIDE
        decoded = pool.map(lambda sample: _pixels(sample[1], mode, side), samples)
        arrays = {part: [] for part in sources}
        shown = {"desc": f"{name}: decoding", "total": len(samples), "disable": None if progress else True}
        for (part, _), pixels in zip(samples, tqdm(decoded, **shown)):
            arrays[part].append(pixels)
    stacked = {part: torch.from_numpy(np.stack(images)) for part, images in arrays.items()}
    return {part: images.permute(0, 3, 1, 2).contiguous() for part, images in stacked.items()}


def _pixels(source, mode, side):
    image = _open(source).convert(mode)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, -1)


def _open(source, header_only=False):
    """An image of PIL, upright, from its path or itself; or its mode and size alone."""
    ours = isinstance(source, Image.Image)
    unreadable = explained(f"{source}: not a readable image", Exception)  # PIL's readers raise OSError to SyntaxError
    with unreadable, nullcontext(source) if ours else Image.open(source) as image:
        unread = f"{source}: images of mode {image.mode} are not read, only those of 8 bits a channel"
        require(not image.mode.startswith(("I", "F")), unread)
        if header_only:
            return image.mode, image.size
        image.load()
        return ImageOps.exif_transpose(image)
