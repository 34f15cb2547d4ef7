"""Copies of whole inputs and outputs: products are made of arrays with the channels innermost.

Turning the axes costs little if it is done right: piece by piece, and with no channels a multiple
of `_CLASH_BYTES` apart. Those that are compete for a few lines of the cache, and the copy takes
several times as long; so they are first copied straight to memory with room between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from crisscross.cpu.crew import Crew
from crisscross.cpu.openblas import transpose
from crisscross.cpu.strips import fits_blas, lay_along
from crisscross.cpu.workspace import Workspace

#: Bytes that are copied at a time, in and out: few enough for a cache, and so many that threads do
#: not wait for each other in the interpreter.
_CHUNK_IN, _CHUNK_OUT = 1 << 20, 1 << 20
#: Fewest positions that are copied out at a time: those of a channel may lie together.
_POSITIONS_OUT = 512

_CLASH_BYTES = 512
_CLASH_OF_ROWS = 4096
#: Most rows that may clash: room behind them costs what lies evenly gains.
_MOST_ROWS = 128
_LINE_BYTES = 64

#: Fewest elements that OpenBLAS is to transpose; and fewest of channels that clash, of which NumPy
#: makes more steps. A call costs as much as some thousand elements.
_LEAST_TRANSPOSED, _LEAST_CLASHING = 1 << 14, 1 << 11


def take_features(
    workspace: Workspace, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray:
    """Lend (N, heads, *S, D), channels innermost; room behind vectors and rows where it helps."""
    *outer, row, channels = shape
    size = _pad(channels, dtype)
    clash = outer[-1] > _MOST_ROWS and row * size * dtype.itemsize % _CLASH_OF_ROWS == 0
    roomy = row + clash
    memory = workspace.reuse(name, (*outer, roomy, size), dtype)
    return memory[..., :row, :channels]


def _pad(count: int, dtype: np.dtype[Any]) -> int:
    clashes = count * dtype.itemsize % _CLASH_BYTES == 0
    return count + _LINE_BYTES // dtype.itemsize * clashes


def fits(features: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """Whether BLAS takes the strips of (N, heads, *S, D) along every axis as they lie."""
    spatial_ndim = features.ndim - 3
    return all(
        fits_blas(lay_along(features, axis, spatial_ndim), dtype) for axis in range(spatial_ndim)
    )


def find_hidden(key_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """Tell which positions of which operand are never to be read."""
    return {} if key_mask is None else dict.fromkeys(("k", "v"), ~key_mask)


#: Number of an image, and of a head.
Place = tuple[int, int]
#: Looks at a part of an operand, (..., D), while it is in a cache.
Look = Callable[[Place, np.ndarray], None]


def convert(
    features: Mapping[str, np.ndarray],
    dtype: np.dtype[Any],
    crew: Crew,
    key_mask: np.ndarray | None = None,
    looks: Mapping[str, Look] = MappingProxyType({}),
) -> list[np.ndarray]:
    """Return each (N, heads, *S, D) as `fits` asks for it; the same memory, if it does.

    In "k" and "v" there are zeros where `key_mask` (N, heads, *S) is False. Those that are named in
    `looks` are shown to them, piece by piece.
    """
    hidden = find_hidden(key_mask)
    converted: list[np.ndarray] = []
    tasks: list[tuple[str, _Piece]] = []
    for name, array in features.items():
        copy = array
        if name in hidden or not fits(array, dtype):
            copy = take_features(crew.workspace, f"{name} copy", array.shape, dtype)
        converted.append(copy)
        if copy is not array or name in looks:
            tasks += [(name, piece) for piece in _cut_pieces(array, copy, _CHUNK_IN)]

    def work(task: tuple[str, _Piece], workspace: Workspace) -> None:
        name, (place, source, target) = task
        if source is not target:
            _turn(source, target, workspace)
        if name in looks:
            looks[name](place, target)

    if tasks:
        crew.run(tasks, work)
    for name, copy in zip(features, converted, strict=True):
        if name in hidden:
            copy[hidden[name]] = 0
    return converted


def write_back(results: Sequence[tuple[np.ndarray, np.ndarray]], crew: Crew) -> None:
    """Copy each (N, heads, *S, D), channels innermost, to its output, of any layout."""

    def work(piece: _Piece, workspace: Workspace) -> None:
        _turn_back(piece.source, piece.target, workspace)

    pieces = []
    for result, target in results:
        vector_bytes = result.shape[-1] * max(result.itemsize, target.itemsize)
        chunk = max(_CHUNK_OUT, _POSITIONS_OUT * vector_bytes)
        pieces += _cut_pieces(result, target, chunk)
    if pieces:
        crew.run(pieces, work)


class _Piece(NamedTuple):
    """A part of an array and of its copy, (positions, D) or, with gaps between, (rows, *S, D)."""

    place: Place
    source: np.ndarray
    target: np.ndarray


def _cut_pieces(source: np.ndarray, target: np.ndarray, chunk: int) -> list[_Piece]:
    """Cut two arrays (N, heads, *S, D) along their positions, into pieces of `chunk` bytes.

    Of one array, given twice, both parts are the same.
    """
    pieces = []
    for place in np.ndindex(source.shape[:2]):
        whole = [source[place]] if source is target else [source[place], target[place]]
        # As positions, if they are evenly apart; with gaps behind rows, as rows.
        for shape in ((-1, *source.shape[-2:]), (-1, source.shape[-1])):
            with suppress(ValueError):
                whole = [x.reshape(shape, copy=False) for x in whole]
        row_bytes = whole[0][:1].size * max(source.itemsize, target.itemsize)
        step = max(1, chunk // max(1, row_bytes))
        for start in range(0, len(whole[0]), step):
            parts = [x[start : start + step] for x in whole]
            pieces.append(_Piece(place, parts[0], parts[-1]))
    return pieces


def _turn(source: np.ndarray, target: np.ndarray, workspace: Workspace) -> None:
    """Copy (..., D) of any layout to one with the channels innermost."""
    if _transpose(source, target):
        return
    *spatial, channels = source.shape
    apart = abs(source.strides[-1])
    turns = apart > abs(source.strides[-2])
    if turns and (source.dtype != target.dtype or apart % _CLASH_BYTES == 0):
        count = math.prod(spatial)
        room = workspace.reuse("turned", (channels, _pad(count, target.dtype)), target.dtype)
        flat = room[:, :count]
        turned = flat.reshape(channels, *spatial, copy=False)
        turned[...] = np.moveaxis(source, -1, 0)
        source = np.moveaxis(turned, 0, -1)
        if _transpose(source, target):
            return
    target[...] = source


def _turn_back(source: np.ndarray, target: np.ndarray, workspace: Workspace) -> None:
    """Copy (..., D), the channels innermost, to any layout."""
    positions = _list_positions(target)
    if positions is None:
        target[...] = source
        return
    if source.ndim > 2:
        close = workspace.reuse("close", source.shape, source.dtype)
        close[...] = source
        source = close.reshape(positions.shape)
    turned = positions
    # NumPy takes so long to make float16 that it may as well turn.
    casts = target.dtype not in (source.dtype, np.float16)
    if casts and abs(positions.strides[1]) > abs(positions.strides[0]):
        turned = workspace.reuse("turned", source.shape[::-1], source.dtype).T
    if not _transpose(source, turned):
        positions[...] = source
    elif turned is not positions:
        positions[...] = turned


def _transpose(source: np.ndarray, target: np.ndarray) -> bool:
    """Let OpenBLAS copy (positions, D), if it can and is faster at it; return whether it has."""
    if source.ndim > 2:
        return False
    apart = max(abs(source.strides[-1]), abs(target.strides[-1]))
    clash = apart % _CLASH_BYTES == 0
    least = _LEAST_CLASHING if clash else _LEAST_TRANSPOSED
    return source.size >= least and transpose(source, target)


def _list_positions(features: np.ndarray) -> np.ndarray | None:
    """View (..., D) as (positions, D); None, if they are not evenly apart."""
    with suppress(ValueError):
        return features.reshape(-1, features.shape[-1], copy=False)
    return None


def view_as_features(target: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray | None:
    """See the memory of (N, heads, *S, D) as features of that shape, channels innermost.

    None, if it has gaps or another dtype; images that lie between others have gaps.
    """
    order = sorted(range(target.ndim), key=lambda axis: -abs(target.strides[axis]))
    memory = target.transpose(order)
    if target.dtype != dtype or not memory.flags.c_contiguous:
        return None
    return memory.reshape(target.shape)
