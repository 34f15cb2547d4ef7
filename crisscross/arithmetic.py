"""What is needed of an array library beyond attention, under one name for all of them.

Products and sums of 16-bit numbers are computed in float32 and rounded once, by whoever calls
`cast`. PyTorch and JAX multiply 16 bits as they do: sums are float32 there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from crisscross.dispatch import library_of


def find_namespace(array: Any) -> Any:
    """Return the module of functions on arrays of this kind."""
    own = getattr(array, "__array_namespace__", None)
    return sys.modules[library_of(array)] if own is None else own()


def cast(array: Any, dtype: Any) -> Any:
    """Return an array in another dtype."""
    if array.dtype == dtype:
        return array
    if hasattr(array, "astype"):
        return array.astype(dtype)
    xp = find_namespace(array)
    return xp.astype(array, dtype) if hasattr(xp, "astype") else array.to(dtype)


def widen(array: Any) -> Any:
    """Return float32 for 16 bits, any other as it is."""
    is_short = str(array.dtype).removeprefix("torch.") in ("float16", "bfloat16")
    return cast(array, find_namespace(array).float32) if is_short else array


def place(array: np.ndarray, like: Any) -> Any:
    """Copy a NumPy array to the library and the device of another."""
    return find_namespace(like).asarray(array, **_name_device(like))


def make_zeros(shape: Sequence[int], like: Any) -> Any:
    """Make zeros in the library, dtype and device of another array."""
    return find_namespace(like).zeros(tuple(shape), dtype=like.dtype, **_name_device(like))


def _name_device(like: Any) -> dict[str, Any]:
    """Say where to make an array, to a library that makes it elsewhere if it is not told."""
    return {"device": like.device} if library_of(like) == "torch" else {}


def multiply_matrices(a: Any, b: Any) -> Any:
    """Multiply matrices; float32 as such, also where JAX or autocast would round it first."""
    xp = find_namespace(a)
    options = {"precision": "highest"} if library_of(a) == "jax" else {}
    with in_full_precision(a):
        return xp.matmul(a, b, **options)


def transpose(matrices: Any) -> Any:
    return move_axis(matrices, -1, -2)


def move_axis(array: Any, source: int, target: int) -> Any:
    """Move one axis. PyTorch maps over `movedim`, not over `moveaxis`, which is the same."""
    xp = find_namespace(array)
    move = xp.movedim if hasattr(xp, "movedim") else xp.moveaxis
    return move(array, source, target)


def in_full_precision(array: Any) -> AbstractContextManager[Any]:
    """Compute without the rounding of PyTorch's autocast."""
    if library_of(array) != "torch":
        return nullcontext()
    context: AbstractContextManager[Any] = find_namespace(array).autocast(
        array.device.type, enabled=False
    )
    return context


def quietly(array: Any) -> AbstractContextManager[Any]:
    """Compute in full precision, and without NumPy's warnings: NaN and infinity are results."""
    if library_of(array) == "numpy":
        return np.errstate(all="ignore")
    return in_full_precision(array)


def largest(array: Any) -> Any:
    """Return the largest number along the last axis, which stays with size 1."""
    xp = find_namespace(array)
    return getattr(xp, "amax", xp.max)(array, axis=-1, keepdims=True)


def join(arrays: Sequence[Any], axis: int) -> Any:
    xp = find_namespace(arrays[0])
    name = "concat" if hasattr(xp, "concat") else "concatenate"
    return getattr(xp, name)(list(arrays), axis=axis)


def reshape(array: Any, shape: Sequence[int]) -> Any:
    return find_namespace(array).reshape(array, tuple(shape))


def list_sizes(x: Any, channel_axis: int) -> tuple[int, ...]:
    """Return the spatial sizes of (N, C, *S) or (N, *S, C)."""
    sizes: tuple[int, ...] = x.shape[2:] if channel_axis == 1 else x.shape[1:-1]
    return tuple(sizes)


def flatten(x: Any, channel_axis: int) -> Any:
    """Put all positions on one axis: (N, C, P) or (N, P, C)."""
    count = math.prod(list_sizes(x, channel_axis))
    if channel_axis == 1:
        return reshape(x, (*x.shape[:2], count))
    return reshape(x, (x.shape[0], count, x.shape[-1]))


def spread(vector: Any, ndim: int, channel_axis: int) -> Any:
    """View one number a channel so that it broadcasts against (N, C, *S) or (N, *S, C)."""
    if channel_axis == -1:
        return vector
    return reshape(vector, (-1,) + (1,) * (ndim - 2))


def sum_axes(array: Any, axes: Sequence[int]) -> Any:
    """Sum over axes, which stay with size 1.

    One after the other: NumPy adds up along outer axes number by number, and of millions in float32
    little would be right.
    """
    xp = find_namespace(array)
    for axis in axes:
        array = xp.sum(array, axis=axis, keepdims=True)
    return array


def sum_positions(array: Any, channel_axis: int) -> Any:
    """Sum over all axes but that of the channels."""
    axes = [axis for axis in range(array.ndim) if axis != channel_axis % array.ndim]
    return reshape(sum_axes(array, axes[::-1]), (array.shape[channel_axis],))


def multiply(matrix: Any, x: Any, channel_axis: int) -> Any:
    """Multiply the channels of every position by a matrix (outputs, inputs)."""
    if channel_axis == -1:
        return multiply_matrices(x, transpose(matrix))
    products = multiply_matrices(matrix, flatten(x, 1))
    return reshape(products, (x.shape[0], matrix.shape[0], *x.shape[2:]))


def correlate(a: Any, b: Any, channel_axis: int) -> Any:
    """Sum, over all positions, the products of each channel of `a` with each of `b`."""
    if channel_axis == -1:
        a, b = (reshape(x, (math.prod(x.shape[:-1]), x.shape[-1])) for x in (a, b))
        return multiply_matrices(transpose(a), b)
    products = multiply_matrices(flatten(a, 1), transpose(flatten(b, 1)))
    return find_namespace(a).sum(products, axis=0)
