"""An array in a device's memory as kernels know it: an address, sizes and strides.

Of the library that owns the memory nothing is known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Bytes of an element, by the name of its dtype.
ITEM_BYTES = {"bool": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class View(NamedTuple):
    """Memory of a device as an array.

    Attributes
    ----------
    pointer
        Address of the first element.
    shape, strides
        Sizes, and strides in elements.
    dtype
        Name of the dtype.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def permute(self, *axes: int) -> View:
        """Return the view with its axes in another order."""
        return View(
            self.pointer,
            tuple([self.shape[axis] for axis in axes]),
            tuple([self.strides[axis] for axis in axes]),
            self.dtype,
        )

    def narrow(self, axis: int, first: int, size: int) -> View:
        """Return the part of `size` indices of an axis from `first` on."""
        pointer = self.pointer + first * self.strides[axis] * ITEM_BYTES[self.dtype]
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return View(pointer, shape, self.strides, self.dtype)

    def split(self, axis: int, count: int) -> View:
        """Return the view with an axis split in two, the first of them of size `count`."""
        size = self.shape[axis] // count
        return View(
            self.pointer,
            (*self.shape[:axis], count, size, *self.shape[axis + 1 :]),
            (*self.strides[:axis], size * self.strides[axis], *self.strides[axis:]),
            self.dtype,
        )

    def split_heads(self, heads: int, channel_axis: int) -> View:
        """View (N, heads * D, *S) or (N, *S, heads * D) as (N, heads, *S, D)."""
        axis = channel_axis % len(self.shape)
        split = self.split(axis, heads)
        others = (i for i in range(1, len(split.shape)) if i not in (axis, axis + 1))
        return split.permute(0, axis, *others, axis + 1)


def find_strides(shape: Sequence[int], like: View | None = None) -> tuple[int, ...]:
    """Return the strides, in elements, of a compact array.

    The axes lie in memory in the order of `like` (as many axes, any sizes), else in C order.
    """
    axes = list(range(len(shape)))
    # A broadcast axis has no place in memory that could be followed.
    if like is not None and 0 not in like.strides:
        axes.sort(key=lambda axis: -abs(like.strides[axis]))
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)
