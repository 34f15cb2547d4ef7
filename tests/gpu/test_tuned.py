"""The file of what was measured: what is read from it, and what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from crisscross.gpu import cupy_engine, tuned
from crisscross.gpu.plan import describe_plan
from crisscross.kernels.candidates import CANDIDATES
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.tables import TABLES, Strip
from crisscross.testing import make_case
from tests.kernels.emulated import H100

PLACE = tuned.Place("NVIDIA H100", 90, "CUDA 13.0", "12.9")
STRIP = Strip("bfloat16", 97, 64, 512, True)
CHOICES = {
    ("forward", STRIP): Choice(CANDIDATES["forward"]["bfloat16"][0].tile, 1e-4, 2e-4),
    ("backward", STRIP._replace(length=500)): Choice(
        TABLES["backward"]["bfloat16"][6].tile, 0.1 + 0.2, 0.5
    ),
}


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    found = tmp_path / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(found))
    return found


def write(path, place=PLACE, choices=CHOICES):
    path.write_text(tuned.format_file(tuned.replace_choices(tuned.read_file(path), place, choices)))


def find_tiles(place=PLACE):
    found = tuned.find_choices(place)
    return None if found is None or found.is_stale else found.tiles


def test_what_is_written_is_read(path):
    assert tuned.find_choices(PLACE) is None
    write(path)
    found = tuned.find_choices(PLACE)
    assert found is not None and (found.device, found.tiles) == (PLACE.device, CHOICES)
    assert not found.is_stale


def test_the_device_has_what_is_stored_for_it(path, monkeypatch):
    attributes = {
        "ComputeCapabilityMajor": 9,
        "ComputeCapabilityMinor": 0,
        "MaxSharedMemoryPerBlockOptin": 1,
        "L2CacheSize": 2,
    }
    cuda = cupy_engine.cupy.cuda
    monkeypatch.setattr(cuda, "Device", lambda _: SimpleNamespace(attributes=attributes))
    properties = {"name": PLACE.device.encode()}
    monkeypatch.setattr(cuda.runtime, "getDeviceProperties", lambda _: properties)
    monkeypatch.setattr(cuda.runtime, "driverGetVersion", lambda: 13000)
    monkeypatch.setattr(cuda.nvrtc, "getVersion", lambda: (12, 9))
    assert cupy_engine.find_place(0) == PLACE
    write(path)
    limits = cupy_engine.find_limits.__wrapped__(0)
    assert limits.measured is not None and limits.measured.tiles == CHOICES
    path.unlink()
    assert cupy_engine.find_limits.__wrapped__(0).measured is None


@pytest.mark.parametrize("other", [{"device": "NVIDIA H200"}, {"architecture": 80}])
def test_another_device_has_choices_of_its_own(path, other):
    other = PLACE._replace(**other)
    write(path)
    assert tuned.find_choices(other) is None
    write(path, other, dict([*CHOICES.items()][:1]))
    assert find_tiles() == CHOICES and len(find_tiles(other)) == 1
    write(path, PLACE, {})
    assert find_tiles() == {} and len(find_tiles(other)) == 1


@pytest.mark.parametrize("name", ["TABLES", "CANDIDATES", "read_source", "driver", "nvrtc"])
def test_what_was_measured_under_anything_else_is_stale(path, monkeypatch, name):
    """And gone, once there is something newer."""
    write(path)
    changed = {
        "TABLES": {**TABLES, "forward": {**TABLES["forward"], "float64": ()}},
        "CANDIDATES": {**CANDIDATES, "backward": {}},
        "read_source": lambda name: f"another {name}",
    }
    place = PLACE if name in changed else PLACE._replace(**{name: "another"})
    if name in changed:
        monkeypatch.setattr(tuned, name, changed[name])
    tuned.hash_tables.cache_clear()
    try:
        found = tuned.find_choices(place)
        assert found is not None and found.is_stale and not found.tiles
        newer = dict([*CHOICES.items()][:1])
        write(path, place, newer)
        assert find_tiles(place) == newer
        (stored,) = json.loads(path.read_text())["devices"].values()
        assert len(stored["choices"]) == 1
    finally:
        tuned.hash_tables.cache_clear()


def test_explain_says_that_what_is_stale_is_not_used():
    problem = make_case((5, 7)).problem
    for is_stale in (False, True):
        limits = replace(H100, measured=Choices("a GPU", {}, is_stale=is_stale))
        words = "what crisscross tune has stored for this device is not used: "
        assert (words in describe_plan(problem, limits)) is is_stale


def change(path, edit):
    content = json.loads(path.read_text())
    (stored,) = content["devices"].values()
    edit(content, stored["choices"])
    path.write_text(json.dumps(content))


def change_first(**values):
    return lambda path: change(path, lambda _, entries: entries[0].update(values))


def change_strip(**values):
    return lambda path: change(path, lambda _, entries: entries[0]["strip"].update(values))


BAD = {
    "half of it": lambda path: path.write_text(path.read_text()[:200]),
    "nothing": lambda path: path.write_text(""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "another's": lambda path: path.write_text('{"devices": {}}'),
    "a list": lambda path: path.write_text("[]"),
    "a later format": lambda path: change(path, lambda whole, _: whole.update(format="3")),
    "no origin": lambda path: change(
        path, lambda whole, _: [stored.pop("under") for stored in whole["devices"].values()]
    ),
    "entries of no list": lambda path: change(
        path, lambda whole, _: whole.update(devices=dict.fromkeys(whole["devices"], 3))
    ),
    "a tile that is not listed": change_first(tile="MmaForwardTile(keys=8)"),
    "a tile that is no text": change_first(tile=["MmaForwardTile"]),
    "a strip of more": change_strip(width=3),
    "a length in words": change_strip(length="97"),
    "a length with a fraction": change_strip(length=97.0),
    "a head size that is true": change_strip(head_size_v=True),
    "a truth that is a number": change_strip(meets_itself=1),
    "an arithmetic that is none": change_strip(arithmetic="float8"),
    "an arithmetic that is no text": change_strip(arithmetic=["bfloat16"]),
    "no time": change_first(call_seconds="fast"),
    "a time of 400 digits": change_first(call_seconds=10**400),
    "a time that is true": change_first(call_seconds=True),
    "a time that is no number": change_first(call_seconds=float("nan")),
    "a time without end": change_first(table_call_seconds=float("inf")),
    "a time of nothing": change_first(table_call_seconds=0.0),
    "a direction": change_first(direction="sideways"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_not_ours_is_one_warning_and_no_error(path, name):
    """For all devices together: each looks up its own."""
    write(path)
    BAD[name](path)
    with pytest.warns(RuntimeWarning) as caught:
        assert [tuned.find_choices(PLACE) for _ in range(2)] == [None, None]
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith(f"cannot read {path}: ") and "\n" not in text
    assert text.endswith("; tiles are those of the tables, as without it")


def test_a_warning_that_is_an_error_fails_one_call(path):
    path.write_text("dear diary")
    with pytest.raises(RuntimeWarning, match="it is not JSON"):  # as filterwarnings says
        tuned.find_choices(PLACE)
    assert tuned.find_choices(PLACE) is None


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv(tuned.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned.find_path() == tmp_path / "crisscross" / "tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuned.find_path() == Path.home() / ".cache" / "crisscross" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, "elsewhere.json")
    assert tuned.find_path() == Path("elsewhere.json")
    monkeypatch.setenv(tuned.VARIABLE, "")
    assert tuned.find_path() is None and tuned.find_choices(PLACE) is None
