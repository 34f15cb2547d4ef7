"""Corners of the kernels that no other test reaches: `tests.kernels.mutation` found them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

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
