"""Small images: a group of them at once, by a few operations on whole arrays.

All strips along an axis are copied one after the other, (M, L, D), whatever the memory layout of
the arrays: that costs less here than any care for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crisscross.cpu.strips import find_diagonal, multiply
from crisscross.cpu.weights import (
    clear,
    compute_energies,
    differentiate,
    exponentiate,
    invert,
    join,
)
from crisscross.problem import AttentionProblem


class _Strips:
    """The strips along one axis of arrays (N, heads, *S[, D])."""

    def __init__(self, axis: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """`shape` is (N, heads, *S)."""
        last = len(shape)
        order = [i for i in range(last) if i != 2 + axis] + [2 + axis, last]
        self._order, self._dtype = order, dtype
        self._laid_shape = [shape[i] for i in order[:-1]]
        self._back = [order.index(i) for i in range(last + 1)]
        self.everything = slice(0, shape[2 + axis])

    def lay(self, array: np.ndarray) -> np.ndarray:
        """View an array with the axis behind the others: (..., L[, D])."""
        return array.transpose(self._order[: array.ndim])

    def copy(self, features: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Copy (N, heads, *S, D) to (M, L, D); zeros where `mask` (M, L) hides a key."""
        laid = np.ascontiguousarray(self.lay(features), self._dtype)
        flat = laid.reshape(-1, *laid.shape[-2:])
        return flat if mask is None else clear(flat, ~mask)

    def flatten(self, statistic: np.ndarray) -> np.ndarray:
        """Copy (N, heads, *S) to (M, L)."""
        return self.lay(statistic).reshape(-1, self.everything.stop)

    def unflatten(self, flat: np.ndarray) -> np.ndarray:
        """View (M, L[, D]) as (..., L[, D]), as `lay` does."""
        return flat.reshape(*self._laid_shape, *flat.shape[2:])

    def unlay(self, flat: np.ndarray) -> np.ndarray:
        """View (M, L[, D]) as (N, heads, *S[, D])."""
        laid = self.unflatten(flat)
        return laid.transpose(self._back[: laid.ndim])


def attend_small(
    problem: AttentionProblem,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse`; arrays are (N, heads, *S[, D])."""
    dtype = np.dtype(problem.compute_dtype)
    state: tuple[np.ndarray, ...] = ()
    for axis in problem.axes:
        skips_self = not (axis == problem.axes[0] and problem.include_self)
        strips = _Strips(axis, lse.shape, dtype)
        mask = None if key_mask is None else strips.flatten(key_mask)
        queries, keys, values = strips.copy(q), strips.copy(k, mask), strips.copy(v, mask)
        weights = compute_energies(queries, keys, problem.scale, mask)
        everything = strips.everything
        diagonal = find_diagonal(weights, everything, everything) if skips_self else None
        part_peak = exponentiate(weights, diagonal)
        part_total = weights @ np.ones(weights.shape[-1], dtype)
        if not state:
            factor = invert(part_total)
        else:
            mean, peak, total = (strips.lay(x) for x in state)
            part_state = strips.unflatten(part_peak), strips.unflatten(part_total)
            share, factor = join(peak, total, *part_state)
            factor = factor.reshape(part_total.shape)
        weights *= factor[..., None]
        part = np.empty((*part_total.shape, values.shape[-1]), dtype)
        multiply(weights, values, part, excluded=0 if skips_self else None)
        if not part_total.all():
            # Weights of zero, but the values may be NaN.
            part[part_total == 0] = 0
        if not state:
            state = tuple(strips.unlay(x) for x in (part, part_peak, part_total))
        else:
            mean *= share[..., None]
            mean += strips.unflatten(part)
    mean, peak, total = state
    out[...] = mean
    np.log(total, out=lse)
    lse += peak


def differentiate_small(
    problem: AttentionProblem,
    lse: np.ndarray,
    dlse: np.ndarray | None,
    key_mask: np.ndarray | None,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    *targets: np.ndarray,
) -> None:
    """Fill `targets`, which are dq, dk and dv; arrays are (N, heads, *S[, D])."""
    dtype = np.dtype(problem.compute_dtype)
    # One order of the sum, whatever the order in memory.
    delta = (dout.astype(dtype, order="C") * out).sum(axis=-1, dtype=dtype)
    if dlse is not None:
        delta -= dlse
    sums: list[np.ndarray] = []
    for axis in problem.axes:
        skips_self = not (axis == problem.axes[0] and problem.include_self)
        strips = _Strips(axis, lse.shape, dtype)
        mask = None if key_mask is None else strips.flatten(key_mask)
        queries, arriving = strips.copy(q), strips.copy(dout)
        keys, values = strips.copy(k, mask), strips.copy(v, mask)
        flat_lse, everything = strips.flatten(lse), strips.everything
        keyless = flat_lse == -np.inf
        if keyless.any():
            # Such a position has no gradient, whatever its q, dout and dlse hold.
            queries, arriving = clear(queries, keyless), clear(arriving, keyless)
        weights = compute_energies(queries, keys, problem.scale, mask)
        denergies = arriving @ values.swapaxes(-1, -2)
        tiles = (weights, denergies) if skips_self else ()
        diagonals = [find_diagonal(tile, everything, everything) for tile in tiles]
        differentiate(weights, denergies, flat_lse, strips.flatten(delta), diagonals)

        excluded = 0 if skips_self else None
        dq, dk, dv = (np.empty(x.shape, dtype) for x in (queries, keys, values))
        multiply(denergies, keys, dq, excluded=excluded)
        multiply(denergies.swapaxes(-1, -2), queries, dk, excluded=excluded)
        multiply(weights.swapaxes(-1, -2), arriving, dv, excluded=excluded)
        if keyless.any():
            dq[keyless] = 0
        if mask is not None:
            dk[~mask], dv[~mask] = 0, 0
        if problem.scale != 1.0:
            dq *= dtype.type(problem.scale)
            dk *= dtype.type(problem.scale)
        if not sums:
            sums = [strips.unlay(x) for x in (dq, dk, dv)]
        else:
            for total, part in zip(sums, (dq, dk, dv), strict=True):
                total += strips.unlay(part)
    for target, total in zip(targets, sums, strict=True):
        target[...] = total
