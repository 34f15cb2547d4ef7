"""Forward: each axis's strips in turn, merged by log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crisscross.cpu.strips import (
    block_of,
    compute_energies,
    each_block,
    each_query_tile,
    find_excluded,
    hide_masked,
    lay_along,
    mask_block,
    multiply,
)
from crisscross.problem import AttentionProblem, MergeProblem, split_heads


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
    """Fill `out` and `lse`; the first axis owns self, the others skip it.

    Between the axes stand the peak of the energies and the total relative to it: lse, rounded at
    the size of large energies, would cost digits that the peak, an energy itself, does not.
    """
    q, k, v, out = (split_heads(x, problem.heads, problem.channel_axis) for x in (q, k, v, out))
    # Half precision rounds once, at the end.
    mean = out if out.dtype == problem.compute_dtype else np.empty(out.shape, lse.dtype)
    peak, total = np.empty_like(lse), np.empty_like(lse)
    with np.errstate(all="ignore"):
        for number, axis in enumerate(problem.axes):
            first = number == 0
            state = (mean, peak, total)
            _attend_along(
                problem, axis, problem.include_self and first, first, q, k, v, key_mask, state
            )
        np.log(total, out=lse)
        lse += peak
        if mean is not out:
            out[...] = mean


#: Weighted mean of the values, peak of the energies, and sum of the weights relative to the peak.
#: The mean is never a sum: of values near the largest float, a sum would be infinite.
State = tuple[np.ndarray, np.ndarray, np.ndarray]


def _attend_along(
    problem: AttentionProblem,
    axis: int,
    include_self: bool,
    first: bool,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    state: State,
) -> None:
    """Attend along one axis; write to `state`, or merge with what it holds."""
    dtype, spatial_ndim = problem.compute_dtype, len(problem.spatial)
    q, k, v = (lay_along(x, axis, spatial_ndim) for x in (q, k, v))
    mean, peak, total = (lay_along(x, axis, spatial_ndim) for x in state)
    laid_mask = None if key_mask is None else lay_along(key_mask, axis, spatial_ndim)
    length = problem.spatial[axis]
    for index in each_block(peak, peak.itemsize):
        mask = mask_block(laid_mask, index)
        k_block = hide_masked(block_of(k, index, dtype), mask)
        v_block = hide_masked(block_of(v, index, dtype), mask)
        for queries in each_query_tile(length, peak.itemsize):
            tile = (*index, queries)
            excluded = find_excluded(queries, length, include_self)
            q_tile = block_of(q, tile, dtype)
            energies = compute_energies(q_tile, k_block, problem.scale, mask, excluded)
            part = _attend(energies, v_block, excluded)
            if first:
                mean[tile], peak[tile], total[tile] = part
            else:
                _join((mean[tile], peak[tile], total[tile]), part)


def _attend(energies: np.ndarray, v: np.ndarray, excluded: np.ndarray | None) -> State:
    """Return the state of one tile; overwrites `energies`."""
    peak = energies.max(axis=-1)
    keyless = peak == -np.inf
    energies -= np.where(keyless, 0, peak)[..., None]
    weights = np.exp(energies, out=energies)
    total = weights.sum(axis=-1)
    weights /= total[..., None]
    mean = multiply(weights, v, excluded)
    # The weights of a keyless position are 0 / 0.
    mean[keyless] = 0
    return mean, peak, total


def _join(state: State, part: State) -> None:
    """Merge a part into `state`, bringing both to the higher peak."""
    mean, peak, total = state
    part_mean, part_peak, part_total = part
    higher = np.maximum(peak, part_peak)
    weight, part_weight = total * _share(peak, higher), part_total * _share(part_peak, higher)
    whole = weight + part_weight
    divisor = np.where(higher == -np.inf, 1, whole)
    mean *= (weight / divisor)[..., None]
    part_mean *= (part_weight / divisor)[..., None]
    mean += part_mean
    peak[...] = higher
    total[...] = whole


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """exp(part - whole); zero for a part without keys."""
    share: np.ndarray = np.exp(part - whole)
    share[part == -np.inf] = 0
    return share


def merge(
    problem: MergeProblem,
    *,
    outs: Sequence[np.ndarray],
    lses: Sequence[np.ndarray],
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse` of the union of disjoint parts, image by image."""
    parts = [split_heads(part, problem.heads, problem.channel_axis) for part in outs]
    out = split_heads(out, problem.heads, problem.channel_axis)
    with np.errstate(all="ignore"):
        for n in range(lse.shape[0]):
            # Weights relative to the highest lse: relative to the merged one, which is rounded at
            # its own size, they would lose as many digits as it has before the point.
            peak = np.max([part_lse[n] for part_lse in lses], axis=0)
            shares = [_share(part_lse[n], peak) for part_lse in lses]
            total = np.sum(shares, axis=0)
            merged = np.zeros(out.shape[1:], problem.compute_dtype)
            for part, part_lse, share in zip(parts, lses, shares, strict=True):
                seen = (part_lse[n] != -np.inf)[..., None]
                merged += np.where(seen, (share / total)[..., None] * part[n], 0)
            lse[n] = peak + np.log(total)
            out[n] = merged
