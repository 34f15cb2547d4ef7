"""What the backend would do for a problem, in words."""

from __future__ import annotations

from crisscross.kernels.attention import count_group_images
from crisscross.kernels.engine import Limits
from crisscross.kernels.select import select
from crisscross.problem import AttentionProblem


def describe_plan(problem: AttentionProblem, limits: Limits) -> str:
    """Describe kernels, tiles and groups for a device, in a few lines."""
    lines = []
    for axis in problem.axes:
        length = problem.spatial[axis]
        selection = select(problem.dtype, length, limits)
        lines.append(
            f"strips of {length} along axis {axis}: tiles of {selection.tile} ({selection.reason})"
        )
    images = count_group_images(problem, limits.cache_bytes, 2)
    lines.append(
        f"{images} image(s) at a time; arrays whose channels do not lie side by side are copied "
        "to scratch of that size"
    )
    return "; ".join(lines)
