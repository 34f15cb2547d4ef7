"""Which energies do without a shift by their peak, and that nobody sees it in the result."""

import numpy as np
import pytest

import crisscross
from crisscross.cpu import lengths, weights
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


@pytest.mark.parametrize("energy", [64.1, -64.1, np.inf, -np.inf, np.nan])
def test_one_energy_takes_the_calm_away(energy):
    energies = np.full((2, 3, 4, 5, 6), 64, np.float32)
    energies[0] = -64
    assert weights.are_calm(energies)
    energies[1, 2, 3, 4, 5] = energy
    assert not weights.are_calm(energies)


def test_a_calm_image_gets_the_bits_that_it_gets_beside_a_wild_one():
    rng = np.random.default_rng(0)
    energies = rng.uniform(-30, 30, (2, 1, 16, 16, 32)).astype(np.float32)
    results = []
    for factor in (1, 10):
        energies[1] *= factor
        assert weights.are_calm(energies) == (factor == 1)
        found, lse = energies.copy(), np.full(energies.shape[:-1], np.nan, np.float32)
        keyless = weights.normalise(found, [found[..., 3]], lse, judged=True)
        assert (keyless is None) == (factor == 1)
        assert (found[..., 3] == 0).all()
        results.append((found[0], lse[0]))
    for calm, other in zip(*results, strict=True):
        np.testing.assert_array_equal(calm, other)


@pytest.mark.parametrize("factor", [1, 60])
def test_images_with_large_energies_are_shifted_and_no_others(monkeypatch, factor):
    """Small images; whichever way they go, they are as exact."""
    case = make_case((16, 17), batch=2, head_size_qk=4, head_size_v=8)
    q = case.q.copy()
    q[1] *= factor
    crisscross.set_num_threads(1)
    seen = []

    def look(energies, diagonals, judgement):
        seen.extend(judgement.tame.ravel())
        return exponentiate(energies, diagonals, judgement)

    exponentiate = weights.exponentiate
    monkeypatch.setattr(weights, "exponentiate", look)
    found = crisscross.criss_cross_attention(q, case.k, case.v, return_lse=True, backend="cpu")
    assert seen == ([] if factor == 1 else [True, False])
    wide = [x.astype(np.float64) for x in (q, case.k, case.v)]
    oracle = crisscross.criss_cross_attention(*wide, return_lse=True, backend="reference")
    for result, expected in zip(found, oracle, strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


def test_to_join_what_was_not_shifted_takes_no_peaks():
    """The same bits, by fewer steps; also where neither part has a key."""
    rng = np.random.default_rng(0)
    total, part = rng.uniform(0, 9, (2, 40)).astype(np.float32)
    total[:3] = part[2:4] = 0
    zeros = np.zeros(40, np.float32)
    results = []
    for part_peak in (zeros, None):
        peak, whole = zeros.copy(), total.copy()
        with np.errstate(divide="ignore"):
            shares = weights.join(peak, whole, part_peak, part)
        results.append((peak, whole, *shares))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("first", "longest"),
    [(3.0, 5.0), (np.nan, 5.0), (-np.inf, 5.0), (30.0, np.hypot(30, 4)), (1e30, np.inf)],
)
def test_the_longest_vector_bounds_the_energies(first, longest):
    """Vectors that are not finite do not count, but a square beyond the largest float does."""
    vectors = np.full((2, 3, 2), [3, 4], np.float32)
    vectors[1, 2, 0] = first
    with np.errstate(all="ignore"):
        assert lengths.measure_longest(vectors) == pytest.approx(longest)
