"""Merging attentions over disjoint sets of keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from crisscross.kernels.arguments import MOST_PARTS
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Engine
from crisscross.kernels.launch import Block, launch_strips
from crisscross.kernels.layout import is_along_positions
from crisscross.problem import MergeProblem
from crisscross.view import View, find_strides

_ROWS, _THREADS = 32, 256  # as in merge.cu


@cache
def configure_merge(dtype: str, target_dtype: str) -> Configuration:
    """Return the configuration that merges parts of a dtype into an array of another."""
    return Configuration("merge", dtype, partial_dtype=target_dtype)


def merge(
    engine: Engine,
    problem: MergeProblem,
    *,
    outs: Sequence[View],
    lses: Sequence[View],
    out: View,
    lse: View,
) -> None:
    """Fill `out` and `lse`; what many parts have in common so far is kept as computed."""
    if math.prod(problem.lse_shape) == 0:
        return
    split = [part.split_heads(problem.heads, problem.channel_axis) for part in outs]
    target = out.split_heads(problem.heads, problem.channel_axis)
    carried = None
    if len(outs) > MOST_PARTS:
        shape, dtype = target.shape, problem.compute_dtype
        held = engine.make(shape, find_strides(shape), dtype)
        scratch = held.view
    for first in range(0, len(outs), MOST_PARTS):
        some = split[first : first + MOST_PARTS]
        is_last = first + MOST_PARTS >= len(outs)
        destination = target if is_last else scratch
        launch_strips(
            engine,
            configure_merge(problem.dtype, destination.dtype),
            len(target.shape) - 4,  # the last spatial axis
            {
                "outs": some,
                "lses": lses[first : first + MOST_PARTS],
                "carried": carried,
                "out": destination,
                "lse": lse,
            },
            {
                "parts": len(some),
                "head_size": target.shape[-1],
                "along_positions": is_along_positions(some[0]),
            },
            block=Block(_ROWS, _THREADS),
        )
        carried = scratch if not is_last else None
