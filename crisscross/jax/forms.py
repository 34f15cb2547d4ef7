"""The operations as plain JAX, which XLA compiles for any device, and which it differentiates.

Strips are attended to in groups, so that no map of all positions is in memory; only derivatives of
these forms keep one. Sums of 16-bit numbers are those of float32, as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from crisscross.problem import AttentionProblem, MapProblem, MergeProblem

#: Weights of one group of strips: 4 MB of float32, that a cache of a CPU may hold.
_WEIGHTS_AT_ONCE = 1 << 20


def attention(
    problem: AttentionProblem, q: Array, k: Array, v: Array, key_mask: Array | None
) -> tuple[Array, Array]:
    """Return out and lse."""
    multiply = _find_product(problem)
    q_, k_, v_ = (_split(x, problem) for x in (q, k, v))

    def attend(
        includes_self: bool, q: Array, k: Array, v: Array, mask: Array | None
    ) -> tuple[Array, Array]:
        """One strip: (L, D), and a mask (L,)."""
        k, v = _hide(k, mask), _hide(v, mask)
        energies = _find_energies(multiply, problem.scale, includes_self, q, k, mask)
        peak = _replace_infinity(lax.stop_gradient(energies).max(-1, initial=-jnp.inf))
        weights = jnp.exp(energies - peak[:, None])
        total, lse = _find_total(weights.sum(-1), peak)
        return multiply("ij,jd->id", weights, v) / total[:, None], lse

    parts = []
    for number, axis in enumerate(problem.axes):
        includes_self = problem.include_self and number == 0
        strips = [_to_strips(x, axis) for x in (q_, k_, v_)]
        mask = _spread_mask(key_mask, problem, axis)
        out, lse = _map_strips(partial(attend, includes_self), [*strips, mask])
        parts.append((_from_strips(out, axis), _from_strips(lse, axis, last=-1)))
    out, lse = merge([out for out, _ in parts], [lse for _, lse in parts])
    return _join(out, problem).astype(v.dtype), lse


def attention_backward(
    problem: AttentionProblem,
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    dlse: Array | None,
    key_mask: Array | None,
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv, as functions of all that is given: of out and lse, too."""
    multiply = _find_product(problem)
    q_, k_, v_, out_, dout_ = (_split(x, problem) for x in (q, k, v, out, dout))
    # What saw no key adds nothing, whatever its gradients are: NaN, as of the square of -inf.
    has_keys = ~jnp.isneginf(lse)
    dout_ = jnp.where(has_keys[..., None], dout_, 0.0)
    delta = (dout_ * out_).sum(-1)
    if dlse is not None:
        delta = delta - jnp.where(has_keys, dlse, 0.0)
    lse = _replace_infinity(lse)

    def pull(
        includes_self: bool,
        dout: Array,
        q: Array,
        k: Array,
        v: Array,
        lse: Array,
        delta: Array,
        mask: Array | None,
    ) -> tuple[Array, Array, Array]:
        k, v = _hide(k, mask), _hide(v, mask)
        energies = _find_energies(multiply, problem.scale, includes_self, q, k, mask)
        weights = jnp.exp(energies - lse[:, None])
        dweights = multiply("id,jd->ij", dout, v)
        denergies = problem.scale * weights * (dweights - delta[:, None])
        dq = multiply("ij,jd->id", denergies, k)
        dk = multiply("ij,id->jd", denergies, q)
        return dq, _hide(dk, mask), _hide(multiply("ij,id->jd", weights, dout), mask)

    totals: list[Any] = [0.0, 0.0, 0.0]
    for number, axis in enumerate(problem.axes):
        includes_self = problem.include_self and number == 0
        strips: list[Any] = [_to_strips(x, axis) for x in (dout_, q_, k_, v_)]
        strips += [_to_strips(x, axis, last=-1) for x in (lse, delta)]
        strips.append(_spread_mask(key_mask, problem, axis))
        gradients = _map_strips(partial(pull, includes_self), strips)
        totals = [total + _from_strips(x, axis) for total, x in zip(totals, gradients, strict=True)]
    dq, dk, dv = (_join(x, problem) for x in totals)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def merge(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Return out and lse of the union of disjoint sets of keys: (N, heads, *S, D), (N, heads, *S).

    Everything is wide already.
    """
    peak = _replace_infinity(lax.stop_gradient(jnp.stack(lses)).max(0))
    shares = [jnp.exp(lse - peak) for lse in lses]
    total, lse = _find_total(sum(shares[1:], start=shares[0]), peak)
    # A part without any key has no share, whatever it holds.
    weighted = [
        jnp.where((share == 0)[..., None], 0.0, part) * (share / total)[..., None]
        for part, share in zip(outs, shares, strict=True)
    ]
    return sum(weighted[1:], start=weighted[0]), lse


def merge_outputs(
    problem: MergeProblem, outs: Sequence[Array], lses: Sequence[Array]
) -> tuple[Array, Array]:
    """Merge what attention returns: out like v, in its layout and dtype."""
    out, lse = merge([_split(x, problem) for x in outs], lses)
    return _join(out, problem).astype(outs[0].dtype), lse


# Strips: (N, heads, others, L, D)


def _map_strips(function: Callable[..., Any], strips: Sequence[Any]) -> Any:
    """Call a function of one strip for all of them: many at once, but not more than fit."""
    n, heads, *others, length, _ = strips[0].shape
    count = math.prod((n, heads, *others))
    at_once = max(1, _WEIGHTS_AT_ONCE // max(length * length, 1))

    def flatten(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(count, *x.shape[2 + len(others) :])

    flat = tuple(map(flatten, strips))
    if not isinstance(count, int) or count <= at_once:  # of a symbol nobody knows
        results = jax.vmap(function)(*flat)
    else:
        results = lax.map(lambda given: function(*given), flat, batch_size=at_once)
    return [x.reshape(n, heads, *others, *x.shape[1:]) for x in results]


def _to_strips(x: Array, axis: int, last: int = -2) -> Array:
    """Put a spatial axis behind the others: in front of D, or, of one number a position, last."""
    return jnp.moveaxis(x, 2 + axis, last)


def _from_strips(x: Array, axis: int, last: int = -2) -> Array:
    return jnp.moveaxis(x, last, 2 + axis)


def _spread_mask(key_mask: Array | None, problem: AttentionProblem, axis: int) -> Array | None:
    if key_mask is None:
        return None
    shape = (key_mask.shape[0], problem.heads, *key_mask.shape[1:])
    return _to_strips(jnp.broadcast_to(key_mask[:, None], shape), axis, last=-1)


def _find_energies(
    multiply: Callable[..., Array],
    scale: float,
    includes_self: bool,
    q: Array,
    k: Array,
    mask: Array | None,
) -> Array:
    """Return (L, L), -inf for what is no key."""
    energies = scale * multiply("id,jd->ij", q, k)
    length = q.shape[0]
    if not includes_self:
        energies = jnp.where(jnp.eye(length, dtype=bool), -jnp.inf, energies)
    return energies if mask is None else jnp.where(mask, energies, -jnp.inf)


def _hide(x: Array, mask: Array | None) -> Array:
    """Put zeros for keys that take no part: whatever is there is not to be multiplied by zero."""
    return x if mask is None else jnp.where(mask[:, None], x, 0.0)


def _replace_infinity(lse: Array) -> Array:
    """Return 0 for -inf, the peak of nothing."""
    return jnp.where(jnp.isneginf(lse), 0.0, lse)


def _find_total(total: Array, peak: Array) -> tuple[Array, Array]:
    """Return the sum of weights, 1 where there is no key, and its log-sum-exp."""
    has_keys = (total > 0) | jnp.isnan(total)
    # Where there are none, the derivative of what is not chosen is to be a number too.
    safe = jnp.where(has_keys, total, 1.0)
    return safe, jnp.where(has_keys, peak + jnp.log(safe), -jnp.inf)


def _find_product(problem: AttentionProblem | MapProblem) -> Callable[..., Array]:
    """Return `einsum` with products that are as precise as was asked for.

    Where a device has less by default: bfloat16 on a TPU, of which "high" is made of three.
    """
    precision = getattr(problem, "precision", "ieee")
    return partial(jnp.einsum, precision="high" if precision == "tf32" else "highest")


def _split(x: Array, problem: AttentionProblem | MergeProblem) -> Array:
    """View (N, heads, *S, D)."""
    last = jnp.moveaxis(_widen(x), problem.channel_axis, -1)
    head_size = last.shape[-1] // problem.heads
    return jnp.moveaxis(last.reshape(*last.shape[:-1], problem.heads, head_size), -2, 1)


def _join(x: Array, problem: AttentionProblem | MergeProblem) -> Array:
    last = jnp.moveaxis(x, 1, -2)
    *front, heads, head_size = last.shape
    return jnp.moveaxis(last.reshape(*front, heads * head_size), -1, problem.channel_axis)


def _widen(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


# CCNet's maps: (N, W + H - 1, H, W), the row of each pixel, and its column without itself


def ca_weight(problem: MapProblem, q: Array, k: Array) -> tuple[Array]:
    multiply, q, k = _find_product(problem), _widen(q), _widen(k)
    row = multiply("ncyx,ncyi->niyx", q, k)
    return (_put_together(row, multiply("ncyx,ncjx->njyx", q, k)),)


def ca_weight_backward(
    problem: MapProblem, denergy: Array, q: Array, k: Array
) -> tuple[Array, Array]:
    row, column = _take_apart(denergy)
    dq = _sum_keys(problem, row, column, _widen(k)).astype(q.dtype)
    return dq, _sum_queries(problem, row, column, _widen(q)).astype(k.dtype)


def ca_softmax(_: MapProblem, energy: Array) -> tuple[Array]:
    return (jax.nn.softmax(energy, axis=1),)


def ca_softmax_backward(_: MapProblem, dattention: Array, attention: Array) -> tuple[Array]:
    inner = (dattention * attention).sum(1, keepdims=True)
    return (attention * (dattention - inner),)


def ca_map(problem: MapProblem, attention: Array, v: Array) -> tuple[Array]:
    return (_sum_keys(problem, *_take_apart(attention), _widen(v)).astype(v.dtype),)


def ca_map_backward(
    problem: MapProblem, dout: Array, attention: Array, v: Array
) -> tuple[Array, Array]:
    dv = _sum_queries(problem, *_take_apart(attention), _widen(dout)).astype(v.dtype)
    return ca_weight(problem, dout, v)[0], dv


def to_port_layout(_: MapProblem, weights: Array, *, self_value: float) -> tuple[Array]:
    row, column = _take_apart(weights, self_value)
    return (jnp.moveaxis(jnp.concatenate([column, row], 1), 1, -1),)


def from_port_layout(_: MapProblem, ported: Array) -> tuple[Array]:
    height = ported.shape[1]
    column, row = jnp.split(jnp.moveaxis(ported, -1, 1), [height], 1)
    return (_put_together(row, column),)


def _put_together(row: Array, column: Array) -> Array:
    """Leave itself out of (N, H, H, W), the column by key and pixel, and put it behind the row."""
    height = column.shape[1]
    is_above = jnp.arange(height - 1)[:, None, None] < jnp.arange(height)[:, None]
    others = jnp.where(is_above, column[:, :-1], column[:, 1:])
    return jnp.concatenate([row, others], 1)


def _take_apart(weights: Array, self_value: float = 0.0) -> tuple[Array, Array]:
    """Return the row, and the column with `self_value` at itself."""
    height, width = weights.shape[2:]
    row, others = jnp.split(weights, [width], 1)
    below, above = (_pad_one(others, after) for after in (0, 1))
    key, pixel = jnp.arange(height)[:, None, None], jnp.arange(height)[:, None]
    column = jnp.where(key == pixel, self_value, jnp.where(key < pixel, above, below))
    return row, column


def _pad_one(column: Array, after: int) -> Array:
    return jnp.pad(column, ((0, 0), (1 - after, after), (0, 0), (0, 0)))


def _sum_keys(problem: MapProblem, row: Array, column: Array, features: Array) -> Array:
    multiply = _find_product(problem)
    along_row = multiply("niyx,ncyi->ncyx", row, features)
    return along_row + multiply("njyx,ncjx->ncyx", column, features)


def _sum_queries(problem: MapProblem, row: Array, column: Array, features: Array) -> Array:
    multiply = _find_product(problem)
    along_row = multiply("niyx,ncyx->ncyi", row, features)
    return along_row + multiply("njyx,ncyx->ncjx", column, features)
