"""Weights times strips of values: the products in which most of the time goes.

OpenBLAS has kernels for small matrices on CPUs with AVX-512. They take matrices as they lie in
memory, and are faster than those for large ones, which copy them first, even where one large
product has to be cut into many small ones: by a sixth at strips of 97 with 512 channels.
"""

from __future__ import annotations

import math
from itertools import groupby, product
from typing import NamedTuple

import numpy as np

from crisscross.cpu.openblas import has_small_kernels
from crisscross.cpu.strips import cut

#: Most multiplications of a product that goes to the kernels for small matrices.
_SMALL_PRODUCT = 10**6
#: Most rows and channels of a piece, the first that is small enough; None are all of them.
_PIECES = ((32, None), (None, 64), (32, 64), (16, 64))
#: Of the second cache of a core: bytes after which addresses share lines, and how many may do so.
_CACHE_PERIOD = 1 << 16
_CACHE_WAYS = 8


def multiply(
    weights: np.ndarray,
    values: np.ndarray,
    result: np.ndarray,
    *,
    excluded: int | None,
    in_pieces: bool = False,
) -> None:
    """Fill `result` with weights (..., rows, x) times values (..., x, D).

    With `excluded`, values[..., i + excluded, :] has no part in row i. Its weight is zero, but zero
    times NaN or infinity is not: strips with such values are done again without it. Any such value
    shows in every row, so it is enough to look at the first.
    """
    (rows, keys), channels = weights.shape[-2:], values.shape[-1]
    piece = _choose_piece(rows, keys, channels) if in_pieces else (rows, channels)
    if piece == (rows, channels):
        np.matmul(weights, values, out=result)
    else:
        _multiply_pieces(weights, values, result, piece)
    if excluded is None or np.isfinite(result[..., 0, :]).all():
        return
    keys = np.arange(values.shape[-2])
    for strip in zip(*np.nonzero(~np.isfinite(values).all(axis=(-2, -1))), strict=True):
        for row in range(weights.shape[-2]):
            seen = keys != row + excluded
            result[strip][row] = weights[strip][row, seen] @ values[strip][seen]


def suit_pieces(strips: np.ndarray) -> bool:
    """Whether products with these strips, (..., L, D), are faster `in_pieces`, if they are large.

    To be asked once for all strips along an axis: pieces may round otherwise than the whole, and
    what becomes of a strip must not follow from what lies beside it.
    """
    return has_small_kernels() and not _crowd(strips)


def _crowd(strips: np.ndarray) -> bool:
    """Whether the positions of a strip compete for a few lines of a cache."""
    apart = math.gcd(strips.strides[-2], _CACHE_PERIOD)
    positions: int = strips.shape[-2]
    return positions * apart > _CACHE_WAYS * _CACHE_PERIOD


class _Run(NamedTuple):
    """A range of rows or channels, and how many pieces of one size it is cut into."""

    range: slice
    pieces: int


def _multiply_pieces(
    weights: np.ndarray, values: np.ndarray, result: np.ndarray, most: tuple[int, int]
) -> None:
    """Multiply in pieces of at most so many rows and channels."""
    rows, channels = result.shape[-2:]
    for down, across in product(_cut_even(rows, most[0]), _cut_even(channels, most[1])):
        part = _part_channels(result[..., down.range, across.range], across.pieces)
        np.matmul(
            _part_rows(weights[..., down.range, :], down.pieces)[..., None, :, :, :],
            _part_channels(values[..., across.range], across.pieces)[..., None, :, :],
            out=_part_rows(part, down.pieces),
        )


def _choose_piece(rows: int, keys: int, channels: int) -> tuple[int, int]:
    """Choose rows and channels of a piece; all of them, if none would be small enough."""
    for most_rows, most_channels in ((None, None), *_PIECES):
        height, width = min(rows, most_rows or rows), min(channels, most_channels or channels)
        if height * keys * width <= _SMALL_PRODUCT:
            return height, width
    return rows, channels


def _cut_even(count: int, most: int) -> list[_Run]:
    """Cut a range into pieces of at most `most`, all of one size, or of two that differ by one.

    A last piece of one row would be no matrix, and slow.
    """
    by_size = groupby(cut(count, most), lambda piece: piece.stop - piece.start)
    alike = [list(pieces) for _, pieces in by_size]
    return [_Run(slice(pieces[0].start, pieces[-1].stop), len(pieces)) for pieces in alike]


def _part_rows(matrices: np.ndarray, pieces: int) -> np.ndarray:
    """View (..., rows, D) as (..., pieces, rows of a piece, D)."""
    *outer, rows, size = matrices.shape
    return matrices.reshape(*outer, pieces, rows // pieces, size, copy=False)


def _part_channels(matrices: np.ndarray, pieces: int) -> np.ndarray:
    """View (..., rows, D) as (..., pieces, rows, D of a piece)."""
    *outer, rows, size = matrices.shape
    parts = matrices.reshape(*outer, rows, pieces, size // pieces, copy=False)
    return parts.swapaxes(-2, -3)
