"""Widening and rounding: the only numerics the oracle has besides the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np


def widen(array: np.ndarray) -> np.ndarray:
    """Copy to the dtype the oracle computes in."""
    wide: Any = np.float64 if array.dtype.itemsize < 8 else np.longdouble
    return array.astype(wide)


def round_into(target: np.ndarray, exact: np.ndarray) -> None:
    """Round once, at the output. Overflow to infinity is the right rounding, not a fault."""
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = exact.astype(target.dtype)
