"""Which kernel for which problem: tables, with a reason for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Limits
from crisscross.kernels.tiles import FmaTile, MmaForwardTile, Tile

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


@dataclass(frozen=True)
class Row:
    """A tile, the strips it is for, and why.

    Attributes
    ----------
    tile
        The tile.
    longest
        The longest strip that it is for; None for any.
    reason
        Why.
    """

    tile: Tile
    longest: int | None
    reason: str


_SHORT = "a short strip is one tile, of few threads, so that many blocks share a multiprocessor"
_ONE_TILE = "all keys of a strip in one tile: weights are computed once"
_SINGLE = (
    Row(
        FmaTile(32, 32, 64, depth=32, slice=16, thread_rows=8, thread_columns=8),
        32,
        _SHORT,
    ),
    Row(
        FmaTile(64, 64, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        64,
        _ONE_TILE,
    ),
    Row(
        FmaTile(64, 112, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        112,
        _ONE_TILE,
    ),
    Row(
        FmaTile(64, 144, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        144,
        _ONE_TILE,
    ),
    Row(
        FmaTile(32, 64, 512, depth=32, slice=16, thread_rows=8, thread_columns=32),
        None,
        "a long strip streams by; results of up to 512 channels stay in registers",
    ),
)
_DOUBLE = (
    Row(
        FmaTile(32, 32, 64, depth=16, slice=16, thread_rows=8, thread_columns=8),
        32,
        _SHORT,
    ),
    Row(
        FmaTile(32, 64, 64, depth=16, slice=16, thread_rows=8, thread_columns=16),
        64,
        _ONE_TILE,
    ),
    Row(
        FmaTile(16, 32, 256, depth=16, slice=16, thread_rows=4, thread_columns=32),
        None,
        "a long strip streams by; results of up to 256 channels stay in registers",
    ),
)
_HALF_FORWARD = (
    Row(
        MmaForwardTile(32, strips=4, warps=1, row_tiles=2, blocks=3),
        32,
        "tensor cores; a warp has all of a short strip, and four of them share a block",
    ),
    Row(
        MmaForwardTile(64, strips=2, warps=2, row_tiles=2, blocks=3),
        64,
        "tensor cores; two strips share a block",
    ),
    Row(
        MmaForwardTile(104, strips=1, warps=4, row_tiles=2, blocks=2),
        104,
        "tensor cores, each value read once; 32 queries a warp need fewer reads of shared memory "
        "than 16, and two blocks share a multiprocessor",
    ),
    Row(
        MmaForwardTile(144, strips=1, warps=9, row_tiles=1, blocks=1),
        144,
        "tensor cores, each value read once; of 32 queries a warp the weights would not fit into "
        "registers",
    ),
)
#: The rows for elements of each dtype, in the order in which they are tried.
TABLES: Mapping[Direction, Mapping[str, Sequence[Row]]] = {
    "forward": {
        "float16": (*_HALF_FORWARD, *_SINGLE),
        "bfloat16": (*_HALF_FORWARD, *_SINGLE),
        "float32": _SINGLE,
        "float64": _DOUBLE,
    },
    "backward": {
        "float16": _SINGLE,
        "bfloat16": _SINGLE,
        "float32": _SINGLE,
        "float64": _DOUBLE,
    },
}


@dataclass(frozen=True)
class Selection:
    """A row of the table, and why it and none before it."""

    tile: Tile
    reason: str


@cache
def select(
    direction: Direction, dtype: str, length: int, limits: Limits, *, never_meets_itself: bool
) -> Selection:
    """Select the tile for strips of a length on a device.

    Parameters
    ----------
    direction, dtype, length
        Which table, and what for.
    limits
        What the device has.
    never_meets_itself
        Whether no axis lets a position see itself.
    """
    passed: list[str] = []
    for row in TABLES[direction][dtype]:
        if row.longest is not None and length > row.longest:
            continue
        objection = _find_objection(row.tile, dtype, limits, never_meets_itself)
        if objection is None:
            return Selection(row.tile, "; ".join([row.reason, *passed]))
        if objection not in passed:
            passed.append(objection)
    raise AssertionError("the last row is for any strip, and fits every architecture")


def _find_objection(tile: Tile, dtype: str, limits: Limits, never_meets_itself: bool) -> str | None:
    if limits.architecture < tile.architecture:
        return f"tensor cores are used from compute capability {tile.architecture / 10} on"
    if never_meets_itself and not isinstance(tile, FmaTile):
        return (
            "tensor cores would multiply a position's own value by its weight of zero, and it may "
            "be infinite"
        )
    needed = tile.count_shared_bytes(dtype)
    if needed > limits.shared_bytes:
        return f"{tile} needs {needed} bytes of shared memory, a block has {limits.shared_bytes}"
    return None


@cache
def configure_forward(
    dtype: str, tile: Tile, *, is_aligned: bool, is_across: bool = False
) -> Configuration:
    """Put together the configuration of the forward kernel that has such tiles."""
    (kernel, *_) = tile.kernels
    if isinstance(tile, FmaTile):
        return Configuration(kernel, dtype, tile)
    return Configuration(kernel, dtype, tile, is_aligned=is_aligned, is_across=is_across)


@cache
def configure_backward(
    dtype: str, tile: Tile, *, partial_dtype: str, is_aligned: bool, adds: bool
) -> tuple[Configuration, ...]:
    """Put together the configurations of the kernels of the backward that have such tiles."""
    if isinstance(tile, FmaTile):
        return tuple(
            Configuration(kernel, dtype, tile, partial_dtype) for kernel in tile.kernels[1:]
        )
    return tuple(
        Configuration(kernel, dtype, tile, partial_dtype, is_aligned, adds=adds)
        for kernel in tile.kernels
    )
