"""The tolerance: how far from the oracle a result may be, derived from the baseline's error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Discrepancy:
    """How far one result is from the oracle, and how far it may be."""

    name: str
    rms: float
    rms_bound: float
    peak: float
    peak_bound: float
    worst: tuple[int, ...]
    fault: str | None = None

    @property
    def passes(self) -> bool:
        # Written so that NaN fails.
        within = self.rms <= self.rms_bound and self.peak <= self.peak_bound
        return self.fault is None and within

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.name}: {self.fault}"
        verdict = "ok" if self.passes else "FAILS"
        return (
            f"{self.name}: {verdict}, rms error {self.rms:.3g} (allowed {self.rms_bound:.3g}), "
            f"largest {self.peak:.3g} at {self.worst} (allowed {self.peak_bound:.3g})"
        )


def epsilon_of(dtype: np.dtype) -> float:
    """One unit in the last place at 1: 2^-10, 2^-7, 2^-23 or 2^-52."""
    digits = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
    return float(2.0 ** -digits[dtype.name])


def measure(
    name: str, actual: np.ndarray, exact: np.ndarray, baselines: Sequence[np.ndarray]
) -> Discrepancy:
    """Measure `actual` against the oracle's `exact` and the errors of the baselines.

    rms(actual - exact) may be 2 rms(baseline - exact) + 1 ulp * rms(exact), and
    max |actual - exact| may be 4 max |baseline - exact| + 2 ulp * max |exact|, each with the
    largest error among the baselines. Infinities of the oracle must be met exactly.
    """
    expected = baselines[0]
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        fault = f"expected {expected.dtype} {expected.shape}, got {actual.dtype} {actual.shape}"
        return Discrepancy(name, np.nan, np.nan, np.nan, np.nan, (), fault)
    wide = exact.dtype
    # What the dtype cannot hold must become the infinity that rounding makes of it.
    with np.errstate(over="ignore"):
        held = exact.astype(actual.dtype).astype(wide)
    exact = np.where(np.isinf(held), held, exact)
    infinite = np.isinf(exact)
    if not np.array_equal(actual[infinite].astype(wide), exact[infinite]):
        fault = f"misses the oracle's infinities at {_first(infinite)}"
        return Discrepancy(name, np.nan, np.nan, np.nan, np.nan, (), fault)
    exact = np.where(infinite, 0, exact)
    error = np.where(infinite, 0, np.abs(actual.astype(wide) - exact))
    # A baseline that overflows on the way says nothing of the elements that do not.
    allowed = [
        _finite_part(np.where(infinite, 0, np.abs(base.astype(wide) - exact))) for base in baselines
    ]
    ulp = epsilon_of(actual.dtype)
    if error.size == 0:
        return Discrepancy(name, 0.0, 0.0, 0.0, 0.0, ())
    return Discrepancy(
        name,
        rms=_rms(error),
        rms_bound=2 * max(map(_rms, allowed)) + ulp * _rms(exact),
        peak=float(error.max()),
        peak_bound=4 * max(float(base.max()) for base in allowed) + 2 * ulp * _peak(exact),
        # NaN counts as the largest.
        worst=tuple(int(index) for index in np.unravel_index(error.argmax(), error.shape)),
    )


def _finite_part(error: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(error), error, 0)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _peak(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _first(marked: np.ndarray) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(marked)[0])
