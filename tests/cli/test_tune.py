"""`crisscross tune`: its arguments, its table, what it stores and removes."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import crisscross.cli.tune
from crisscross.bench.shapes import GPU_SHAPES, Shape
from crisscross.bench.team import BenchError
from crisscross.bench.trials import Finding, Trial
from crisscross.cli import main
from crisscross.gpu import tuned
from crisscross.kernels.choices import Choice
from crisscross.kernels.select import list_fitting
from crisscross.kernels.tables import Strip
from tests.bench.made_up_device import PLACE, MadeUpDevice, leave_out_oracle
from tests.kernels.emulated import H100

SMALL = ["tune", "--shape", "64/8,97x97", "--rounds", "3"]
STRIP = Strip("bfloat16", 97, 8, 64, True)
OWN, SECOND, *OTHERS = [row.tile for row in list_fitting("forward", STRIP, H100)]


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    found = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(found))
    return found


@pytest.fixture
def device(monkeypatch) -> MadeUpDevice:
    made = MadeUpDevice({SECOND: 0.5})
    leave_out_oracle(monkeypatch)

    @contextmanager
    def open_trials(name):
        assert name == "cuda:0"
        yield made

    monkeypatch.setattr(crisscross.cli.tune, "find_unavailability", lambda _device: None)
    monkeypatch.setattr(crisscross.cli.tune, "open_trials", open_trials)
    return made


@pytest.fixture
def asked(device, monkeypatch):
    """Try nothing; what would have been asked of the tuner."""
    calls = []

    def note(_device, shapes, **options):
        del options["on_step"]
        calls.append((tuple(shapes), options))
        return []

    monkeypatch.setattr(crisscross.cli.tune, "tune", note)
    return calls


def read(path):
    found = tuned.read_choices(path, PLACE)
    return None if found is None else found.tiles


def write(path, choices):
    stored = tuned.replace_choices(tuned.read_file(path), PLACE, choices)
    path.parent.mkdir(exist_ok=True)
    path.write_text(tuned.format_file(stored))


def test_what_is_faster_is_printed_and_stored(device, path, capsys):
    device.results = {OTHERS[0]: lambda x: 2 * x}
    assert main(SMALL) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    (own,) = [line for line in out.splitlines() if f"│ {OWN} " in line and "1.000" in line]
    assert "2000 ms" in own and "the table's own" in own and "chosen" not in own
    (line,) = [line for line in out.splitlines() if f"│ {SECOND} " in line and "2.000" in line]
    assert "1000 ms" in line and "chosen" in line
    assert out.count("chosen") == 2  # backward, the table's own
    assert f"  {OTHERS[0]}: disagrees with the table's own: out, rms" in out
    assert (
        "forward, bfloat16, strips of 97, measured on a made-up GPU with C/C' = 64/8, 97x97" in out
    )
    assert f"Stored 1 of 2, each faster than the table's own by more than 3%, in {path}\n" in out
    assert read(path) == {("forward", STRIP): Choice(SECOND, 1.0, 2.0)}
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


def test_what_is_no_longer_faster_is_forgotten_and_the_rest_stays(device, path, capsys):
    other, back = ("forward", STRIP._replace(length=96)), ("backward", STRIP)
    own, slower, *_ = [row.tile for row in list_fitting("backward", STRIP, H100)]
    tiles = {("forward", STRIP): SECOND, back: slower, other: SECOND}
    old = {key: Choice(tile, 1.0, 3.0) for key, tile in tiles.items()}
    write(path, old)
    device.seconds = {}
    # Where the table's own has no number, nothing is learnt.
    device.results = {own: lambda x: x * float("nan")}
    assert main(SMALL) == 0
    assert "Stored 0 of 2" in capsys.readouterr().out
    assert set(read(path)) == {back, other}


def test_what_others_store_meanwhile_stays(device, path, monkeypatch):
    """Minutes lie between the beginning and the end, and another device's tuner may run in them."""
    other = {("forward", STRIP._replace(length=96)): Choice(SECOND, 1.0, 3.0)}
    tune = crisscross.cli.tune.tune

    def store_and_tune(*arguments, **options):
        write(path, other)
        return tune(*arguments, **options)

    monkeypatch.setattr(crisscross.cli.tune, "tune", store_and_tune)
    assert main(SMALL) == 0
    assert read(path) == {**other, ("forward", STRIP): Choice(SECOND, 1.0, 2.0)}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such lock")
@pytest.mark.parametrize("moment", ["read_choices", "replace"])
def test_the_file_is_locked_from_reading_to_replacing(device, path, monkeypatch, moment):
    import fcntl

    owner = crisscross.cli.tune if moment == "read_choices" else Path
    do, tried = getattr(owner, moment), []

    def try_lock(*arguments):
        with open(f"{path}.lock", "ab") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tried.append(arguments)
        return do(*arguments)

    monkeypatch.setattr(owner, moment, try_lock)
    assert main(SMALL) == 0 and tried
    # And free in the end.
    with open(f"{path}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BenchError("the table's own tiles do not run"), 1, "the table's own tiles do not run"),
        (RuntimeError("cudaErrorIllegalAddress"), 1, "cudaErrorIllegalAddress"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_was_found_before_it_ends_is_stored_and_printed(
    device, path, monkeypatch, capsys, error, code, words
):
    tune = crisscross.cli.tune.tune

    def tune_and_fail(*arguments, **options):
        yield from tune(*arguments, **options)
        raise error

    monkeypatch.setattr(crisscross.cli.tune, "tune", tune_and_fail)
    assert main(SMALL) == code
    out, err = capsys.readouterr()
    assert "Stored 1 of 2" in out and out.count("chosen") == 2
    assert err.startswith("crisscross tune: ") and words in err and err.count("\n") == 1
    assert read(path) == {("forward", STRIP): Choice(SECOND, 1.0, 2.0)}


@pytest.mark.parametrize("part", ["find_unavailability", "open_trials"])
def test_a_gpu_of_another_is_one_line(device, path, monkeypatch, capsys, part):
    def fail(_name):
        raise RuntimeError("the device is busy")

    monkeypatch.setattr(crisscross.cli.tune, part, fail)
    assert main(SMALL) == 1
    expected = "crisscross tune: cannot measure on cuda:0: RuntimeError: the device is busy\n"
    assert capsys.readouterr() == ("", expected)


def test_a_measurement_that_fails_is_no_file_that_cannot_be_written(
    device, path, monkeypatch, capsys
):
    def fail(*_arguments, **_options):
        raise OSError("the terminal is gone")

    monkeypatch.setattr(crisscross.cli.tune, "tune", fail)
    assert main(SMALL) == 1
    assert capsys.readouterr() == ("", "crisscross tune: cannot print: the terminal is gone\n")


def test_the_defaults_are_those_of_the_bench(asked, path):
    assert main(["tune"]) == 0
    options = {"dtype": "bfloat16", "precision": "ieee", "channel_axis": -1, "rounds": 9}
    assert asked == [(GPU_SHAPES, options)]
    assert json.loads(path.read_text())["devices"] == {}


def test_the_options(asked, path):
    options = ["--shape", "8/2,5x7", "--shape", "9/3,4x6,2", "--dtype", "float32"]
    options += ["--precision", "tf32x3", "--layout", "channels-first", "--rounds", "5"]
    assert main(["tune", *options]) == 0
    expected = {"dtype": "float32", "precision": "tf32x3", "channel_axis": 1, "rounds": 5}
    assert asked == [((Shape(8, 2, 5, 7), Shape(9, 3, 4, 6, 2)), expected)]


def test_without_a_gpu_it_is_one_line_and_no_file(path, monkeypatch, capsys):
    monkeypatch.setattr(crisscross.cli.tune, "find_unavailability", lambda device: f"no {device}")
    assert main(SMALL) == 1
    expected = "crisscross tune: there is no GPU to measure on: no cuda:0\n"
    assert capsys.readouterr() == ("", expected)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "64,5x7"], "argument --shape: expected C/C',HxW"),
        (["--dtype", "int8"], "argument --dtype"),
        (["--precision", "double"], "argument --precision"),
        (["--layout", "NHWC"], "argument --layout"),
        (["--rounds", "0"], "argument --rounds: expected a whole number from 1"),
        (["--device", "cuda"], "unknown arguments: --device"),
    ],
)
def test_wrong_usage_is_one_line(asked, path, capsys, options, words):
    assert main(["tune", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("crisscross tune: ") and words in err
    assert asked == [] and not path.exists()


def test_clear(device, path, capsys):
    assert main(SMALL) == 0 and path.exists()
    capsys.readouterr()
    assert main(["tune", "--clear"]) == 0
    assert capsys.readouterr() == (f"Removed {path}\n", "")
    assert not path.exists()
    assert main(["tune", "--clear"]) == 0
    assert capsys.readouterr() == (f"Nothing is stored: there is no {path}\n", "")


@pytest.mark.parametrize("options", [["--clear"], []])
def test_a_file_of_another_is_neither_removed_nor_written_over(asked, path, capsys, options):
    path.parent.mkdir()
    path.write_text("dear diary")
    assert main(["tune", *options]) == 1
    expected = f"crisscross tune: cannot read {path}: it is not JSON\n"
    assert capsys.readouterr() == ("", expected)
    assert path.read_text() == "dear diary" and asked == []


def test_where_nothing_is_to_be_stored(asked, monkeypatch, capsys):
    monkeypatch.setenv(tuned.VARIABLE, "")
    assert main(["tune"]) == 1
    expected = "crisscross tune: CRISSCROSS_TUNED is empty, which says that nothing is stored\n"
    assert capsys.readouterr() == ("", expected) and asked == []


def test_a_file_that_cannot_be_is_told_before_the_work(asked, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    for name, words in {"tuned.txt": "a name that ends in .json", "file/a.json": "cannot "}.items():
        monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / name))
        assert main(["tune"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("crisscross tune: cannot ") and words in err and err.count("\n") == 1
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(BenchError("it does not run"), 1, "it does not run"), (KeyboardInterrupt(), 130, "interrup")],
)
def test_what_ends_it_leaves_what_was_stored(device, path, monkeypatch, capsys, error, code, words):
    assert main(SMALL) == 0
    stored = path.read_bytes()
    capsys.readouterr()

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(crisscross.cli.tune, "tune", fail)
    assert main(SMALL) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("crisscross tune: ") and words in err
    assert path.read_bytes() == stored and len(list(path.parent.iterdir())) == 2


def test_a_device_whose_own_tiles_fail_has_a_table_without_numbers(
    device, path, monkeypatch, capsys
):
    trials = (Trial(OWN, reason="OSError: gone"), Trial(SECOND, reason="nothing to compare with"))
    found = [Finding(Shape(64, 8, 97, 97), "forward", STRIP, trials)]
    monkeypatch.setattr(crisscross.cli.tune, "tune", lambda *_args, **_options: found)
    assert main(SMALL) == 0
    out = capsys.readouterr().out
    assert f"  {OWN}: OSError: gone" in out and "chosen" not in out and "Stored 0 of 1" in out


def test_packages_that_are_missing_are_one_line(run_python):
    code = """
import contextlib, io, sys
sys.modules["rich"] = None
from crisscross.cli import main
told = io.StringIO()
with contextlib.redirect_stderr(told):
    print(main(["tune"]))
print(told.getvalue())
"""
    told = run_python(code)
    assert told.startswith("1\n") and "crisscross-attention[bench]" in told
