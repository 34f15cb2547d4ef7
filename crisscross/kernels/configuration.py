"""What a kernel is compiled with: frozen, finite, and listed in full."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

#: Bits and sort of the elements, by their dtype.
_ELEMENTS = {
    "float16": (16, 0),
    "bfloat16": (16, 1),
    "float32": (32, 0),
    "float64": (64, 0),
}
#: Bytes of what is computed in.
_COMPUTE_BYTES = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 8}
_WIDE_BYTES = 16  # what shared memory delivers at once


@dataclass(frozen=True)
class Tile:
    """The shape of a block's work; see ``tiles.cuh``.

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
        """Count the bytes of shared memory that a block needs for elements of a dtype."""
        element_bytes = _COMPUTE_BYTES[dtype]
        wide = _WIDE_BYTES // element_bytes
        weights = self.rows * (self.columns + wide)
        features = (self.rows + self.columns) * (self.depth + wide)
        matrix = self.slice * self.channels
        elements = weights + max(features, matrix)
        used = elements * element_bytes + self.rows + self.columns
        return -(-used // _WIDE_BYTES) * _WIDE_BYTES


@dataclass(frozen=True)
class Configuration:
    """A source and its options; the key under which a compiled kernel is kept.

    Attributes
    ----------
    kernel
        The kernel; its source is the file of that name in the folder ``cuda``.
    dtype
        Of the arrays' elements.
    tile
        The shape of a block's work, for kernels that are made of tiles.
    partial_dtype
        Of results that are not the last, where kernels have such: the dtype of the elements, or,
        where many are summed, the one that is computed in.
    """

    kernel: str
    dtype: str
    tile: Tile | None = None
    partial_dtype: str | None = None

    @property
    def source(self) -> str:
        return f"{self.kernel}.cu"

    @property
    def definitions(self) -> dict[str, int]:
        """The macros that the source is compiled with."""
        bits, is_bfloat = _ELEMENTS[self.dtype]
        found = {"ELEMENT_BITS": bits, "ELEMENT_IS_BFLOAT": is_bfloat}
        if self.partial_dtype is not None:
            found["PARTIAL_IS_COMPUTE"] = int(self.partial_dtype != self.dtype)
        if self.tile is not None:
            tile = self.tile
            found |= {
                "ROWS": tile.rows,
                "COLUMNS": tile.columns,
                "CHANNELS": tile.channels,
                "DEPTH": tile.depth,
                "SLICE": tile.slice,
                "THREAD_ROWS": tile.thread_rows,
                "THREAD_COLUMNS": tile.thread_columns,
                "SHARED_BYTES": self.shared_bytes,
            }
        return found

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The definitions as the compiler takes them."""
        return tuple(f"-D{name}={value}" for name, value in self.definitions.items())

    @cached_property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        if self.tile is None:
            return 0
        return self.tile.count_shared_bytes(self.dtype)

    def __str__(self) -> str:
        parts: list[Any] = [self.kernel, self.dtype]
        if self.tile is not None:
            parts.append(str(self.tile))
        if self.partial_dtype is not None and self.partial_dtype != self.dtype:
            parts.append(f"partial results in {self.partial_dtype}")
        return ", ".join(parts)
