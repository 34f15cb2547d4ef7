"""Corners of the kernels that no other test reaches: `tests.kernels.mutation` found them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import crisscross
from crisscross.testing import assert_matches_reference, make_case
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


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("parts", [2, 10])
def test_merge_of_long_strips(parts, channel_axis):
    """Several tiles of rows, the last one ragged; with ten parts, several launches."""
    rng = np.random.default_rng(0)
    shape = (2, 6, 3, 70) if channel_axis == 1 else (2, 3, 70, 6)
    outs = [rng.standard_normal(shape, np.float32) for _ in range(parts)]
    lses = [rng.standard_normal((2, 2, 3, 70), np.float32) for _ in range(parts)]
    given = {"channel_axis": channel_axis}
    out, lse = crisscross.merge_attentions(outs, lses, **given)
    exact_out, exact_lse = crisscross.merge_attentions(
        [each.astype(np.float64) for each in outs],
        [each.astype(np.float64) for each in lses],
        **given,
        backend="reference",
    )
    np.testing.assert_allclose(out, exact_out, rtol=0, atol=2e-6)
    np.testing.assert_allclose(lse, exact_lse, rtol=0, atol=2e-6)
