"""Running a script: its settings from the command line, and every ending in one line.

Importing this module comes first in a script, so that Ctrl-C ends the other imports, which take seconds, in one line.
"""

import errno
import io
import os
import signal
import sys
import warnings
from pathlib import Path

# What selects the same kernels on every x86 processor with AVX2.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
INTERRUPTED = "\ninterrupted; the same command continues with what is not finished"


def end_at_once(number, frame):
    """Ends the program while modules are imported: many of them swallow or change what a handler raises."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130 if number == signal.SIGINT else 143)


def watch_imports():
    """Until `run_script`, let SIGTERM, and Ctrl-C unless it is ignored, end the program in one line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    signal.signal(signal.SIGTERM, end_at_once)


if Path(getattr(sys.modules["__main__"], "__file__", "")).resolve().is_relative_to(Path(__file__).parents[1]):
    watch_imports()  # the program is one of this repository's scripts


def run_script(function, settings, description):
    """Call a script's main function with its settings, a dataclass, from the command line.

    A UserError, or a default that was edited to a value its field cannot have, ends the script with one line and exit
    status 2. Ctrl-C ends it with one line and status 130, SIGTERM with status 143.
    """
    import tyro

    from harness.store import UserError

    sys.stdout, sys.stderr = (stream or io.TextIOWrapper(io.BytesIO()) for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may not know all signs
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):
            chosen = tyro.cli(settings, description=description)
        if getattr(chosen, "kernels", "native") == "portable" and not os.environ.items() >= PORTABLE.items():
            os.environ.update(PORTABLE)
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # they are read when torch is imported
        if signal.getsignal(signal.SIGINT) in (end_at_once, signal.default_int_handler):
            signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
        function(chosen)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):  # torch's two
            raise
        print("error: there is not enough memory; try fewer --jobs or a smaller --batch-size", file=sys.stderr)
        sys.exit(2)
    except (UserError, UserWarning, MemoryError) as error:
        message = " ".join(str(error).partition(" We'll try")[0].splitlines())
        print("error:", message or "there is not enough memory", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the output's reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: the output cannot be written: no space is left", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(143 if signal.SIGTERM in stopped.args else 130)


interruptions = []  # the signals so far: libraries may swallow what `interrupt` raises


def interrupt(number, frame):
    """Ctrl-C and SIGTERM end a script, at the next finished cell at the latest: see `runner.run_all`."""
    interruptions.append(number)
    raise KeyboardInterrupt(number)
