"""Whose array is this? Recognised by its type, without importing the library it belongs to.

`ADAPTERS` is the one place where a lower room names a higher one: it maps the kind of an array to
the module that knows that library, imported when the first such array is seen. By then the caller
has imported the library already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from crisscross.problem import ArraySpec
from crisscross.view import View

#: Kind of array -> module of the adapter.
ADAPTERS = {
    "numpy": "crisscross.bridge.native",
    "torch": "crisscross.torch.adapter",
    "jax": "crisscross.jax.adapter",
    "cupy": "crisscross.gpu.cupy_arrays",
    "dlpack": "crisscross.bridge.foreign",
    "cuda": "crisscross.gpu.interface",
}

#: Package and name of each library's array class -> kind.
_ARRAY_CLASSES = {
    ("numpy", "ndarray"): "numpy",
    ("torch", "Tensor"): "torch",
    ("jaxlib", "ArrayImpl"): "jax",
    ("jax", "ArrayImpl"): "jax",
    ("jax", "Tracer"): "jax",
    ("cupy", "ndarray"): "cupy",
}


@dataclass(frozen=True)
class Obstacle:
    """Why an array's memory cannot be shared: what was expected (and what to do), what came.

    `in_sharing` alone, if its library computes with it as with any other.
    """

    expected: str
    got: str
    in_sharing: bool = False


class ObstacleError(Exception):
    """Raised by an adapter that cannot take an array as it is; the bridge turns it into ours."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.obstacle = Obstacle(expected, got)


class Description(NamedTuple):
    """What can be said of an array without touching its memory; no device where it has none.

    One that `is_fake` has no memory, but a library that traces wants to know what comes of it. One
    that `is_traced` stands for arrays of calls to come.
    """

    spec: ArraySpec
    device: str | None
    obstacle: Obstacle | None = None
    is_fake: bool = False
    is_traced: bool = False


class Held(NamedTuple):
    """Memory of a device, and what keeps it alive.

    `stream` is the one on which the memory is being written, where the array tells: work on another
    stream has to wait for it. The owner of memory that `is_foreign` knows nothing of the stream at
    work, and might hand it out anew before the work is done: it has to be kept until then.
    """

    view: View
    owner: Any
    stream: int | None = None
    is_foreign: bool = False


#: Makes an array in the memory of the device at work: shape, strides in elements, dtype.
Make = Callable[[tuple[int, ...], tuple[int, ...], str], Held]


class Adapter(Protocol):
    """What the room of an array library provides; a module with these functions.

    The last ones are for memory of a CUDA device, and for arrays that are fake; libraries that have
    none need them not.
    """

    def describe(self, array: Any) -> Description | None:
        """Describe `array`, or return None if it is no array of this library."""

    def to_numpy(self, array: Any) -> np.ndarray:
        """View the memory of `array`, which `describe` found without obstacle."""

    def from_numpy(self, array: np.ndarray, like: Any, /) -> Any:
        """Hand the memory of `array` to the library; `like` is one of its arrays, or None.

        Raises
        ------
        ObstacleError
            If the library cannot take the array as it is.
        """

    def find_stream(self, array: Any) -> int | None:
        """Return the stream on which the caller's work on `array` runs; None for CuPy's current."""

    def hold(self, array: Any, stream: int) -> Held:
        """View the memory of `array`, ready for work on `stream`."""

    def find_maker(self, like: Any) -> Make | None:
        """Return what makes arrays of the library of `like` beside it; None if CuPy is to."""

    def take(self, owner: Any, like: Any) -> Any:
        """Hand an array that was made over to the library of `like`."""

    def imitate(self, shape: tuple[Any, ...], dtype: str, like: Any, is_in_order: bool, /) -> Any:
        """Make an array without memory, like a fake one: in its memory format, or not."""


_loaded: dict[str, Adapter] = {}


def kind_of(array: object) -> str | None:
    """Return the kind of an array (a key of `ADAPTERS`), or None for anything else."""
    cls = type(array)
    if cls is np.ndarray:
        return "numpy"
    # Subclasses of a library's array live in their author's module, hence the walk.
    for base in cls.__mro__:
        kind = _ARRAY_CLASSES.get((base.__module__.partition(".")[0], base.__name__))
        if kind is not None:
            return kind
    if hasattr(cls, "__dlpack__") and hasattr(cls, "__dlpack_device__"):
        return "dlpack"
    return "cuda" if hasattr(cls, "__cuda_array_interface__") else None


def adapter_of(kind: str) -> Adapter:
    """Return the adapter for a kind of array, imported on first use."""
    if kind == "torch":
        # By a statement, which PyTorch's compiler follows.
        from crisscross.torch import adapter

        return cast(Adapter, adapter)
    if kind not in _loaded:
        # Unlike a look into sys.modules, it waits for a thread that is in the middle of importing.
        _loaded[kind] = cast(Adapter, import_module(ADAPTERS[kind]))
    return _loaded[kind]


def library_of(array: object) -> str:
    """Name the library an array belongs to, as its users import it."""
    kind = kind_of(array)
    if kind is not None and kind not in ("dlpack", "cuda"):
        return kind
    cls = type(array)
    # A user's subclass still is an array of the library whose class first spoke the protocol.
    word = "__cuda_array_interface__" if kind == "cuda" else "__dlpack__"
    speaker = next((base for base in reversed(cls.__mro__) if word in vars(base)), cls)
    return speaker.__module__.partition(".")[0]


#: What no library's arrays are of, and what there is most of among arguments.
_NO_ARRAYS = (np.ndarray, float, int, str, type(None))


def find_calls(values: Iterable[object]) -> Any:
    """Return what makes calls on arrays of a library that differentiates, if any are among these.

    A module of its room, see `crisscross.ops.routing`. An array, or a list of them, may come behind
    options.
    """
    for value in values:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, _NO_ARRAYS):
            continue
        kind = kind_of(first)
        if kind == "torch":
            from crisscross.torch import calls

            return calls
        if kind == "jax":
            return import_module("crisscross.jax.calls")
    return None
