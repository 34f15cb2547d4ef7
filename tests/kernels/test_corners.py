"""Corners of the kernels that no other test reaches: `tests.kernels.mutation` found them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import crisscross
from crisscross.testing import assert_matches_reference, make_case, numpy_dtype
from tests.support.calls import run_whole

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("length", [21, 50, 98, 104, 131, 145, 209])
@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_values_that_positions_do_not_meet(dtype, length, poison):
    """On tensor cores too, a weight of zero is not multiplied by what is not finite."""
    case = make_case((2, length), dtype=dtype, head_size_v=24, axes=(1,), include_self=False)
    v = case.v.copy()
    v[0, 5, :, -1] = v[0, 17, :, 15] = poison
    q, k = case.q, case.k
    kept = crisscross.axial_attention(q, k, case.v, axis=1, include_self=False)
    out = crisscross.axial_attention(q, k, v, axis=1, include_self=False)
    alone = np.zeros(out.shape, bool)
    alone[0, :, :, [-1, 15]] = True
    finite = np.ones(out.shape, bool)
    finite[0, 5, :, :-1] = finite[0, 17, :, :15] = finite[0, 17, :, 16:] = False
    np.testing.assert_array_equal(np.isfinite(out), finite)
    np.testing.assert_array_equal(out[finite & ~alone], kept[finite & ~alone])
    # Its own sum, in another order.
    near = finite & alone
    np.testing.assert_allclose(out[near].astype(float), kept[near].astype(float), 2e-2, 1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_infinite_values_stay_infinite(dtype):
    """inf + finite = inf: the axis that leaves self out must not turn it into NaN."""
    q = k = np.zeros((1, 1, 3, 4), numpy_dtype(dtype))
    v = q.copy()
    v[0, 0, 1, 2] = np.inf
    out = crisscross.criss_cross_attention(q, k, v)
    assert out[0, 0, 1, 2] == np.inf
    assert not np.isnan(out.astype(float)).any()
