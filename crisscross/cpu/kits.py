"""The smallest calls: their memory, and all views of it, wait for the next call of their kind.

NumPy takes as long to make arrays and views of that size as to compute with them. So inputs are
copied, channels last, to memory that was seen from all sides when it was made.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from crisscross.cpu.copies import find_hidden
from crisscross.cpu.plan import Plan
from crisscross.cpu.powers import multiply_by
from crisscross.cpu.products import multiply
from crisscross.cpu.strips import lay_along, view_diagonal
from crisscross.cpu.weights import compute_delta, compute_energies, differentiate, normalise
from crisscross.cpu.workspace import find_shelf
from crisscross.problem import AttentionProblem


def attend_prepared(
    problem: AttentionProblem,
    plan: Plan,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse`; arrays are (N, heads, *S[, D])."""
    shelf = find_shelf(_name_kind(_ForwardKit, problem, plan))
    kit: _ForwardKit = shelf.take() or _ForwardKit(problem, plan)
    kit.attend(problem.scale, q, k, v, key_mask, out, lse)
    shelf.put_back(kit)


def differentiate_prepared(
    problem: AttentionProblem,
    plan: Plan,
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
    """Fill `dq`, `dk` and `dv`; arrays are (N, heads, *S[, D])."""
    shelf = find_shelf(_name_kind(_BackwardKit, problem, plan))
    kit: _BackwardKit = shelf.take() or _BackwardKit(problem, plan)
    kit.differentiate(problem.scale, lse, dlse, key_mask, dout, q, k, v, out, dq, dk, dv)
    shelf.put_back(kit)


def _name_kind(kit: type[_Kit], problem: AttentionProblem, plan: Plan) -> Hashable:
    """Name all that a kit follows from; not what may change from call to call, as a scale may."""
    return (
        kit,
        problem.batch,
        problem.heads,
        problem.head_size_qk,
        problem.head_size_v,
        problem.spatial,
        problem.axes,
        problem.include_self,
        plan.dtype,
    )


class _Side(NamedTuple):
    """Views of a kit along an axis."""

    axis: int
    #: What `multiply` is to exclude.
    excluded: int | None
    #: Strips of features, (N, heads, *others, L, D), energies, (N, heads, *others, L, L), and
    #: products by name.
    of: Mapping[str, np.ndarray]
    #: The products as they lie, (N, heads, *S, D).
    products: Mapping[str, np.ndarray]


class _Kit:
    """Memory and its views for problems of one kind."""

    def __init__(
        self,
        problem: AttentionProblem,
        plan: Plan,
        copies: Mapping[str, int],
        energies: Iterable[str],
        products: Mapping[str, int],
    ) -> None:
        """Take memory by name: `copies` and `products` of heads of such sizes, and energies."""
        places = (problem.batch, problem.heads, *problem.spatial)
        lengths = [problem.spatial[axis] for axis in problem.axes]

        def take(size: int) -> np.ndarray:
            return np.empty((*places, size), plan.dtype)

        self.copies = {name: take(size) for name, size in copies.items()}
        #: Of all axes, side by side.
        self.energies = {name: take(sum(lengths)) for name in energies}
        self.sides: list[_Side] = []
        start = 0
        for axis, length in zip(problem.axes, lengths, strict=True):
            keys = slice(start, start := start + length)
            parts = {name: array[..., keys] for name, array in self.energies.items()}
            results = {name: take(size) for name, size in products.items()}
            laid = {
                name: lay_along(array, axis, len(problem.spatial))
                for name, array in (self.copies | parts | results).items()
            }
            owns_self = not self.sides and problem.include_self
            self.sides.append(_Side(axis, None if owns_self else 0, laid, results))
        #: The energies of positions with themselves, along axes that exclude them.
        self.diagonals = [
            view_diagonal(side.of[name])
            for side in self.sides
            for name in self.energies
            if side.excluded is not None
        ]

    def copy_in(self, key_mask: np.ndarray | None, **features: np.ndarray) -> None:
        hidden = find_hidden(key_mask)
        for name, array in features.items():
            copy = self.copies[name]
            copy[...] = array
            if name in hidden:
                copy[hidden[name]] = 0

    def compute_energies(self, scale: float, key_mask: np.ndarray | None) -> None:
        for side in self.sides:
            seen = None
            if key_mask is not None:
                seen = lay_along(key_mask, side.axis, key_mask.ndim - 2)
            compute_energies(side.of["q"], side.of["k"], scale, seen, side.of["energies"])

    def add_up(self, name: str, target: np.ndarray, scale: float = 1.0) -> None:
        """Fill an output with the sum of its products along all axes, times `scale`."""
        total = self.sides[0].products[name]
        for side in self.sides[1:]:
            total += side.products[name]
        multiply_by(total, scale)
        target[...] = total


class _ForwardKit(_Kit):
    def __init__(self, problem: AttentionProblem, plan: Plan) -> None:
        qk, v = problem.head_size_qk, problem.head_size_v
        super().__init__(problem, plan, {"q": qk, "k": qk, "v": v}, ["energies"], {"out": v})

    def attend(
        self,
        scale: float,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        key_mask: np.ndarray | None,
        out: np.ndarray,
        lse: np.ndarray,
    ) -> None:
        """Fill `out` and `lse`."""
        self.copy_in(key_mask, q=q, k=k, v=v)
        self.compute_energies(scale, key_mask)
        weights = self.energies["energies"]
        keyless = normalise(weights, self.diagonals, lse, judged=key_mask is None)
        for side in self.sides:
            multiply(side.of["energies"], side.of["v"], side.of["out"], excluded=side.excluded)
        self.add_up("out", out)
        if keyless is not None and keyless.any():
            # Weights of zero, but the values may be NaN.
            out[keyless] = 0


class _BackwardKit(_Kit):
    def __init__(self, problem: AttentionProblem, plan: Plan) -> None:
        qk, v = problem.head_size_qk, problem.head_size_v
        copies = {"q": qk, "k": qk, "v": v, "dout": v, "out": v}
        products = {"dq": qk, "dk": qk, "dv": v}
        super().__init__(problem, plan, copies, ["energies", "denergies"], products)

    def differentiate(
        self,
        scale: float,
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
        """Fill `dq`, `dk` and `dv`."""
        self.copy_in(key_mask, q=q, k=k, v=v, dout=dout, out=out)
        delta = compute_delta(self.copies["dout"], self.copies["out"], dlse)
        keyless = lse == -np.inf
        some_keyless = keyless.any()
        if some_keyless:
            # Such a position has no gradient, whatever its q, dout and dlse hold.
            self.copies["q"][keyless], self.copies["dout"][keyless] = 0, 0
        self.compute_energies(scale, key_mask)
        for side in self.sides:
            values = side.of["v"].swapaxes(-1, -2)
            np.matmul(side.of["dout"], values, out=side.of["denergies"])
        differentiate(
            self.energies["energies"], self.energies["denergies"], lse, delta, self.diagonals
        )
        for side in self.sides:
            laid, excluded = side.of, side.excluded
            weights, denergies = laid["energies"], laid["denergies"]
            multiply(denergies, laid["k"], laid["dq"], excluded=excluded)
            multiply(denergies.swapaxes(-1, -2), laid["q"], laid["dk"], excluded=excluded)
            multiply(weights.swapaxes(-1, -2), laid["dout"], laid["dv"], excluded=excluded)
        self.add_up("dq", dq, scale)
        self.add_up("dk", dk, scale)
        self.add_up("dv", dv)
        if some_keyless:
            dq[keyless] = 0
        if key_mask is not None:
            dk[~key_mask], dv[~key_mask] = 0, 0
