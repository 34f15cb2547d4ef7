"""The adapter for arrays that have `__cuda_array_interface__`, and no DLPack."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crisscross.dispatch import Description, Held, Obstacle, ObstacleError, library_of
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
    shape, given = tuple(interface["shape"]), interface.get("strides")
    in_bytes = (
        [stride * dtype.itemsize for stride in find_strides(shape)] if given is None else given
    )
    pointer = interface["data"][0]
    strides = count_elements(pointer, in_bytes, dtype.itemsize)
    view = View(pointer, shape, strides, dtype.name)
    return Held(view, array, interface.get("stream"), is_foreign=True)


def count_elements(pointer: int, strides: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return strides in elements; they and the address have to be whole ones."""
    if pointer % itemsize or any(stride % itemsize for stride in strides):
        raise ObstacleError(
            f"an address and strides that are multiples of the element's {itemsize} bytes",
            f"address {pointer:#x}, strides {tuple(strides)}",
        )
    return tuple(stride // itemsize for stride in strides)


def find_maker(like: Any) -> None:
    """Return None: the library takes over arrays of CuPy, by a function that it must have."""
    find_taker(like)


def take(owner: Any, like: Any) -> Any:
    return find_taker(like)(owner)


def find_taker(like: Any) -> Callable[[Any], Any]:
    """Find the library's `as_cuda_array` (Numba's word), `from_dlpack` or `asarray`."""
    package = library_of(like)
    for module in (sys.modules.get(f"{package}.cuda"), sys.modules.get(package)):
        for name in ("as_cuda_array", "from_dlpack", "asarray"):
            taker: Callable[[Any], Any] | None = getattr(module, name, None)
            if taker is not None:
                return taker
    raise ObstacleError(
        "a library that takes over CUDA arrays (as_cuda_array, from_dlpack or asarray)", package
    )
