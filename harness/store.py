"""Files: written in full or not at all, damaged ones set aside; and the errors that a user can fix."""

import hashlib
import io
import json
import os
import signal
import sys
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
import tyro
from filelock import FileLock

# What selects the same kernels on every x86 processor with AVX2.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}


class UserError(Exception):
    """A mistake that the user can fix; see `run_script`."""


def run_script(function, settings, description):
    """Call a script's main function with its settings, a dataclass, from the command line.

    A UserError, or a default that was edited to a value its field cannot have, ends the script with one line and exit
    status 2. Ctrl-C ends it with one line and status 130, SIGTERM with status 143.
    """
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):
            chosen = tyro.cli(settings, description=description)
        if getattr(chosen, "kernels", "native") == "portable" and not os.environ.items() >= PORTABLE.items():
            os.environ.update(PORTABLE)
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # they are read when torch is imported
        signal.signal(signal.SIGTERM, terminate)
        function(chosen)
    except (UserError, UserWarning) as error:
        print("error:", str(error).partition(" We'll try")[0], file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the output's reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as stopped:
        print("\ninterrupted; the same command continues with what is not finished", file=sys.stderr)
        sys.exit(143 if stopped.args else 130)


def terminate(number, frame):
    """SIGTERM ends a script as Ctrl-C does, with status 143."""
    raise KeyboardInterrupt(number)


def check_writable(folder):
    """Raise a UserError unless files can be made in `folder`, which is made where it is missing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as probe:  # its own name: runs may start together
            probe.write(bytes(4096))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}")


@contextmanager
def locked(folder):
    """Let one process at a time work on what a folder holds; the lock of one that has died is free."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}")
    try:
        yield
    finally:
        lock.release()


def save_atomically(path, content):
    """Write a file so that it is there in full or not at all; a UserError if it cannot be, as when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}")


def save_tensors(path, values):
    """Write tensors and plain values with `save_atomically`."""
    serialised = io.BytesIO()  # writing straight to a full disk, torch does not say why it fails
    torch.save(values, serialised)
    save_atomically(path, serialised.getbuffer())


def load_tensors(path):
    """Tensors and plain values from a file, on the CPU; never pickled objects. An error for a single wrong bit."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():  # torch does not look at the checksums
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
    return torch.load(path, weights_only=True, map_location="cpu")


def digest(state):
    """A short name for the weights of a state dict, every bit of them."""
    values = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return values.hexdigest()[:16]


def load_or_set_aside(path, read):
    """What `read` makes of a file, or None where there is none.

    A damaged file is renamed to *.damaged and counts as missing. A UserError names a file that cannot be read for lack
    of permission or memory.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {str(error) or type(error).__name__}")
    except Exception as error:  # json, zip and pickle readers each raise their own
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        print(f"{path} is damaged ({type(error).__name__}): set aside as {aside.name}, to be made again", flush=True)
        return None


def read_record(path):
    """A cell's record; a ValueError or TypeError if the JSON is not one."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if "config" not in record:
        raise ValueError("not a cell")
    return record
