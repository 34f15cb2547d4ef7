"""The adapter for arrays that have `__cuda_array_interface__`, and no DLPack."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from crisscross.dispatch import Description, Held, Make, Obstacle, ObstacleError, library_of
from crisscross.problem import ArraySpec
from crisscross.view import View, find_strides


def describe(array: Any) -> Description | None:
    try:
        interface = array.__cuda_array_interface__
        spec = ArraySpec(tuple(interface["shape"]), np.dtype(interface["typestr"]).name)
    except Exception:  # a library may raise anything of an array without memory
        return None
    if interface.get("mask") is not None:
        obstacle = Obstacle("an array without a mask; pass key_mask", "a masked array")
        return Description(spec, None, obstacle)
    return Description(spec, f"cuda:{_find_device(interface['data'][0])}")


def _find_device(pointer: int) -> int:
    """Ask CUDA, for the interface does not tell; without CuPy nobody will serve the array."""
    try:
        import cupy

        index: int = cupy.cuda.runtime.pointerGetAttributes(pointer).device
    except Exception:  # CuPy, the driver or, for an empty array, the address may be missing
        return 0
    return index


def to_numpy(_array: Any) -> np.ndarray:
    raise ObstacleError("memory of the CPU; copy it there first", "a CUDA array")


def from_numpy(_array: np.ndarray, _like: Any) -> Any:
    raise ObstacleError("memory of a CUDA device; copy it there first", "CPU memory")


def find_stream(array: Any) -> None:
    """Return None: the stream that `hold` finds is one to wait for, not the caller's current."""


def hold(array: Any, _stream: int) -> Held:
    interface = array.__cuda_array_interface__
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    given = interface.get("strides")
    strides = (
        find_strides(shape)
        if given is None
        else tuple(stride // dtype.itemsize for stride in given)
    )
    pointer = interface["data"][0]
    return Held(View(pointer, shape, strides, dtype.name), array, interface.get("stream"))


def find_maker(_like: Any) -> Make | None:
    return None


def take(owner: Any, like: Any) -> Any:
    """Hand an array over by the library's `as_cuda_array` (Numba's word) or `asarray`."""
    package = library_of(like)
    for module in (sys.modules.get(f"{package}.cuda"), sys.modules.get(package)):
        for name in ("as_cuda_array", "from_dlpack", "asarray"):
            taker = getattr(module, name, None)
            if taker is not None:
                return taker(owner)
    raise ObstacleError(
        "a library that takes over CUDA arrays (as_cuda_array, from_dlpack or asarray)", package
    )
