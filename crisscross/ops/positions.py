"""Positions to look at: one, or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from crisscross.arithmetic import list_sizes
from crisscross.errors import Fault
from crisscross.ops.call import Call
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value

#: One position, or several.
Positions = Sequence[int] | Sequence[Sequence[int]] | np.ndarray


def check_positions(
    findings: Findings, at: Any, spatial: tuple[int, ...] | None
) -> list[tuple[int, ...]]:
    """Return one or several positions, counted from the front; report what is none.

    Without sizes only what cannot be a position in any image is reported.
    """
    expected = "a position, such as (y, x), or several"
    if not is_sequence(at) or not len(at):
        findings.add("at", expected, describe_value(at), Fault.TYPE)
        return []
    positions = []
    for each in [at] if is_one(at) else at:
        if not is_sequence(each):
            findings.add("at", expected, describe_value(at), Fault.TYPE)
            continue
        numbers = [findings.check_integer("at", number) for number in each]
        known = [number for number in numbers if number is not None]
        if spatial is None or len(known) < len(numbers):
            continue
        fits = len(known) == len(spatial) and all(
            -size <= number < size for number, size in zip(known, spatial, strict=True)
        )
        if not fits:
            findings.add("at", f"a position in {tuple(spatial)}", str(tuple(known)))
            continue
        positions.append(tuple(number % size for number, size in zip(known, spatial, strict=True)))
    return positions


def is_one(at: Any) -> bool:
    return not any(is_sequence(each) for each in at)


def is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def find_sizes(call: Call, channel_axis: object) -> tuple[int, ...] | None:
    spec = call.specs["q"] or call.specs["k"]
    if spec is None or spec.ndim < 3 or channel_axis not in (1, -1):
        return None
    return list_sizes(spec, channel_axis)
