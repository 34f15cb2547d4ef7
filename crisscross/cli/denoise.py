"""Non-local means as criss-cross attention: pixels with like patches are averaged.

Images are float32 (H, W, C), black 0 and white 1. The energy of a pair of pixels is minus the
squared distance of their patches over h^2, so that the softmax over the cross of a pixel weighs
the pixels of its row and its column by how alike their surroundings are.
"""

from __future__ import annotations

import numpy as np

from crisscross import criss_cross_attention, criss_cross_attention_backward

__all__ = [
    "add_noise",
    "attention_rows",
    "choose_patch",
    "compute_psnr",
    "denoise",
    "denoise_again",
    "patch_features",
    "queries_and_keys",
]

# h over sigma and patches, tried on seven of scikit-image's photographs at sigma from 0.03 to 0.3.
# Two noisy patches are 2 sigma^2 apart where the clean ones are equal, and h has to bear that; the
# patches of the second pass hold little noise, and are compared more closely and in finer detail.
_BANDWIDTH = 1.0
_BANDWIDTH_AGAIN = 0.4
_SPREAD = 0.4
_PATCH_AGAIN, _SPREAD_AGAIN = 3, 0.7


def add_noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Add Gaussian noise of standard deviation `sigma`; nothing is clipped.

    Examples
    --------
    >>> grey = np.full((64, 64, 1), 0.5, np.float32)
    >>> abs(float(add_noise(grey, 0.1, seed=0).std()) - 0.1) < 0.01
    True
    """
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    noisy: np.ndarray = image + np.float32(sigma) * noise
    return noisy


def compute_psnr(clean: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of the image as it is shown: clipped to [0, 1].

    Examples
    --------
    >>> compute_psnr(np.zeros((2, 2, 1)), np.full((2, 2, 1), 0.1))
    20.0
    """
    if image.shape != clean.shape:  # broadcasting would make a figure of anything
        raise ValueError(f"expected two images of one shape, got {clean.shape} and {image.shape}")
    error = np.mean((np.clip(image, 0, 1) - clean) ** 2, dtype=np.float64)
    return float(-10 * np.log10(error)) if error else np.inf


def choose_patch(sigma: float, channels: int) -> int:
    """Choose the side of the patches: stronger noise takes more values to compare.

    Examples
    --------
    >>> choose_patch(0.1, channels=1), choose_patch(0.2, channels=1), choose_patch(0.2, channels=3)
    (5, 7, 5)
    """
    return 7 if sigma >= 0.15 and channels == 1 else 5


def patch_features(image: np.ndarray, size: int, spread: float) -> np.ndarray:
    """Lay the patch around each pixel along the channels: (H, W, C * size^2).

    The entries are weighted by a Gaussian of standard deviation `spread` around the middle, such
    that the squared distance of two features is the weighted mean over the patch, channels and
    all, of the squared differences. Edges are reflected.

    Examples
    --------
    >>> image = np.arange(48, dtype=np.float32).reshape(6, 8, 1)
    >>> features = patch_features(image, size=3, spread=1.0)
    >>> features.shape
    (6, 8, 9)
    >>> float(np.sum((features[1, 1] - features[1, 6]) ** 2).round(3))
    25.0
    """
    radius = size // 2
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    profile = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * spread**2))
    window = np.outer(profile, profile)
    weights = np.sqrt(window / (window.sum() * image.shape[2])).astype(np.float32)
    features: np.ndarray = (patches * weights).reshape(*image.shape[:2], -1)
    return features


def queries_and_keys(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return q = [p, 1] and k = [2p, -|p|^2], each (1, H, W, D + 1).

    ``<q_p, k_x> = 2 <p_p, p_x> - |p_x|^2 = |p_p|^2 - |p_p - p_x|^2``: minus the squared distance
    but for a term that all keys of a query share, which the softmax does not see.

    Examples
    --------
    >>> q, k = queries_and_keys(np.array([[[3.0], [5.0]]]))
    >>> (q @ k.swapaxes(-1, -2) - 3.0**2)[0, 0, 0]
    array([ 0., -4.])
    """
    ones = np.ones((*features.shape[:2], 1), features.dtype)
    q = np.concatenate([features, ones], axis=-1)
    k = np.concatenate([2 * features, -np.sum(features**2, axis=-1, keepdims=True)], axis=-1)
    return q[None], k[None]


def denoise(noisy: np.ndarray, sigma: float, patch: int) -> np.ndarray:
    """One pass, R = 1: each pixel becomes the mean of its cross, weighted by likeness.

    Examples
    --------
    >>> clean = np.tile(np.linspace(0, 1, 48, dtype=np.float32)[:, None, None], (1, 48, 1))
    >>> noisy = add_noise(clean, 0.1, seed=0)
    >>> compute_psnr(clean, denoise(noisy, 0.1, patch=5)) > compute_psnr(clean, noisy) + 5
    True
    """
    features = patch_features(noisy, patch, _SPREAD * patch)
    return _average(noisy, features, _BANDWIDTH * sigma)


def denoise_again(noisy: np.ndarray, once: np.ndarray, sigma: float) -> np.ndarray:
    """Do the second pass, R = 2: as in CCNet, queries and keys come of what the first returned.

    The pixels averaged are the noisy ones again: what the first pass blurred is not blurred twice.

    Examples
    --------
    >>> clean = np.tile(np.linspace(0, 1, 48, dtype=np.float32)[:, None, None], (1, 48, 1))
    >>> noisy = add_noise(clean, 0.1, seed=0)
    >>> once = denoise(noisy, 0.1, patch=5)
    >>> compute_psnr(clean, denoise_again(noisy, once, 0.1)) > compute_psnr(clean, once)
    True
    """
    features = patch_features(once, _PATCH_AGAIN, _SPREAD_AGAIN)
    return _average(noisy, features, _BANDWIDTH_AGAIN * sigma)


def _average(noisy: np.ndarray, features: np.ndarray, bandwidth: float) -> np.ndarray:
    q, k = queries_and_keys(features)
    averaged: np.ndarray = criss_cross_attention(
        q, k, noisy[None], scale=bandwidth**-2, channel_axis=-1
    )[0]
    return averaged


def attention_rows(
    noisy: np.ndarray, sigma: float, patch: int, pixel: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights by which the first pass makes `pixel`, and their composition.

    Parameters
    ----------
    noisy, sigma, patch
        As given to `denoise`.
    pixel : (y, x)
        Whose weights.

    Returns
    -------
    row, composed : array, (H, W)
        ``A[p, :]``, zero off the cross of the pixel, and ``(A @ A)[p, :]``: the cross of every
        pixel of the cross, which is the whole image.

    Examples
    --------
    >>> row, composed = attention_rows(np.zeros((5, 7, 1), np.float32), 0.1, 3, (2, 3))
    >>> int((row > 0).sum()), int((composed > 0).sum())
    (11, 35)
    """
    # No map A is kept, and none is needed: out = A v is linear in v, hence dv = A^T dout, and
    # with dout one at the pixel and zero elsewhere dv is its row of A. Fed in again as dout, the
    # row gives A^T A^T dout, the pixel's row of A @ A. What v holds does not matter.
    q, k = queries_and_keys(patch_features(noisy, patch, _SPREAD * patch))
    scale = (_BANDWIDTH * sigma) ** -2
    v = np.zeros((1, *noisy.shape[:2], 1), noisy.dtype)
    out, lse = criss_cross_attention(q, k, v, scale=scale, channel_axis=-1, return_lse=True)
    dout = np.zeros_like(v)
    dout[0, *pixel, 0] = 1
    rows = []
    for _ in range(2):
        _, _, dout = criss_cross_attention_backward(
            dout, q, k, v, out, lse, scale=scale, channel_axis=-1
        )
        rows.append(dout[0, ..., 0])
    return rows[0], rows[1]
