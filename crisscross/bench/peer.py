"""What a peer file has to define, and how it is loaded.

A peer file is a Python file with

``PACKAGES``
    Names of the distributions whose versions are recorded.
``FORMS``
    Dictionary, from the name that the table shows to a `Form`.
``release``
    Function without arguments that drops the library's caches. Optional; called before memory is
    measured.

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

from crisscross.bench.shapes import PASSES

__all__ = ["CRISS_CROSS", "DENSE", "Calls", "Form", "Inputs", "NotServed", "load_peer"]

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
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray


@dataclass(frozen=True)
class Calls:
    """What is timed, the arrays being converted before.

    Attributes
    ----------
    forward : callable
        Returns {"out": array}, and "lse" where the library has it, complete when it returns.
    forward_backward : callable or None
        Likewise, with "dq", "dk" and "dv".
    to_numpy : callable
        Turns what a call returned into NumPy arrays, channels first. Not timed.
    """

    forward: Callable[[], dict[str, Any]]
    forward_backward: Callable[[], dict[str, Any]] | None
    to_numpy: Callable[[dict[str, Any]], dict[str, np.ndarray]]


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
    """

    prepare: Callable[[Inputs], Calls]
    function: str = CRISS_CROSS
    passes: tuple[str, ...] = PASSES


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
