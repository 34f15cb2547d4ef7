"""What a peer file has to define, and how it is loaded.

A peer file is a Python file with

``PACKAGES``
    Names of the distributions whose versions are recorded.
``FORMS``
    Dictionary, from the name that the table shows to a `Form`.
``release``
    Function without arguments that drops the library's caches. Optional; called before memory is
    measured.
``measure_memory``
    Function that takes a call and returns how many bytes on the GPU it needs at its peak beyond
    those held before it, outputs included. Optional; the memory of the CPU is measured for it.

Our own file has besides

``make_yardsticks``
    Function that takes device and dtype and returns what the floor is made of: a `Yardstick`
    "matmul" and, on a GPU, "copy".
``describe_device``
    Function without arguments that returns what `crisscross.bench.records.Gpu` keeps.

A package that the file imports and that is not installed makes its forms missing, by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from crisscross.bench.shapes import CHANNELS_FIRST, CPU, PASSES

__all__ = [
    "CRISS_CROSS",
    "DENSE",
    "Calls",
    "Form",
    "Inputs",
    "NotServed",
    "Yardstick",
    "load_peer",
]

#: What a form computes: the operation, or attention to all positions, which is another function.
CRISS_CROSS, DENSE = "criss-cross", "dense"


class NotServed(Exception):  # noqa: N818 - it tells of a limit, not of a fault
    """Raised by `Form.prepare` for inputs that the form is not for; the message says why."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arrays of a case: C-contiguous, in one dtype, bfloat16 being that of ml_dtypes.

    Attributes
    ----------
    q, k : ndarray, (N, C', H, W)
    v, dout : ndarray, (N, C, H, W)
    device : {"cpu", "cuda"}
        Where the form is to have them.
    layout : {"channels-first", "channels-last"}
        How it is to have them in memory; these here are channels first.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    device: str = CPU
    layout: str = CHANNELS_FIRST


def _need_not_wait(_results: object) -> None:
    pass


@dataclass(frozen=True)
class Calls:
    """What is timed, the arrays being converted before.

    Attributes
    ----------
    forward : callable
        Returns {"out": array}, and "lse" where the library has it.
    forward_backward : callable or None
        Likewise, with "dq", "dk" and "dv".
    to_numpy : callable
        Turns what a call returned into NumPy arrays, channels first. Not timed.
    wait : callable
        Waits until what a call returned is complete, and what was called before; without it, it is
        when the call returns. Timed.
    algorithm : str or None
        How these arrays are computed, where the library tells; for the record.
    """

    forward: Callable[[], dict[str, Any]]
    forward_backward: Callable[[], dict[str, Any]] | None
    to_numpy: Callable[[dict[str, Any]], dict[str, np.ndarray]]
    wait: Callable[[dict[str, Any]], object] = _need_not_wait
    algorithm: str | None = None


@dataclass(frozen=True)
class Yardstick:
    """What the floor is measured by.

    Attributes
    ----------
    call : callable
    amount : float
        Of operations, or of bytes read and written.
    wait : callable
        As for `Calls`.
    """

    call: Callable[[], Any]
    amount: float
    wait: Callable[[Any], object] = _need_not_wait


@dataclass(frozen=True)
class Form:
    """One way to compute the function with a library.

    Attributes
    ----------
    prepare : callable
        Takes `Inputs` and returns `Calls`, or raises `NotServed`.
    function : {"criss-cross", "dense"}
        What it computes.
    passes : tuple of str
        Which passes it has.
    devices : tuple of str
        Where it is measured.
    """

    prepare: Callable[[Inputs], Calls]
    function: str = CRISS_CROSS
    passes: tuple[str, ...] = PASSES
    devices: tuple[str, ...] = (CPU,)


def load_peer(path: Path) -> ModuleType:
    """Run a peer file; it may import its neighbours by name."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
