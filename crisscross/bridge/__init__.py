"""The bridge: the memory of any library's array as a NumPy array, and back, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from crisscross.bridge import native
from crisscross.bridge.capsule import numpy_dtype
from crisscross.bridge.memory import allocate, copy_aligned, name_dtype
from crisscross.dispatch import (
    Adapter,
    Description,
    Held,
    Make,
    ObstacleError,
    adapter_of,
    kind_of,
    library_of,
)
from crisscross.errors import CrissCrossError, Fault
from crisscross.problem import Findings

__all__ = [
    "allocate",
    "describe",
    "find_maker",
    "from_dlpack",
    "give_back",
    "hold",
    "name_dtype",
    "numpy_dtype",
    "share",
    "take",
    "to_dlpack",
]

#: Libraries that `to_dlpack` takes by name; any other needs an array of its own to be found by.
_NAMED_LIBRARIES = ("numpy", "torch", "jax")
T = TypeVar("T")
_ANY_ARRAY = "an array of NumPy, CuPy, PyTorch, JAX or any library that speaks DLPack"


def describe(
    findings: Findings, name: str, array: object, shares: bool = True
) -> Description | None:
    """Describe an argument; report it if it is no array, or its memory cannot be shared.

    Or, where nobody `shares` it, if its library itself could not compute with it.
    """
    kind = kind_of(array)
    description = None if kind is None else adapter_of(kind).describe(array)
    if description is None:
        findings.add(name, _ANY_ARRAY, _name_type(array), Fault.TYPE)
    elif (obstacle := description.obstacle) is not None and (shares or not obstacle.in_sharing):
        findings.add(name, obstacle.expected, obstacle.got, Fault.MEMORY)
    return description


def _name_type(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def share(findings: Findings, name: str, array: Any, adapter: Adapter) -> np.ndarray | None:
    """View an argument that `describe` let pass; report what its library says if it refuses."""
    return _ask(findings, name, adapter.to_numpy, array)


def give_back(findings: Findings, name: str, array: np.ndarray, adapter: Adapter, like: Any) -> Any:
    """Hand a NumPy array's memory to a library; report it if the library cannot take it."""
    return _ask(findings, name, adapter.from_numpy, array, like)


def hold(findings: Findings, name: str, array: Any, adapter: Adapter, stream: int) -> Held | None:
    """View an argument's memory on a device; report what its library says if it refuses."""
    return _ask(findings, name, adapter.hold, array, stream)


def find_maker(findings: Findings, name: str, adapter: Adapter, like: Any) -> Make | None:
    """Find what makes arrays for a library; report it if the library could not take any."""
    return _ask(findings, name, adapter.find_maker, like)


def take(findings: Findings, name: str, owner: Any, adapter: Adapter, like: Any) -> Any:
    """Hand an array on a device to a library; report it if the library cannot take it."""
    return _ask(findings, name, adapter.take, owner, like)


def _ask(findings: Findings, name: str, function: Callable[..., T], *arguments: Any) -> T | None:
    """Call what a library provides; report it, and return None, if the library refuses."""
    try:
        return function(*arguments)
    except Exception as error:  # libraries raise BufferError, RuntimeError, TypeError, ...
        _report(findings, name, error)
        return None


def _report(findings: Findings, name: str, error: Exception) -> None:
    """Report why a library and the bridge do not come together."""
    if isinstance(error, CrissCrossError):
        raise error
    if isinstance(error, ObstacleError):
        findings.add(name, error.obstacle.expected, error.obstacle.got, Fault.MEMORY)
    else:
        got = f"{type(error).__name__}: {error}"
        findings.add(name, "memory that DLPack can share", got, Fault.MEMORY)


def from_dlpack(array: Any, *, copy: bool = False) -> np.ndarray:
    """View the memory of an array of any library as a NumPy array.

    Parameters
    ----------
    array
        A CPU array of NumPy, PyTorch, JAX or any library with ``__dlpack__``: any shape, any
        strides, any dtype that NumPy knows, and bfloat16 through ml_dtypes.
    copy
        False: share the memory, or raise. True: always return fresh, writable memory.

    Returns
    -------
    numpy.ndarray
        The same memory, shape and strides. Read-only where the owner is immutable (JAX) or
        read-only itself.

    Raises
    ------
    ArgumentTypeError
        If `array` is no array.
    BridgeError
        If its memory cannot be shared: a tensor that requires grad, a tracer, a sharded, sparse
        or deleted array, memory on another device. The message says what to do.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> x = np.arange(6.0).reshape(2, 3)
    >>> view = crisscross.from_dlpack(x[:, ::2])
    >>> view.strides == x[:, ::2].strides and np.shares_memory(view, x)
    True
    """
    findings = Findings("from_dlpack")
    findings.check_flag("copy", copy)
    description = describe(findings, "array", array)
    device = None if description is None or description.obstacle else description.device
    if device is not None and device.partition(":")[0] != "cpu":
        expected = "memory of the CPU; move the array there first"
        findings.add("array.device", expected, device, Fault.MEMORY)
    findings.raise_if_any()
    kind = kind_of(array)
    assert kind is not None
    view = share(findings, "array", array, adapter_of(kind))
    findings.raise_if_any()
    assert view is not None
    return copy_aligned(view) if copy else view


def to_dlpack(array: np.ndarray, like: Any, *, copy: bool = False) -> Any:
    """Hand the memory of a NumPy array to another library.

    Parameters
    ----------
    array
        A NumPy array.
    like
        The library that shall own the result: "numpy", "torch", "jax", or one of its arrays.
    copy
        False: share the memory, or raise. True: hand over a fresh copy, which every library
        takes (negative strides, read-only and unaligned memory included).

    Returns
    -------
    array of the library of `like`
        On the CPU, over the same memory unless `copy`.

    Raises
    ------
    ArgumentTypeError
        If `array` is no NumPy array, or `like` names no library.
    BridgeError
        If the library cannot share this memory: negative strides (PyTorch), read-only memory
        (PyTorch, which would make it writable, and JAX), memory that is not 64-byte aligned or
        not compact (JAX, which would copy), 64-bit dtypes while JAX has them switched off.
    MissingDependencyError
        If the library is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> x = np.zeros((2, 3))
    >>> crisscross.to_dlpack(x, "numpy") is x
    True
    """
    findings = Findings("to_dlpack")
    findings.check_flag("copy", copy)
    if native.describe(array) is None:
        findings.add("array", "a numpy.ndarray", _name_type(array), Fault.TYPE)
    else:
        describe(findings, "array", array)
    kind = like if isinstance(like, str) else kind_of(like)
    if kind is None or (isinstance(like, str) and kind not in _NAMED_LIBRARIES):
        expected = f"one of {', '.join(map(repr, _NAMED_LIBRARIES))}, or an array"
        got = repr(like) if isinstance(like, str) else _name_type(like)
        findings.add("like", expected, got, Fault.TYPE)
    findings.raise_if_any()
    assert kind is not None
    if copy:
        array = copy_aligned(array)
    example = None if isinstance(like, str) else like
    library = kind if example is None else library_of(example)
    result = give_back(findings, f"array (for {library})", array, adapter_of(kind), example)
    findings.raise_if_any()
    return result
