"""Corners of the kernels that no other test reaches: `tests.kernels.mutation` found them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import crisscross
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.devices import make_arithmetic_case
from tests.support.calls import run_axial, run_whole

ARITHMETICS = ("float16", "bfloat16", "tf32", "tf32x3")
#: How near sums in another order are.
NEAR = {
    "float16": {"rtol": 2e-2, "atol": 1e-2},
    "bfloat16": {"rtol": 2e-2, "atol": 1e-2},
    "tf32": {"rtol": 2**-8, "atol": 2**-9},
    "tf32x3": {"rtol": 1e-5, "atol": 1e-5},
}
pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("dtype", "energy"), [("float32", -144.0), ("float64", -900.0)])
def test_energies_far_below_zero(dtype, energy, masked):
    """A key that is not there, taken for one of energy 0, would have an infinite weight."""
    case = make_case((5, 19), dtype=dtype, masked=masked, head_size_qk=4)
    # Whole numbers, whose products are exact.
    step = np.random.default_rng(0).integers(0, 2, case.k.shape)
    k = (energy / 4 - step).astype(dtype)
    case = dataclasses.replace(case, q=np.ones_like(case.q), k=k)
    assert_matches_reference(case, **run_whole(case))


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("length", [21, 50, 98, 104, 131, 145, 209])
@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_values_that_positions_do_not_meet(arithmetic, length, poison):
    """On tensor cores too, a weight of zero is not multiplied by what is not finite."""
    case = make_arithmetic_case(
        (2, length), arithmetic, head_size_v=24, axes=(1,), include_self=False
    )
    v = case.v.copy()
    v[0, 5, :, -1] = v[0, 17, :, 15] = poison
    q, k = case.q, case.k
    kept = crisscross.axial_attention(q, k, case.v, **case.axial_options)
    out = crisscross.axial_attention(q, k, v, **case.axial_options)
    alone = np.zeros(out.shape, bool)
    alone[0, :, :, [-1, 15]] = True
    finite = np.ones(out.shape, bool)
    finite[0, 5, :, :-1] = finite[0, 17, :, :15] = finite[0, 17, :, 16:] = False
    np.testing.assert_array_equal(np.isfinite(out), finite)
    # What is not rounded to tf32 on the way, where it is added one by one, differs by that.
    most = {"tf32": 2**-9, "tf32x3": 1e-5}.get(arithmetic, 0)
    others = finite & ~alone
    np.testing.assert_allclose(out[others].astype(float), kept[others].astype(float), 0, most)
    # Its own sum, in another order.
    near = finite & alone
    np.testing.assert_allclose(
        out[near].astype(float), kept[near].astype(float), **NEAR[arithmetic]
    )


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize(("length", "position"), [(21, 20), (98, 15), (209, 7), (209, 208)])
@pytest.mark.parametrize(("given", "made"), [("dout", "dv"), ("k", "dq"), ("q", "dk")])
@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_gradients_of_a_position_that_is_not_met(arithmetic, length, position, given, made, poison):
    """Its own dout, k and q do not reach the gradients of a position that does not meet itself."""
    case = make_arithmetic_case(
        (2, length), arithmetic, head_size_v=24, axes=(1,), include_self=False
    )
    kept = run_axial(case)[made]
    features = getattr(case, given).copy()
    features[0, 3, :, position] = poison
    found = run_axial(dataclasses.replace(case, **{given: features}))[made]
    near, exact = (x[..., position].astype(float) for x in (found, kept))
    np.testing.assert_allclose(near, exact, **NEAR[arithmetic])
    assert not np.isfinite(found.astype(float)).all()  # those of the others


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_infinite_values_stay_infinite(arithmetic):
    """inf + finite = inf: the axis that leaves self out must not turn it into NaN."""
    case = make_arithmetic_case((3, 4), arithmetic, head_size_qk=1, head_size_v=1)
    q = k = np.zeros_like(case.q)
    v = q.copy()
    v[0, 0, 1, 2] = np.inf
    out = crisscross.criss_cross_attention(q, k, v, **case.options)
    assert out[0, 0, 1, 2] == np.inf
    assert not np.isnan(out.astype(float)).any()


@pytest.mark.parametrize("arithmetic", ["tf32", "tf32x3"])
@pytest.mark.parametrize("include_self", [True, False])
def test_the_largest_numbers_stay_finite(arithmetic, include_self):
    """Rounded to tf32 they would be infinite. (A little larger still, and its parts' sum is.)"""
    case = make_arithmetic_case((2, 9), arithmetic, axes=(1,), include_self=include_self)
    v = case.v.copy()
    v[0, 1, :, 4] = np.finfo(np.float32).max * (1 - 2**-13)
    out = crisscross.axial_attention(case.q, case.k, v, **case.axial_options)
    exact = crisscross.axial_attention(case.q, case.k, v, **case.axial_options, backend="reference")
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, exact, 2**-8, 2**-8)
