"""Arrays seen as strips along one axis, cut into tiles whose energies fit in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

#: Bytes of energies that one tile may hold: about an L2 cache.
ENERGY_BYTES = 1 << 20

Index = tuple[Any, ...]


def lay_along(array: np.ndarray, axis: int, spatial_ndim: int) -> np.ndarray:
    """View (N, [heads,] *S, [D]) as (N, [heads,] *others, strips, L, [D]), L being spatial `axis`.

    The strips are those along the last of the other axes, or a single one where there is none.
    A leading heads axis and a trailing channel axis are told apart by the number of axes:
    (N, *S) for masks, (N, heads, *S) for lse, (N, heads, *S, D) for the rest.
    """
    leading = 1 if array.ndim == spatial_ndim + 1 else 2
    last = leading + spatial_ndim - 1
    moved: np.ndarray = np.moveaxis(array, leading + axis, last)
    return np.expand_dims(moved, leading) if spatial_ndim == 1 else moved


def each_block(laid: np.ndarray, itemsize: int) -> Iterator[Index]:
    """Yield indices into (N, heads, *others, strips) whose strips' energies fit in a tile.

    `laid` is an lse laid along an axis. The cut depends on one image's sizes only, so that an
    image's result does not depend on the images beside it.
    """
    *outer, strips, length = laid.shape
    most = max(1, ENERGY_BYTES // max(1, length * length * itemsize))
    for index in np.ndindex(*outer):
        for start in range(0, strips, most):
            yield (*index, slice(start, start + most))


def each_query_tile(length: int, itemsize: int) -> Iterator[slice]:
    """Yield the queries of a strip in runs whose energies fit in a tile."""
    most = max(1, ENERGY_BYTES // max(1, length * itemsize))
    for start in range(0, length, most):
        yield slice(start, min(start + most, length))


def block_of(laid: np.ndarray, index: Index, dtype: str) -> np.ndarray:
    """Take a block of strips, contiguous and in the dtype of the computation."""
    return np.ascontiguousarray(laid[index], dtype=dtype)


def mask_block(laid_mask: np.ndarray | None, index: Index) -> np.ndarray | None:
    """Take the key mask of a block, (strips, L); it has no heads axis."""
    return None if laid_mask is None else laid_mask[(index[0], *index[2:])]


def hide_masked(keys: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Replace what lies at masked positions by zeros, so that it is never read."""
    return keys if mask is None else np.where(mask[..., None], keys, keys.dtype.type(0))


def compute_energies(
    q: np.ndarray,
    k: np.ndarray,
    scale: float,
    mask: np.ndarray | None,
    excluded: np.ndarray | None,
) -> np.ndarray:
    """Energies (strips, queries, L), -inf where a key does not take part."""
    energies: np.ndarray = q @ k.transpose(0, 2, 1)
    if scale != 1.0:
        energies *= energies.dtype.type(scale)
    if mask is not None:
        np.copyto(energies, -np.inf, where=~mask[:, None, :])
    if excluded is not None:
        np.copyto(energies, -np.inf, where=excluded)
    return energies


def find_excluded(queries: slice, length: int, include_self: bool) -> np.ndarray | None:
    """Mark (queries, L) where the key is the query itself, unless it takes part."""
    if include_self:
        return None
    return np.eye(queries.stop - queries.start, length, queries.start, dtype=bool)


def multiply(weights: np.ndarray, values: np.ndarray, excluded: np.ndarray | None) -> np.ndarray:
    """Multiply weights (strips, rows, x) by values (strips, x, D), leaving out `excluded` pairs.

    Their weight is zero, but zero times NaN or infinity is not: strips with such values are done
    again row by row without the excluded value.
    """
    product: np.ndarray = weights @ values
    if excluded is not None and not np.isfinite(values).all():
        for strip in np.flatnonzero(~np.isfinite(values).all(axis=(1, 2))):
            for row, seen in enumerate(~excluded):
                product[strip, row] = weights[strip, row, seen] @ values[strip, seen]
    return product
