"""The file of what was measured: what is read from it, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crisscross.gpu import cupy_engine, tuned
from crisscross.kernels.candidates import CANDIDATES
from crisscross.kernels.choices import Choice
from crisscross.kernels.tables import TABLES, Strip

DEVICE = ("NVIDIA H100", 90)
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


def write(path, device=DEVICE, choices=CHOICES):
    path.write_text(tuned.write_choices(path, *device, choices))


def test_what_is_written_is_read(path):
    assert tuned.find_choices(*DEVICE) is None
    write(path)
    assert tuned.read_choices(path, *DEVICE) == CHOICES
    found = tuned.find_choices(*DEVICE)
    assert found is not None and (found.device, found.tiles) == (DEVICE[0], CHOICES)


def test_the_device_has_what_is_stored_for_it(path, monkeypatch):
    monkeypatch.setattr(cupy_engine, "name_device", lambda _index: DEVICE[0])
    attributes = {
        "ComputeCapabilityMajor": 9,
        "ComputeCapabilityMinor": 0,
        "MaxSharedMemoryPerBlockOptin": 1,
        "L2CacheSize": 2,
    }
    monkeypatch.setattr(
        cupy_engine.cupy.cuda, "Device", lambda _: type("Device", (), {"attributes": attributes})
    )
    write(path)
    limits = cupy_engine.find_limits.__wrapped__(0)
    assert limits.measured is not None and limits.measured.tiles == CHOICES
    path.unlink()
    assert cupy_engine.find_limits.__wrapped__(0).measured is None


@pytest.mark.parametrize("other", [("NVIDIA H200", 90), ("NVIDIA H100", 80)])
def test_another_device_has_choices_of_its_own(path, other):
    write(path)
    assert tuned.find_choices(*other) is None
    write(path, other, dict([*CHOICES.items()][:1]))
    assert tuned.read_choices(path, *DEVICE) == CHOICES
    assert len(tuned.read_choices(path, *other)) == 1
    write(path, DEVICE, {})
    assert tuned.find_choices(*DEVICE) is None and tuned.find_choices(*other) is not None


@pytest.mark.parametrize("name", ["TABLES", "CANDIDATES", "read_source"])
def test_what_other_tables_or_sources_were_measured_with_is_stale(path, monkeypatch, name):
    write(path)
    changed = {
        "TABLES": {**TABLES, "forward": {**TABLES["forward"], "float64": ()}},
        "CANDIDATES": {**CANDIDATES, "backward": {}},
        "read_source": lambda name: f"another {name}",
    }
    monkeypatch.setattr(tuned, name, changed[name])
    tuned.hash_tables.cache_clear()
    try:
        assert tuned.find_choices(*DEVICE) is None
    finally:
        tuned.hash_tables.cache_clear()


def change(path, edit):
    content = json.loads(path.read_text())
    (entries,) = content["devices"].values()
    edit(content, entries)
    path.write_text(json.dumps(content))


BAD = {
    "half of it": lambda path: path.write_text(path.read_text()[:200]),
    "nothing": lambda path: path.write_text(""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another's": lambda path: path.write_text('{"devices": {}}'),
    "a list": lambda path: path.write_text("[]"),
    "a later format": lambda path: change(path, lambda whole, _: whole.update(format="2")),
    "entries of no list": lambda path: change(
        path, lambda whole, _: whole.update(devices=dict.fromkeys(whole["devices"], 3))
    ),
    "a tile that is not listed": lambda path: change(
        path, lambda _, entries: entries[0].update(tile="MmaForwardTile(keys=8)")
    ),
    "a strip of more": lambda path: change(path, lambda _, e: e[0]["strip"].update(width=3)),
    "no time": lambda path: change(path, lambda _, entries: entries[0].update(seconds="fast")),
    "a direction": lambda path: change(path, lambda _, e: e[0].update(direction="sideways")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_not_ours_is_one_warning_and_no_error(path, name):
    write(path)
    BAD[name](path)
    with pytest.warns(RuntimeWarning) as caught:
        assert tuned.find_choices(*DEVICE) is None
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith(f"cannot read {path}: ") and "\n" not in text
    assert text.endswith("; tiles are those of the tables, as without it")


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv(tuned.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned.find_path() == tmp_path / "crisscross" / "tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuned.find_path() == Path.home() / ".cache" / "crisscross" / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, "elsewhere.json")
    assert tuned.find_path() == Path("elsewhere.json")
    monkeypatch.setenv(tuned.VARIABLE, "")
    assert tuned.find_path() is None and tuned.find_choices(*DEVICE) is None
