"""Files: written in full or not at all, checked when they are read; and the errors that a user can fix."""

import hashlib
import io
import json
import os
import re
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

PATIENCE_S = 5  # after which a run that waits for another says so


class UserError(Exception):
    """A mistake that the user can fix; see `scripts.run_script`."""


def require(condition, message):
    """Raise a UserError with the message, or with what it returns, unless the condition holds."""
    if not condition:
        raise UserError(message() if callable(message) else message)


def bytes_of(path):
    """A file's content; an OSError for what is no regular file: reading a pipe may never end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    return path.read_bytes()


@contextmanager
def explained(message, *errors):
    """Turn errors of these classes into a UserError: the message, and what the error says."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None) or re.sub("\x1b\\[[0-9;]*m", "", str(error))
        raise UserError(f"{message}: {' '.join(reason.split())[:300] or type(error).__name__}")


@contextmanager
def naming(what):
    """Put what a UserError is about before its message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}")


def check_writable(folder):
    """Raise a UserError unless files can be made in `folder`, which is made where it is missing."""
    with explained(f"{folder} cannot be written to", OSError):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as probe:  # its own name: runs may start together
            probe.write(bytes(4096))


@contextmanager
def locked(folder):
    """Let one process at a time work on what a folder holds; the lock of one that has died is free."""
    lock = FileLock(folder / ".lock")
    with explained(f"{folder} cannot be written to", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout:
            print(f"waiting for another run, which works on {folder}", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def save_atomically(path, content):
    """Write a file so that it is there in full or not at all; a UserError if it cannot be, as when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(f"{path} cannot be written", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def save_tensors(path, values):
    """Write tensors and plain values with `save_atomically`, with the file's name, and a checksum at the end."""
    serialised = io.BytesIO()  # writing straight to a full disk, torch does not say why it fails
    torch.save({"file": path.name, "values": values}, serialised)
    content = serialised.getvalue()
    save_atomically(path, content + hashlib.sha256(content).digest())  # torch reads past what follows


def load_tensors(path):
    """What `save_tensors` wrote, on the CPU; never pickled objects. An error for a single wrong bit."""
    return read_tensors(bytes_of(Path(path)))


def read_tensors(content, path=None):
    """`load_tensors` of a file's bytes; with `path`, an error if they are another file's."""
    content, digest = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != digest:  # torch looks at no checksum
        raise ValueError("the checksum is wrong")
    stored = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    if path and path.name != stored["file"]:
        raise ValueError(f"it is {stored['file']}")
    return stored["values"]


def digest(state):
    """A short name for the weights of a state dict, every bit of them."""
    values = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return values.hexdigest()[:16]


def load_or_set_aside(path, read):
    """What `read` makes of a file's bytes and path, or None where there is none.

    A damaged file is renamed to *.damaged and counts as missing. A UserError names a file that cannot be read for lack
    of permission or memory.
    """
    try:
        return read(bytes_of(path), path)
    except FileNotFoundError:
        return None
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {str(error) or type(error).__name__}")
    except Exception as error:  # json, zip and pickle readers each raise their own
        aside = path.with_name(path.name + ".damaged")
        with explained(f"{path} is damaged and cannot be set aside", OSError), suppress(FileNotFoundError):
            os.replace(path, aside)  # unless another run has done so
        print(f"{path} is damaged ({type(error).__name__}): set aside as {aside.name}, to be made again", flush=True)
        return None


def save_record(path, record):
    """Write a cell's record, with the path below the results' folder and a checksum, by `save_atomically`."""
    record = {"file": below_results(path), **record}
    record = {"checksum": checksum(record), **record}
    save_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_record(content, path):
    """A cell's record from its file's bytes; an error if they have changed since they were saved there."""
    record = json.loads(content)
    if record.pop("checksum") != checksum(record):
        raise ValueError("the checksum is wrong")
    if (file := record.pop("file")) != below_results(path):
        raise ValueError(f"it is {file}")
    return record


def below_results(path):
    """<tree>/<dataset>/<task>/<method>/<file>"""
    return "/".join(path.parts[-5:])


def checksum(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
