"""Merging attentions over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crisscross.cpu.weights import relate
from crisscross.problem import MergeProblem, split_heads


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
            shares = [relate(part_lse[n], peak) for part_lse in lses]
            total = np.sum(shares, axis=0)
            merged = np.zeros(out.shape[1:], problem.compute_dtype)
            for part, part_lse, share in zip(parts, lses, shares, strict=True):
                seen = (part_lse[n] != -np.inf)[..., None]
                merged += np.where(seen, (share / total)[..., None] * part[n], 0)
            lse[n] = peak + np.log(total)
            out[n] = merged
