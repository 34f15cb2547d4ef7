"""The tolerance itself: it lets the plain formula pass and catches what is wrong."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import find, settings
from hypothesis import strategies as st

import crisscross
from crisscross.problem import COMPUTE_DTYPES, PRECISIONS
from crisscross.testing import (
    LAYOUTS,
    assert_matches_reference,
    attention_cases,
    attention_problems,
    baseline,
    fill_case,
    lay_out,
    make_case,
    numpy_dtype,
)
from crisscross.testing.tolerance import epsilon_of, measure
from tests.support.calls import run_whole
from tests.support.properties import law


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_the_bound_is_the_stated_one(dtype):
    case = make_case((5, 7), dtype=dtype, head_size_qk=8, masked=True)
    for name, actual in run_whole(case).items():
        exact = case.exact[name]
        finite = np.isfinite(exact)
        ulp = (
            2.0 ** -{"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[actual.dtype.name]
        )
        errors = [np.abs(base[name].astype(exact.dtype) - exact)[finite] for base in case.baselines]
        largest_rms = max(np.sqrt((error**2).sum() / exact.size) for error in errors)
        exact_rms = np.sqrt((exact[finite] ** 2).sum() / exact.size)
        found = measure(name, actual, exact, [base[name] for base in case.baselines])
        assert found.passes
        assert found.rms_bound == pytest.approx(float(2 * largest_rms + ulp * exact_rms))
        expected = 4 * max(error.max() for error in errors) + 2 * ulp * np.abs(exact[finite]).max()
        assert found.peak_bound == pytest.approx(float(expected))


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_the_bound_is_tight(dtype):
    """A few units in the last place beyond a correct rounding, and it fails."""
    case = make_case((9, 11), dtype=dtype, head_size_qk=8, head_size_v=16)
    units = {"float16": 3, "bfloat16": 3, "float32": 12, "float64": 12}[dtype]
    ulp = epsilon_of(numpy_dtype(dtype))
    for name in ("out", "dv"):
        rounded = case.exact[name].astype(numpy_dtype(dtype))
        assert_matches_reference(case, **{name: rounded})
        wrong = (case.exact[name] * (1 + units * ulp)).astype(numpy_dtype(dtype))
        with pytest.raises(AssertionError, match=f"{name}: FAILS"):
            assert_matches_reference(case, **{name: wrong})


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_the_baseline_is_as_good_as_its_dtype(dtype):
    """Its own error is of the size of a rounding; a baseline that is off would allow anything."""
    case = make_case((9, 11), heads=2, dtype=dtype, head_size_qk=8, head_size_v=16, masked=True)
    for name, exact in case.exact.items():
        finite = np.isfinite(exact)
        size = np.sqrt(np.mean(exact[finite] ** 2))
        for evaluated in case.baselines:
            error = np.sqrt(np.mean((evaluated[name].astype(exact.dtype) - exact)[finite] ** 2))
            ulp = epsilon_of(evaluated[name].dtype)
            assert error <= (1.0 if dtype in ("float16", "bfloat16") else 4.0) * ulp * size, name


def test_the_evaluations_of_the_baseline_differ():
    """Four: as it comes and in other orders; with the weights rounded and kept wide."""
    half = make_case((9, 11), dtype="float16", head_size_qk=8).baselines
    single = make_case((9, 11), dtype="float32", head_size_qk=8).baselines
    assert len(half) == len(single) == 4
    for first, second in itertools.combinations(single, 2):
        assert (first["lse"] != second["lse"]).any()
        assert (first["dv"] != second["dv"]).any()
    # Rounded weights are what half precision loses most by.
    case = make_case((9, 11), dtype="float16", head_size_qk=8)
    errors = [np.abs(x["dv"] - case.exact["dv"]).mean() for x in case.baselines]
    assert max(errors[2:]) < min(errors[:2])


def test_the_evaluations_take_sums_in_other_orders(monkeypatch):
    """Also without the drift: permuted positions and channels round differently."""
    monkeypatch.setattr(baseline._Arithmetic, "drift", lambda _, values: values)
    first, second, *_ = make_case((9, 11), head_size_qk=8).baselines
    for name in first:
        assert (first[name] != second[name]).any(), name


@law(
    attention_cases(attention_problems(precisions=PRECISIONS))
    | attention_cases(attention_problems(axial=True))
)
def test_the_message_makes_the_case_again(case):
    again = eval(repr(case), {"make_case": make_case})
    assert again.problem == case.problem
    for name in ("q", "k", "v", "dout", "dlse", "key_mask"):
        mine, theirs = getattr(case, name), getattr(again, name)
        if mine is None or theirs is None:
            assert mine is theirs
        else:
            np.testing.assert_array_equal(mine, theirs)
            assert mine.strides == theirs.strides


@law(attention_cases(attention_problems()))
def test_the_correctly_rounded_oracle_passes(case):
    """out and lse rounded once from the oracle: nothing can be closer."""
    out = case.exact["out"].astype(case.v.dtype)
    lse = case.exact["lse"].astype(case.problem.compute_dtype)
    assert_matches_reference(case, out=out, lse=lse)


#: Mistakes that implementations make, each as a change of the problem they solve.
MISTAKES = {
    "scale forgotten": lambda case: dataclasses.replace(case.problem, scale=1.0),
    "scale of another size": lambda case: dataclasses.replace(
        case.problem, scale=case.problem.scale * 1.1
    ),
    "one axis forgotten": lambda case: dataclasses.replace(case.problem, axes=(0,)),
    "self left out": lambda case: dataclasses.replace(case.problem, include_self=False),
}


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake, dtype):
    case = make_case((4, 5), dtype=dtype, scale=0.5, head_size_qk=5, head_size_v=3)
    wrong = dataclasses.replace(case, problem=MISTAKES[mistake](case))
    results = {
        name: array.astype(run_whole(case)[name].dtype) for name, array in wrong.exact.items()
    }
    for name in ("out", "lse", "dq", "dk", "dv"):
        with pytest.raises(AssertionError, match=f"{name}: FAILS"):
            assert_matches_reference(case, **{name: results[name]})


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_self_counted_twice_is_caught(dtype):
    """What merging two whole strips gives: the mistake of the 3-D form that CCNet published."""
    case = make_case((4, 5), dtype=dtype)
    parts = [
        crisscross.axial_attention(case.q, case.k, case.v, axis=axis, return_lse=True)
        for axis in (0, 1)
    ]
    out, lse = crisscross.merge_attentions(*zip(*parts, strict=True))
    for results in ({"out": out}, {"lse": lse}):
        with pytest.raises(AssertionError, match="FAILS"):
            assert_matches_reference(case, **results)


@pytest.mark.parametrize("name", ["out", "lse", "dq", "dk", "dv"])
def test_nan_fails(name):
    case = make_case((4, 5))
    result = run_whole(case)[name]
    result[0, 0, 1, 2] = np.nan
    with pytest.raises(AssertionError, match=rf"{name}: FAILS.*\(0, 0, 1, 2\)"):
        assert_matches_reference(case, **{name: result})


def test_one_wrong_element_fails():
    case = make_case((20, 30), head_size_v=16, dtype="float16")
    result = run_whole(case)["out"]
    result[0, 3, 2, 1] += np.float16(0.01)
    with pytest.raises(AssertionError, match=r"out: FAILS.*at \(0, 3, 2, 1\)"):
        assert_matches_reference(case, out=result)


def test_shape_and_dtype_are_part_of_the_result():
    case = make_case((4, 5))
    result = run_whole(case)["out"]
    with pytest.raises(AssertionError, match=r"out: expected float32 .*, got float64"):
        assert_matches_reference(case, out=result.astype(float))
    with pytest.raises(AssertionError, match=r"got float32 \(1, 4, 5, 4\)"):
        assert_matches_reference(case, out=result.transpose(0, 1, 3, 2))
    with pytest.raises(TypeError, match="got \\['gradient'\\]"):
        assert_matches_reference(case, gradient=result)


def test_infinities_must_be_met():
    case = make_case((4, 5), masked=True, key_share=0.0)
    results = run_whole(case)
    assert_matches_reference(case, **results)
    with pytest.raises(AssertionError, match="lse: misses the oracle's infinities"):
        assert_matches_reference(case, lse=np.nan_to_num(results["lse"], neginf=-1e30))
    with pytest.raises(AssertionError, match="lse: misses the oracle's infinities"):
        assert_matches_reference(case, lse=-results["lse"])
    open_case = make_case((4, 5))
    lse = run_whole(open_case)["lse"]
    lse[0, 0, 0, 0] = -np.inf
    with pytest.raises(AssertionError, match="lse: FAILS"):
        assert_matches_reference(open_case, lse=lse)


def test_all_figures_are_told():
    case = make_case((4, 5), seed=5)
    results = run_whole(case)
    results["dv"] = results["dv"] * 2
    with pytest.raises(AssertionError) as caught:
        assert_matches_reference(case, **results)
    lines = str(caught.value).splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [
        "out: ok",
        "lse: ok",
        "dq: ok",
        "dk: ok",
        "dv: FAILS",
    ]
    assert "seed=5" in lines[5]


def test_overflow_must_be_overflow():
    """Where float16 cannot hold the oracle's result, infinity is right, and nothing else is."""
    case = make_case((4, 5), dtype="float16")
    case = dataclasses.replace(case, dout=np.full_like(case.dout, 60000))
    results = run_whole(case)
    assert np.isinf(results["dv"]).any() and not np.isinf(results["dv"]).all()
    assert_matches_reference(case, dv=results["dv"])
    for wrong in (0, -12345, -np.inf, np.inf):
        with pytest.raises(AssertionError, match=r"dv: (FAILS|misses)"):
            assert_matches_reference(case, dv=np.full_like(results["dv"], wrong))


def test_no_results_are_no_success():
    with pytest.raises(TypeError, match=r"expected some of .*, got none"):
        assert_matches_reference(make_case((4, 5)))


@pytest.mark.parametrize("name", ["dk", "dv"])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_masked_gradients_are_exactly_zero(name, channel_axis):
    case = make_case((4, 5), dtype="float16", masked=True, channel_axis=channel_axis)
    results = run_whole(case)
    assert_matches_reference(case, **results)
    np.moveaxis(results[name], channel_axis, -1)[~case.key_mask] = 1e-6
    with pytest.raises(AssertionError, match=f"{name}: FAILS, not exactly zero at masked"):
        assert_matches_reference(case, **results)


#: Corners that the documentation promises of the strategies.
CORNERS = {
    "an empty batch": lambda case: case.problem.batch == 0,
    "three axes": lambda case: len(case.problem.spatial) == 3,
    "a subset of the axes": lambda case: len(case.problem.axes) < len(case.problem.spatial),
    "a single position": lambda case: set(case.problem.spatial) == {1},
    "a prime": lambda case: 13 in case.problem.spatial,
    "heads": lambda case: case.problem.heads == 3,
    "head sizes that differ": lambda case: case.problem.head_size_qk != case.problem.head_size_v,
    "channels last": lambda case: case.problem.channel_axis == -1,
    "bfloat16": lambda case: case.q.dtype == numpy_dtype("bfloat16"),
    "no key at all": lambda case: case.problem.masked and not case.key_mask.any(),
    "some keys": lambda case: case.problem.masked and 0 < case.key_mask.mean() < 1,
    "no gradient of lse": lambda case: case.dlse is None,
    "a gradient of lse": lambda case: case.dlse is not None,
    "gaps": lambda case: case.v.strides[-1] == 2 * case.v.itemsize,
    "backwards": lambda case: case.v.strides[-1] < 0,
    "channels innermost": lambda case: "permuted" in case.story and case.q.size > 8,
    "an odd address": lambda case: case.v.ctypes.data % 16 == case.v.itemsize,
    "outliers": lambda case: "outliers=True" in case.story,
    "a small scale": lambda case: case.problem.scale == 1e-3,
    "large energies": lambda case: "energy_peak=100.0" in case.story,
}


@pytest.mark.parametrize("corner", CORNERS)
def test_the_strategies_reach(corner):
    quick = settings(max_examples=2000, database=None, derandomize=True)
    assert find(attention_cases(), CORNERS[corner], settings=quick) is not None


def test_axial_problems_leave_self_out_too():
    quick = settings(max_examples=500, database=None, derandomize=True)
    for include_self in (True, False):
        found = find(
            attention_problems(axial=True),
            lambda problem, wanted=include_self: problem.include_self is wanted,
            settings=quick,
        )
        assert len(found.axes) == 1


def test_precisions_are_drawn_if_asked_for():
    quick = settings(max_examples=500, database=None, derandomize=True)
    for precision in PRECISIONS:
        problems = attention_problems(dtypes=("float32",), precisions=PRECISIONS)
        case = find(
            attention_cases(problems),
            lambda case, wanted=precision: case.problem.precision == wanted,
            settings=quick,
        )
        assert case.options["precision"] == precision


def test_outliers_stand_out():
    plain, wild = (
        make_case((30, 30), head_size_qk=8, outliers=outliers) for outliers in (False, True)
    )

    def spread(array):
        return np.abs(array).max() / np.median(np.abs(array))

    assert spread(wild.q) > 2 * spread(plain.q) and spread(wild.k) > 2 * spread(plain.k)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout):
    array = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    laid = lay_out(array, layout)
    np.testing.assert_array_equal(laid, array)
    assert not np.shares_memory(laid, array)
    assert (laid.strides == array.strides) is (layout in ("contiguous", "offset"))
    assert (laid.ctypes.data % 16 == 4) is (layout == "offset")


def test_an_unknown_layout():
    with pytest.raises(ValueError, match=r"layout: expected one of .* got 'spiral'"):
        lay_out(np.zeros(3), "spiral")


@law(problem=attention_problems(batches=(1, 2)), peak=st.sampled_from((1.0, 30.0, 100.0)))
def test_energies_reach_their_peak_and_no_further(problem, peak):
    case = fill_case(problem, energy_peak=peak)
    energies = []
    for n in range(problem.batch):
        q, k = (
            np.moveaxis(x[n : n + 1].astype(float), problem.channel_axis, 1).reshape(
                problem.heads, problem.head_size_qk, -1
            )
            for x in (case.q, case.k)
        )
        energies.append(problem.scale * np.einsum("hdp,hdx->hpx", q, k))
    largest = max(np.abs(e).max() for e in energies)
    assert largest <= peak * 1.02
