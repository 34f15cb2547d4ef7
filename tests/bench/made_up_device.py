"""A device to try tiles on whose times and results are made up: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crisscross.bridge import name_dtype
from crisscross.dispatch import Held
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
_Result = Callable[[np.ndarray], np.ndarray]


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
        What becomes of the right results, by tile.
    broken
        What compiling for a tile raises.
    rows
        The rows that were timed: the tile of each launch, and where its q is.
    """

    seconds: Mapping[Tile, Any] = field(default_factory=dict)
    results: Mapping[Tile, _Result] = field(default_factory=dict)
    broken: Mapping[Tile, Exception] = field(default_factory=dict)
    name: str = "a made-up GPU"
    limits: Limits = field(default_factory=lambda: Limits(90, 227 << 10, cache_bytes=1))
    rows: list[list[tuple[Tile, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self
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
        self.memory += 4096
        return Held(View(self.memory, shape, strides, dtype), None)

    def put(self, array: np.ndarray) -> Held:
        assert array.flags.c_contiguous
        held = self.make(array.shape, find_strides(array.shape), name_dtype(array.dtype))
        return Held(held.view, array)

    def get(self, held: Held) -> np.ndarray:
        """Return what the tile that was launched last would have made of an array of NaN."""
        assert np.isnan(held.owner.astype(float)).all()
        right = np.linspace(1, 2, held.owner.size).reshape(held.owner.shape)
        tile, _ = self.launches[-1]
        return self.results.get(tile, lambda x: x)(right).astype(held.owner.dtype)

    def time(self, row: Callable[[], None]) -> float:
        self.launches.clear()
        row()
        self.rows.append(self.launches.copy())
        (tile,) = {tile for tile, _ in self.launches}
        seconds = self.seconds.get(tile, 1.0)
        if isinstance(seconds, list):
            seconds = seconds.pop(0)
        return float(seconds * len(self.launches))
