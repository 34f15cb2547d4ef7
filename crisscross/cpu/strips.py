"""Arrays seen as strips along one axis, cut into blocks and tiles.

Every strip is a matrix, (L, D). With the channels innermost BLAS takes it as it lies in memory,
along every axis.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

#: Bytes of energies that a tile may hold. Smaller ones would fit a smaller cache, but each step of
#: a tile also costs its share of the interpreter, which the threads have in common.
TILE_BYTES = 2 << 20
#: Fewest queries in a tile of a strip too long for that: thinner matrices are slow to multiply.
LEAST_ROWS = 64
#: Bytes of values that a block may hold: each thread needs as much for their weighted means.
BLOCK_BYTES = 3 << 19


class Block(NamedTuple):
    """A run of strips side by side, or all those of several heads and images."""

    places: tuple[slice, ...]

    def of(self, laid: np.ndarray) -> np.ndarray:
        """Take the block from (N, heads, *others, ...)."""
        block: np.ndarray = laid[self.places]
        return block


class Task(NamedTuple):
    """A block, and the rows of its tiles."""

    block: Block
    rows: list[slice]


def lay_along(array: np.ndarray, axis: int, spatial_ndim: int) -> np.ndarray:
    """View (N, heads, *S, ...) as (N, heads, *others, L, ...), L being spatial `axis`."""
    if axis == spatial_ndim - 1:
        return array
    return array.transpose(_order_axes(array.ndim, axis, spatial_ndim))


@cache
def _order_axes(ndim: int, axis: int, spatial_ndim: int) -> tuple[int, ...]:
    order = list(range(ndim))
    order.insert(1 + spatial_ndim, order.pop(2 + axis))
    return tuple(order)


def cut(count: int, most: int) -> list[slice]:
    """Cut a range into pieces of nearly one size, `most` at the most."""
    pieces = -(-count // most)
    size, longer = divmod(count, pieces)
    starts = [i * size + min(i, longer) for i in range(pieces + 1)]
    return [slice(*ends) for ends in pairwise(starts)]


def cut_tasks(
    laid_shape: tuple[int, ...], itemsize: int, threads: int, *, head_size: int, share_rows: bool
) -> list[Task]:
    """Cut (N, heads, *others, L) into tasks: two or more a thread, as far as blocks go round.

    With `share_rows`, several tasks share the rows of a few long strips. Tasks have no sum in
    common, and tiles hold whole strips or rows cut by their length alone: so the number of threads
    does not change a bit of any result.
    """
    *outer, strips, length = laid_shape
    strip_bytes = length * length * itemsize
    rows = [slice(0, length)]
    if not fits_tile(length, itemsize):
        rows = cut(length, max(LEAST_ROWS, TILE_BYTES // (length * itemsize)))
    most = min(TILE_BYTES // strip_bytes, BLOCK_BYTES // (length * head_size * itemsize))
    blocks = _cut_blocks((*outer, strips), max(1, most), threads)
    share = len(rows)
    if share_rows:
        share = min(share, max(1, len(rows) * len(blocks) // (2 * threads)))
    return [
        Task(block, rows[i : i + share]) for block in blocks for i in range(0, len(rows), share)
    ]


def _cut_blocks(shape: tuple[int, ...], most: int, threads: int) -> list[Block]:
    """Cut (N, heads, *others) into blocks of at most `most` strips, as many as fit in a tile."""
    fair = -(-math.prod(shape) // (2 * threads)) if threads > 1 else math.prod(shape)
    most = min(most, fair)
    sizes = [1] * len(shape)
    for i in reversed(range(len(shape))):
        # Several of an axis only as long as all those behind it are in the block.
        sizes[i] = min(shape[i], most // math.prod(sizes[i + 1 :]))
        if sizes[i] < shape[i]:
            break
    sizes = [max(1, size) for size in sizes]
    pieces = [cut(count, size) for count, size in zip(shape, sizes, strict=True)]
    return [Block(places) for places in product(*pieces)]


def fits_blas(laid: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """Whether the matrices (L, D) of a laid array can be multiplied where they lie.

    BLAS would also take matrices whose positions are closer together than their channels. With the
    channels first those along the last axis are, but no others.
    """
    (rows, columns), size, item = laid.strides[-2:], laid.shape[-1], dtype.itemsize
    by_rows = columns == item and rows >= size * item and rows % item == 0
    return by_rows and laid.dtype == dtype and laid.flags.aligned


def fits_tile(length: int, itemsize: int) -> bool:
    """Whether the energies of a whole strip fit in a tile."""
    return length * length * itemsize <= TILE_BYTES


def find_diagonal(tile: np.ndarray, queries: slice, keys: slice) -> np.ndarray:
    """View the elements of a tile (..., queries, keys) whose key is the query."""
    first = max(queries.start, keys.start)
    count = max(0, min(queries.stop, keys.stop) - first)
    row, column = first - queries.start, first - keys.start
    return view_diagonal(tile[..., row : row + count, column : column + count])


def view_diagonal(energies: np.ndarray) -> np.ndarray:
    """View the energies (..., L, L) of positions with themselves, whatever the strides."""
    diagonal: np.ndarray = np.einsum("...ii->...i", energies)
    return diagonal
