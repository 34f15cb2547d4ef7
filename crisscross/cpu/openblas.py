"""What OpenBLAS can do on a CPU beyond what NumPy asks of it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import product
from typing import Any, cast

import numpy as np

from crisscross.cpu.threads import find_libraries

#: What OpenBLAS calls the CPUs for which it has kernels for small matrices, and those for which it
#: has kernels that transpose; on others it does so element by element, and NumPy is faster.
_WITH_SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_WITH_TRANSPOSING_KERNELS = _WITH_SMALL_KERNELS | {"Haswell", "Zen"}
_ROW_MAJOR, _TRANSPOSED = 101, 112
_LETTERS = {"float32": ("s", ctypes.c_float), "float64": ("d", ctypes.c_double)}
#: What builds of OpenBLAS put before and behind the names of its functions.
_PREFIXES, _SUFFIXES = ("scipy_", ""), ("64_", "")


@cache
def find_architecture() -> str | None:
    """Find out what NumPy's OpenBLAS calls this CPU; None, if NumPy has another BLAS, or none."""
    libraries = find_libraries()
    configuration: Any = np.show_config(mode="dicts")
    blas = configuration.get("Build Dependencies", {}).get("blas", {}).get("name", "")
    # Some builds have a library called "blas" that another stands behind.
    others = [library for library in libraries if library.internal_api != "openblas"]
    if others and "openblas" not in blas:
        return None
    # All that are loaded see one CPU.
    names = (getattr(library, "architecture", None) for library in libraries)
    return next((name for name in names if name), None)


def has_small_kernels() -> bool:
    """Whether NumPy's BLAS is an OpenBLAS with kernels for small matrices, on this CPU."""
    return find_architecture() in _WITH_SMALL_KERNELS


def transpose(source: np.ndarray, target: np.ndarray) -> bool:
    """Copy a matrix that lies by rows in one of the arrays and by columns in the other.

    Return whether it is done: only if they lie so, and there is an OpenBLAS that is fast at it.
    """
    function = _find_function(source.dtype.name)
    if function is None or target.dtype != source.dtype:
        return False
    if source.strides[-1] != source.itemsize:
        source, target = source.T, target.T
    lda, ldb = _measure_rows(source), _measure_rows(target.T)
    if lda is None or ldb is None:
        return False
    a, b = source.ctypes.data, target.ctypes.data
    function(_ROW_MAJOR, _TRANSPOSED, *source.shape, 1.0, a, lda, b, ldb)
    return True


def _measure_rows(matrix: np.ndarray) -> int | None:
    """Count the elements from row to row; None, if rows overlap, or have gaps in themselves."""
    elements, rest = divmod(matrix.strides[0], matrix.itemsize)
    whole = matrix.strides[1] == matrix.itemsize and elements >= matrix.shape[1]
    return elements if whole and rest == 0 and matrix.flags.aligned else None


@cache
def _find_function(dtype: str) -> Callable[..., None] | None:
    """Find ``cblas_?omatcopy``: order, transposed, rows, columns, alpha, a, lda, b, ldb."""
    fast = sys.maxsize > 1 << 32 and find_architecture() in _WITH_TRANSPOSING_KERNELS
    if dtype not in _LETTERS or not fast:
        return None
    letter, real = _LETTERS[dtype]
    # Builds with integers of 32 bits read the lower half of these: those CPUs pass them so.
    size, address = ctypes.c_int64, ctypes.c_void_p
    names = [f"{a}cblas_{letter}omatcopy{b}" for a, b in product(_PREFIXES, _SUFFIXES)]
    for library in find_libraries():
        with suppress(OSError):
            loaded = ctypes.CDLL(library.filepath)
            for name in names:
                if hasattr(loaded, name):
                    function: Any = loaded[name]
                    function.argtypes = [
                        *[ctypes.c_int] * 2, *[size] * 2, real, address, size, address, size,
                    ]  # fmt: skip
                    function.restype = None
                    return cast(Callable[..., None], function)
    return None
