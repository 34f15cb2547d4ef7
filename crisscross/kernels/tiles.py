"""Shapes of a block's work along strips: what the sources of the strip kernels are compiled with.

All tiles have in common

kernels
    The kernels that have such tiles.
architecture
    The least compute capability that they need, ten times the major number plus the minor one.
strips, rows
    Strips that a block works on, and positions of each whose results it computes.
threads
    Of a block.
definitions
    The macros that the sources are compiled with.
count_shared_bytes
    How much shared memory a block needs for elements of a dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from crisscross.view import ITEM_BYTES

#: Bytes of what is computed in.
COMPUTE_BYTES = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 8}
_WIDE_BYTES = 16  # what shared memory delivers at once


@dataclass(frozen=True)
class FmaTile:
    """A tile for the arithmetic that every device has, of any dtype; see ``tiles.cuh``.

    Attributes
    ----------
    rows, columns
        Positions whose results a block computes, and positions that it walks along at a time.
    channels
        Channels of the results that it has in registers.
    depth, slice
        Channels, and columns, that are in shared memory at a time for one product or the other.
    thread_rows, thread_columns
        How the threads of a block are laid over all of these.
    """

    kernels: ClassVar[tuple[str, ...]] = (
        "strip_forward",
        "strip_backward_queries",
        "strip_backward_keys",
    )
    architecture: ClassVar[int] = 0
    strips: ClassVar[int] = 1

    rows: int
    columns: int
    channels: int
    depth: int
    slice: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.thread_rows * self.thread_columns

    @property
    def definitions(self) -> Mapping[str, int]:
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "CHANNELS": self.channels,
            "DEPTH": self.depth,
            "SLICE": self.slice,
            "THREAD_ROWS": self.thread_rows,
            "THREAD_COLUMNS": self.thread_columns,
        }

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.channels} by {self.threads} threads"

    def count_shared_bytes(self, dtype: str) -> int:
        element_bytes = COMPUTE_BYTES[dtype]
        wide = _WIDE_BYTES // element_bytes
        weights = self.rows * (self.columns + wide)
        features = (self.rows + self.columns) * (self.depth + wide)
        matrix = self.slice * self.channels
        elements = weights + max(features, matrix)
        return _round_up(elements * element_bytes + self.rows + self.columns)


@dataclass(frozen=True)
class MmaForwardTile:
    """All of a strip for tensor cores, of 16 bits; see ``strip_forward_mma.cu``.

    Attributes
    ----------
    keys
        The longest strip that there is room for.
    strips
        Strips of a block.
    warps, row_tiles
        Warps of a strip, and tiles of 16 queries that each of them has.
    channels
        Channels of features that are in shared memory at a time.
    blocks
        Blocks that share a multiprocessor, as far as registers go.
    """

    kernels: ClassVar[tuple[str, ...]] = ("strip_forward_mma",)
    architecture: ClassVar[int] = 80

    keys: int
    strips: int
    warps: int
    row_tiles: int
    blocks: int
    channels: int = 64

    @property
    def rows(self) -> int:
        return self.keys

    @property
    def threads(self) -> int:
        return 32 * self.warps * self.strips

    @property
    def definitions(self) -> Mapping[str, int]:
        return {
            "KEYS": self.keys,
            "STRIPS": self.strips,
            "WARPS": self.warps,
            "ROW_TILES": self.row_tiles,
            "BLOCKS": self.blocks,
            "CHANNELS": self.channels,
        }

    def __str__(self) -> str:
        return _describe_strips(self.strips, self.keys, self.threads)

    def count_shared_bytes(self, dtype: str) -> int:
        rows = 16 * self.warps * self.row_tiles + 2 * self.keys
        features = rows * (self.channels + 8) * ITEM_BYTES[dtype]
        return _round_up(self.strips * (features + self.keys))

    def count_across_bytes(self, dtype: str) -> int:
        """Count what is needed besides, to turn results round that are written across."""
        return self.strips * self.channels * (self.keys + 4) * ITEM_BYTES[dtype]


Tile: TypeAlias = FmaTile | MmaForwardTile


def _describe_strips(strips: int, keys: int, threads: int) -> str:
    several = "a strip" if strips == 1 else f"{strips} strips"
    return f"{several} of up to {keys} by {threads} threads"


def _round_up(count: int) -> int:
    return -(-count // _WIDE_BYTES) * _WIDE_BYTES
