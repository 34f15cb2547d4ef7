"""Which kernel for which problem: tables, with a reason for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Limits
from crisscross.kernels.tiles import FmaTile, MmaBackwardTile, MmaForwardTile, MmaStreamTile, Tile
from crisscross.problem import AttentionProblem

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


class Strip(NamedTuple):
    """What a tile is selected for.

    Attributes
    ----------
    dtype, length, head_size_qk, head_size_v
        Of the strips.
    meets_itself
        Whether some axis lets a position see itself.
    """

    dtype: str
    length: int
    head_size_qk: int
    head_size_v: int
    meets_itself: bool


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
    deepest, widest
        The largest head sizes, of q and k and of v, that it is for; None for any.
    """

    tile: Tile
    longest: int | None
    reason: str
    deepest: int | None = None
    widest: int | None = None

    def is_for(self, problem: Strip) -> bool:
        return all(
            most is None or size <= most
            for most, size in (
                (self.longest, problem.length),
                (self.deepest, problem.head_size_qk),
                (self.widest, problem.head_size_v),
            )
        )


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
        MmaForwardTile(32, strips=4, warps=1, row_tiles=2, blocks=4),
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
_STREAM = "tensor cores; a long strip streams by"
_HALF_STREAM = (
    Row(
        MmaStreamTile(64, warps=4, row_tiles=2, depth=64, group=64, blocks=2),
        None,
        f"{_STREAM}, and all channels of its values at once",
        deepest=64,
        widest=64,
    ),
    Row(
        MmaStreamTile(32, warps=4, row_tiles=2, depth=64, group=128, blocks=2),
        None,
        f"{_STREAM}, once for every 128 channels of its values, whose results stay in registers",
        deepest=64,
    ),
    Row(
        MmaStreamTile(32, warps=4, row_tiles=2, depth=256, group=128, blocks=2),
        None,
        f"{_STREAM}, once for every 128 channels of its values; queries stay in shared memory",
        deepest=256,
    ),
    Row(
        MmaStreamTile(32, warps=4, row_tiles=1, depth=512, group=256, blocks=2),
        None,
        f"{_STREAM}, once for every 256 channels of its values; there is shared memory for 64 "
        "queries of so many channels",
        deepest=512,
    ),
)
_HALF_BACKWARD = (
    Row(
        MmaBackwardTile(32, strips=2, warp_rows=2, warp_columns=1, blocks=4),
        32,
        "tensor cores; two short strips share a block, and four blocks a multiprocessor",
    ),
    Row(
        MmaBackwardTile(64, strips=1, warp_rows=2, warp_columns=2, blocks=3),
        64,
        "tensor cores; weights are computed once, for all three gradients",
    ),
    Row(
        MmaBackwardTile(112, strips=1, warp_rows=2, warp_columns=2, blocks=2),
        112,
        "tensor cores; few warps of many queries and keys read shared memory least, and two "
        "blocks share a multiprocessor",
    ),
    Row(
        MmaBackwardTile(144, strips=1, warp_rows=3, warp_columns=2, blocks=1),
        144,
        "tensor cores; six warps share the weights evenly, and have all registers",
    ),
)
#: The rows for elements of each dtype, in the order in which they are tried.
TABLES: Mapping[Direction, Mapping[str, Sequence[Row]]] = {
    "forward": {
        "float16": (*_HALF_FORWARD, *_HALF_STREAM, *_SINGLE),
        "bfloat16": (*_HALF_FORWARD, *_HALF_STREAM, *_SINGLE),
        "float32": _SINGLE,
        "float64": _DOUBLE,
    },
    "backward": {
        "float16": (*_HALF_BACKWARD, *_SINGLE),
        "bfloat16": (*_HALF_BACKWARD, *_SINGLE),
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
def select(direction: Direction, strip: Strip, limits: Limits) -> Selection:
    """Select the tile for strips on a device."""
    passed: list[str] = []
    for row in TABLES[direction][strip.dtype]:
        if not row.is_for(strip):
            continue
        objection = _find_objection(row.tile, strip, limits)
        if objection is None:
            return Selection(row.tile, "; ".join([row.reason, *passed]))
        if objection not in passed:
            passed.append(objection)
    raise AssertionError("the last row is for any strip, and fits every architecture")


def _find_objection(tile: Tile, strip: Strip, limits: Limits) -> str | None:
    if limits.architecture < tile.architecture:
        return f"tensor cores are used from compute capability {tile.architecture / 10} on"
    if not strip.meets_itself and isinstance(tile, MmaBackwardTile):
        return (
            "where positions never meet themselves, tensor cores would still multiply by their "
            "weights of zero what may be infinite"
        )
    needed = tile.count_shared_bytes(strip.dtype)
    if needed > limits.shared_bytes:
        return f"{tile} needs {needed} bytes of shared memory, a block has {limits.shared_bytes}"
    return None


def find_strip(problem: AttentionProblem, axis: int) -> Strip:
    """Find what the strips of a problem along an axis are."""
    return Strip(
        problem.dtype,
        problem.spatial[axis],
        problem.head_size_qk,
        problem.head_size_v,
        problem.include_self,
    )


@cache
def configure_forward(
    dtype: str, tile: Tile, *, is_aligned: bool, is_across: bool = False
) -> Configuration:
    """Put together the configuration of the forward kernel that has such tiles."""
    (kernel, *_) = tile.kernels
    if isinstance(tile, FmaTile):
        return Configuration(kernel, dtype, tile)
    if isinstance(tile, MmaStreamTile):
        return Configuration(kernel, dtype, tile, is_aligned=is_aligned)
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
