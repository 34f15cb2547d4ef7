"""The adapter for NumPy's own arrays: nothing to convert, a few kinds to refuse."""

from __future__ import annotations

from typing import Any

import numpy as np

from crisscross.bridge.memory import name_dtype
from crisscross.dispatch import Description, Obstacle
from crisscross.problem import ArraySpec


def describe(array: Any) -> Description | None:
    if not isinstance(array, np.ndarray):
        return None
    spec = ArraySpec(array.shape, name_dtype(array.dtype))
    return Description(spec, "cpu", _find_obstacle(array))


def _find_obstacle(array: np.ndarray) -> Obstacle | None:
    if isinstance(array, np.ma.MaskedArray):
        return Obstacle(
            "a plain array; pass x.filled(0) and, for keys, key_mask=~mask", "a masked array"
        )
    dtype = array.dtype
    if not dtype.isnative:
        order = "big" if dtype.str.startswith(">") else "little"
        return Obstacle(
            "native byte order; pass x.astype(x.dtype.newbyteorder('='))",
            f"{order}-endian {dtype.name}",
        )
    # Objects, text, dates and structures; ml_dtypes' own types are of kind V without fields.
    if dtype.kind in "OSUMmT" or dtype.fields is not None:
        return Obstacle("a plain numeric dtype", f"dtype {dtype}")
    return None


def to_numpy(array: np.ndarray) -> np.ndarray:
    return array.view(np.ndarray)


def from_numpy(array: np.ndarray, _like: Any) -> np.ndarray:
    return array
