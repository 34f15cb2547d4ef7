"""Which kernel for which problem, and how it is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from crisscross.kernels.candidates import list_rows
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Limits
from crisscross.kernels.tables import TABLES, TERMS, Direction, Row, Strip, find_dtype
from crisscross.kernels.tiles import (
    FmaTile,
    MmaBackwardStreamTile,
    MmaBackwardTile,
    MmaStreamTile,
    Tile,
)
from crisscross.problem import AttentionProblem


@dataclass(frozen=True)
class Selection:
    """A tile, and why: a row of the table and none before it, or a measurement."""

    tile: Tile
    reason: str


@cache
def select(direction: Direction, strip: Strip, limits: Limits) -> Selection:
    """Select the tile for strips on a device: one that was measured there, or the table's own."""
    measured = limits.measured
    choice = None if measured is None else measured.tiles.get((direction, strip))
    if measured is None or choice is None:
        return _select_from_table(direction, strip, limits)
    if all(row.tile != choice.tile for row in list_fitting(direction, strip, limits)):
        return _select_from_table(direction, strip, limits)
    return Selection(
        choice.tile,
        f"measured on {measured.device}: calls of {1e3 * choice.seconds:.3g} ms against "
        f"{1e3 * choice.table_seconds:.3g} ms with the table's own",
    )


def list_fitting(direction: Direction, strip: Strip, limits: Limits) -> list[Row]:
    """List the rows that are for a strip and fit a device: first the table's own choice.

    Where float32 is rounded to be multiplied by tensor cores, forward and backward are to round
    alike, whatever is chosen for either: what computes otherwise than the table's own is left out.
    """
    rows = [
        row
        for row in list_rows(direction, strip.arithmetic)
        if row.is_for(strip) and _find_objection(row.tile, strip, limits) is None
    ]
    if strip.arithmetic in TERMS:
        on_tensor_cores = not isinstance(rows[0].tile, FmaTile)
        rows = [row for row in rows if isinstance(row.tile, FmaTile) != on_tensor_cores]
    return rows


def _select_from_table(direction: Direction, strip: Strip, limits: Limits) -> Selection:
    passed: list[str] = []
    for row in TABLES[direction][strip.arithmetic]:
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
            "where positions never meet themselves, a whole strip in one tile would still multiply "
            "by their weights of zero what may be infinite"
        )
    needed = tile.count_shared_bytes(strip.dtype)
    if needed > limits.shared_bytes:
        return f"{tile} needs {needed} bytes of shared memory, a block has {limits.shared_bytes}"
    return None


def find_arithmetic(problem: AttentionProblem) -> str:
    """Find the arithmetic that a problem asks for: its dtype's, or what is less and will do."""
    if problem.dtype == "float32" and problem.precision in TERMS:
        return problem.precision
    return problem.dtype


def find_strip(problem: AttentionProblem, axis: int) -> Strip:
    """Find what the strips of a problem along an axis are."""
    return Strip(
        find_arithmetic(problem),
        problem.spatial[axis],
        problem.head_size_qk,
        problem.head_size_v,
        problem.include_self,
    )


@cache
def configure_forward(
    arithmetic: str, tile: Tile, *, is_aligned: bool, is_across: bool = False
) -> Configuration:
    """Put together the configuration of the forward kernel that has such tiles."""
    (kernel, *_) = tile.kernels
    dtype, terms = find_dtype(arithmetic), TERMS.get(arithmetic)
    if isinstance(tile, FmaTile):
        return Configuration(kernel, dtype, tile)
    if isinstance(tile, MmaStreamTile):
        return Configuration(kernel, dtype, tile, is_aligned=is_aligned, terms=terms)
    return Configuration(kernel, dtype, tile, is_aligned=is_aligned, is_across=is_across)


@cache
def configure_backward(
    arithmetic: str, tile: Tile, *, partial_dtype: str, is_aligned: bool, adds: bool
) -> tuple[Configuration, ...]:
    """Put together the configurations of the kernels of the backward that have such tiles."""
    dtype, terms = find_dtype(arithmetic), TERMS.get(arithmetic)
    if isinstance(tile, FmaTile):
        return tuple(
            Configuration(kernel, dtype, tile, partial_dtype) for kernel in tile.kernels[1:]
        )
    if isinstance(tile, MmaBackwardStreamTile):
        return tuple(
            Configuration(kernel, dtype, tile, partial_dtype, is_aligned, terms=terms)
            for kernel in tile.kernels
        )
    return tuple(
        Configuration(kernel, dtype, tile, partial_dtype, is_aligned, adds=adds)
        for kernel in tile.kernels
    )
