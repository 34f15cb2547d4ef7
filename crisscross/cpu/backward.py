"""Backward: probabilities recomputed from q, k and lse, each axis adding its share."""

from __future__ import annotations

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
from crisscross.problem import AttentionProblem, split_heads


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
    """Fill `dq`, `dk` and `dv`; the first axis owns self, the others skip it."""
    heads, channel_axis = problem.heads, problem.channel_axis
    q, k, v, out, dout = (split_heads(x, heads, channel_axis) for x in (q, k, v, out, dout))
    targets = [split_heads(x, heads, channel_axis) for x in (dq, dk, dv)]
    exact = problem.dtype == problem.compute_dtype
    sums = [x if exact else np.empty(x.shape, lse.dtype) for x in targets]
    for total in sums:
        total[...] = 0
    with np.errstate(all="ignore"):
        delta = _compute_delta(problem, dout, out, dlse)
        for number, axis in enumerate(problem.axes):
            include_self = problem.include_self and number == 0
            _add_shares(problem, axis, include_self, q, k, v, dout, lse, delta, key_mask, *sums)
        for target, total in zip(targets, sums, strict=True):
            if total is not target:
                target[...] = total


def _compute_delta(
    problem: AttentionProblem, dout: np.ndarray, out: np.ndarray, dlse: np.ndarray | None
) -> np.ndarray:
    """delta(p) = <dout_p, out_p> - dlse(p), image by image."""
    delta = np.empty(problem.lse_shape, problem.compute_dtype)
    for n in range(problem.batch):
        # One order of the sum whatever the order in memory.
        product = dout[n].astype(problem.compute_dtype, order="C")
        product *= out[n]
        product.sum(axis=-1, out=delta[n])
    if dlse is not None:
        delta -= dlse
    return delta


def _add_shares(
    problem: AttentionProblem,
    axis: int,
    include_self: bool,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    lse: np.ndarray,
    delta: np.ndarray,
    key_mask: np.ndarray | None,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Add the share of the strips along one axis to `dq`, `dk` and `dv`."""
    dtype, spatial_ndim = problem.compute_dtype, len(problem.spatial)
    laid = (lay_along(x, axis, spatial_ndim) for x in (q, k, v, dout, lse, delta, dq, dk, dv))
    q, k, v, dout, lse, delta, dq, dk, dv = laid
    laid_mask = None if key_mask is None else lay_along(key_mask, axis, spatial_ndim)
    length = problem.spatial[axis]
    scale = np.dtype(dtype).type(problem.scale)
    for index in each_block(lse, lse.itemsize):
        mask = mask_block(laid_mask, index)
        k_block = hide_masked(block_of(k, index, dtype), mask)
        v_block = hide_masked(block_of(v, index, dtype), mask)
        dk_block, dv_block = np.zeros_like(k_block), np.zeros_like(v_block)
        for queries in each_query_tile(length, lse.itemsize):
            tile = (*index, queries)
            excluded = find_excluded(queries, length, include_self)
            flipped = None if excluded is None else excluded.T
            lse_tile, delta_tile = lse[tile], delta[tile]
            # A position without keys has no gradient, whatever its q, dout and dlse hold.
            keyless = lse_tile == -np.inf
            q_tile = _clear(block_of(q, tile, dtype), keyless)
            dout_tile = _clear(block_of(dout, tile, dtype), keyless)

            weights = compute_energies(q_tile, k_block, problem.scale, mask, excluded)
            weights -= lse_tile[..., None]
            np.exp(weights, out=weights)
            weights = _clear(weights, keyless)
            denergies = dout_tile @ v_block.transpose(0, 2, 1)
            denergies -= delta_tile[..., None]
            denergies *= weights
            denergies = _clear(denergies, keyless)
            if excluded is not None:
                # A NaN in the query's lse or delta is not the excluded key's.
                np.copyto(weights, 0, where=excluded)
                np.copyto(denergies, 0, where=excluded)

            dv_block += multiply(weights.transpose(0, 2, 1), dout_tile, flipped)
            denergies *= scale
            dq[tile] += _clear(multiply(denergies, k_block, excluded), keyless)
            dk_block += multiply(denergies.transpose(0, 2, 1), q_tile, flipped)
        dk[index] += hide_masked(dk_block, mask)
        dv[index] += hide_masked(dv_block, mask)


def _clear(rows: np.ndarray, keyless: np.ndarray) -> np.ndarray:
    """Zero the rows of positions without keys."""
    if not keyless.any():
        return rows
    return np.where(keyless[..., None], rows.dtype.type(0), rows)
