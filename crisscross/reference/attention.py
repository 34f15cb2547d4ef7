"""Attention over a union of strips, one position at a time (CCNet, ICCV 2019, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crisscross.problem import AttentionProblem, MergeProblem, split_heads
from crisscross.reference.numbers import round_into, widen


def find_neighbourhood(
    spatial: Sequence[int], axes: Sequence[int], include_self: bool, position: Sequence[int]
) -> list[int]:
    """List the flat indices that `position` attends to: the union of its strips, self once."""
    neighbours = {tuple(position)} if include_self else set()
    for axis in axes:
        for coordinate in range(spatial[axis]):
            if coordinate != position[axis]:
                neighbours.add((*position[:axis], coordinate, *position[axis + 1 :]))
    return [_flatten(spatial, neighbour) for neighbour in sorted(neighbours)]


def _flatten(spatial: Sequence[int], position: Sequence[int]) -> int:
    index = 0
    for size, coordinate in zip(spatial, position, strict=True):
        index = index * size + coordinate
    return index


def _list_neighbourhoods(problem: AttentionProblem) -> list[np.ndarray]:
    return [
        np.array(
            find_neighbourhood(problem.spatial, problem.axes, problem.include_self, position),
            dtype=np.intp,
        )
        for position in np.ndindex(*problem.spatial)
    ]


def _flatten_positions(array: np.ndarray, problem: AttentionProblem) -> np.ndarray:
    """Widen (N, C, *S) or (N, *S, C) to (N, heads, positions, D)."""
    split = widen(split_heads(array, problem.heads, problem.channel_axis))
    return split.reshape(problem.batch, problem.heads, math.prod(problem.spatial), split.shape[-1])


def _restore_positions(flat: np.ndarray, problem: AttentionProblem) -> np.ndarray:
    """Undo the flattening of the positions."""
    return flat.reshape(problem.batch, problem.heads, *problem.spatial, flat.shape[-1])


def _keys_of(
    neighbours: np.ndarray, key_mask: np.ndarray | None, image: int, problem: AttentionProblem
) -> np.ndarray:
    if key_mask is None:
        return neighbours
    mask = key_mask[image].reshape(math.prod(problem.spatial))
    visible: np.ndarray = neighbours[mask[neighbours]]
    return visible


def attention_forward(
    problem: AttentionProblem,
    *,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse`.

    e(p, x) = scale * <q_p, k_x>, lse(p) = log sum_x exp e(p, x), and
    out(p) = sum_x exp(e(p, x) - lse(p)) v_x, x in the neighbourhood of p.
    """
    q_, k_, v_ = (_flatten_positions(x, problem) for x in (q, k, v))
    out_ = np.zeros_like(v_)
    lse_ = np.full((*q_.shape[:3], 1), -np.inf, q_.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for p, neighbours in enumerate(_list_neighbourhoods(problem)):
            for n in range(problem.batch):
                x = _keys_of(neighbours, key_mask, n, problem)
                for h in range(problem.heads):
                    e = problem.scale * (k_[n, h, x] @ q_[n, h, p])
                    if len(e) == 0 or e.max() == -np.inf:
                        continue  # no key, or none with any weight: out = 0, lse = -inf
                    weights = np.exp(e - e.max())
                    lse_[n, h, p] = e.max() + np.log(weights.sum())
                    out_[n, h, p] = (weights / weights.sum()) @ v_[n, h, x]
    heads, channel_axis = problem.heads, problem.channel_axis
    round_into(split_heads(out, heads, channel_axis), _restore_positions(out_, problem))
    round_into(lse, _restore_positions(lse_, problem)[..., 0])


def attention_backward(
    problem: AttentionProblem,
    *,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    dlse: np.ndarray | None,
    key_mask: np.ndarray | None,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Fill `dq`, `dk` and `dv` with this neighbourhood's share of the gradients.

    delta(p) = <dout_p, out_p> - dlse(p), P = exp(e - lse), dP = <dout_p, v_x>,
    de = P * (dP - delta); then dv_x += P dout_p, dq_p += scale * de k_x, dk_x += scale * de q_p.
    `out` and `lse` may be those of a larger union of which this neighbourhood is a part.
    """
    q_, k_, v_, out_, dout_ = (_flatten_positions(x, problem) for x in (q, k, v, out, dout))
    lse_ = widen(lse).reshape(q_.shape[:3])
    dlse_ = np.zeros_like(lse_) if dlse is None else widen(dlse).reshape(lse_.shape)
    dq_, dk_, dv_ = np.zeros_like(q_), np.zeros_like(k_), np.zeros_like(v_)
    scale = problem.scale
    with np.errstate(invalid="ignore", over="ignore"):
        for p, neighbours in enumerate(_list_neighbourhoods(problem)):
            for n in range(problem.batch):
                x = _keys_of(neighbours, key_mask, n, problem)
                for h in range(problem.heads):
                    if lse_[n, h, p] == -np.inf:
                        continue  # P = 0
                    weight = np.exp(scale * (k_[n, h, x] @ q_[n, h, p]) - lse_[n, h, p])
                    delta = dout_[n, h, p] @ out_[n, h, p] - dlse_[n, h, p]
                    de = weight * (v_[n, h, x] @ dout_[n, h, p] - delta)
                    dv_[n, h, x] += np.outer(weight, dout_[n, h, p])
                    dq_[n, h, p] += scale * (de @ k_[n, h, x])
                    dk_[n, h, x] += scale * np.outer(de, q_[n, h, p])
    for target, exact in ((dq, dq_), (dk, dk_), (dv, dv_)):
        view = split_heads(target, problem.heads, problem.channel_axis)
        round_into(view, _restore_positions(exact, problem))


def merge(
    problem: MergeProblem,
    *,
    outs: Sequence[np.ndarray],
    lses: Sequence[np.ndarray],
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse` of the union of disjoint parts.

    lse = log sum_i exp lse_i and out = sum_i exp(lse_i - lse) out_i; a part with lse_i = -inf
    saw no key and adds nothing.
    """
    parts = [widen(split_heads(part, problem.heads, problem.channel_axis)) for part in outs]
    part_lses = [widen(part) for part in lses]
    merged = np.zeros_like(parts[0])
    merged_lse = np.full_like(part_lses[0], -np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        for position in np.ndindex(*merged_lse.shape):
            values = np.array([part[position] for part in part_lses])
            if values.max(initial=-np.inf) == -np.inf:
                continue
            weights = np.exp(values - values.max())
            merged_lse[position] = values.max() + np.log(weights.sum())
            for part, value, weight in zip(parts, values, weights / weights.sum(), strict=True):
                if value != -np.inf:
                    merged[position] += weight * part[position]
    round_into(split_heads(out, problem.heads, problem.channel_axis), merged)
    round_into(lse, merged_lse)
