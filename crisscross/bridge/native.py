"""The adapter for NumPy's own arrays: nothing to convert, a few kinds to refuse."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from crisscross.bridge.memory import name_dtype
from crisscross.dispatch import Description, Obstacle
from crisscross.problem import ArraySpec


def describe(array: Any) -> Description | None:
    if not isinstance(array, np.ndarray):
        return None
    if isinstance(array, np.ma.MaskedArray):
        obstacle = Obstacle(
            "a plain array; pass x.filled(0) and, for keys, key_mask=~mask", "a masked array"
        )
        return Description(ArraySpec(array.shape, name_dtype(array.dtype)), "cpu", obstacle)
    try:
        return _describe_plain(array.shape, array.dtype)
    except TypeError:  # strings whose placeholder cannot be hashed
        return _describe_plain.__wrapped__(array.shape, array.dtype)


@lru_cache
def _describe_plain(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Description:
    return Description(ArraySpec(shape, name_dtype(dtype)), "cpu", _find_obstacle(dtype))


def _find_obstacle(dtype: np.dtype[Any]) -> Obstacle | None:
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
    return array if type(array) is np.ndarray else array.view(np.ndarray)


def from_numpy(array: np.ndarray, _like: Any) -> np.ndarray:
    return array
