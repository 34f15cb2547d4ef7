"""A device to try tiles on whose times and results are made up: nothing is computed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from crisscross.bench import tune
from crisscross.bridge import name_dtype
from crisscross.dispatch import Held
from crisscross.gpu.tuned import Place
from crisscross.kernels.candidates import list_rows
from crisscross.kernels.engine import Limits
from crisscross.kernels.tables import DIRECTIONS, TABLES
from crisscross.kernels.tiles import Tile
from crisscross.view import View, find_strides

TILES = {
    row.tile
    for direction in DIRECTIONS
    for arithmetic in TABLES[direction]
    for row in list_rows(direction, arithmetic)
}
PLACE = Place("a made-up GPU", 90, "CUDA 13.0", "12.9")
_Result = Callable[[np.ndarray], np.ndarray] | None


def leave_out_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold no results to the oracle: it would find that they are made up."""
    monkeypatch.setattr(tune, "expect_strips", lambda *_: [])
    monkeypatch.setattr(tune, "hold_to_oracle", lambda *_: None)


class _Scratch:
    """Memory that nobody reads."""


def find_tile(kernel: str, options: tuple[str, ...]) -> Tile:
    """Find the tile that a kernel is compiled for."""
    (found,) = (
        tile
        for tile in TILES
        if kernel in tile.kernels
        and {f"-D{name}={value}" for name, value in tile.definitions.items()} <= set(options)
    )
    return found


@dataclass
class MadeUpDevice:
    """An engine and its device in one.

    Attributes
    ----------
    seconds
        Of a launch, by tile; where there are several, one for each row that is timed. Any other
        tile takes one second.
    results
        What becomes of the right results, by tile; nothing is written by a tile that has None.
    broken
        What compiling for a tile raises.
    rows
        The rows that were timed: the tile of each launch, and where its q is.
    alive
        References to all arrays and scratch that were ever made.
    peaks
        How many of them there were when a row was timed.
    """

    seconds: Mapping[Tile, Any] = field(default_factory=dict)
    results: Mapping[Tile, _Result] = field(default_factory=dict)
    broken: Mapping[Tile, Exception] = field(default_factory=dict)
    place: Place = PLACE
    limits: Limits = field(default_factory=lambda: Limits(90, 227 << 10, cache_bytes=1))
    rows: list[list[tuple[Tile, int]]] = field(default_factory=list)
    alive: list[weakref.ref[Any]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine, self.name = self, self.place.device
        self.launches: list[tuple[Tile, int]] = []
        self.memory = 0

    def compile(self, _source: str, kernel: str, options: tuple[str, ...], _shared: int) -> Tile:
        tile = find_tile(kernel, options)
        if tile in self.broken:
            raise self.broken[tile]
        return tile

    def launch(self, tile: Tile, _grid: int, _block: int, argument: Any, _shared: int) -> None:
        self.launches.append((tile, int(argument["q"]["data"][0])))

    def make(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, /) -> Held:
        return self._hold(_Scratch(), shape, strides, dtype)

    def _hold(self, owner: Any, shape: tuple[int, ...], strides: Any, dtype: str) -> Held:
        self.memory += 4096
        self.alive.append(weakref.ref(owner))
        return Held(View(self.memory, shape, strides, dtype), owner)

    def put(self, array: np.ndarray) -> Held:
        assert array.flags.c_contiguous
        strides = find_strides(array.shape)
        return self._hold(array.copy(), array.shape, strides, name_dtype(array.dtype))

    def poison(self, held: Held) -> None:
        held.owner[...] = np.nan

    def get(self, held: Held) -> np.ndarray:
        """Return what the tile that was launched last would have made of the array."""
        tile, _ = self.launches[-1]
        result = self.results.get(tile, lambda x: x)
        if result is not None:
            right = np.linspace(1, 2, held.owner.size).reshape(held.owner.shape)
            held.owner[...] = result(right)
        return np.array(held.owner)

    def time(self, row: Callable[[], None]) -> float:
        self.launches.clear()
        row()
        self.rows.append(self.launches.copy())
        self.peaks.append(sum(reference() is not None for reference in self.alive))
        counts = Counter(tile for tile, _ in self.launches)
        return sum(number * self._find_seconds(tile) for tile, number in counts.items())

    def _find_seconds(self, tile: Tile) -> float:
        seconds = self.seconds.get(tile, 1.0)
        return float(seconds.pop(0) if isinstance(seconds, list) else seconds)
