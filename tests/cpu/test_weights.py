"""Which energies do without a shift by their peak, and that nobody sees it in the result."""

import dataclasses

import numpy as np
import pytest

import crisscross
from crisscross.cpu import weights
from crisscross.testing import make_case


@pytest.mark.parametrize(
    ("energy", "tame"),
    [
        (64, True),
        (-64, True),
        *((energy, True) for energy in (np.inf, -np.inf, np.nan)),
        *((energy, False) for energy in (64.1, -64.1, 3e38, -3e38)),
    ],
)
def test_one_energy_decides_for_its_image_and_head(energy, tame):
    energies = np.full((2, 3, 4, 5, 6), 8, np.float32)
    energies[1, 2, 3, 4, 5] = energy
    expected = np.ones((2, 3), bool)
    expected[1, 2] = tame
    np.testing.assert_array_equal(weights.find_tame(energies), expected)


@pytest.mark.parametrize("factor", [1, 60])
def test_rows_far_below_the_others_keep_their_digits(monkeypatch, factor):
    """Small images: those whose energies are large are shifted, the others are as exact without."""
    case = make_case((16, 17), batch=2, head_size_qk=4, head_size_v=8)
    q = case.q.copy()
    q[1] *= factor
    options = {"return_lse": True, "backend": "cpu"}
    found = crisscross.criss_cross_attention(q, case.k, case.v, **options)
    shifted = []

    def shift(energies, diagonals, tame):
        shifted.append(not tame.all())
        return exponentiate(energies, diagonals, tame)

    exponentiate = weights.exponentiate
    monkeypatch.setattr("crisscross.cpu.small.exponentiate", shift)
    again = crisscross.criss_cross_attention(q, case.k, case.v, **options)
    assert any(shifted) == (factor > 1)
    exact = dataclasses.replace(case, q=q)
    wide = [x.astype(np.float64) for x in (exact.q, exact.k, exact.v)]
    oracle = crisscross.criss_cross_attention(*wide, return_lse=True, backend="reference")
    for one, other, expected in zip(found, again, oracle, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, expected, rtol=2e-5, atol=2e-5)
