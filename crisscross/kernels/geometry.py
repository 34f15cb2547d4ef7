"""How strips lie in arrays: what a kernel walks, and what is left to several launches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, NamedTuple, TypeVar

from crisscross.kernels.arguments import OUTER_AXES
from crisscross.view import ITEM_BYTES, View

K = TypeVar("K")
_LONGEST_STRIP = 2**31 - 1  # an `int` of the kernels counts along it


class Walk(NamedTuple):
    """One array along a strip; strides in elements, as `Array` of ``strips.cuh`` has them."""

    data: int
    position: int
    channel: int
    outer: tuple[int, ...]


@dataclass(frozen=True)
class Strips(Generic[K]):
    """Strips that one kernel can walk: sizes of the outer axes, slowest first, and each array."""

    sizes: tuple[int, ...]
    length: int
    walks: Mapping[K, Walk]

    @property
    def count(self) -> int:
        return math.prod(self.sizes)


def find_strips(axis: int, arrays: Mapping[K, View]) -> Iterator[Strips[K]]:
    """Find the strips of arrays along a spatial axis, in as few parts as kernels can walk.

    Arrays are (N, heads, *S) or (N, heads, *S, D), at least one of them the latter. A kernel walks
    four outer axes; where more are left after those that lie behind each other in every array have
    been taken together, each index of the slowest makes a part of its own.
    """
    shape = max((view.shape for view in arrays.values()), key=len)
    spatial_ndim = len(shape) - 3
    outer_axes = [i for i in range(2 + spatial_ndim) if i != 2 + axis]
    sizes = [shape[i] for i in outer_axes]
    strides = {name: [view.strides[i] for i in outer_axes] for name, view in arrays.items()}
    _collapse(sizes, strides)
    extra = max(0, len(sizes) - OUTER_AXES)
    missing = max(0, OUTER_AXES - len(sizes))
    for index in product(*(range(size) for size in sizes[:extra])):
        yield Strips(
            (*[1] * missing, *sizes[extra:]),
            shape[2 + axis],
            {
                name: Walk(
                    _move(view, strides[name][:extra], index),
                    view.strides[2 + axis],
                    view.strides[-1] if len(view.shape) == 3 + spatial_ndim else 0,
                    (*[0] * missing, *strides[name][extra:]),
                )
                for name, view in arrays.items()
            },
        )


def is_aligned(view: View, byte_count: int) -> bool:
    """Whether the channels of each position of an array begin at a multiple of so many bytes."""
    steps = [view.strides[i] for i, size in enumerate(view.shape[:-1]) if size > 1]
    return all(
        count % byte_count == 0
        for count in (view.pointer, *(step * ITEM_BYTES[view.dtype] for step in steps))
    )


def merge_positions(*arrays: View) -> tuple[View, ...]:
    """Take the spatial axes of (N, heads, *S, D) together where all arrays allow it."""
    axes = range(2, len(arrays[0].shape) - 1)
    sizes = [arrays[0].shape[axis] for axis in axes]
    strides = {i: [view.strides[axis] for axis in axes] for i, view in enumerate(arrays)}
    _collapse(sizes, strides, most=_LONGEST_STRIP)
    return tuple(
        View(
            view.pointer,
            (*view.shape[:2], *(sizes or [1]), view.shape[-1]),
            (*view.strides[:2], *(strides[i] or [0]), view.strides[-1]),
            view.dtype,
        )
        for i, view in enumerate(arrays)
    )


def _collapse(sizes: list[int], strides: Mapping[Any, list[int]], most: float = math.inf) -> None:
    """Take axes together, in place, wherever all arrays have one behind the other."""
    for i in range(len(sizes) - 1, -1, -1):
        if sizes[i] == 1:
            following = True
        else:
            following = (
                i + 1 < len(sizes)
                and sizes[i] * sizes[i + 1] <= most
                and all(each[i] == each[i + 1] * sizes[i + 1] for each in strides.values())
            )
            if following:
                sizes[i + 1] *= sizes[i]
        if following:
            del sizes[i]
            for each in strides.values():
                del each[i]


def _move(view: View, strides: Sequence[int], index: Sequence[int]) -> int:
    steps = sum(stride * i for stride, i in zip(strides, index, strict=True))
    return view.pointer + steps * ITEM_BYTES[view.dtype]
