"""What is measured: shapes, passes, and the least that each has to compute and to move."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = [
    "CHANNELS_FIRST",
    "CHANNELS_LAST",
    "CPU",
    "CUDA",
    "DEVICES",
    "DTYPES",
    "FORWARD",
    "FORWARD_BACKWARD",
    "GPU_SHAPES",
    "LAYOUTS",
    "PASSES",
    "QUICK_GPU_SHAPES",
    "QUICK_SHAPES",
    "SHAPES",
    "Shape",
    "count_bytes",
    "count_flops",
    "count_sets",
    "find_floor",
    "parse_shape",
]

FORWARD, FORWARD_BACKWARD = PASSES = ("forward", "forward + backward")
DTYPES = ("float32", "float16", "bfloat16", "float64")
CPU, CUDA = DEVICES = ("cpu", "cuda")
CHANNELS_FIRST, CHANNELS_LAST = LAYOUTS = ("channels-first", "channels-last")

_SHAPE = re.compile(r"(\d+)/(\d+),(\d+)x(\d+)(?:,(\d+))?")
_LARGEST = 2**20
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Before inputs come round again, this many times the cache has been read.
_CACHES_BETWEEN = 2
_MOST_SETS = 32


@dataclass(frozen=True)
class Shape:
    """Sizes of one problem: v is (N, C, H, W), q and k are (N, C', H, W).

    Attributes
    ----------
    channels : int
        C, of v.
    key_channels : int
        C', of q and k.
    height, width : int
        H and W.
    batch : int
        N.
    """

    channels: int
    key_channels: int
    height: int
    width: int
    batch: int = 1

    def __str__(self) -> str:
        sizes = f"{self.channels}/{self.key_channels}, {self.height}x{self.width}"
        return sizes if self.batch == 1 else f"{sizes}, N={self.batch}"


SHAPES = (
    Shape(32, 4, 16, 16),
    Shape(64, 8, 64, 64, 2),
    Shape(256, 32, 32, 32, 4),
    Shape(512, 64, 97, 97),
    Shape(256, 32, 128, 256),
    Shape(128, 16, 512, 24),
    Shape(128, 16, 24, 512),
    Shape(64, 8, 256, 256),
)
QUICK_SHAPES = (Shape(64, 8, 64, 64, 2), Shape(512, 64, 97, 97))
GPU_SHAPES = (
    Shape(512, 64, 97, 97, 8),
    Shape(512, 64, 97, 97),
    Shape(512, 64, 129, 129, 8),
    Shape(512, 64, 64, 64, 8),
    Shape(512, 64, 256, 256),
    Shape(512, 64, 512, 24, 8),
)
QUICK_GPU_SHAPES = GPU_SHAPES[:2]


def parse_shape(text: str) -> Shape:
    """Read C/C',HxW[,N].

    Raises
    ------
    ValueError
        If it is not of that form, or a size is not from 1 to 2^20.

    Examples
    --------
    >>> str(parse_shape("64/8,5x7,2"))
    '64/8, 5x7, N=2'
    """
    found = _SHAPE.fullmatch(text)
    sizes = [int(size) for size in found.groups(default="1")] if found else [0]
    if not all(1 <= size <= _LARGEST for size in sizes):
        raise ValueError(f"expected C/C',HxW or C/C',HxW,N such as 64/8,32x48,2, got {text!r}")
    return Shape(*sizes)


def count_flops(shape: Shape, name: str) -> int:
    """Count the operations of the matmuls of a pass.

    Each of the H + W energies of a position costs a product over C' channels, and each weight one
    over C. The backward computes the energies again, then dP (C), dq and dk (C'), and dv (C).

    Examples
    --------
    >>> count_flops(Shape(512, 64, 97, 97), "forward")
    2102798592
    """
    pairs = shape.batch * shape.height * shape.width * (shape.height + shape.width)
    if name == FORWARD:
        return 2 * pairs * (shape.key_channels + shape.channels)
    return 2 * pairs * (4 * shape.key_channels + 3 * shape.channels)


def count_bytes(shape: Shape, name: str, dtype: str) -> int:
    """Count the bytes that a pass has to move: every input once, every output once.

    The forward reads q, k and v and writes out. The backward reads these four and dout, and writes
    dq, dk and dv. lse, one number a position, is left out.

    Examples
    --------
    >>> count_bytes(Shape(512, 64, 1, 1), "forward", "bfloat16")
    2304
    """
    forward = 2 * shape.key_channels + 2 * shape.channels
    backward = 4 * shape.key_channels + 4 * shape.channels
    numbers = forward if name == FORWARD else forward + backward
    return shape.batch * shape.height * shape.width * numbers * _ITEM_BYTES[dtype]


def find_floor(
    shape: Shape, name: str, dtype: str, matmul_rate: float, copy_rate: float | None
) -> float:
    """Return the seconds that a pass cannot be faster than.

    Parameters
    ----------
    shape : Shape
    name : str
        The pass.
    dtype : str
    matmul_rate : float
        Operations a second.
    copy_rate : float or None
        Bytes a second, read and written; None leaves the bytes out.

    Examples
    --------
    >>> find_floor(Shape(512, 64, 97, 97), "forward", "bfloat16", 800e12, 4.8e12)
    4.51632e-06
    """
    seconds = count_flops(shape, name) / matmul_rate
    if copy_rate is None:
        return seconds
    return max(seconds, count_bytes(shape, name, dtype) / copy_rate)


def count_sets(shape: Shape, dtype: str, cache_bytes: int) -> int:
    """Count the sets of inputs to take in turn, so that none is still in the cache; at most 32.

    Examples
    --------
    >>> count_sets(Shape(512, 64, 97, 97), "bfloat16", 50 * 2**20)
    10
    """
    numbers = 2 * shape.key_channels + shape.channels
    size = shape.batch * shape.height * shape.width * numbers * _ITEM_BYTES[dtype]
    return min(_MOST_SETS, 1 + math.ceil(_CACHES_BETWEEN * cache_bytes / size))
