"""Arguments of the kernels: structures passed by value, laid out as the sources say.

Scalars and arrays of one kernel are fields of one structure, named as in its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

#: Outer axes that a kernel can walk by itself.
OUTER_AXES = 4

_ARRAY = np.dtype(
    [("data", "u8"), ("position", "i8"), ("channel", "i8"), ("outer", "i8", OUTER_AXES)], align=True
)
_STRIPS = np.dtype(
    [("first", "i8"), ("sizes", "i8", OUTER_AXES), ("length", "i4"), ("tiles", "i4")], align=True
)


def _make_structure(arrays: Sequence[str], scalars: Mapping[str, str]) -> np.dtype[Any]:
    fields = [("strips", _STRIPS), *((name, _ARRAY) for name in arrays), *scalars.items()]
    return np.dtype(fields, align=True)


_SIZES = {"head_size_qk": "i4", "head_size_v": "i4", "include_self": "i4"}
_FORWARD = _make_structure(
    ("q", "k", "v", "mask", "before", "out", "lse"), {"scale": "f8", **_SIZES}
)
_BACKWARD = _make_structure(
    ("q", "k", "v", "mask", "dout", "out", "lse", "dlse", "delta", "dq", "dk", "dv"),
    {"scale": "f8", **_SIZES, "adds": "i4"},
)
#: Parts that one launch of ``merge`` takes.
MOST_PARTS = 8
#: Kernel -> its argument.
STRUCTURES = {
    "strip_forward": _FORWARD,
    "strip_forward_mma": _FORWARD,
    "strip_forward_mma_stream": _FORWARD,
    "strip_backward_queries": _BACKWARD,
    "strip_backward_keys": _BACKWARD,
    "strip_backward_mma": _BACKWARD,
    "strip_backward_queries_mma": _BACKWARD,
    "strip_backward_keys_mma": _BACKWARD,
    "copy_features": _make_structure(
        ("from", "to"),
        {
            "channels": "i4",
            "channel_tiles": "i4",
            "reads_along_positions": "i4",
            "writes_along_positions": "i4",
        },
    ),
    "merge": np.dtype(
        [
            ("strips", _STRIPS),
            ("outs", _ARRAY, MOST_PARTS),
            ("lses", _ARRAY, MOST_PARTS),
            *((name, _ARRAY) for name in ("carried", "out", "lse")),
            *((name, "i4") for name in ("parts", "head_size", "along_positions")),
        ],
        align=True,
    ),
}


@cache
def list_fields(kernel: str) -> tuple[tuple[str, int], ...]:
    """List the fields of a kernel's structure, and how many arrays each is."""
    structure = STRUCTURES[kernel]
    assert structure.names is not None
    return tuple((name, math.prod(structure[name].shape)) for name in structure.names)
