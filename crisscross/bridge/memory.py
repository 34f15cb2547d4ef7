"""Fresh NumPy memory that every library can take over."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np

#: JAX shares memory only from this alignment on; it also is a cache line and an AVX-512 vector.
ALIGNMENT = 64


def name_dtype(dtype: np.dtype[Any]) -> str:
    """Name a dtype; NumPy puts the name together anew each time."""
    try:
        return _find_name(dtype)
    except TypeError:  # strings whose placeholder cannot be hashed
        return dtype.name


@cache
def _find_name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def allocate(shape: tuple[int, ...], dtype: Any, like: np.ndarray | None = None) -> np.ndarray:
    """Allocate aligned, compact, uninitialised memory.

    The axes lie in memory in the order of `like` (as many axes, any sizes), else in C order.
    """
    dtype = np.dtype(dtype)
    raw = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    # NumPy's own ways to tell an address take as long as all else here.
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw.data)) % ALIGNMENT
    # A broadcast axis has no place in memory that could be followed.
    if like is None or like.flags.c_contiguous or 0 in like.strides:
        return np.ndarray(shape, dtype, raw, start)
    # Python's sort is stable: axes of equal stride (size 1) keep their order.
    order = sorted(range(len(shape)), key=lambda axis: -abs(like.strides[axis]))
    compact: np.ndarray = np.ndarray([shape[axis] for axis in order], dtype, raw, start)
    return compact.transpose(sorted(range(len(order)), key=order.__getitem__))


def copy_aligned(array: np.ndarray) -> np.ndarray:
    """Copy into fresh memory of the same memory format."""
    copied = allocate(array.shape, array.dtype, like=array)
    copied[...] = array
    return copied
