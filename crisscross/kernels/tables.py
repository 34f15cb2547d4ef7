"""Tables of tiles, with a reason for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crisscross.kernels.tiles import (
    FmaTile,
    MmaBackwardStreamTile,
    MmaBackwardTile,
    MmaForwardTile,
    MmaStreamTile,
    Tile,
)

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
#: Products of which one of float32 is made on tensor cores, by precision.
TERMS = {"tf32": 1, "tf32x3": 3}


def find_dtype(arithmetic: str) -> str:
    """Find what dtype an arithmetic is for."""
    return "float32" if arithmetic in TERMS else arithmetic


class Strip(NamedTuple):
    """What a tile is selected for.

    Attributes
    ----------
    arithmetic
        A dtype, or a precision of float32 that is less than IEEE's: a key of `TABLES`.
    length, head_size_qk, head_size_v
        Of the strips.
    meets_itself
        Whether some axis lets a position see itself.
    """

    arithmetic: str
    length: int
    head_size_qk: int
    head_size_v: int
    meets_itself: bool

    @property
    def dtype(self) -> str:
        """Of the arrays' elements."""
        return find_dtype(self.arithmetic)


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
_GRADIENT_STREAM = "tensor cores; a long strip streams by"
_HALF_BACKWARD_STREAM = (
    Row(
        MmaBackwardStreamTile(32, warps=4, row_tiles=2, depth=64, width=64, group=64, blocks=2),
        None,
        f"{_GRADIENT_STREAM}, and all channels of a gradient at once",
        deepest=64,
        widest=64,
    ),
    Row(
        MmaBackwardStreamTile(32, warps=4, row_tiles=2, depth=64, width=512, group=128, blocks=1),
        None,
        f"{_GRADIENT_STREAM} once for every 128 channels of dv; all features of 128 positions stay "
        "in shared memory, so that others are read half as often as with 64",
        deepest=64,
        widest=512,
    ),
    Row(
        MmaBackwardStreamTile(32, warps=4, row_tiles=1, depth=64, width=512, group=256, blocks=1),
        None,
        f"{_GRADIENT_STREAM} once for every 256 channels of dv; all features of 64 positions stay "
        "in shared memory",
        deepest=64,
        widest=512,
    ),
    Row(
        MmaBackwardStreamTile(32, warps=4, row_tiles=1, depth=256, width=256, group=256, blocks=2),
        None,
        f"{_GRADIENT_STREAM}, and all channels of a gradient at once; all features of 64 positions "
        "stay in shared memory",
        deepest=256,
        widest=256,
    ),
    Row(
        MmaBackwardStreamTile(32, warps=2, row_tiles=1, depth=512, width=512, group=256, blocks=2),
        None,
        f"{_GRADIENT_STREAM} once for every 256 channels of a gradient; there is shared memory for "
        "32 positions of so many channels",
        deepest=512,
        widest=512,
    ),
)
# For the same head sizes as the backward, which finds the weights again from lse: both are to round
# alike.
_TF32_FORWARD = (
    Row(
        MmaStreamTile(32, warps=4, row_tiles=2, depth=64, group=64, blocks=2, channels=32),
        None,
        f"{_STREAM}, and all channels of its values at once",
        deepest=64,
        widest=64,
    ),
    Row(
        MmaStreamTile(32, warps=4, row_tiles=1, depth=64, group=256, blocks=2, channels=32),
        None,
        f"{_STREAM}, once for every 256 channels of its values",
        deepest=64,
        widest=512,
    ),
)
_TF32_BACKWARD = (
    Row(
        MmaBackwardStreamTile(
            32, warps=4, row_tiles=1, depth=64, width=64, group=64, blocks=3, channels=32
        ),
        None,
        f"{_GRADIENT_STREAM}, and all channels of a gradient at once",
        deepest=64,
        widest=64,
    ),
    Row(
        MmaBackwardStreamTile(
            32, warps=4, row_tiles=1, depth=64, width=512, group=256, blocks=1, channels=32
        ),
        None,
        f"{_GRADIENT_STREAM} once for every 256 channels of dv; all features of 64 positions stay "
        "in shared memory",
        deepest=64,
        widest=512,
    ),
    Row(
        MmaBackwardStreamTile(
            32, warps=2, row_tiles=1, depth=64, width=512, group=128, blocks=1, channels=32
        ),
        None,
        f"{_GRADIENT_STREAM} once for every 128 channels of dv; all features of 32 positions stay "
        "in shared memory",
        deepest=64,
        widest=512,
    ),
)
#: The rows for each arithmetic, in the order in which they are tried: a dtype's, or one of tensor
#: cores for float32. `tf32` rounds what is multiplied, `tf32x3` multiplies what that leaves, too.
TABLES: Mapping[Direction, Mapping[str, Sequence[Row]]] = {
    "forward": {
        "float16": (*_HALF_FORWARD, *_HALF_STREAM, *_SINGLE),
        "bfloat16": (*_HALF_FORWARD, *_HALF_STREAM, *_SINGLE),
        "tf32": (*_TF32_FORWARD, *_SINGLE),
        "tf32x3": (*_TF32_FORWARD, *_SINGLE),
        "float32": _SINGLE,
        "float64": _DOUBLE,
    },
    "backward": {
        "float16": (*_HALF_BACKWARD, *_HALF_BACKWARD_STREAM, *_SINGLE),
        "bfloat16": (*_HALF_BACKWARD, *_HALF_BACKWARD_STREAM, *_SINGLE),
        "tf32": (*_TF32_BACKWARD, *_SINGLE),
        "tf32x3": (*_TF32_BACKWARD, *_SINGLE),
        "float32": _SINGLE,
        "float64": _DOUBLE,
    },
}
