"""Which kernel for which problem: a table, with a reason for each row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from crisscross.kernels.configuration import Configuration, Tile
from crisscross.kernels.engine import Limits


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
        Tile(32, 32, 64, depth=32, slice=16, thread_rows=8, thread_columns=8),
        32,
        _SHORT,
    ),
    Row(
        Tile(64, 64, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        64,
        _ONE_TILE,
    ),
    Row(
        Tile(64, 112, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        112,
        _ONE_TILE,
    ),
    Row(
        Tile(64, 144, 128, depth=32, slice=16, thread_rows=16, thread_columns=16),
        144,
        _ONE_TILE,
    ),
    Row(
        Tile(32, 64, 512, depth=32, slice=16, thread_rows=8, thread_columns=32),
        None,
        "a long strip streams by; results of up to 512 channels stay in registers",
    ),
)
_DOUBLE = (
    Row(
        Tile(32, 32, 64, depth=16, slice=16, thread_rows=8, thread_columns=8),
        32,
        _SHORT,
    ),
    Row(
        Tile(32, 64, 64, depth=16, slice=16, thread_rows=8, thread_columns=16),
        64,
        _ONE_TILE,
    ),
    Row(
        Tile(16, 32, 256, depth=16, slice=16, thread_rows=4, thread_columns=32),
        None,
        "a long strip streams by; results of up to 256 channels stay in registers",
    ),
)
#: The rows for elements of each dtype, in the order in which they are tried.
TABLE = {"float16": _SINGLE, "bfloat16": _SINGLE, "float32": _SINGLE, "float64": _DOUBLE}

STRIP_KERNELS = ("strip_forward", "strip_backward_queries", "strip_backward_keys")


@dataclass(frozen=True)
class Selection:
    """A row of the table, and why it and none before it."""

    tile: Tile
    reason: str


@cache
def select(dtype: str, length: int, limits: Limits) -> Selection:
    """Select the tile for strips of a length on a device."""
    passed: list[str] = []
    for row in TABLE[dtype]:
        if row.longest is not None and length > row.longest:
            continue
        needed = row.tile.count_shared_bytes(dtype)
        if needed > limits.shared_bytes:
            passed.append(
                f"{row.tile} needs {needed} bytes of shared memory, a block has "
                f"{limits.shared_bytes}"
            )
            continue
        return Selection(row.tile, "; ".join([row.reason, *passed]))
    raise AssertionError("the last row is for any strip, and fits every architecture")


@cache
def configure(
    kernel: str, dtype: str, tile: Tile, *, partial_dtype: str | None = None
) -> Configuration:
    """Put together the configuration of one of `STRIP_KERNELS`."""
    if kernel == "strip_forward":
        return Configuration(kernel, dtype, tile)
    return Configuration(kernel, dtype, tile, partial_dtype or dtype)
