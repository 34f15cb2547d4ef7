"""The file of what `crisscross tune` has measured: which tile, by device, direction and strip."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from crisscross.kernels.candidates import CANDIDATES, list_rows
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.source import read_source
from crisscross.kernels.tables import DIRECTIONS, TABLES, Direction, Strip

#: Names the file; if it is empty, none is read.
VARIABLE = "CRISSCROSS_TUNED"
_FORMAT = "tiles that crisscross tune has measured, 2"
#: Files that were warned of: once in a process, for all its devices, whatever a warning leads to.
_warned_of: set[Path] = set()

Key = tuple[Direction, Strip]


class Place(NamedTuple):
    """What a measurement holds for, besides tables and sources.

    Attributes
    ----------
    device
        Its maker's name for it.
    architecture
        Compute capability, 90 for 9.0.
    driver, nvrtc
        Their versions; the driver's is that of CUDA which it serves.
    """

    device: str
    architecture: int
    driver: str
    nvrtc: str


class UnreadableError(Exception):
    """There is a file, and it cannot be read, or is not one of ours; the message is one line."""


def find_path() -> Path | None:
    """Find where the file is or would be; None if there is to be none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "crisscross" / "tuned.json"


@cache
def hash_tables() -> str:
    """Hash what a measurement holds for: tables, candidates, and the sources of their kernels."""
    kernels = {
        kernel
        for direction in DIRECTIONS
        for arithmetic in TABLES[direction]
        for row in list_rows(direction, arithmetic)
        for kernel in row.tile.kernels
    }
    sources = [read_source(f"{kernel}.cu") for kernel in sorted(kernels)]
    return hashlib.sha256(repr((TABLES, CANDIDATES, sources)).encode()).hexdigest()[:16]


def find_choices(place: Place) -> Choices | None:
    """Find what was measured on a device.

    A file that cannot be read costs a warning and no more: results are as good without it.
    """
    path = find_path()
    if path is None:
        return None
    try:
        return read_choices(path, place)
    except UnreadableError as error:
        if path not in _warned_of:
            _warned_of.add(path)
            text = f"{error}; tiles are those of the tables, as without it"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None


def read_choices(path: Path, place: Place) -> Choices | None:
    """Read what a file has for a device; what was measured under anything else is stale.

    Raises
    ------
    UnreadableError
        If there is a file, and it is none of ours.
    """
    stored = read_file(path).get(_name_key(place))
    if stored is None:
        return None
    try:
        if stored["under"] != _list_origins(place):
            return Choices(place.device, {}, is_stale=True)
        return Choices(place.device, dict(map(_parse, stored["choices"])))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnreadableError(f"cannot read {path}: it has entries that no tune wrote") from None


def replace_choices(
    devices: Mapping[str, Any], place: Place, choices: Mapping[Key, Choice]
) -> dict[str, Any]:
    """Return the entries of all devices, those of one replaced, stale ones too."""
    entries = [
        {
            "direction": direction,
            "strip": strip._asdict(),
            "tile": repr(choice.tile),
            "call_seconds": choice.seconds,
            "table_call_seconds": choice.table_seconds,
        }
        for (direction, strip), choice in choices.items()
    ]
    return {**devices, _name_key(place): {"under": _list_origins(place), "choices": entries}}


def format_file(devices: Mapping[str, Any]) -> str:
    """Return the text of a file with the entries of all devices."""
    return json.dumps({"format": _FORMAT, "devices": devices}, indent=1) + "\n"


def read_file(path: Path) -> dict[str, Any]:
    """Read the entries of all devices; none where there is no file.

    Raises
    ------
    UnreadableError
        If there is a file, and it is none of ours.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise UnreadableError(f"cannot read {path}: it is not JSON") from None
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict) or content.get("format") != _FORMAT:
        raise UnreadableError(f"cannot read {path}: crisscross tune did not write it")
    return devices


def _name_key(place: Place) -> str:
    return f"{place.device}, sm_{place.architecture}"


def _list_origins(place: Place) -> dict[str, str]:
    return {"tables": hash_tables(), "driver": place.driver, "nvrtc": place.nvrtc}


def _parse(entry: Any) -> tuple[Key, Choice]:
    direction, strip = entry["direction"], Strip(**entry["strip"])
    # By the very type: "97" or True would be a strip that no call has.
    if [type(value) for value in strip] != [str, int, int, int, bool]:
        raise TypeError
    # Of tiles that are listed: no others are tested.
    tiles = {repr(row.tile): row.tile for row in list_rows(direction, strip.arithmetic)}
    times = entry["call_seconds"], entry["table_call_seconds"]
    if not all(type(each) is float and 0 < each < math.inf for each in times):
        raise ValueError
    return (direction, strip), Choice(tiles[entry["tile"]], *times)
