"""Whatever is wrong with the input: one line, an exit code, and no file left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crisscross.cli.demo
from crisscross.cli import main

Make = Callable[[Path], None]


def save(array: np.ndarray) -> Make:
    return lambda path: Image.fromarray(array).save(path, format="PNG")


def save_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:2000])


def save_text(path: Path) -> None:
    path.write_text("not an image")


def save_infinite(path: Path) -> None:
    Image.fromarray(np.full((32, 32), np.inf, np.float32)).save(path, format="TIFF")


SOUND = save(np.zeros((32, 32), np.uint8))

#: What is wrong -> how to make the image, options, and words of the message.
CASES: dict[str, tuple[Make | None, list[str], str]] = {
    "no such image": (None, [], "no such file"),
    "image is a folder": (lambda path: path.mkdir(), [], "not a file"),
    "image is a pipe": (lambda path: os.mkfifo(path), [], "not a file"),
    "image is text": (save_text, [], "not an image"),
    "image is empty": (lambda path: path.touch(), [], "not an image"),
    "image is cut off": (save_truncated, [], "truncated"),
    "image of infinities": (save_infinite, [], "finite"),
    "image smaller than a patch": (save(np.zeros((4, 40), np.uint8)), [], "40 x 4 pixels"),
    "image smaller than --patch": (
        save(np.zeros((7, 40), np.uint8)),
        ["--patch", "9"],
        "patches need 9 x 9",
    ),
    "too thin once scaled down": (
        save(np.zeros((8, 400), np.uint8)),
        ["--max-side", "100"],
        "100 x 2 pixels, and patches need 5 x 5; it was scaled down",
    ),
    "mark below the image": (SOUND, ["--mark", "32", "0"], "outside the image"),
    "mark right of the image": (SOUND, ["--mark", "0", "32"], "outside the image"),
    "mark negative": (SOUND, ["--mark", "-1", "0"], "--mark"),
    "mark is not a number": (SOUND, ["--mark", "a", "0"], "--mark"),
    "mark of one number": (SOUND, ["--mark", "1"], "--mark"),
    "sigma negative": (SOUND, ["--sigma", "-0.1"], "--sigma"),
    "sigma zero": (SOUND, ["--sigma", "0"], "--sigma"),
    "sigma NaN": (SOUND, ["--sigma", "nan"], "--sigma"),
    "sigma infinite": (SOUND, ["--sigma", "inf"], "--sigma"),
    "sigma is not a number": (SOUND, ["--sigma", "much"], "--sigma"),
    "seed negative": (SOUND, ["--seed", "-1"], "--seed"),
    "patch even": (SOUND, ["--patch", "4"], "odd"),
    "patch zero": (SOUND, ["--patch", "0"], "--patch"),
    "patch huge": (SOUND, ["--patch", "99"], "--patch"),
    "max-side tiny": (SOUND, ["--max-side", "3"], "--max-side"),
    "unknown option": (SOUND, ["--colour"], "--colour"),
    "no folder to write to": (SOUND, ["--out", "{out}/missing/a.png"], "no folder"),
    "output is a folder": (SOUND, ["--out", "{out}/folder.png"], "not a file"),
    "output of unknown kind": (SOUND, ["--out", "{out}/a.docx"], ".png"),
    "output without a kind": (SOUND, ["--out", "{out}/a"], ".png"),
    "output is a device": (SOUND, ["--out", "/dev/null"], ".png"),
    "output may not be written": (SOUND, ["--out", "/proc/x.png"], "cannot write /proc/x.png"),
    "output's name is too long": (SOUND, ["--out", "{out}/" + 300 * "a" + ".png"], "cannot write"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(tmp_path, out_folder, capsys, case):
    make, options, words = CASES[case]
    image = tmp_path / "image"
    if make is not None:
        make(image)
    (out_folder / "folder.png").mkdir()
    options = [option.format(out=out_folder) for option in options]
    if "--out" not in options:
        options += ["--out", str(out_folder / "a.png")]
    code = main(["demo", str(image), *options])
    check_failure(code, capsys, words)
    assert [path.name for path in out_folder.iterdir()] == ["folder.png"]


def check_failure(code: int, capsys: pytest.CaptureFixture[str], words: str) -> None:
    out, err = capsys.readouterr()
    assert code in (1, 2) and out == ""
    assert err.startswith("crisscross demo: ") and err.endswith("\n") and err.count("\n") == 1
    assert words in err and "Traceback" not in err


def test_the_photograph_is_not_overwritten(small_photograph, capsys):
    before = small_photograph.read_bytes()
    assert small_photograph.suffix == ".png"
    code = main(["demo", str(small_photograph), "--out", str(small_photograph)])
    check_failure(code, capsys, "it is the photograph itself")
    assert small_photograph.read_bytes() == before


@pytest.mark.parametrize("limit", [1000, 2000], ids=["error", "warning"])
def test_a_decompression_bomb_is_not_unpacked(
    small_photograph, out_folder, capsys, monkeypatch, limit
):
    # Pillow warns above its limit and refuses above twice as much; the image has 64 x 48 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    code = main(["demo", str(small_photograph), "--out", str(out_folder / "a.png")])
    check_failure(code, capsys, "bomb")
    assert list(out_folder.iterdir()) == []


@pytest.mark.parametrize("function", ["denoise", "attention_rows", "draw"])
def test_ctrl_c_leaves_what_there_was(small_photograph, out_folder, capsys, monkeypatch, function):
    def interrupt(*args: object) -> None:
        if function == "draw":  # half-way through the file
            Path(str(args[1])).write_bytes(b"\x89PNG half")
        raise KeyboardInterrupt

    path = out_folder / "a.png"
    path.write_text("older")
    monkeypatch.setattr(crisscross.cli.demo, function, interrupt)
    assert main(["demo", str(small_photograph), "--out", str(path)]) == 130
    assert capsys.readouterr() == ("", "crisscross demo: interrupted\n")
    assert [*out_folder.iterdir()] == [path] and path.read_text() == "older"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("no 3 GiB"), "not enough memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=["memory", "disk"],
)
def test_a_full_machine_is_one_line(
    small_photograph, out_folder, capsys, monkeypatch, error, words
):
    def fail(scene: object, path: Path) -> None:
        path.write_bytes(b"\x89PNG half")
        raise error

    monkeypatch.setattr(crisscross.cli.demo, "draw", fail)
    code = main(["demo", str(small_photograph), "--out", str(out_folder / "a.png")])
    check_failure(code, capsys, words)
    assert list(out_folder.iterdir()) == []


def test_the_output_is_tried_before_the_work(small_photograph, capsys, monkeypatch):
    def work(*args: object) -> None:
        raise AssertionError("computed for an output that cannot be written")

    monkeypatch.setattr(crisscross.cli.demo, "scale_down", work)
    code = main(["demo", str(small_photograph), "--out", "/proc/x.png"])
    check_failure(code, capsys, "cannot write")


@pytest.mark.parametrize("package", ["rich", "matplotlib", "skimage", "PIL"])
def test_a_missing_extra_is_one_line(run_python, out_folder, package):
    code = f"""
import contextlib, io, sys
sys.modules[{package!r}] = None
from crisscross.cli import main
with contextlib.redirect_stderr(io.StringIO()) as err:
    code = main(["demo", "--out", {str(out_folder / "a.png")!r}])
print(code, err.getvalue(), end="")
"""
    line = f"{package} is not installed: pip install 'crisscross-attention[demo]'"
    assert run_python(code) == f"1 crisscross demo: {line}\n"
    assert list(out_folder.iterdir()) == []
