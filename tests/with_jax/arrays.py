"""Arrays of JAX for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def to_jax(array):
    """Copy to the default device, bfloat16 included; None remains."""
    return None if array is None else jnp.asarray(np.array(array))


def draw(*shape, dtype="float32", seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def draw_all(*shapes, dtype="float64", seed=0):
    """Arrays with values that are large enough to tell keys apart."""
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def make_mask(*shape, hidden=(), seed=1):
    """A mask of keys, with images that have none at all, as well as lonely positions."""
    mask = np.random.default_rng(seed).random(shape) > 0.3
    mask[list(hidden)] = False
    return jnp.asarray(mask)


def assert_close(found, expected, tolerance):
    """Hold a tree of arrays to another; NaN fails."""
    leaves, shape = jax.tree.flatten(found)
    wanted, expected_shape = jax.tree.flatten(expected)
    assert shape == expected_shape
    for x, y in zip(leaves, wanted, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(
            np.asarray(x, float),
            np.asarray(y, float),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=False,
        )
