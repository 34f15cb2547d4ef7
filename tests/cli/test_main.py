"""The command itself, and what `crisscross doctor` tells."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

import crisscross
import crisscross.cli.doctor
from crisscross.cli import main
from crisscross.errors import BackendError
from crisscross.gpu import find_device_problem
from crisscross.ops.backends import Choice


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"crisscross {crisscross.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["bench", "demo", "doctor", "tune", "--version"]),
        (["demo", "--help"], ["--out", "--sigma", "--seed", "--patch", "--mark", "--max-side"]),
        (
            ["bench", "--help"],
            ["--quick", "--shape", "--dtype", "--rounds", "--threads", "--peers"],
        ),
        (["bench", "--help"], ["--only", "--seed", "--json", "--plot", "--markdown"]),
        (["tune", "--help"], ["--shape", "--dtype", "--precision", "--layout", "--clear"]),
        (["doctor", "--help"], ["usage: crisscross doctor"]),
    ],
)
def test_help(capsys, argv, words):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(word in out for word in words)


def test_no_subcommand(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: crisscross") and "doctor" in err


def test_an_unknown_subcommand_is_one_line(capsys):
    assert main(["dance"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("crisscross: ") and "'dance'" in err
    assert err.count("\n") == 1


def test_the_module_is_the_command():
    command = [sys.executable, "-W", "error", "-m", "crisscross"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"crisscross {crisscross.__version__}\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_the_script_is_this_function():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="crisscross")
    assert script.load() is main


def test_a_reader_that_leaves_early_sees_no_traceback():
    code = "import sys; from crisscross.cli import main; sys.exit(main(['doctor']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_a_full_disk_behind_stdout_is_one_line():
    code = "import sys; from crisscross.cli import main; sys.exit(main(['doctor']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "crisscross doctor: cannot print: No space left on device"
    )
    assert "Traceback" not in done.stderr


OPTIONAL = {"matplotlib", "skimage", "PIL", "rich", "torch", "jax", "cupy", "ml_dtypes"}


@pytest.mark.parametrize("argv", [None, ["--version"], ["--help"], ["doctor"]])
def test_optional_packages_are_neither_imported_nor_needed(run_python, argv):
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import crisscross.cli
if {argv!r} is not None:
    assert crisscross.cli.main({argv!r}) == 0
"""
    run_python(code)
    code = f"""
import contextlib, io, sys
import crisscross.cli
if {argv!r} is not None:
    with contextlib.redirect_stdout(io.StringIO()):
        crisscross.cli.main({argv!r})
print(sorted({OPTIONAL!r} & set(sys.modules)))
"""
    # Asked for a device, where it is installed; it imports the other by itself.
    allowed = {"cupy", "ml_dtypes"} if argv == ["doctor"] else set()
    assert set(eval(run_python(code))) <= allowed


def run_doctor(capsys) -> dict[str, list[tuple[str, str]]]:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    sections, columns = {}, set()
    for block in out.strip().split("\n\n"):
        title, *lines = block.split("\n")
        cells = [re.fullmatch(r"  (\S.*?) {2,}(\S.*)", line) for line in lines]
        sections[title] = [(cell[1], cell[2]) for cell in cells if cell]
        columns |= {cell.start(2) if cell else None for cell in cells}
    assert len(columns) == 1, "values are not aligned"
    return sections


def test_doctor_tells_everything(capsys):
    sections = run_doctor(capsys)
    assert list(sections) == ["Versions", "CPU", "GPU", "Backends"]
    versions = dict(sections["Versions"])
    assert versions["crisscross"] == crisscross.__version__
    assert versions["Python"].startswith(platform.python_version())
    assert versions["NumPy"] == np.__version__
    assert {"torch", "jax", "ml_dtypes", "hypothesis"} <= set(versions)
    assert any(name.startswith("cupy") for name in versions)
    assert versions["hypothesis"] == importlib.metadata.version("hypothesis")
    cpu = dict(sections["CPU"])
    assert int(cpu["usable CPUs"]) >= 1
    assert "threads" in cpu["BLAS"] or "none" in cpu["BLAS"]
    assert sections["GPU"] == [("device", find_device_problem() or "a CUDA device can be used")]
    backends = dict(sections["Backends"])
    assert set(backends) == {
        "NumPy",
        "torch, CPU",
        "jax, CPU",
        "other DLPack, CPU",
        "any, CUDA",
    }
    array = np.ones((1, 2, 3, 4), np.float32)
    assert backends["NumPy"] == crisscross.explain(array, array, array).backend


def test_doctor_knows_which_arrays_there_are(capsys, monkeypatch):
    def version(name):
        if name == "jax":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(crisscross.cli.doctor, "version", version)
    backends = dict(run_doctor(capsys)["Backends"])
    assert (backends["torch, CPU"], backends["jax, CPU"]) == ("cpu", "not installed")


def test_doctor_asks_the_library_which_backend_serves(capsys, monkeypatch):
    def choose(function: str, device: str, backend: str | None, library: str) -> Choice:
        if device == "cpu":
            return Choice("abacus", "", ())
        raise BackendError("none")

    monkeypatch.setattr(crisscross.cli.doctor, "choose_backend", choose)
    monkeypatch.setattr(crisscross.cli.doctor, "find_refusal", lambda *_: "it is asleep")
    backends = dict(run_doctor(capsys)["Backends"])
    assert backends.pop("any, CUDA") == "none: it is asleep"
    assert set(backends.values()) == {"abacus"}


def test_doctor_tells_what_is_not_installed(capsys, monkeypatch):
    def find_none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(crisscross.cli.doctor, "version", find_none)
    versions = dict(run_doctor(capsys)["Versions"])
    assert {versions[name] for name in ("torch", "jax", "ml_dtypes")} == {"not installed"}
