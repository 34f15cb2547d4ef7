"""Copies of whole inputs and outputs, in the layout that products along an axis need."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from crisscross.cpu.crew import Crew
from crisscross.cpu.strips import fits_blas, has_channels_innermost, lay_along
from crisscross.cpu.workspace import Workspace

#: Bytes that are copied or added to at a time: few enough for a cache, and so many that threads do
#: not wait for each other in the interpreter.
CHUNK_BYTES = 1 << 20


def take_features(
    workspace: Workspace,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    innermost: bool,
    axis: int,
) -> np.ndarray:
    """Lend (N, heads, *S, D) with strips along `axis` that BLAS takes.

    The channels lie innermost in memory, or outermost and the axis innermost.
    """
    if innermost:
        return workspace.reuse(name, shape, dtype)
    channel = len(shape) - 1
    order = [0, 1, channel, *(i for i in range(2, channel) if i != 2 + axis), 2 + axis]
    memory = workspace.reuse(name, tuple(shape[i] for i in order), dtype)
    return memory.transpose(sorted(range(len(shape)), key=order.__getitem__))


def cut_chunks(array: np.ndarray, itemsize: int) -> list[tuple[Any, ...]]:
    """Cut (N, heads, *S, D) into pieces that are compact in its memory."""
    batch, heads, *spatial, channels = array.shape
    everything = slice(None)
    most = max(1, CHUNK_BYTES // itemsize)
    positions = math.prod(spatial)
    if heads * positions * channels <= most:
        step = most // (heads * positions * channels)
        return [(slice(n, n + step), ..., everything) for n in range(0, batch, step)]
    images = [(slice(n, n + 1), slice(h, h + 1)) for n, h in np.ndindex(batch, heads)]
    if has_channels_innermost(array):
        step = max(1, most * spatial[0] // (positions * channels))
        rows = [slice(y, y + step) for y in range(0, spatial[0], step)]
        return [(*image, piece, ..., everything) for image in images for piece in rows]
    step = max(1, most // positions)
    pieces = [slice(c, c + step) for c in range(0, channels, step)]
    return [(*image, ..., piece) for image in images for piece in pieces]


def convert(
    name: str,
    features: np.ndarray,
    dtype: np.dtype[Any],
    crew: Crew,
    key_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return (N, heads, *S, D) in the dtype of the computation; the same memory, if it can be.

    Where `key_mask` (N, heads, *S) is False there are zeros.
    """
    innermost = has_channels_innermost(features)
    last = features.ndim - 4
    fits = innermost and fits_blas(lay_along(features, last, last + 1), dtype)
    if key_mask is None and features.dtype == dtype and (fits or not innermost):
        return features
    return _copy(name, features, dtype, crew, innermost=innermost, axis=last, key_mask=key_mask)


class Laid(NamedTuple):
    """Features seen as strips along an axis, (N, heads, *others, L, D)."""

    strips: np.ndarray
    #: Whether this is a copy, made for the axis alone.
    copied: bool


def lay_for_blas(name: str, features: np.ndarray, axis: int, crew: Crew) -> Laid:
    """Lay (N, heads, *S, D), as converted, along an axis; a copy where BLAS needs one."""
    spatial_ndim = features.ndim - 3
    laid = lay_along(features, axis, spatial_ndim)
    if fits_blas(laid, features.dtype):
        return Laid(laid, copied=False)
    copy = _copy(name, features, features.dtype, crew, innermost=False, axis=axis)
    return Laid(lay_along(copy, axis, spatial_ndim), copied=True)


def _copy(
    name: str,
    features: np.ndarray,
    dtype: np.dtype[Any],
    crew: Crew,
    *,
    innermost: bool,
    axis: int,
    key_mask: np.ndarray | None = None,
) -> np.ndarray:
    copy = take_features(
        crew.workspace, f"{name} copy {axis}", features.shape, dtype, innermost=innermost, axis=axis
    )

    turns = _order_memory(features) != _order_memory(copy)

    def work(chunk: tuple[Any, ...], workspace: Workspace) -> None:
        source, target = features[chunk], copy[chunk]
        target[...] = fetch(source, dtype, workspace) if turns else source
        if key_mask is not None:
            target[~key_mask[chunk[:-1]]] = 0

    crew.run(cut_chunks(features, dtype.itemsize), work)
    return copy


def fetch(chunk: np.ndarray, dtype: np.dtype[Any], workspace: Workspace) -> np.ndarray:
    """Copy a chunk in the order of its memory.

    Reading straight through and turning the axes in the cache is faster than reading across.
    """
    order = _order_memory(chunk)
    memory = workspace.reuse("chunk", tuple(chunk.shape[i] for i in order), dtype)
    fetched = memory.transpose(sorted(range(chunk.ndim), key=order.__getitem__))
    fetched[...] = chunk
    return fetched


def _order_memory(array: np.ndarray) -> list[int]:
    """List the axes, outermost in memory first."""
    return sorted(range(array.ndim), key=lambda i: -abs(array.strides[i]))
