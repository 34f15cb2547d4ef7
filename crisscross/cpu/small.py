"""Small images, each by one thread: the energies of all axes side by side, in few operations.

An operation on a whole image costs the interpreter no more than one on a single strip, and threads
with an image each do not wait for each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crisscross.cpu.copies import convert, lay_for_blas
from crisscross.cpu.crew import Crew
from crisscross.cpu.plan import Plan
from crisscross.cpu.strips import Block, lay_along, multiply, view_diagonal
from crisscross.cpu.sums import AxisSum
from crisscross.cpu.weights import (
    are_tame,
    clear,
    compute_energies,
    differentiate,
    exponentiate,
    invert,
    measure_longest,
)
from crisscross.problem import AttentionProblem

#: Largest arrays of an image that are copied, channels last, whatever their layout: in the first
#: caches that costs less than any care for it.
TINY_BYTES = 1 << 17
#: Fewest energies of an image of which it is worth asking whether they need a shift.
LEAST_ENERGIES = 1 << 15

_EVERYTHING = slice(None)
_WHOLE = Block(())


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
        self.hidden = None if key_mask is None else ~key_mask
        self.sides: list[_Side] = []
        #: Of all axes.
        self.keys = 0
        for axis in problem.axes:
            owns_self = axis == problem.axes[0] and problem.include_self
            first, self.keys = self.keys, self.keys + problem.spatial[axis]
            side = _Side(axis, slice(first, self.keys), None if owns_self else 0)
            self.sides.append(side)

    def prepare(
        self, name: str, features: np.ndarray, cleared: np.ndarray | None = None
    ) -> np.ndarray:
        """Return features in the dtype of the computation; zeros where `cleared`."""
        if self._tiny:
            prepared = np.ascontiguousarray(features, self._plan.dtype)
        else:
            prepared = convert(name, features, self._plan.dtype, self._crew)
        return prepared if cleared is None else clear(prepared, cleared)

    def lay(self, name: str, prepared: np.ndarray, side: _Side) -> np.ndarray:
        """View or copy features as strips that BLAS takes, (N, heads, *others, L, D)."""
        if self._tiny:
            return lay_along(prepared, side.axis, self._spatial_ndim)
        return lay_for_blas(name, prepared, side.axis, self._crew).strips

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Lend scratch."""
        return self._crew.workspace.reuse(name, shape, self._plan.dtype)

    def compute_energies(self, side: _Side, q: np.ndarray, k: np.ndarray, to: np.ndarray) -> None:
        """Fill a side of the energies `to` from strips of q and k."""
        mask = self.key_mask
        seen = None if mask is None else lay_along(mask, side.axis, self._spatial_ndim)
        compute_energies(q, k, self._problem.scale, seen, side.of(to))

    def add_up(
        self, name: str, target: np.ndarray, products: list[_Product], scale: float = 1.0
    ) -> None:
        """Fill an output with the sum of products along each axis, times `scale`."""
        if self._tiny:
            total = np.empty(target.shape, self._plan.dtype)
            for product in products:
                laid = lay_along(total, product.side.axis, self._spatial_ndim)
                added = product is not products[0]
                part = np.empty(laid.shape, laid.dtype) if added else laid
                _multiply(product, part)
                if added:
                    laid += part
            target[...] = total if scale == 1.0 else total * total.dtype.type(scale)
            return
        axes = self._plan.order_axes(self._problem.axes, target)
        whole = AxisSum(name, target, axes, self._plan.dtype, self._crew)
        for product in sorted(products, key=lambda product: axes.index(product.side.axis)):
            whole.open_axis(product.side.axis)
            part = whole.lend(_WHOLE, _EVERYTHING, self._crew.workspace)
            _multiply(product, part)
            if scale != 1.0:
                part *= part.dtype.type(scale)
            whole.add(_WHOLE, _EVERYTHING, part)
            whole.close_axis()


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
    q, k, v = (
        group.prepare("q", q),
        group.prepare("k", k, group.hidden),
        group.prepare("v", v, group.hidden),
    )
    weights = group.take("energies", (*lse.shape, group.keys))
    for side in group.sides:
        group.compute_energies(side, group.lay("q", q, side), group.lay("k", k, side), weights)
        if side.excluded is not None:
            view_diagonal(side.of(weights))[...] = -np.inf
    tame = None
    if key_mask is None and weights[0].size >= LEAST_ENERGIES:
        tame = are_tame(measure_longest(q), measure_longest(k), problem.scale)
    peak = exponentiate(weights, None, tame)
    total = weights @ np.ones(group.keys, plan.dtype)
    if tame is not None and not np.isfinite(total).all():
        # An infinite energy, which a shift by the peak would have made NaN.
        total[np.isinf(total)] = np.nan
    np.log(total, out=lse)
    lse += peak
    weights *= invert(total)[..., None]
    group.add_up(
        "out",
        out,
        [_Product(side, side.of(weights), group.lay("v", v, side)) for side in group.sides],
    )
    if not total.all():
        # Weights of zero, but the values may be NaN.
        out[total == 0] = 0


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
    keyless = lse == -np.inf
    # Such a position has no gradient, whatever its q, dout and dlse hold.
    cleared = keyless if keyless.any() else None
    q, k, v = (
        group.prepare("q", q, cleared),
        group.prepare("k", k, group.hidden),
        group.prepare("v", v, group.hidden),
    )
    dout = group.prepare("dout", dout, cleared)
    delta = np.einsum("...d,...d->...", dout, group.prepare("out", out))
    if dlse is not None:
        delta -= dlse
    weights, denergies = (
        group.take(name, (*lse.shape, group.keys)) for name in ("energies", "denergies")
    )
    products: list[list[_Product]] = [[], [], []]
    for side in group.sides:
        inputs = (("q", q), ("k", k), ("v", v), ("dout", dout))
        queries, keys, values, arriving = (group.lay(name, x, side) for name, x in inputs)
        group.compute_energies(side, queries, keys, weights)
        np.matmul(arriving, values.swapaxes(-1, -2), out=side.of(denergies))
        w, de = side.of(weights), side.of(denergies)
        products[0].append(_Product(side, de, keys))
        products[1].append(_Product(side, de.swapaxes(-1, -2), queries))
        products[2].append(_Product(side, w.swapaxes(-1, -2), arriving))
    diagonals = [
        view_diagonal(side.of(tile))
        for side in group.sides
        if side.excluded is not None
        for tile in (weights, denergies)
    ]
    differentiate(weights, denergies, lse, delta, diagonals)
    group.add_up("dq", dq, products[0], problem.scale)
    group.add_up("dk", dk, products[1], problem.scale)
    group.add_up("dv", dv, products[2])
    if cleared is not None:
        dq[cleared] = 0
    if group.hidden is not None:
        dk[group.hidden], dv[group.hidden] = 0, 0
