"""The file of what `crisscross tune` has measured: which tile, by device, direction and strip."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from crisscross.kernels.candidates import CANDIDATES, list_rows
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.source import read_source
from crisscross.kernels.tables import DIRECTIONS, TABLES, Direction, Strip

#: Names the file; if it is empty, none is read.
VARIABLE = "CRISSCROSS_TUNED"
_FORMAT = "tiles that crisscross tune has measured, 1"

Key = tuple[Direction, Strip]


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


def find_choices(device: str, architecture: int) -> Choices | None:
    """Find what was measured on a device.

    A file that cannot be read costs a warning and no more: results are as good without it.
    """
    path = find_path()
    if path is None:
        return None
    try:
        tiles = read_choices(path, device, architecture)
    except UnreadableError as error:
        warnings.warn(
            f"{error}; tiles are those of the tables, as without it", RuntimeWarning, stacklevel=2
        )
        return None
    return Choices(device, tiles) if tiles else None


def read_choices(path: Path, device: str, architecture: int) -> dict[Key, Choice]:
    """Read what a file has for a device, with these very tables and sources.

    Raises
    ------
    UnreadableError
        If there is a file, and it is none of ours.
    """
    entries = read_file(path).get(_name_key(device, architecture), [])
    try:
        return dict(map(_parse, entries))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnreadableError(f"cannot read {path}: it has entries that no tune wrote") from None


def write_choices(path: Path, device: str, architecture: int, choices: Mapping[Key, Choice]) -> str:
    """Return the text of the file at `path` with these choices for a device; others stay.

    Raises
    ------
    UnreadableError
        If there is a file, and it is none of ours.
    """
    entries = [
        {
            "direction": direction,
            "strip": strip._asdict(),
            "tile": repr(choice.tile),
            "seconds": choice.seconds,
            "table_seconds": choice.table_seconds,
        }
        for (direction, strip), choice in choices.items()
    ]
    devices = {**read_file(path), _name_key(device, architecture): entries}
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
    except ValueError:
        raise UnreadableError(f"cannot read {path}: it is not JSON") from None
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict) or content.get("format") != _FORMAT:
        raise UnreadableError(f"cannot read {path}: crisscross tune did not write it")
    return devices


def _name_key(device: str, architecture: int) -> str:
    return f"{device}, sm_{architecture}, tables {hash_tables()}"


def _parse(entry: Any) -> tuple[Key, Choice]:
    direction, strip = entry["direction"], Strip(**entry["strip"])
    # Of tiles that are listed: no others are tested.
    tiles = {repr(row.tile): row.tile for row in list_rows(direction, strip.arithmetic)}
    seconds, table_seconds = float(entry["seconds"]), float(entry["table_seconds"])
    return (direction, strip), Choice(tiles[entry["tile"]], seconds, table_seconds)
