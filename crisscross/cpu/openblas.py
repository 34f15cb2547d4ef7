"""What OpenBLAS can do on a CPU beyond what NumPy asks of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from crisscross.cpu.threads import find_libraries

#: What OpenBLAS calls the CPUs for which it has kernels for small matrices, and those for which it
#: has kernels that transpose; on others it does so element by element, and NumPy is faster.
_WITH_SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_WITH_TRANSPOSING_KERNELS = _WITH_SMALL_KERNELS | {"Haswell", "Zen"}
#: Fewest elements of a matrix to transpose: a call costs as much as some thousand of them.
_LEAST_TRANSPOSED = 1 << 14

_ROW_MAJOR, _TRANSPOSED = 101, 112
_LETTERS = {"float32": ("s", ctypes.c_float), "float64": ("d", ctypes.c_double)}
#: What builds of OpenBLAS put before and behind the names of its functions.
_PREFIXES, _SUFFIXES = ("scipy_", ""), ("64_", "")


@cache
def find_architecture() -> str | None:
    """Find out what NumPy's OpenBLAS calls this CPU; None, if NumPy has another BLAS."""
    configuration: Any = np.show_config(mode="dicts")
    if "openblas" not in configuration["Build Dependencies"]["blas"]["name"]:
        return None
    # All that are loaded see one CPU.
    names = (getattr(library, "architecture", None) for library in find_libraries())
    return next((name for name in names if name), None)


def has_small_kernels() -> bool:
    """Whether NumPy's BLAS is an OpenBLAS with kernels for small matrices, on this CPU."""
    return find_architecture() in _WITH_SMALL_KERNELS


def transpose(source: np.ndarray, target: np.ndarray) -> bool:
    """Copy matrices (..., M, N) that lie by rows in one of the arrays and by columns in the other.

    Return whether it is done: not, if they lie otherwise or are small, or if there is no OpenBLAS
    that is fast at it.
    """
    function = _find_function(source.dtype.name)
    rows, columns = source.shape[-2:]
    if function is None or target.dtype != source.dtype or rows * columns < _LEAST_TRANSPOSED:
        return False
    if source.strides[-1] != source.itemsize:
        source, target = source.swapaxes(-1, -2), target.swapaxes(-1, -2)
        rows, columns = columns, rows
    apart = _measure_rows(source), _measure_rows(target.swapaxes(-1, -2))
    if None in apart:
        return False
    for place in np.ndindex(source.shape[:-2]):
        addresses = source[place].ctypes.data, target[place].ctypes.data
        (a, lda), (b, ldb) = zip(addresses, apart, strict=True)
        function(_ROW_MAJOR, _TRANSPOSED, rows, columns, 1.0, a, lda, b, ldb)
    return True


def _measure_rows(matrices: np.ndarray) -> int | None:
    """Count the elements from row to row; None, if rows overlap, or have gaps in themselves."""
    elements, rest = divmod(matrices.strides[-2], matrices.itemsize)
    whole = matrices.strides[-1] == matrices.itemsize and elements >= matrices.shape[-1]
    return elements if whole and rest == 0 and matrices.flags.aligned else None


@cache
def _find_function(dtype: str) -> Callable[..., None] | None:
    """Find ``cblas_?omatcopy``: order, transposed, rows, columns, alpha, a, lda, b, ldb."""
    if dtype not in _LETTERS or find_architecture() not in _WITH_TRANSPOSING_KERNELS:
        return None
    letter, real = _LETTERS[dtype]
    names = [f"{a}cblas_{letter}omatcopy{b}" for a, b in product(_PREFIXES, _SUFFIXES)]
    for library in find_libraries():
        loaded = ctypes.CDLL(library.filepath)
        for name in names:
            if hasattr(loaded, name):
                function = loaded[name]
                # Builds with integers of 32 bits read the lower half of these, on these CPUs.
                size, address = ctypes.c_int64, ctypes.c_void_p
                function.argtypes = [
                    *[ctypes.c_int] * 2, *[size] * 2, real, address, size, address, size,
                ]  # fmt: skip
                function.restype = None
                found: Callable[..., None] = function
                return found
    return None
