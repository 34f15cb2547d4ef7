"""The figures of the demo, and its formulas against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from crisscross.cli.denoise import (
    add_noise,
    attention_rows,
    choose_patch,
    compute_psnr,
    denoise,
    denoise_again,
    patch_features,
    queries_and_keys,
)

RNG = np.random.default_rng(3)


def load_camera() -> np.ndarray:
    return data.camera()[..., None].astype(np.float32) / 255


def load_crop() -> np.ndarray:
    return load_camera()[60:156, 180:276]


def find_distances(image: np.ndarray, size: int, spread: float) -> np.ndarray:
    """Squared distances of all pairs of patches, (HW, HW), entry by entry of the definition."""
    height, width, channels = image.shape
    radius = size // 2
    steps = range(-radius, radius + 1)
    padded = np.pad(image.astype(np.float64), ((radius,) * 2, (radius,) * 2, (0, 0)), "reflect")
    total, weights = np.zeros((height * width,) * 2), 0.0
    for dy in steps:
        for dx in steps:
            weight = np.exp(-(dy**2 + dx**2) / (2 * spread**2))
            weights += weight
            for channel in range(channels):
                y, x = radius + dy, radius + dx
                values = padded[y : y + height, x : x + width, channel].ravel()
                total += weight * (values[:, None] - values) ** 2
    return total / (weights * channels)


def find_cross(height: int, width: int) -> np.ndarray:
    """Which pairs of pixels share a row or a column, (HW, HW)."""
    y, x = np.divmod(np.arange(height * width), width)
    return (y[:, None] == y) | (x[:, None] == x)


def find_attention(image: np.ndarray, size: int, spread: float, bandwidth: float) -> np.ndarray:
    """The dense map A, (HW, HW)."""
    weights = np.exp(-find_distances(image, size, spread) / bandwidth**2)
    weights *= find_cross(*image.shape[:2])
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "spread"), [(1, 0.4), (3, 0.7), (5, 2.0)])
def test_energies_are_distances_but_for_a_constant_per_query(channels, size, spread):
    image = RNG.random((6, 7, channels))
    q, k = queries_and_keys(patch_features(image, size, spread))
    energies = q.reshape(42, -1).astype(np.float64) @ k.reshape(42, -1).T.astype(np.float64)
    constants = energies + find_distances(image, size, spread)
    assert np.ptp(constants, axis=1).max() < 1e-5
    assert np.ptp(constants, axis=0).max() > 0.01  # not one constant for all


@pytest.mark.parametrize(("channels", "patch"), [(1, 3), (1, 5), (3, 3)])
def test_a_pass_is_the_weighted_mean_over_the_cross(channels, patch):
    noisy = RNG.random((8, 9, channels)).astype(np.float32)
    attention = find_attention(noisy, patch, 0.4 * patch, 0.2)
    expected = (attention @ noisy.reshape(72, channels)).reshape(noisy.shape)
    np.testing.assert_allclose(denoise(noisy, 0.2, patch), expected, atol=2e-5)


def test_the_second_pass_compares_the_first_result_and_averages_the_noisy_pixels():
    noisy, once = RNG.random((2, 8, 9, 1)).astype(np.float32)
    attention = find_attention(once, 3, 0.7, 0.4 * 0.3)
    expected = (attention @ noisy.reshape(72, 1)).reshape(noisy.shape)
    np.testing.assert_allclose(denoise_again(noisy, once, 0.3), expected, atol=2e-5)


@pytest.mark.parametrize("pixel", [(0, 0), (3, 5), (7, 8)])
def test_attention_rows_are_rows_of_the_map_and_of_its_square(pixel):
    noisy = RNG.random((8, 9, 1)).astype(np.float32)
    attention = find_attention(noisy, 3, 1.2, 0.3)
    row, composed = attention_rows(noisy, 0.3, 3, pixel)
    index = pixel[0] * 9 + pixel[1]
    np.testing.assert_allclose(row.ravel(), attention[index], atol=1e-5)
    np.testing.assert_allclose(composed.ravel(), (attention @ attention)[index], atol=1e-5)
    assert row.sum() == pytest.approx(1, abs=1e-5)
    assert composed.sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(row > 0, find_cross(8, 9)[index].reshape(8, 9))
    assert (composed > 0).all()


def test_attention_rows_sum_to_one_on_a_photograph():
    for weights in attention_rows(add_noise(load_crop(), 0.1, 0), 0.1, 5, (40, 50)):
        assert weights.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)


def test_the_photograph_reaches_28_decibels_in_one_pass():
    clean = load_camera()
    assert clean.shape == (512, 512, 1)
    noisy = add_noise(clean, 0.1, seed=0)
    once = denoise(noisy, 0.1, choose_patch(0.1, channels=1))
    assert compute_psnr(clean, noisy) == pytest.approx(20.45, abs=0.05)
    assert compute_psnr(clean, once) >= 28.0
    # Measured 28.26.
    assert compute_psnr(clean, denoise_again(noisy, once, 0.1)) >= 28.2


# Measured: 3.81, 6.02 and 8.40 dB.
@pytest.mark.parametrize(("sigma", "least"), [(0.05, 3.7), (0.1, 5.9), (0.2, 8.3)])
def test_a_crop_gains(sigma, least):
    clean = load_crop()
    noisy = add_noise(clean, sigma, seed=0)
    denoised = denoise(noisy, sigma, choose_patch(sigma, channels=1))
    gain = compute_psnr(clean, denoised) - compute_psnr(clean, noisy)
    assert gain >= least


def test_a_colour_crop_gains():
    clean = data.astronaut()[:96, 180:276].astype(np.float32) / 255
    noisy = add_noise(clean, 0.1, seed=0)
    denoised = denoise(noisy, 0.1, choose_patch(0.1, channels=3))
    gain = compute_psnr(clean, denoised) - compute_psnr(clean, noisy)
    assert gain >= 6.8  # measured: 6.95


def test_noise_is_seeded():
    clean = load_crop()
    assert np.array_equal(add_noise(clean, 0.1, 7), add_noise(clean, 0.1, 7))
    assert not np.array_equal(add_noise(clean, 0.1, 7), add_noise(clean, 0.1, 8))
    assert add_noise(clean, 0.1, 7).dtype == np.float32


def test_psnr_is_of_the_clipped_image():
    clean = np.ones((4, 4, 1))
    assert compute_psnr(clean, clean + 0.5) == np.inf
    assert compute_psnr(clean, clean - 0.01) == pytest.approx(40)


def test_psnr_does_not_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        compute_psnr(np.ones((4, 4, 1)), np.ones((4, 4)))
