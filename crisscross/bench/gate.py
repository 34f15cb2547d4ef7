"""No number without a result that agrees with the oracle.

Ours is held to the tolerance of `crisscross.testing`. A peer, whose order of roundings is its own,
may be off by `PEER_ULPS` units in the last place of the dtype, in the root mean square:
rms(x - exact) <= PEER_ULPS * ulp * rms(exact), for every output. NaN fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from crisscross.bench.shapes import FORWARD, Shape, count_flops
from crisscross.testing import AttentionCase, make_case
from crisscross.testing.baseline import compute_baselines
from crisscross.testing.tolerance import epsilon_of, measure

__all__ = ["PEER_ULPS", "Expectation", "Verdict", "expect", "judge", "judge_dense", "make_arrays"]

PEER_ULPS = 16
#: Of the order that a trained network has: the softmax is neither flat nor a maximum.
_ENERGY_PEAK = 10.0
#: The oracle goes position by position: 5 s for this many operations of the forward pass.
_MOST_ORACLE_FLOPS = 2e8
_DENSE_SAMPLE = 64

BY_POSITION = "the oracle"
BY_STRIPS = "the plain formula in float64, strip by strip"


@dataclass(frozen=True)
class Expectation:
    """What a case must give.

    Attributes
    ----------
    case : AttentionCase
    source : str
        How `exact` was computed.
    exact : dict of ndarray
        out, lse, dq, dk and dv, wider than the case's dtype.
    baselines : list of dict of ndarray
        What the tolerance of ours is derived from.
    """

    case: AttentionCase
    source: str
    exact: dict[str, np.ndarray]
    baselines: list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Verdict:
    """Errors rms(x - exact) / rms(exact) of every output, and why it fails, if it does."""

    errors: dict[str, float]
    reason: str | None


def make_arrays(shape: Shape, dtype: str, seed: int) -> AttentionCase:
    """Draw the arrays of a shape."""
    return make_case(
        (shape.height, shape.width),
        batch=shape.batch,
        head_size_qk=shape.key_channels,
        head_size_v=shape.channels,
        dtype=dtype,
        seed=seed,
        energy_peak=_ENERGY_PEAK,
        with_dlse=False,
    )


def expect(case: AttentionCase, shape: Shape) -> Expectation:
    """Compute what the case must give.

    By the oracle where that takes seconds, and for float64, which needs its long double. Otherwise
    by the plain formula in float64, 2^29 times finer than float32; it is held to the oracle by the
    tests.
    """
    if case.problem.dtype == "float64" or count_flops(shape, FORWARD) <= _MOST_ORACLE_FLOPS:
        return Expectation(case, BY_POSITION, case.exact, case.baselines)
    arrays: dict[str, np.ndarray | None] = {
        name: getattr(case, name).astype(np.float64) for name in ("q", "k", "v", "dout")
    }
    (exact,) = compute_baselines(replace(case.problem, dtype="float64"), arrays, evaluations=1)
    return Expectation(case, BY_STRIPS, exact, case.baselines)


def judge(
    expectation: Expectation, results: Mapping[str, np.ndarray], names: set[str], *, ours: bool
) -> Verdict:
    """Compare results with what the case must give.

    Parameters
    ----------
    expectation : Expectation
    results : mapping of ndarray
        What a form returned.
    names : set of str
        The results that there must be.
    ours : bool
        Hold them to the tolerance of `crisscross.testing`.
    """
    absent = names - set(results)
    if absent:
        return Verdict({}, f"returned no {', '.join(sorted(absent))}")
    errors, faults = {}, []
    for name, array in results.items():
        if name not in expectation.exact:
            return Verdict({}, f"returned {name!r}, which is no result of this function")
        exact = expectation.exact[name]
        baselines = [baseline[name] for baseline in expectation.baselines]
        if ours:
            discrepancy = measure(name, array, exact, baselines)
            fault = None if discrepancy.passes else str(discrepancy)
            mismatch = discrepancy.fault is not None
        else:
            expected = f"{baselines[0].dtype} {exact.shape}"
            got = f"{array.dtype} {array.shape}"
            mismatch = got != expected
            fault = f"{name}: expected {expected}, got {got}" if mismatch else None
        if not mismatch:
            errors[name] = _relative_error(array, exact)
            if not ours:
                fault = _exceed(name, errors[name], array.dtype)
        faults += [fault] if fault else []
    return Verdict(errors, _disagree(faults))


def judge_dense(expectation: Expectation, results: Mapping[str, np.ndarray], seed: int) -> Verdict:
    """Compare attention to all positions with its definition, at a sample of positions."""
    case = expectation.case
    q, k, v = (_flatten(x) for x in (case.q, case.k, case.v))
    out = results.get("out")
    if out is None or out.shape != case.v.shape:
        return Verdict({}, "returned no out of the shape of v")
    positions = np.random.default_rng(seed).integers(0, q.shape[1], _DENSE_SAMPLE)
    energies = q[:, positions] @ k.swapaxes(1, 2)
    weights = np.exp(energies - energies.max(axis=-1, keepdims=True))
    exact = weights / weights.sum(axis=-1, keepdims=True) @ v
    error = _relative_error(_flatten(out)[:, positions], exact)
    fault = _exceed("out", error, case.v.dtype)
    return Verdict({"out": error}, _disagree([fault] if fault else []))


def _flatten(array: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as (N, H*W, C), in float64."""
    wide = array.reshape(*array.shape[:2], -1).swapaxes(1, 2).astype(np.float64)
    return np.asarray(wide)


def _relative_error(array: np.ndarray, exact: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.sqrt(np.mean(np.square(array.astype(exact.dtype) - exact)))
    size = np.sqrt(np.mean(np.square(exact)))
    return float(error / size) if size else float(error)


def _exceed(name: str, error: float, dtype: np.dtype) -> str | None:
    allowed = PEER_ULPS * epsilon_of(dtype)
    # Written so that NaN fails.
    return None if error <= allowed else f"{name}, rms error {error:.2g} (allowed {allowed:.2g})"


def _disagree(faults: list[str]) -> str | None:
    return f"disagrees with the oracle: {'; '.join(faults)}" if faults else None
