"""Blocks on arrays of other libraries: the results of NumPy's, as arrays of that library."""

from __future__ import annotations

import array_api_strict
import jax
import numpy as np
import pytest

from crisscross import nn
from crisscross.nn.layers import project

#: JAX by default has no float64; the strict namespace has no 16 bits.
LIBRARIES = {
    "jax": (jax.numpy.asarray, np.asarray, jax.Array),
    "array_api_strict": (
        array_api_strict.asarray,
        lambda array: np.from_dlpack(array),
        type(array_api_strict.asarray([0.0])),
    ),
}
BLOCKS = {
    "criss_cross": (
        nn.criss_cross_block,
        nn.init_criss_cross_block(8, gamma=0.6),
        {"recurrence": 2},
    ),
    "position": (
        nn.position_attention_block,
        nn.init_position_attention_block(8, gamma=0.6),
        {},
    ),
    "channel": (nn.channel_attention_block, nn.init_channel_attention_block(gamma=0.6), {}),
    "non_local": (nn.non_local_block, nn.init_non_local_block(8, zero=False), {}),
    "dot_product": (
        nn.non_local_block,
        nn.init_non_local_block(8, zero=False),
        {"mode": "dot_product"},
    ),
    "head": (nn.rcca_head, nn.init_rcca_head(8, classes=3, inner=8, outer=4, gamma=0.6), {}),
    "head with groups": (
        nn.rcca_head,
        nn.init_rcca_head(8, classes=3, inner=8, outer=4, gamma=0.6, norm="group"),
        {"norm": "group", "groups": 2},
    ),
}


def test_jax_is_told_to_multiply_float32_as_such():
    """On a CPU it does anyway; on a GPU its default is TF32."""
    x = np.zeros((1, 8, 2, 3), np.float32)
    weight = np.zeros((4, 8), np.float32)

    def differentiate(x, weight):
        tape = nn.Tape()
        out = project(x, weight, None, 1, tape)
        return tape.pull(out, out, (x, weight))

    jaxpr = str(jax.make_jaxpr(differentiate)(x, weight))
    assert jaxpr.count("dot_general[") == 3
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_blocks_and_their_gradients(library, name, channel_axis):
    take, give, kind = LIBRARIES[library]
    run, parameters, options = BLOCKS[name]
    options = {**options, "channel_axis": channel_axis}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 5, 7) if channel_axis == 1 else (2, 5, 7, 8)).astype(np.float32)

    def differentiate(parameters, x, dout=None):
        tape = nn.Tape()
        out = run(parameters, x, tape=tape, **options)
        dout = rng.standard_normal(out.shape).astype(np.float32) if dout is None else dout
        return out, dout, tape.pull(out, dout, (parameters, x))

    expected, dout, (dparameters, dx) = differentiate(parameters, x)
    given = {key: take(array) for key, array in parameters.items()}
    out, _, (found, found_dx) = differentiate(given, take(x), take(dout))
    assert isinstance(out, kind) and isinstance(found_dx, kind)
    np.testing.assert_allclose(give(out), expected, 2e-5, 2e-5)
    np.testing.assert_allclose(give(found_dx), dx, 1e-4, 1e-4)
    for key, gradient in dparameters.items():
        assert (found[key] is None) == (gradient is None)
        if gradient is not None:
            np.testing.assert_allclose(give(found[key]), gradient, 1e-3, 1e-3)


def test_training_in_another_library():
    run, parameters, _ = BLOCKS["head"]
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 7)).astype(np.float32)

    def train(parameters, x):
        return run(parameters, x, training=nn.Training(np.random.default_rng(1)))

    expected, expected_statistics = train(parameters, x)
    given = {key: jax.numpy.asarray(array) for key, array in parameters.items()}
    out, statistics = train(given, jax.numpy.asarray(x))
    np.testing.assert_allclose(out, expected, 2e-5, 2e-5)
    for key, array in expected_statistics.items():
        assert isinstance(statistics[key], jax.Array)
        np.testing.assert_allclose(statistics[key], array, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_on_a_gpu(name):
    cupy = pytest.importorskip("cupy")
    run, parameters, options = BLOCKS[name]
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 7)).astype(np.float32)
    given = {key: cupy.asarray(array) for key, array in parameters.items()}
    tape = nn.Tape()
    out = run(given, cupy.asarray(x), tape=tape, **options)
    assert isinstance(out, cupy.ndarray)
    np.testing.assert_allclose(out.get(), run(parameters, x, **options), 1e-4, 1e-4)
    reference = nn.Tape()
    expected = run(parameters, x, tape=reference, **options)
    dx = tape.pull(out, cupy.ones_like(out), given)
    expected_dx = reference.pull(expected, np.ones_like(expected), parameters)
    for key, gradient in expected_dx.items():
        if gradient is not None:
            np.testing.assert_allclose(dx[key].get(), gradient, 1e-3, 1e-3)
