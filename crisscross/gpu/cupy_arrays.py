"""The adapter for CuPy's arrays."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from crisscross.bridge import name_dtype, numpy_dtype
from crisscross.dispatch import Description, Held, Make, ObstacleError
from crisscross.gpu.interface import count_elements
from crisscross.problem import ArraySpec
from crisscross.view import ITEM_BYTES, View


def describe(array: Any) -> Description | None:
    if not isinstance(array, cupy.ndarray):
        return None
    spec = ArraySpec(array.shape, name_dtype(array.dtype))
    return Description(spec, f"cuda:{array.device.id}")


def to_numpy(_array: Any) -> np.ndarray:
    raise ObstacleError("memory of the CPU; copy it there with cupy.asnumpy", "a CUDA array")


def from_numpy(_array: np.ndarray, _like: Any) -> Any:
    raise ObstacleError("memory of a CUDA device; copy it there with cupy.asarray", "CPU memory")


def find_stream(_array: Any) -> None:
    return None


def hold(array: Any, _stream: int) -> Held:
    strides = count_elements(array.data.ptr, array.strides, array.dtype.itemsize)
    return Held(View(array.data.ptr, array.shape, strides, name_dtype(array.dtype)), array)


def find_maker(_like: Any) -> Make | None:
    return None


def take(owner: Any, _like: Any) -> Any:
    return owner


def make_array(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Held:
    """Make an array on the current device, in the order of the current stream."""
    memory = cupy.cuda.alloc(math.prod(shape) * ITEM_BYTES[dtype])
    in_bytes = tuple(stride * ITEM_BYTES[dtype] for stride in strides)
    array = cupy.ndarray(shape, numpy_dtype(dtype), memory, in_bytes)
    return Held(View(memory.ptr, shape, strides, dtype), array)
