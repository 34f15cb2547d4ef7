"""The baseline of the tolerance: the plain formula, as careful as the dtype deserves.

Energies and sums are float32 (float64 for float64); the weights, their gradients and the outputs
are rounded to the dtype; delta comes from the rounded out. Where the precision is tf32, so is all
that is multiplied by tensor cores.

That leaves open in which order sums are taken and which way a rounding falls, and on a problem of
a few elements one evaluation may be right by luck. So the baseline is a handful of evaluations, the
more the fewer elements there are, all legitimate: the first as it comes; the others in random
orders, with computed values moved by up to one unit in the last place, as another order would; half
of them with the weights kept wide, as kernels without tensor cores do. The error allowed for is the
largest of theirs.
"""

from __future__ import annotations

import math

import numpy as np

from crisscross.problem import AttentionProblem, split_heads

_EVALUATIONS = 4
#: Values of lse that are evaluated at the least, in all evaluations together.
_FEWEST_VALUES = 16


class _Arithmetic:
    """One way to carry out the plain formula: an order of the sums, and a draw of the roundings."""

    def __init__(self, problem: AttentionProblem, dtype: np.dtype, evaluation: int) -> None:
        self.dtype, self.compute = dtype, np.dtype(problem.compute_dtype)
        self._rng = None if evaluation == 0 else np.random.default_rng(evaluation)
        self._tf32 = problem.precision == "tf32" and problem.dtype == "float32"
        self._wide = evaluation % _EVALUATIONS >= _EVALUATIONS // 2
        self._positions = tuple(self._order(size) for size in problem.spatial)
        self._channels = {
            size: self._order(size) for size in (problem.head_size_qk, problem.head_size_v)
        }

    def _order(self, size: int) -> np.ndarray:
        return np.arange(size) if self._rng is None else self._rng.permutation(size)

    def drift(self, values: np.ndarray) -> np.ndarray:
        """Move computed values by up to one unit in the last place."""
        if self._rng is None:
            return values
        ulp = np.finfo(values.dtype).eps
        drifted = values * self._rng.uniform(1 - ulp, 1 + ulp, values.shape)
        return drifted.astype(values.dtype)

    def round_features(self, features: np.ndarray) -> np.ndarray:
        """Round to the precision what a tensor core would take as operand."""
        return _round_to_tf32(features) if self._tf32 else features

    def round_weights(self, weights: np.ndarray) -> np.ndarray:
        """Round to the dtype, or to the precision, what a tensor core would take as operand."""
        if self._wide:
            return weights
        return self.round_features(weights.astype(self.dtype).astype(self.compute))

    def _reorder(self, array: np.ndarray, spatial_axis: int) -> tuple[np.ndarray, ...]:
        orders = list(self._positions)
        if array.ndim == spatial_axis + len(orders) + 1:
            orders.append(self._channels[array.shape[-1]])
        return np.ix_(*(np.arange(size) for size in array.shape[:spatial_axis]), *orders)

    def take(self, array: np.ndarray, spatial_axis: int = 2) -> np.ndarray:
        """Put (N, heads, *S, [D]) into this order and the dtype of the computation."""
        taken: np.ndarray = array[self._reorder(array, spatial_axis)].astype(self.compute)
        return taken

    def put_back(self, array: np.ndarray, target: np.ndarray) -> None:
        """Undo the order, and round to the dtype of `target`."""
        target[self._reorder(array, 2)] = array.astype(target.dtype)


def _round_to_tf32(x: np.ndarray) -> np.ndarray:
    """Round to 10 bits of fraction: Dekker's splitting."""
    high = x * np.float32(2**13 + 1)
    rounded: np.ndarray = high - (high - x)
    return np.where(np.isfinite(rounded), rounded, x)


class _Strips:
    """The neighbourhood as one strip after another: keys of every position, the axes in a row."""

    def __init__(self, problem: AttentionProblem, mask: np.ndarray | None) -> None:
        self.problem, self.mask = problem, mask
        self.ends = np.cumsum([problem.spatial[axis] for axis in problem.axes])[:-1]

    def _lay(self, array: np.ndarray, axis: int) -> np.ndarray:
        """(N, heads, *S, D) as (N, heads, *others, L, D)."""
        moved: np.ndarray = np.moveaxis(array, 2 + axis, -2)
        return moved

    def correlate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Dot products of every position of `a` with its keys in `b`: (N, heads, *S, keys)."""
        parts = []
        for axis in self.problem.axes:
            products = self._lay(a, axis) @ self._lay(b, axis).swapaxes(-1, -2)
            parts.append(np.moveaxis(products, -2, 2 + axis))
        return np.concatenate(parts, axis=-1)

    def hide(self, energies: np.ndarray) -> np.ndarray:
        """Set the energies of what is no key to -inf: masked keys, and self but for one strip."""
        hidden = []
        for number, axis in enumerate(self.problem.axes):
            length = self.problem.spatial[axis]
            excluded = np.zeros((length, length), bool)
            if number > 0 or not self.problem.include_self:
                np.fill_diagonal(excluded, True)
            shape = [1] * len(self.problem.spatial)
            shape[axis] = length
            part = np.broadcast_to(
                excluded.reshape(1, 1, *shape, length), (*energies.shape[:-1], length)
            )
            if self.mask is not None:
                along = np.moveaxis(self.mask, 1 + axis, -1)[:, None, ..., None, :]
                part = part | np.moveaxis(
                    ~np.broadcast_to(along, (*along.shape[:-2], length, length)), -2, 2 + axis
                )
            hidden.append(part)
        energies[np.concatenate(hidden, axis=-1)] = -np.inf
        return energies

    def gather(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sum of the keys' values, weighted: (N, heads, *S, D)."""
        return self._weigh(weights, values, flip=False)

    def scatter(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sum over the positions that have a key, weighted: (N, heads, *S, D)."""
        return self._weigh(weights, values, flip=True)

    def _weigh(self, weights: np.ndarray, values: np.ndarray, flip: bool) -> np.ndarray:
        total = np.zeros_like(values)
        parts = np.split(weights, self.ends, axis=-1)
        for axis, part in zip(self.problem.axes, parts, strict=True):
            laid = self._lay(part, axis)
            laid = laid.swapaxes(-1, -2) if flip else laid
            total += np.moveaxis(laid @ self._lay(values, axis), -2, 2 + axis)
        return total


def _evaluate(
    problem: AttentionProblem, arrays: dict[str, np.ndarray | None], evaluation: int
) -> dict[str, np.ndarray]:
    names = ("q", "k", "v", "dout")
    given = {name: array for name, array in arrays.items() if array is not None}
    dtype = given["q"].dtype
    arithmetic = _Arithmetic(problem, dtype, evaluation)

    def split(array: np.ndarray) -> np.ndarray:
        view: np.ndarray = split_heads(array, problem.heads, problem.channel_axis)
        return view

    q, k, v, dout = (arithmetic.take(split(given[name])) for name in names)
    mask = arithmetic.take(given["key_mask"], 1) != 0 if problem.masked else None
    if mask is not None:
        # What lies at masked positions may be NaN: it must not even be multiplied by zero.
        k, v = (np.where(mask[:, None, ..., None], x, x.dtype.type(0)) for x in (k, v))
    rounded_q, rounded_k, rounded_v, rounded_dout = map(arithmetic.round_features, (q, k, v, dout))
    strips = _Strips(problem, mask)
    scale = q.dtype.type(problem.scale)

    def energies() -> np.ndarray:
        return strips.hide(arithmetic.drift(strips.correlate(rounded_q, rounded_k) * scale))

    e = energies()
    peak = e.max(axis=-1, keepdims=True)
    peak[np.isneginf(peak)] = 0
    weights = np.exp(e - peak)
    total = weights.sum(axis=-1, keepdims=True)
    lse = arithmetic.drift(peak + np.log(total))
    total[total == 0] = 1
    weights = arithmetic.round_weights(weights / total)
    out = arithmetic.drift(strips.gather(weights, rounded_v)).astype(dtype)

    delta = arithmetic.drift((dout * out.astype(q.dtype)).sum(axis=-1, keepdims=True))
    if "dlse" in given:
        delta -= arithmetic.take(given["dlse"])[..., None]
    weights = np.exp(energies() - np.where(np.isneginf(lse), 0, lse))
    dweights = arithmetic.drift(strips.correlate(rounded_dout, rounded_v))
    denergies = arithmetic.round_weights(weights * (dweights - delta))
    gradients = {
        "dq": strips.gather(denergies, rounded_k) * scale,
        "dk": strips.scatter(denergies, rounded_q) * scale,
        "dv": strips.scatter(arithmetic.round_weights(weights), rounded_dout),
    }

    results = {"lse": np.empty(problem.lse_shape, q.dtype)}
    arithmetic.put_back(lse[..., 0], results["lse"])
    for name, array in {"out": out, **gradients}.items():
        results[name] = np.empty(
            problem.q_shape if name in ("dq", "dk") else problem.v_shape, dtype
        )
        arithmetic.put_back(array, split(results[name]))
    return results


def compute_baselines(
    problem: AttentionProblem,
    arrays: dict[str, np.ndarray | None],
    evaluations: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Return several evaluations of out, lse, dq, dk and dv by the plain formula.

    `arrays` holds q, k, v, dout, and dlse and key_mask or None in their place.
    """
    if evaluations is None:
        values = math.prod(problem.lse_shape)
        evaluations = max(_EVALUATIONS, _FEWEST_VALUES // max(values, 1))
    with np.errstate(all="ignore"):
        return [_evaluate(problem, arrays, evaluation) for evaluation in range(evaluations)]
