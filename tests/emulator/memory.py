"""Memory of exactly an array's extent, so that the address sanitizer sees a step beyond it."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

ALIGNMENT = 256  # of cudaMalloc

# The process's own allocator: the address sanitizer's where that was preloaded.
_LIBC = ctypes.CDLL(None)
_LIBC.posix_memalign.argtypes = (
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.c_size_t,
)
_LIBC.free.argtypes = (ctypes.c_void_p,)
_LIBC.free.restype = None


def place(array: np.ndarray, *, offset: int = 0) -> np.ndarray:
    """Copy an array to memory of its own, where a step beyond its ends can be seen.

    The memory begins `offset` bytes after an aligned address. Strides stay as they are, negative
    ones and zeros too; what lies between the elements is filled with bytes of ones.
    """
    low, high = byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)
    copy = _view(
        _reserve(high - low, offset), array.ctypes.data - low, array.shape, array.dtype,
        array.strides,
    )  # fmt: skip
    copy[...] = array
    return copy


def allocate(shape: int | Sequence[int], dtype: Any, *, offset: int = 0) -> np.ndarray:
    """Make an array that is NaN all over, or whatever bytes of ones are in its dtype."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    extent = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return _view(_reserve(extent, offset), 0, shape, dtype, None)


def _reserve(extent: int, offset: int) -> Any:
    """Memory full of ones, and the finalizer that frees it when the last view of it is gone."""
    pointer = ctypes.c_void_p()
    if _LIBC.posix_memalign(ctypes.byref(pointer), ALIGNMENT, offset + extent):
        raise MemoryError(f"{extent} bytes")
    assert pointer.value is not None
    memory = (ctypes.c_ubyte * extent).from_address(pointer.value + offset)
    ctypes.memset(pointer, 0xFF, offset + extent)
    hide = getattr(_LIBC, "__asan_poison_memory_region", None)
    if hide is not None and offset:
        hide(pointer, ctypes.c_size_t(offset))
    weakref.finalize(memory, _free, pointer.value, offset).atexit = False
    return memory


def _free(address: int, offset: int) -> None:
    show = getattr(_LIBC, "__asan_unpoison_memory_region", None)
    if show is not None and offset:
        show(ctypes.c_void_p(address), ctypes.c_size_t(offset))
    _LIBC.free(address)


def _view(
    memory: Any, first: int, shape: tuple[int, ...], dtype: np.dtype, strides: Any
) -> np.ndarray:
    return np.ndarray(shape, dtype, buffer=memory, offset=first, strides=strides)
