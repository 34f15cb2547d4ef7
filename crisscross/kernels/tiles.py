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

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeAlias

from crisscross.problem import COMPUTE_DTYPES
from crisscross.view import ITEM_BYTES

_WIDE_BYTES = 16  # what shared memory delivers at once
# Where the arrays' strips begin; see the sources.
_FEATURES_BYTES, _STRIPS_BYTES, _ARRAYS_BYTES, _ALL_BYTES = 72, 144, 192, 288
_STAGES = 3


@dataclass(frozen=True)
class _Compiled:
    @property
    def definitions(self) -> Mapping[str, int]:
        """The macros that the sources are compiled with: fields of the tile, in capitals."""
        return {each.name.upper(): getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class _WholeStrips(_Compiled, ABC):
    """All of each of `strips` strips, for tensor cores; `keys` is the longest there may be."""

    architecture: ClassVar[int] = 80

    keys: int
    strips: int

    @property
    def rows(self) -> int:
        return self.keys

    @property
    @abstractmethod
    def threads(self) -> int: ...

    def __str__(self) -> str:
        several = "a strip" if self.strips == 1 else f"{self.strips} strips"
        return f"{several} of up to {self.keys} by {self.threads} threads"


@dataclass(frozen=True)
class FmaTile(_Compiled):
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

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.channels} by {self.threads} threads"

    def count_shared_bytes(self, dtype: str) -> int:
        element_bytes = ITEM_BYTES[COMPUTE_DTYPES[dtype]]
        wide = _WIDE_BYTES // element_bytes
        weights = self.rows * (self.columns + wide)
        features = (self.rows + self.columns) * (self.depth + wide)
        matrix = self.slice * self.channels
        elements = weights + max(features, matrix)
        return _round_up(elements * element_bytes + self.rows + self.columns)


@dataclass(frozen=True)
class MmaForwardTile(_WholeStrips):
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

    warps: int
    row_tiles: int
    blocks: int
    channels: int = 64

    @property
    def threads(self) -> int:
        return 32 * self.warps * self.strips

    def count_shared_bytes(self, dtype: str) -> int:
        rows = 16 * self.warps * self.row_tiles + 2 * self.keys
        features = rows * _count_row_bytes(self.channels, dtype)
        return _round_up(self.strips * (features + self.keys + _FEATURES_BYTES))

    def count_across_bytes(self, dtype: str) -> int:
        """Count what is needed besides, to turn results round that are written across."""
        return self.strips * self.channels * (self.keys + 4) * ITEM_BYTES[dtype]


@dataclass(frozen=True)
class _StreamedStrips(_Compiled):
    """Positions of a strip of any length, for tensor cores, which walk along the others."""

    architecture: ClassVar[int] = 80
    strips: ClassVar[int] = 1

    keys: int
    warps: int
    row_tiles: int
    depth: int
    group: int
    blocks: int
    channels: int = 64

    @property
    def rows(self) -> int:
        return 16 * self.warps * self.row_tiles

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def _count_feature_bytes(self, dtype: str, own_channels: int) -> int:
        """Count what features take: so many channels of the rows, and the ring."""
        tiles = self.rows * own_channels // self.channels + _STAGES * self.keys
        return tiles * _count_row_bytes(self.channels, dtype)


@dataclass(frozen=True)
class MmaStreamTile(_StreamedStrips):
    """Queries of a strip of any length for tensor cores; see ``strip_forward_mma_stream.cu``.

    Attributes
    ----------
    keys
        Keys that a block walks along at a time.
    warps, row_tiles
        Warps of a block, and tiles of 16 queries that each of them has.
    depth
        Channels of queries that there is room for.
    group
        Channels of results that are in registers.
    channels
        Channels of keys and values that are in shared memory at a time.
    blocks
        Blocks that share a multiprocessor, as far as registers go.
    """

    kernels: ClassVar[tuple[str, ...]] = ("strip_forward_mma_stream",)

    def __str__(self) -> str:
        return f"{self.rows}x{self.keys}x{self.group} of {self.depth} by {self.threads} threads"

    def count_shared_bytes(self, dtype: str) -> int:
        rest = self.rows * ITEM_BYTES[COMPUTE_DTYPES[dtype]] + 2 * self.keys + _STRIPS_BYTES
        return _round_up(self._count_feature_bytes(dtype, self.depth) + rest)


@dataclass(frozen=True)
class MmaBackwardTile(_WholeStrips):
    """All of a strip for tensor cores, of 16 bits; see ``strip_backward_mma.cu``.

    Attributes
    ----------
    keys
        The longest strip that there is room for.
    strips
        Strips of a block.
    warp_rows, warp_columns
        How the warps of a strip are laid over its queries and keys.
    channels
        Channels of features that are in shared memory at a time.
    blocks
        Blocks that share a multiprocessor, as far as registers go.
    """

    kernels: ClassVar[tuple[str, ...]] = ("strip_backward_mma",)

    warp_rows: int
    warp_columns: int
    blocks: int
    channels: int = 64

    @property
    def threads(self) -> int:
        return 32 * self.warp_rows * self.warp_columns * self.strips

    def count_shared_bytes(self, dtype: str) -> int:
        element_bytes = ITEM_BYTES[dtype]
        features = 2 * self.keys * _count_row_bytes(self.channels, dtype)
        weights = self.keys * (self.keys + 8) * element_bytes
        rows = self.keys * (2 * ITEM_BYTES[COMPUTE_DTYPES[dtype]] + 1)
        return self.strips * (
            features + max(features, weights) + weights + _round_up(rows) + _ARRAYS_BYTES
        )


@dataclass(frozen=True)
class MmaBackwardStreamTile(_StreamedStrips):
    """Positions of a strip of any length for tensor cores; see ``backward_mma_stream.cuh``.

    Attributes
    ----------
    keys
        Keys that a block walks along at a time; queries, where it makes gradients of keys.
    warps, row_tiles
        Warps of a block, and tiles of 16 positions that each of them has.
    depth, width
        Channels of its positions that there is room for: of q and k, and of v and dout.
    group
        Channels of gradients that are in registers.
    channels
        Channels of what is walked along that are in shared memory at a time.
    blocks
        Blocks that share a multiprocessor, as far as registers go.
    """

    kernels: ClassVar[tuple[str, ...]] = ("strip_backward_queries_mma", "strip_backward_keys_mma")

    width: int = field(kw_only=True)

    def __str__(self) -> str:
        return (
            f"{self.rows}x{self.keys}x{self.group} of {self.depth} and {self.width} "
            f"by {self.threads} threads"
        )

    def count_shared_bytes(self, dtype: str) -> int:
        known = (self.rows + 2 * self.keys) * (2 * ITEM_BYTES[COMPUTE_DTYPES[dtype]] + 1)
        features = self._count_feature_bytes(dtype, self.depth + self.width)
        return _round_up(features + known + _ALL_BYTES)


Tile: TypeAlias = FmaTile | MmaForwardTile | MmaStreamTile | MmaBackwardTile | MmaBackwardStreamTile


def _count_row_bytes(channels: int, dtype: str) -> int:
    """Count what a position's features take; `pitch` of ``features.cuh``."""
    return channels * ITEM_BYTES[dtype] + _WIDE_BYTES


def _round_up(count: int) -> int:
    return -(-count // _WIDE_BYTES) * _WIDE_BYTES
