"""Outputs that are summed over the axes: the first axis writes, each later one adds its part."""

from __future__ import annotations

from typing import Any

import numpy as np

from crisscross.cpu.copies import fits, take_features, view_as_features
from crisscross.cpu.strips import Block, lay_along
from crisscross.cpu.workspace import Workspace


class AxisSum:
    """One output, (N, heads, *S, D), filled axis by axis.

    For each axis: `open_axis`; for each tile `lend` memory for its product, and `add` it once it is
    there. At the end, see what is `left`.

    An output that BLAS can write to is summed in its own memory, any other in scratch. That scratch
    is as large as the output. A copy of an input that its owner needs no more, tile by tile, in the
    course of the last axis, can take its place: then the sum of the axes before is kept in the
    output's memory, if that has no gaps, and the last one leaves the whole in the copy.
    """

    def __init__(
        self,
        name: str,
        target: np.ndarray,
        axes: tuple[int, ...],
        dtype: np.dtype[Any],
        workspace: Workspace,
        copy: np.ndarray | None = None,
    ) -> None:
        self._name, self._target, self._axes, self._dtype = name, target, axes, dtype
        #: Of the axis at hand: whether it is the first, whether what it adds moves to other memory,
        #: and the sum before and after it, laid along it.
        self._first = self._moves = False
        self._before = self._after = target
        if fits(target, dtype):
            self._sum = self._whole = target
            return
        seen = None if copy is None else view_as_features(target, dtype)
        if copy is not None and seen is not None:
            self._sum, self._whole = seen, copy
        else:
            self._sum = take_features(workspace, f"{name} sum", target.shape, dtype)
            self._whole = self._sum

    def open_axis(self, axis: int) -> None:
        """Begin with the axis."""
        spatial_ndim = self._target.ndim - 3
        after = self._whole if axis == self._axes[-1] else self._sum
        self._first, self._moves = axis == self._axes[0], after is not self._sum
        self._before, self._after = (lay_along(x, axis, spatial_ndim) for x in (self._sum, after))

    def lend(self, block: Block, rows: slice, workspace: Workspace) -> np.ndarray:
        """Lend (..., rows, D) for the product of a tile."""
        place = block.of(self._after)[..., rows, :]
        if self._first and not self._moves:
            return place
        return workspace.reuse(self._name, place.shape, self._dtype)

    def add(
        self,
        block: Block,
        rows: slice,
        product: np.ndarray,
        share: np.ndarray | None = None,
        factor: np.ndarray | None = None,
    ) -> np.ndarray:
        """Add the product of a tile to `share`, (..., rows), of what was there before.

        Return `factor`, (..., rows), times the sum, which is kept.
        """
        after = block.of(self._after)[..., rows, :]
        if not self._first:
            before = block.of(self._before)[..., rows, :]
            if share is not None:
                before *= share[..., None]
            np.add(before, product, out=after)
        elif self._moves:
            after[...] = product
        if factor is not None:
            after *= factor[..., None]
        return after

    @property
    def left(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What `write_back` is left to do, once all axes are through."""
        return [] if self._whole is self._target else [(self._whole, self._target)]
