"""How the scripts begin and end."""

import ast
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from conftest import ROOT

from harness.scripts import PORTABLE, run_script
from harness.store import UserError


@dataclass
class Settings:
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass
class EditedSettings(Settings):
    device: Literal["cpu", "cuda"] = "tpu"


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UserError("--seeds is empty"), 2, "error: --seeds is empty\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command continues with what is not finished\n"),
    ],
)
def test_a_script_ends_with_an_error_that_users_can_mend_in_one_line(monkeypatch, capsys, error, status, line):
    def fail(_):
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(fail, Settings, "what it does")
    assert (ended.value.code, capsys.readouterr().err) == (status, line)


def test_a_reader_that_has_gone_ends_a_script_without_a_word():
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(ROOT / "report.py"), "--help"], **given) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_a_script_gets_its_settings_from_the_command_line_and_shows_other_errors_in_full(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--device", "cuda"])
    run_script(print, Settings, "what it does")
    assert capsys.readouterr().out == "Settings(device='cuda')\n"
    with pytest.raises(ZeroDivisionError):
        run_script(lambda _: 1 / 0, Settings, "what it does")


def test_a_default_that_was_edited_to_what_does_not_exist_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(lambda _: pytest.fail("was called"), EditedSettings, "what it does")
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith("error: ") and "`device`" in line and "`tpu`" in line


def test_portable_kernels_are_chosen_before_torch_is_imported(tmp_path):
    script = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import dataclasses, os, torch
from harness.scripts import PORTABLE, run_script

@dataclasses.dataclass
class Settings:
    kernels: str = "native"

def main(settings):
    print(torch.backends.cpu.get_cpu_capability(), PORTABLE.items() <= os.environ.items())

run_script(main, Settings, "")
"""
    (tmp_path / "script.py").write_text(script)
    run = [sys.executable, "script.py", "--kernels"]
    env = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    found = [
        subprocess.run([*run, kernels], cwd=tmp_path, env=env, capture_output=True, text=True).stdout.split()
        for kernels in ("native", "portable")
    ]
    assert found[0][1] == "False" and found[1] == ["AVX2", "True"]


def test_ctrl_c_during_imports_ends_in_one_line():
    """`harness.scripts` comes first in every script, and imports nothing that takes long."""
    code = "import os, signal, sys, harness.scripts; print('torch' in sys.modules, flush=True)\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); harness.scripts.watch_imports()\n"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run = [sys.executable, "-c", code + f"os.kill(os.getpid(), {int(number)}); print('went on')"]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, "False\n")
        assert done.stderr == "\ninterrupted; the same command continues with what is not finished\n"
    for script in (
        "main.py",
        "report.py",
        *(f"benchmarks/{name}.py" for name in ("tune", "speed", "passes", "device")),
    ):
        tree = ast.parse((ROOT / script).read_text())
        first = next(node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
        assert first.names[0].name == "harness.scripts", script


def test_a_terminal_that_knows_few_signs_gets_the_rest_replaced():
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    code = "from harness.scripts import run_script; import dataclasses\n@dataclasses.dataclass\nclass S:\n    pass\n"
    code += "run_script(lambda _: print('÷ ±'), S, '')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "? ?\n"), done.stderr


def no_memory(_):
    raise MemoryError


def no_memory_on_a_gpu(_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [no_memory, no_memory_on_a_gpu, lambda _: torch.empty(10**15)])
def test_too_little_memory_is_said_in_one_line(monkeypatch, capsys, fail):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(fail, Settings, "what it does")
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.startswith("error: there is not enough memory") and line.count("\n") == 1


@pytest.mark.parametrize("output, status, said", [(">&-", 0, ""), (">/dev/full", 2, "no space is left")])
def test_an_output_that_is_closed_or_full_gives_no_traceback(output, status, said):
    code = "from harness.scripts import run_script; import dataclasses\n@dataclasses.dataclass\nclass S:\n    pass\n"
    code += "run_script(lambda _: print('x', flush=True), S, '')"
    done = subprocess.run(
        f'"{sys.executable}" -c "$CODE" {output}',
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"CODE": code},
    )
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_message_stays_in_one_line(monkeypatch, capsys):
    def fail(_):
        raise UserError("a\nb: is wrong")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit):
        run_script(fail, Settings, "what it does")
    assert capsys.readouterr().err == "error: a b: is wrong\n"
