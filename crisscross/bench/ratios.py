"""Medians with their spread, and ratios of times that were taken side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "pair", "summarise"]


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the quartiles around it."""

    low: float
    median: float
    high: float


def summarise(values: Sequence[float]) -> Spread:
    """Return the quartiles.

    Examples
    --------
    >>> summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    Spread(low=2.0, median=3.0, high=4.0)
    """
    low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return Spread(float(low), float(median), float(high))


def pair(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Summarise theirs / ours, taken round by round: what slows a whole round cancels.

    Examples
    --------
    >>> pair([2.0, 40.0, 2.0], [1.0, 20.0, 1.0])
    Spread(low=2.0, median=2.0, high=2.0)
    """
    return summarise([a / b for a, b in zip(theirs, ours, strict=True)])
