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

    Between the axes stand unnormalised sums beside the peak of the energies: a sum of large
    energies' lse would cost digits that the peak, an energy itself, does not.
    """
    q, k, v, out = (split_heads(x, problem.heads, problem.channel_axis) for x in (q, k, v, out))
    # Half precision rounds once, at the end.
    weighted = out if out.dtype == problem.compute_dtype else np.empty(out.shape, lse.dtype)
    peak, total = np.empty_like(lse), np.empty_like(lse)
    with np.errstate(all="ignore"):
        for number, axis in enumerate(problem.axes):
            first = number == 0
            sums = (weighted, peak, total)
            _attend_along(
                problem, axis, problem.include_self and first, first, q, k, v, key_mask, sums
            )
        np.log(total, out=lse)
        lse += peak
        # A position without keys keeps weighted = 0 and becomes out = 0.
        np.divide(weighted, np.where(peak == -np.inf, 1, total)[..., None], out=weighted)
        if weighted is not out:
            out[...] = weighted


Sums = tuple[np.ndarray, np.ndarray, np.ndarray]


def _attend_along(
    problem: AttentionProblem,
    axis: int,
    include_self: bool,
    first: bool,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    sums: Sums,
) -> None:
    """Attend along one axis; write to `sums`, or add to what they hold."""
    dtype, spatial_ndim = problem.compute_dtype, len(problem.spatial)
    q, k, v = (lay_along(x, axis, spatial_ndim) for x in (q, k, v))
    weighted, peak, total = (lay_along(x, axis, spatial_ndim) for x in sums)
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
                weighted[tile], peak[tile], total[tile] = part
            else:
                _add((weighted[tile], peak[tile], total[tile]), part)


def _attend(energies: np.ndarray, v: np.ndarray, excluded: np.ndarray | None) -> Sums:
    """Return the weighted sum, peak and total of one tile; overwrites `energies`."""
    peak = energies.max(axis=-1)
    keyless = peak == -np.inf
    energies -= np.where(keyless, 0, peak)[..., None]
    weights = np.exp(energies, out=energies)
    weighted = multiply(weights, v, excluded)
    # A keyless position has weight zero for every key; what lies there may still be NaN.
    weighted[keyless] = 0
    return weighted, peak, weights.sum(axis=-1)


def _add(sums: Sums, part: Sums) -> None:
    """Add a part's sums, bringing both to the higher peak."""
    weighted, peak, total = sums
    part_weighted, part_peak, part_total = part
    higher = np.maximum(peak, part_peak)
    share, part_share = _share(peak, higher), _share(part_peak, higher)
    weighted *= share[..., None]
    part_weighted *= part_share[..., None]
    weighted += part_weighted
    total *= share
    total += part_share * part_total
    peak[...] = higher


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
            weighted = np.zeros(out.shape[1:], problem.compute_dtype)
            total = np.zeros_like(peak)
            for part, part_lse in zip(parts, lses, strict=True):
                share = _share(part_lse[n], peak)
                seen = (part_lse[n] != -np.inf)[..., None]
                weighted += np.where(seen, share[..., None] * part[n], 0)
                total += share
            lse[n] = peak + np.log(total)
            out[n] = weighted / np.where(peak == -np.inf, 1, total)[..., None]
