"""How close results of CCNet's operators have to be."""

from __future__ import annotations

import numpy as np

from crisscross.problem import COMPUTE_DTYPES
from crisscross.testing import numpy_dtype
from crisscross.testing.tolerance import epsilon_of


def assert_close(actual, exact, dtype, terms):
    """Rounded once to `dtype` after a sum of `terms` products of about 1 in the compute dtype."""
    assert actual.dtype == numpy_dtype(dtype)
    assert actual.shape == exact.shape
    ulp, compute_ulp = epsilon_of(numpy_dtype(dtype)), epsilon_of(np.dtype(COMPUTE_DTYPES[dtype]))
    allowed = ulp * np.abs(exact) + 32 * terms * compute_ulp
    error = np.abs(actual.astype(np.float64) - exact)
    # Written so that NaN fails.
    assert (error <= allowed).all(), float(np.max(error - allowed))
