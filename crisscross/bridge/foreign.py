"""The adapter for every library without a room of its own that speaks DLPack."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from crisscross.bridge.capsule import Retagged, import_bfloat16, import_shared, read_view
from crisscross.dispatch import Description, Held, Obstacle, ObstacleError, library_of
from crisscross.problem import ArraySpec

# DLDeviceType of the DLPack header, grouped by the address space the memory lies in.
_HOST_DEVICES = {1: "kDLCPU", 3: "kDLCUDAHost", 11: "kDLROCMHost"}
_CUDA_DEVICES = {2: "kDLCUDA", 13: "kDLCUDAManaged"}


def describe(array: Any) -> Description | None:
    if not hasattr(type(array), "__dlpack__"):
        return None
    try:
        # Lazy libraries write None or NaN for a size they do not know.
        spec = ArraySpec(tuple(map(operator.index, array.shape)), _name_dtype(array.dtype))
    except Exception:  # whatever else a library raises of a shape it does not know
        return None
    try:
        device_type, index = map(int, array.__dlpack_device__())
    except Exception as error:  # a library may raise anything for an array without memory
        got = f"{type(error).__name__}: {error}"
        return Description(spec, None, Obstacle("memory that DLPack can share", got))
    return Description(spec, _name_device(device_type, index))


def _name_dtype(dtype: Any) -> str:
    # Libraries write "float32", "mylib.float32" or "<dtype: 'float32'>".
    name = getattr(dtype, "name", None)
    text = name if isinstance(name, str) else str(dtype)
    return text.rpartition(".")[2].strip("<>'\" ").rpartition("'")[2]


def _name_device(device_type: int, index: int) -> str:
    if device_type in _HOST_DEVICES:
        return "cpu"
    if device_type in _CUDA_DEVICES:
        return f"cuda:{index}"
    return f"DLPack device {device_type}:{index}"


def to_numpy(array: Any) -> np.ndarray:
    if _name_dtype(array.dtype) == "bfloat16":
        return import_bfloat16(array)
    return import_shared(array)


def find_stream(_array: Any) -> None:
    """Return None: a library that nobody here knows waits for the stream that `hold` tells it."""


def hold(array: Any, stream: int) -> Held:
    capsule = array.__dlpack__(stream=stream or 1)  # the default stream is 0 to CUDA, 1 to DLPack
    return Held(read_view(capsule), capsule, is_foreign=True)


def find_maker(like: Any) -> None:
    """Return None: the library takes over arrays of another one, by an importer it must have."""
    find_importer(like)


def take(owner: Any, like: Any) -> Any:
    return find_importer(like)(export(owner))


def export(owner: Any) -> Any:
    """Let an array of CuPy speak DLPack in bfloat16, which CuPy 13 does not."""
    if getattr(owner.dtype, "name", None) == "bfloat16":
        return Retagged.of_bfloat16(owner)
    return owner


def from_numpy(array: np.ndarray, like: Any) -> Any:
    importer = find_importer(like)
    exportable = Retagged.of_bfloat16(array) if array.dtype.name == "bfloat16" else array
    return importer(exportable)


def find_importer(like: Any) -> Callable[[Any], Any]:
    """Find the library's own `from_dlpack`: in its array namespace, else in its package."""
    namespace = getattr(like, "__array_namespace__", None)
    if namespace is not None:
        importer = getattr(namespace(), "from_dlpack", None)
        if importer is not None:
            return importer  # type: ignore[no-any-return]
    package = library_of(like)
    importer = getattr(sys.modules.get(package), "from_dlpack", None)
    if importer is None:
        expected = "an array library with a from_dlpack of its own; convert to NumPy first"
        raise ObstacleError(expected, f"{package}, which has none")
    return importer  # type: ignore[no-any-return]
