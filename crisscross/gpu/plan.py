"""What the backend would do for a problem, in words."""

from __future__ import annotations

from crisscross.kernels.attention import count_group_images
from crisscross.kernels.engine import Limits
from crisscross.kernels.select import find_arithmetic, find_strip, select
from crisscross.kernels.tables import DIRECTIONS, TERMS
from crisscross.kernels.tiles import FmaTile
from crisscross.problem import AttentionProblem


def describe_plan(problem: AttentionProblem, limits: Limits) -> str:
    """Describe kernels, tiles and groups for a device, in a few lines."""
    lines = []
    for axis in problem.axes:
        length = problem.spatial[axis]
        chosen = []
        for direction in DIRECTIONS:
            found = select(direction, find_strip(problem, axis), limits)
            chosen.append(f"{direction} by {found.tile} ({found.reason})")
        lines.append(f"strips of {length} along axis {axis}: {', '.join(chosen)}")
    images = count_group_images(problem, limits.cache_bytes, 2)
    lines.append(
        f"{images} image(s) at a time; arrays whose channels do not lie side by side are copied "
        "to scratch of that size"
    )
    if limits.measured is not None and limits.measured.is_stale:
        lines.append(
            "what crisscross tune has stored for this device is not used: tables, sources, driver "
            "or NVRTC were others"
        )
    return "; ".join(lines)


def name_precision(problem: AttentionProblem, limits: Limits) -> str:
    """Name the precision that the problem is computed in."""
    tiles = (
        select(direction, find_strip(problem, axis), limits).tile
        for direction in DIRECTIONS
        for axis in problem.axes
    )
    if find_arithmetic(problem) in TERMS and not any(isinstance(tile, FmaTile) for tile in tiles):
        return problem.precision
    return f"IEEE {problem.compute_dtype}"
