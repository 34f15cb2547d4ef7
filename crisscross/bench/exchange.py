"""Arrays between processes: one .npy file each, in a folder that both know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from crisscross.bridge.capsule import numpy_bfloat16

__all__ = ["read_arrays", "write_arrays"]

_BFLOAT16 = "bfloat16"


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write the arrays; return their dtypes, which `read_arrays` needs.

    The format knows no bfloat16: it travels as bit patterns.
    """
    dtypes = {}
    for name, array in arrays.items():
        dtypes[name] = array.dtype.name
        bits = array.dtype.name == _BFLOAT16
        np.save(folder / f"{name}.npy", array.view(np.uint16) if bits else array)
    return dtypes


def read_arrays(folder: Path, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote."""
    arrays = {}
    for name, dtype in dtypes.items():
        array = np.load(folder / f"{name}.npy")
        arrays[name] = array.view(numpy_bfloat16()) if dtype == _BFLOAT16 else array
    return arrays
