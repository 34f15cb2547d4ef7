"""Small images, each by one thread: the energies of all axes side by side, in few operations.

An operation on a whole image costs the interpreter no more than one on a single strip, and threads
with an image each do not wait for each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from crisscross.cpu.copies import convert, find_hidden, fits, take_features, write_back
from crisscross.cpu.crew import Crew
from crisscross.cpu.plan import Plan
from crisscross.cpu.products import multiply
from crisscross.cpu.strips import lay_along, view_diagonal
from crisscross.cpu.weights import clear, compute_delta, compute_energies, differentiate, normalise
from crisscross.problem import AttentionProblem

#: Largest arrays of an image that are copied, channels last, whatever their layout: in the first
#: caches that costs less than any care for it.
TINY_BYTES = 1 << 17
#: Scratch that is faster to get anew than to find again.
FRESH_BYTES = 1 << 16


class _Side(NamedTuple):
    """The strips along an axis, and where their energies are among those of all axes."""

    axis: int
    keys: slice
    #: What `multiply` is to exclude.
    excluded: int | None

    def of(self, energies: np.ndarray) -> np.ndarray:
        """View the energies (N, heads, *S, keys) of all axes as (N, heads, *others, L, L)."""
        return lay_along(energies[..., self.keys], self.axis, energies.ndim - 3)


class _Product(NamedTuple):
    """Weights of a side, or gradients of its energies, and the strips they are multiplied with."""

    side: _Side
    weights: np.ndarray
    strips: np.ndarray


class _Group:
    """A group of images: what forward and backward do with its arrays, (N, heads, *S, D)."""

    def __init__(
        self, problem: AttentionProblem, plan: Plan, crew: Crew, key_mask: np.ndarray | None
    ) -> None:
        self._problem, self._plan, self._crew = problem, plan, crew
        self._tiny = plan.image_bytes <= TINY_BYTES
        self._spatial_ndim = len(problem.spatial)
        self.key_mask = key_mask
        self.sides: list[_Side] = []
        #: Of all axes.
        self.keys = 0
        for axis in problem.axes:
            owns_self = axis == problem.axes[0] and problem.include_self
            first, self.keys = self.keys, self.keys + problem.spatial[axis]
            side = _Side(axis, slice(first, self.keys), None if owns_self else 0)
            self.sides.append(side)

    def prepare(self, **features: np.ndarray) -> list[np.ndarray]:
        """Return features as BLAS takes them; zeros in hidden keys and values."""
        if not self._tiny:
            return convert(features, self._plan.dtype, self._crew, self.key_mask)
        dtype, hidden = self._plan.dtype, find_hidden(self.key_mask)
        copies = [np.ascontiguousarray(array, dtype) for array in features.values()]
        if not hidden:
            return copies
        return [
            clear(copy, hidden[name]) if name in hidden else copy
            for name, copy in zip(features, copies, strict=True)
        ]

    def compute_delta(
        self,
        dout: np.ndarray,
        prepared_dout: np.ndarray,
        out: np.ndarray,
        dlse: np.ndarray | None,
    ) -> np.ndarray:
        """Compute delta from out as it came, and dout in that layout if there is one.

        Image by image: the order of a sum may depend on what else lies between its terms.
        """
        dtype = self._plan.dtype
        if self._tiny:
            return compute_delta(prepared_dout, np.ascontiguousarray(out, dtype), dlse)
        arriving = prepared_dout if fits(out, dtype) else dout
        delta = self.take("delta", out.shape[:-1])
        for n in range(len(out)):
            both = [x[n].astype(dtype, copy=False) for x in (arriving, out)]
            delta[n] = compute_delta(both[0], both[1], None if dlse is None else dlse[n])
        return delta

    def lay(self, array: np.ndarray, side: _Side) -> np.ndarray:
        """View (N, heads, *S, ...) as strips, (N, heads, *others, L, ...)."""
        return lay_along(array, side.axis, self._spatial_ndim)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Lend scratch."""
        dtype = self._plan.dtype
        if math.prod(shape) * dtype.itemsize <= FRESH_BYTES:
            return np.empty(shape, dtype)
        return self._crew.workspace.reuse(name, shape, dtype)

    def compute_energies(self, side: _Side, q: np.ndarray, k: np.ndarray, tile: np.ndarray) -> None:
        """Fill the energies of a side from strips of q and k."""
        seen = None if self.key_mask is None else self.lay(self.key_mask, side)
        compute_energies(q, k, self._problem.scale, seen, tile)

    def view_excluded(self, tiles: list[np.ndarray]) -> list[np.ndarray]:
        """View those of the energies of each side that it is to exclude."""
        return [
            view_diagonal(tile)
            for side, tile in zip(self.sides, tiles, strict=True)
            if side.excluded is not None
        ]

    def add_up(
        self, name: str, target: np.ndarray, products: list[_Product], scale: float = 1.0
    ) -> None:
        """Fill an output with the sum of products along each axis, times `scale`."""
        dtype = self._plan.dtype
        if self._tiny:
            total = np.empty(target.shape, dtype)
        elif fits(target, dtype):
            total = target
        else:
            total = take_features(self._crew.workspace, f"{name} sum", target.shape, dtype)
        for product in products:
            laid = self.lay(total, product.side)
            if product is products[0]:
                _multiply(product, laid)
            else:
                part = self.take("part", laid.shape)
                _multiply(product, part)
                laid += part
        if scale != 1.0:
            total *= dtype.type(scale)
        if self._tiny:
            target[...] = total
        elif total is not target:
            write_back([(total, target)], self._crew)


def _multiply(product: _Product, result: np.ndarray) -> None:
    multiply(product.weights, product.strips, result, excluded=product.side.excluded)


def attend_small(
    problem: AttentionProblem,
    plan: Plan,
    crew: Crew,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse` of a group of images; arrays are (N, heads, *S[, D])."""
    group = _Group(problem, plan, crew, key_mask)
    q, k, v = group.prepare(q=q, k=k, v=v)
    weights = group.take("energies", (*lse.shape, group.keys))
    tiles = [side.of(weights) for side in group.sides]
    for side, tile in zip(group.sides, tiles, strict=True):
        group.compute_energies(side, group.lay(q, side), group.lay(k, side), tile)
    keyless = normalise(weights, group.view_excluded(tiles), lse, judged=key_mask is None)
    group.add_up(
        "out",
        out,
        [
            _Product(side, tile, group.lay(v, side))
            for side, tile in zip(group.sides, tiles, strict=True)
        ],
    )
    if keyless is not None and keyless.any():
        # Weights of zero, but the values may be NaN.
        out[keyless] = 0


def differentiate_small(
    problem: AttentionProblem,
    plan: Plan,
    crew: Crew,
    lse: np.ndarray,
    dlse: np.ndarray | None,
    key_mask: np.ndarray | None,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Fill `dq`, `dk` and `dv` of a group of images; arrays are (N, heads, *S[, D])."""
    group = _Group(problem, plan, crew, key_mask)
    q, k, v, arriving = group.prepare(q=q, k=k, v=v, dout=dout)
    delta = group.compute_delta(dout, arriving, out, dlse)
    keyless = lse == -np.inf
    some_keyless = keyless.any()
    if some_keyless:
        # Such a position has no gradient, whatever its q, dout and dlse hold.
        q, arriving = clear(q, keyless), clear(arriving, keyless)
    weights, denergies = (
        group.take(name, (*lse.shape, group.keys)) for name in ("energies", "denergies")
    )
    tiles, dtiles = ([side.of(x) for side in group.sides] for x in (weights, denergies))
    dq_parts, dk_parts, dv_parts = [], [], []
    for side, tile, dtile in zip(group.sides, tiles, dtiles, strict=True):
        queries, keys, values, douts = (group.lay(x, side) for x in (q, k, v, arriving))
        group.compute_energies(side, queries, keys, tile)
        np.matmul(douts, values.swapaxes(-1, -2), out=dtile)
        dq_parts.append(_Product(side, dtile, keys))
        dk_parts.append(_Product(side, dtile.swapaxes(-1, -2), queries))
        dv_parts.append(_Product(side, tile.swapaxes(-1, -2), douts))
    diagonals = [*group.view_excluded(tiles), *group.view_excluded(dtiles)]
    differentiate(weights, denergies, lse, delta, diagonals)
    group.add_up("dq", dq, dq_parts, problem.scale)
    group.add_up("dk", dk, dk_parts, problem.scale)
    group.add_up("dv", dv, dv_parts)
    if some_keyless:
        dq[keyless] = 0
    if key_mask is not None:
        dk[~key_mask], dv[~key_mask] = 0, 0
