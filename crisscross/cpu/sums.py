"""Outputs that are summed over the axes: the first axis writes, each later one adds its part."""

from __future__ import annotations

from typing import Any

import numpy as np

from crisscross.cpu.copies import cut_chunks, fetch, take_features
from crisscross.cpu.crew import Crew
from crisscross.cpu.strips import Block, fits_blas, has_channels_innermost, lay_along
from crisscross.cpu.workspace import Workspace


class AxisSum:
    """One output, (N, heads, *S, D), filled axis by axis.

    For each axis: `open_axis`; for each tile `lend` memory for its product, and `add` it once it
    is there; `close_axis`.

    Where BLAS cannot write the products of the first axis to the output, they go to scratch and
    are rounded to the output at the end. Later axes add to it block by block, if the channels lie
    innermost. Otherwise that would be an addition of short pieces far apart: there a later axis
    writes its part to scratch, or over a copy that is done with, and closing it adds all of them in
    the order of memory.
    """

    def __init__(
        self,
        name: str,
        target: np.ndarray,
        axes: tuple[int, ...],
        dtype: np.dtype[Any],
        crew: Crew,
    ) -> None:
        self._name, self._target, self._axes = name, target, axes
        self._dtype, self._crew = dtype, crew
        self._innermost = has_channels_innermost(target)
        fits = fits_blas(self._lay(target, axes[0]), dtype)
        self._total = target if fits else self._take_memory("total", axes[0])

    def _lay(self, array: np.ndarray, axis: int) -> np.ndarray:
        return lay_along(array, axis, self._target.ndim - 3)

    def _take_memory(self, role: str, axis: int) -> np.ndarray:
        return take_features(
            self._crew.workspace,
            f"{self._name} {role}",
            self._target.shape,
            self._dtype,
            innermost=self._innermost,
            axis=axis,
        )

    def open_axis(self, axis: int, replaced: np.ndarray | None = None) -> None:
        """Begin with the axis.

        `replaced`, laid along it like the output, is a copy that the caller needs no more, block by
        block, once it has the products of a block: those can be kept in its place.
        """
        self._axis = axis
        self._laid = self._lay(self._total, axis)
        #: Where the products of this axis go; None, if they are added block by block.
        self._products: np.ndarray | None = None
        self._replaces = False
        if axis == self._axes[0]:
            self._products = self._laid
        elif not self._innermost:
            self._replaces = replaced is not None
            self._products = replaced
            if replaced is None:
                self._products = self._lay(self._take_memory("part", axis), axis)

    def lend(self, block: Block, rows: slice, workspace: Workspace) -> np.ndarray:
        """Lend (..., rows, D) for the product of a tile."""
        if self._products is not None and not self._replaces:
            return block.of(self._products)[..., rows, :]
        shape = block.of(self._laid)[..., rows, :].shape
        return take_features(
            workspace,
            self._name,
            shape,
            self._dtype,
            innermost=self._innermost,
            axis=len(shape) - 4,
        )

    def add(
        self, block: Block, rows: slice, result: np.ndarray, share: np.ndarray | None = None
    ) -> None:
        """Add the product of a tile to `share`, (..., rows), of what was there before."""
        if self._replaces:
            assert self._products is not None
            block.of(self._products)[..., rows, :] = result
        elif self._products is None:
            total = block.of(self._laid)[..., rows, :]
            if share is not None:
                total *= share[..., None]
            total += result

    def close_axis(self, share: np.ndarray | None = None) -> None:
        """End with the axis; `share` is that of all tiles, (N, heads, *S)."""
        adds = self._axis != self._axes[0] and self._products is not None
        rounds = self._axis == self._axes[-1] and self._total is not self._target
        if not adds and not rounds:
            return
        part = None
        if adds:
            assert self._products is not None
            part = np.moveaxis(self._products, -2, 2 + self._axis)

        def work(chunk: tuple[Any, ...], workspace: Workspace) -> None:
            total = self._total[chunk]
            if part is not None:
                if share is not None:
                    total *= share[chunk[:-1]][..., None]
                total += fetch(part[chunk], self._dtype, workspace)
            if rounds:
                self._target[chunk] = total

        self._crew.run(cut_chunks(self._total, self._dtype.itemsize), work)
