"""The gate: what disagrees with the oracle does not pass it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from crisscross.bench import gate
from crisscross.bench.shapes import Shape
from crisscross.testing import numpy_dtype

SHAPE = Shape(6, 3, 5, 7, 2)
NAMES = {"out", "dq", "dk", "dv"}


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def expectation(request):
    return gate.expect(gate.make_arrays(SHAPE, request.param, 0), SHAPE)


def round_exact(expectation: gate.Expectation) -> dict[str, np.ndarray]:
    dtype = numpy_dtype(expectation.case.problem.dtype)
    return {name: expectation.exact[name].astype(dtype) for name in NAMES}


@pytest.mark.parametrize("ours", [False, True])
def test_the_rounded_truth_passes(expectation, ours):
    verdict = gate.judge(expectation, round_exact(expectation), NAMES, ours=ours)
    assert verdict.reason is None and set(verdict.errors) == NAMES


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_nan_fails(expectation, name, ours):
    results = round_exact(expectation)
    results[name][1, 2, 3, 4] = np.nan
    reason = gate.judge(expectation, results, NAMES, ours=ours).reason
    assert reason.startswith(f"disagrees with the oracle: {name}") and "rms error nan" in reason


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_error_of_more_than_the_bound_fails(expectation, name):
    results = round_exact(expectation)
    results[name] = (results[name].astype(np.float64) * 1.5).astype(results[name].dtype)
    verdict = gate.judge(expectation, results, NAMES, ours=False)
    assert verdict.reason.startswith(f"disagrees with the oracle: {name}, rms error 0.5 (allowed ")
    assert verdict.errors[name] == pytest.approx(0.5, rel=0.05)


def test_the_bound_is_a_number_of_ulps():
    expectation = gate.expect(gate.make_arrays(SHAPE, "float32", 0), SHAPE)
    for ulps, passes in ((gate.PEER_ULPS - 2, True), (gate.PEER_ULPS + 2, False)):
        out = (expectation.exact["out"] * (1 + ulps * 2.0**-23)).astype(np.float32)
        assert (gate.judge(expectation, {"out": out}, {"out"}, ours=False).reason is None) == passes


@pytest.mark.parametrize("ours", [False, True])
def test_another_dtype_or_shape_is_named(ours):
    expectation = gate.expect(gate.make_arrays(SHAPE, "float32", 0), SHAPE)
    results = round_exact(expectation)
    results["out"] = results["out"].astype(np.float64)
    results["dv"] = results["dv"].swapaxes(2, 3)
    reason = gate.judge(expectation, results, NAMES, ours=ours).reason
    assert "out: expected float32 (2, 6, 5, 7), got float64 (2, 6, 5, 7)" in reason
    assert "dv: expected float32 (2, 6, 5, 7), got float32 (2, 6, 7, 5)" in reason


def test_a_result_that_is_absent_is_named(expectation):
    results = round_exact(expectation)
    del results["dk"]
    assert gate.judge(expectation, results, NAMES, ours=False).reason == "returned no dk"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_large_cases_have_the_same_truth(monkeypatch, dtype):
    """Strip by strip in float64, as where the oracle would take minutes."""
    case = gate.make_arrays(SHAPE, dtype, 3)
    monkeypatch.setattr(gate, "_MOST_ORACLE_FLOPS", 0)
    expectation = gate.expect(case, SHAPE)
    assert expectation.source != gate.BY_POSITION
    for name, exact in case.exact.items():
        np.testing.assert_allclose(expectation.exact[name], exact, rtol=1e-9, atol=1e-12)


def test_float64_is_held_to_the_oracle_itself(monkeypatch):
    monkeypatch.setattr(gate, "_MOST_ORACLE_FLOPS", 0)
    expectation = gate.expect(gate.make_arrays(SHAPE, "float64", 0), SHAPE)
    assert expectation.source == gate.BY_POSITION
    assert expectation.exact["out"].dtype == np.longdouble


def attend_to_all(case) -> np.ndarray:
    """Position by position."""
    out = np.empty(case.v.shape, case.v.dtype)
    for n, y, x in np.ndindex(case.q.shape[0], *case.q.shape[2:]):
        energies = np.einsum("c,chw->hw", case.q[n, :, y, x], case.k[n])
        weights = np.exp(energies - energies.max())
        out[n, :, y, x] = np.einsum("hw,chw->c", weights / weights.sum(), case.v[n])
    return out


def test_attention_to_all_positions_is_held_to_its_definition():
    expectation = gate.expect(gate.make_arrays(SHAPE, "float32", 0), SHAPE)
    out = attend_to_all(expectation.case)
    assert gate.judge_dense(expectation, {"out": out}, 0).reason is None
    criss_cross = expectation.exact["out"].astype(np.float32)
    assert "disagrees" in gate.judge_dense(expectation, {"out": criss_cross}, 0).reason
    assert "disagrees" in gate.judge_dense(expectation, {"out": out * np.nan}, 0).reason
    assert "no out" in gate.judge_dense(expectation, {"out": out[:1]}, 0).reason


def test_energies_are_of_realistic_size():
    case = gate.make_arrays(Shape(8, 8, 12, 9), "float32", 0)
    assert 5 < np.einsum("nchw,ncij->nhwij", case.q, case.k).max() <= 10
    assert dataclasses.replace(case).dlse is None
