"""What is measured: shapes, passes, and the fewest operations that each needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "DTYPES",
    "FORWARD",
    "FORWARD_BACKWARD",
    "PASSES",
    "QUICK_SHAPES",
    "SHAPES",
    "Shape",
    "count_flops",
    "parse_shape",
]

FORWARD, FORWARD_BACKWARD = PASSES = ("forward", "forward + backward")
DTYPES = ("float32", "float16", "bfloat16", "float64")

_SHAPE = re.compile(r"(\d+)/(\d+),(\d+)x(\d+)(?:,(\d+))?")
_LARGEST = 2**20


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
