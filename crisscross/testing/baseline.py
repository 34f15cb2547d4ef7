"""The baseline of the tolerance: the plain formula, as careful as the dtype deserves.

Energies and sums are float32 (float64 for float64); the weights, their gradients and the outputs
are rounded to the dtype; delta comes from the rounded out.

That leaves open in which order sums are taken and which way a tie of roundings falls, and on a
problem of a few elements one evaluation may be right by luck. So the baseline is a handful of
evaluations, all legitimate: the first as it comes; the others in random orders, with every rounding
of the arithmetic drawn anew; half of them with the weights kept wide, as kernels without
tensor cores do. Its error is the largest of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from crisscross.problem import AttentionProblem, split_heads

#: Energies of one chunk of queries, in elements.
_CHUNK = 1 << 22
_EVALUATIONS = 4


class _Arithmetic:
    """One way to carry out the plain formula: an order of the sums, and a draw of the roundings."""

    def __init__(self, problem: AttentionProblem, dtype: np.dtype, evaluation: int) -> None:
        self.dtype, self.compute = dtype, np.dtype(problem.compute_dtype)
        self._rng = None if evaluation == 0 else np.random.default_rng(evaluation)
        self._wide = evaluation >= _EVALUATIONS // 2
        sizes = (math.prod(problem.spatial), problem.head_size_qk, problem.head_size_v)
        self.positions, self.channels_qk, self.channels_v = (
            np.arange(size) if self._rng is None else self._rng.permutation(size) for size in sizes
        )

    def drift(self, values: np.ndarray) -> np.ndarray:
        """Move computed values by up to half a unit in the last place, as another order would."""
        if self._rng is None:
            return values
        half = np.finfo(values.dtype).eps / 2
        drifted: np.ndarray = values * self._rng.uniform(1 - half, 1 + half, values.shape)
        return drifted.astype(values.dtype)

    def round_weights(self, weights: np.ndarray) -> np.ndarray:
        """Round to the dtype what a tensor core would take as operand."""
        return weights if self._wide else weights.astype(self.dtype).astype(self.compute)

    def take(self, array: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Take (positions, D) in this order, in the dtype of the computation."""
        return array[self.positions][:, channels].astype(self.compute)

    def put_back(self, array: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Undo the order and round to the dtype."""
        restored = np.empty(array.shape, self.dtype)
        restored[np.ix_(self.positions, channels)] = array.astype(self.dtype)
        return restored


class _Head:
    """One head of one image: q, k and v as (positions, D), mask as (positions,)."""

    def __init__(
        self,
        problem: AttentionProblem,
        arithmetic: _Arithmetic,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: np.ndarray,
    ) -> None:
        self.problem, self.arithmetic = problem, arithmetic
        zero = arithmetic.compute.type(0)
        self.mask = mask[arithmetic.positions]
        self.q = arithmetic.take(q, arithmetic.channels_qk)
        # What lies at masked positions may be NaN: it must not even be multiplied by zero.
        k, v = arithmetic.take(k, arithmetic.channels_qk), arithmetic.take(v, arithmetic.channels_v)
        self.k, self.v = (
            np.where(self.mask[:, None], k, zero),
            np.where(self.mask[:, None], v, zero),
        )
        coordinates = np.indices(problem.spatial).reshape(len(problem.spatial), -1)
        self.coordinates = coordinates[:, arithmetic.positions]

    def _chunks(self) -> Iterator[slice]:
        step = max(1, _CHUNK // len(self.q))
        for start in range(0, len(self.q), step):
            yield slice(start, min(start + step, len(self.q)))

    def _find_visible(self, queries: slice) -> np.ndarray:
        """Mark (queries, positions) where the position is a key of the query."""
        axes = self.problem.axes
        others = [axis for axis in range(len(self.problem.spatial)) if axis not in axes]
        differs = self.coordinates[:, queries, None] != self.coordinates[:, None, :]
        # The union of the strips: equal but for at most one axis, and that one of `axes`.
        visible: np.ndarray = (differs.sum(axis=0) <= 1) & ~differs[others].any(axis=0)
        if not self.problem.include_self:
            visible &= differs.any(axis=0)
        visible &= self.mask
        return visible

    def _energies(self, queries: slice) -> np.ndarray:
        energies = self.q[queries] @ self.k.T * self.q.dtype.type(self.problem.scale)
        hidden = np.asarray(-np.inf, self.q.dtype)
        return np.where(self._find_visible(queries), self.arithmetic.drift(energies), hidden)

    def forward(self) -> tuple[np.ndarray, np.ndarray]:
        """Return out (positions, D_v), rounded to the dtype, and lse (positions,)."""
        arithmetic = self.arithmetic
        out, lse = np.zeros_like(self.v), np.empty_like(self.q[:, 0])
        for queries in self._chunks():
            energies = self._energies(queries)
            peak = energies.max(axis=1)
            peak[np.isneginf(peak)] = 0
            weights = np.exp(energies - peak[:, None])
            total = weights.sum(axis=1)
            lse[queries] = arithmetic.drift(peak + np.log(total))
            total[total == 0] = 1
            rounded = arithmetic.round_weights(weights / total[:, None])
            out[queries] = arithmetic.drift(rounded @ self.v)
        restored = np.empty_like(lse)
        restored[arithmetic.positions] = lse
        return arithmetic.put_back(out, arithmetic.channels_v), restored

    def backward(
        self, dout: np.ndarray, out: np.ndarray, lse: np.ndarray, dlse: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return dq, dk and dv (positions, D), rounded to the dtype."""
        arithmetic, scale = self.arithmetic, self.q.dtype.type(self.problem.scale)
        dout = arithmetic.take(dout, arithmetic.channels_v)
        out = arithmetic.take(out, arithmetic.channels_v)
        delta = arithmetic.drift((dout * out).sum(axis=1)) - dlse[arithmetic.positions]
        shift = lse[arithmetic.positions]
        shift[np.isneginf(shift)] = 0
        dq, dk, dv = np.zeros_like(self.q), np.zeros_like(self.k), np.zeros_like(self.v)
        for queries in self._chunks():
            weights = np.exp(self._energies(queries) - shift[queries, None])
            dweights = arithmetic.drift(dout[queries] @ self.v.T)
            denergies = arithmetic.round_weights(weights * (dweights - delta[queries, None]))
            dv += arithmetic.round_weights(weights).T @ dout[queries]
            dq[queries] = denergies @ self.k * scale
            dk += denergies.T @ self.q[queries] * scale
        return (
            arithmetic.put_back(dq, arithmetic.channels_qk),
            arithmetic.put_back(dk, arithmetic.channels_qk),
            arithmetic.put_back(dv, arithmetic.channels_v),
        )


def _evaluate(
    problem: AttentionProblem, arrays: dict[str, np.ndarray | None], evaluation: int
) -> dict[str, np.ndarray]:
    q, k, v, dout, dlse = (arrays[name] for name in ("q", "k", "v", "dout", "dlse"))
    mask = arrays["key_mask"]
    assert q is not None and k is not None and v is not None and dout is not None
    arithmetic = _Arithmetic(problem, q.dtype, evaluation)
    results = {
        "out": np.zeros(problem.v_shape, q.dtype),
        "lse": np.zeros(problem.lse_shape, problem.compute_dtype),
        "dq": np.zeros(problem.q_shape, q.dtype),
        "dk": np.zeros(problem.q_shape, q.dtype),
        "dv": np.zeros(problem.v_shape, q.dtype),
    }

    def split(array: np.ndarray) -> np.ndarray:
        view: np.ndarray = split_heads(array, problem.heads, problem.channel_axis)
        return view

    def rows(array: np.ndarray) -> np.ndarray:
        return array.reshape(math.prod(problem.spatial), -1)

    for n, h in np.ndindex(problem.batch, problem.heads):
        q_, k_, v_, dout_ = (rows(split(array)[n, h]) for array in (q, k, v, dout))
        mask_ = np.ones(len(q_), bool) if mask is None else mask[n].reshape(-1)
        head = _Head(problem, arithmetic, q_, k_, v_, mask_)
        out, lse = head.forward()
        dlse_ = np.zeros_like(lse) if dlse is None else dlse[n, h].reshape(-1)
        dq, dk, dv = head.backward(dout_, out, lse, dlse_)
        results["lse"][n, h] = lse.reshape(problem.spatial)
        for name, array in (("out", out), ("dq", dq), ("dk", dk), ("dv", dv)):
            split(results[name])[n, h] = array.reshape(*problem.spatial, -1)
    return results


def compute_baselines(
    problem: AttentionProblem, arrays: dict[str, np.ndarray | None]
) -> list[dict[str, np.ndarray]]:
    """Return several evaluations of out, lse, dq, dk and dv by the plain formula.

    `arrays` holds q, k, v, dout, and dlse and key_mask or None in their place.
    """
    with np.errstate(all="ignore"):
        return [_evaluate(problem, arrays, evaluation) for evaluation in range(_EVALUATIONS)]
