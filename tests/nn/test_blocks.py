"""Every block against its definition, and its gradients against finite differences, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross import nn
from crisscross.nn.layers import rectify, standardise
from tests.nn import definitions

SPATIAL = [(5, 7), (9, 4), (1, 6), (11,), (3, 5, 4)]
CHANNEL_AXES = (1, -1)
OPTIONS = {"seed": 3, "dtype": "float64"}


def draw(shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def make_uneven(parameters):
    """Make what is one number for all channels in the beginning differ from one to the next."""
    rng = np.random.default_rng(5)
    return {
        name: array * rng.uniform(0.7, 1.3, array.shape) + 0.1 * rng.uniform(0.5, 1, array.shape)
        for name, array in parameters.items()
    }


def lay(x, channel_axis):
    return x if channel_axis == 1 else np.moveaxis(x, 1, -1)


def check_gradients(run, parameters, x, *, silent=()):
    """Hold gradients along random directions to central differences of the block itself."""
    tape = nn.Tape()
    out = run(parameters, x, tape)
    np.testing.assert_array_equal(out, run(parameters, x, None))
    dout = draw(out.shape, 1)
    dparameters, dx = tape.pull(out, dout, (parameters, x))
    assert {name for name, gradient in dparameters.items() if gradient is None} == set(silent)
    shapes = {name: dparameters[name].shape for name in parameters if name not in silent}
    assert shapes == {name: parameters[name].shape for name in shapes} and dx.shape == x.shape

    def differentiate(name):
        """Of one parameter alone, or of x, so that none hides behind another."""
        at = x if name is None else parameters[name]
        direction, step = draw(at.shape, 2), 1e-6

        def total(sign):
            moved = at + sign * step * direction
            if name is None:
                return np.sum(dout * run(parameters, moved, None))
            return np.sum(dout * run({**parameters, name: moved}, x, None))

        found = np.sum((dx if name is None else dparameters[name]) * direction)
        np.testing.assert_allclose(found, (total(1) - total(-1)) / (2 * step), 1e-6, 1e-7)

    for name in (None, *shapes):
        differentiate(name)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
def test_criss_cross_block(spatial, channel_axis, recurrence):
    parameters = nn.init_criss_cross_block(
        10, inner=3, gamma=0.7, spatial_ndim=len(spatial), **OPTIONS
    )
    x = draw((2, 10, *spatial))
    out = nn.criss_cross_block(
        parameters, lay(x, channel_axis), recurrence=recurrence, channel_axis=channel_axis
    )
    expected = lay(definitions.criss_cross(parameters, x, recurrence), channel_axis)
    np.testing.assert_allclose(out, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
def test_each_recurrence_may_have_its_own_parameters(channel_axis):
    parameters = nn.init_criss_cross_block(10, recurrence=3, gamma=0.7, **OPTIONS)
    assert np.any(parameters["0.query_conv.weight"] != parameters["1.query_conv.weight"])
    x = draw((2, 10, 5, 7))
    out = nn.criss_cross_block(parameters, lay(x, channel_axis), channel_axis=channel_axis)
    expected = lay(definitions.criss_cross(parameters, x, 3), channel_axis)
    np.testing.assert_allclose(out, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize("own", [None, 2])
@pytest.mark.parametrize("spatial", [(5, 3), (7,), (2, 3, 4)])
def test_gradients_of_the_criss_cross_block(spatial, own, channel_axis):
    parameters = nn.init_criss_cross_block(
        8, recurrence=own, gamma=0.7, spatial_ndim=len(spatial), **OPTIONS
    )
    x = lay(draw((2, 8, *spatial)), channel_axis)

    def run(parameters, x, tape):
        return nn.criss_cross_block(
            parameters, x, recurrence=2, heads=1, channel_axis=channel_axis, tape=tape
        )

    check_gradients(run, parameters, x)


def test_options_reach_attention():
    """Heads, scale, axes and the mask: as projecting and attending by hand."""
    parameters = nn.init_criss_cross_block(8, inner=4, gamma=0.7, **OPTIONS)
    x, mask = draw((2, 8, 5, 7)), np.random.default_rng(0).random((2, 5, 7)) < 0.7
    options = {"heads": 2, "scale": 0.3, "axes": (1,), "key_mask": mask}
    q, k, v = (
        definitions.project(parameters, f"{name}_conv", x) for name in ("query", "key", "value")
    )
    attended = crisscross.criss_cross_attention(q, k, v, **options)
    out = nn.criss_cross_block(parameters, x, **options)
    np.testing.assert_allclose(out, parameters["gamma"] * attended + x, 1e-12, 1e-12)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize(
    ("spatial", "axes"),
    [((3, 5, 4), axes) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (-1, 0))]
    + [((5, 7), (0,)), ((5, 7), (1,)), ((11,), (0,)), ((2, 3, 1, 2), (0, 3))],
)
def test_chosen_axes(spatial, axes, channel_axis):
    """Strips of these axes alone, self once, against all pairs of positions."""
    parameters = nn.init_criss_cross_block(
        6, inner=3, gamma=0.7, spatial_ndim=len(spatial), **OPTIONS
    )
    x = draw((2, 6, *spatial))
    given = lay(x, channel_axis)

    def run(parameters, x, tape):
        return nn.criss_cross_block(
            parameters, x, recurrence=2, axes=axes, channel_axis=channel_axis, tape=tape
        )

    expected = lay(definitions.criss_cross(parameters, x, 2, axes), channel_axis)
    np.testing.assert_allclose(run(parameters, given, None), expected, 1e-12, 1e-12)
    check_gradients(run, parameters, given)


def test_gradients_with_options():
    """Two heads, a scale, a mask, one axis."""
    parameters = nn.init_criss_cross_block(8, inner=4, gamma=0.7, **OPTIONS)
    mask = np.random.default_rng(0).random((2, 5, 7)) < 0.7

    def run(parameters, x, tape):
        return nn.criss_cross_block(
            parameters, x, recurrence=2, heads=2, scale=0.3, axes=(1,), key_mask=mask, tape=tape
        )

    check_gradients(run, parameters, draw((2, 8, 5, 7)))


@pytest.mark.parametrize("recurrence", [np.int64(3), np.array(3)])
def test_recurrence_may_be_any_integer(recurrence):
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    x = draw((1, 8, 4, 5))
    expected = nn.criss_cross_block(parameters, x, recurrence=3)
    out = nn.criss_cross_block(parameters, x, recurrence=recurrence)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize("spatial", SPATIAL)
def test_position_attention_block(spatial, channel_axis):
    parameters = nn.init_position_attention_block(
        10, inner=3, gamma=0.7, spatial_ndim=len(spatial), **OPTIONS
    )
    x = draw((2, 10, *spatial))
    given = lay(x, channel_axis)
    out = nn.position_attention_block(parameters, given, channel_axis=channel_axis)
    expected = lay(definitions.position_attention(parameters, x), channel_axis)
    np.testing.assert_allclose(out, expected, 1e-12, 1e-12)

    def run(parameters, x, tape):
        return nn.position_attention_block(parameters, x, channel_axis=channel_axis, tape=tape)

    check_gradients(run, parameters, given)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize("spatial", SPATIAL)
def test_channel_attention_block(spatial, channel_axis):
    parameters = nn.init_channel_attention_block(gamma=0.7, dtype="float64")
    x = draw((2, 6, *spatial), scale=0.5)
    given = lay(x, channel_axis)
    out = nn.channel_attention_block(parameters, given, channel_axis=channel_axis)
    expected = lay(definitions.channel_attention(parameters, x), channel_axis)
    np.testing.assert_allclose(out, expected, 1e-12, 1e-12)

    def run(parameters, x, tape):
        return nn.channel_attention_block(parameters, x, channel_axis=channel_axis, tape=tape)

    check_gradients(run, parameters, given)


def test_channels_far_apart_do_not_overflow():
    """Energies of thousands: only their differences count."""
    parameters = nn.init_channel_attention_block(gamma=0.7, dtype="float64")
    x = draw((1, 6, 30, 40), scale=10.0)
    out = nn.channel_attention_block(parameters, x)
    np.testing.assert_allclose(out, definitions.channel_attention(parameters, x), 1e-12, 1e-12)


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize("spatial", SPATIAL)
def test_non_local_block(spatial, channel_axis, mode):
    parameters = nn.init_non_local_block(
        10, inner=3, zero=False, spatial_ndim=len(spatial), **OPTIONS
    )
    x = draw((2, 10, *spatial))
    given = lay(x, channel_axis)
    out = nn.non_local_block(parameters, given, mode=mode, channel_axis=channel_axis)
    expected = lay(definitions.non_local(parameters, x, mode), channel_axis)
    np.testing.assert_allclose(out, expected, 1e-12, 1e-12)

    def run(parameters, x, tape):
        return nn.non_local_block(parameters, x, mode=mode, channel_axis=channel_axis, tape=tape)

    check_gradients(run, parameters, given)


def test_the_non_local_block_does_without_biases():
    parameters = nn.init_non_local_block(6, zero=False, **OPTIONS)
    parameters = {name: x for name, x in parameters.items() if not name.endswith("bias")}
    x = draw((1, 6, 4, 5))
    expected = definitions.non_local(parameters, x, "embedded_gaussian")
    np.testing.assert_allclose(nn.non_local_block(parameters, x), expected, 1e-12, 1e-12)


HEADS = [
    ("batch", "leaky_relu", "same", False),
    ("batch", "relu", "same", True),
    ("batch", "leaky_relu", "relu", True),
    ("group", "leaky_relu", "same", False),
    (None, None, None, False),
]
STATISTICS = {
    f"{name}.1.{part}"
    for name in ("conva", "convb", "bottleneck")
    for part in ("running_mean", "running_var")
}


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
@pytest.mark.parametrize(("norm", "activation", "last", "training"), HEADS)
@pytest.mark.parametrize("spatial", [(5, 3), (6,), (2, 3, 3)])
def test_rcca_head(spatial, norm, activation, last, training, channel_axis):
    parameters = make_uneven(
        nn.init_rcca_head(
            6,
            classes=3,
            inner=8,
            outer=4,
            norm=norm,
            gamma=0.7,
            spatial_ndim=len(spatial),
            **OPTIONS,
        )
    )
    x = draw((2, 6, *spatial))
    given = lay(x, channel_axis)

    def run(parameters, x, tape):
        found = nn.rcca_head(
            parameters,
            x,
            norm=norm,
            groups=2,
            epsilon=1e-3,
            activation=activation,
            last_activation=last,
            training=nn.Training() if training else None,
            channel_axis=channel_axis,
            tape=tape,
        )
        return found[0] if training else found

    last = activation if last == "same" else last
    expected = definitions.rcca_head(parameters, x, 2, norm, 2, activation, last, 1e-3, training)
    out = run(parameters, given, None)
    np.testing.assert_allclose(out, lay(expected, channel_axis), 1e-11, 1e-11)
    check_gradients(run, parameters, given, silent=STATISTICS if norm == "batch" else ())


def test_running_statistics_follow_those_of_the_batch():
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=4, gamma=0.7, **OPTIONS)
    x = draw((2, 6, 5, 3))
    _, statistics = nn.rcca_head(parameters, x, training=nn.Training(momentum=0.25))
    assert statistics.keys() == STATISTICS
    convolved = definitions.convolve(parameters["conva.0.weight"], x)
    mean, variance = (f(convolved, axis=(0, 2, 3)) for f in (np.mean, np.var))
    np.testing.assert_allclose(statistics["conva.1.running_mean"], 0.25 * mean, 1e-12)
    expected = 0.75 + 0.25 * variance * 30 / 29
    np.testing.assert_allclose(statistics["conva.1.running_var"], expected, 1e-12)
    # What is returned takes the place of what was given.
    _, again = nn.rcca_head({**parameters, **statistics}, x, training=nn.Training(momentum=0.25))
    np.testing.assert_allclose(again["conva.1.running_mean"], 0.4375 * mean, 1e-12)


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
def test_whole_channels_are_dropped_and_the_others_make_up_for_them(channel_axis):
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=64, norm=None, gamma=0.7, **OPTIONS)
    # Each channel of the bottleneck is seen through a class of its own.
    parameters["bottleneck.3.weight"] = np.eye(64)
    parameters["bottleneck.3.bias"] = np.zeros(64)
    x = lay(draw((2, 6, 5, 3)), channel_axis)
    options = {"norm": None, "channel_axis": channel_axis}
    whole = nn.rcca_head(parameters, x, **options)
    training = nn.Training(np.random.default_rng(0), dropout=0.25)
    dropped, _ = nn.rcca_head(parameters, x, training=training, **options)
    factors = np.moveaxis(dropped / whole, channel_axis, 1).reshape(2, 64, -1)
    assert np.all((factors == 0) | np.isclose(factors, 4 / 3))
    assert np.all(np.isclose(factors, factors[:, :, :1]))
    share = np.mean(factors[:, :, 0] == 0)
    assert 0.1 < share < 0.4 and np.any(factors[0] != factors[1])


def test_gradients_of_dropout():
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=8, norm=None, gamma=0.7, **OPTIONS)

    def run(parameters, x, tape):
        training = nn.Training(np.random.default_rng(1), dropout=0.4)
        return nn.rcca_head(parameters, x, norm=None, training=training, tape=tape)[0]

    check_gradients(run, parameters, draw((2, 6, 4, 5)))


@pytest.mark.parametrize("channel_axis", CHANNEL_AXES)
def test_statistics_of_large_numbers(channel_axis):
    """float32 beside float64: a million numbers around 1000, of deviation 1."""
    x = draw((2, 4, 512, 256)).astype(np.float32) + np.float32(1000)
    out, mean, variance = standardise(lay(x, channel_axis), None, 1e-5, channel_axis, None)
    wide = x.astype(float)
    exact_mean, exact_variance = (f(wide, axis=(0, 2, 3)) for f in (np.mean, np.var))
    np.testing.assert_allclose(mean, exact_mean, 3e-7)
    np.testing.assert_allclose(variance, exact_variance, 3e-6)
    standard = (wide - wide.mean((0, 2, 3), keepdims=True)) / np.sqrt(
        wide.var((0, 2, 3), keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(out, lay(standard, channel_axis), 2e-4, 2e-4)


def test_relu_of_infinity():
    """In float16 a convolution overflows, and a scaled loss does: 0 * infinity is not to be NaN."""
    x = np.array([-np.inf, -2.0, 0.0, 3.0, np.inf], np.float16)
    tape = nn.Tape()
    out = rectify(x, 0.0, tape)
    np.testing.assert_array_equal(out, [0, 0, 0, 3, np.inf])
    dout = np.full(5, np.inf, np.float16)
    np.testing.assert_array_equal(tape.pull(out, dout, x), [0, 0, 0, np.inf, np.inf])
    assert np.isnan(rectify(np.float32([np.nan]), 0.0, None)).all()


def test_norms_may_be_float32_beside_16_bits():
    """As mixed precision has them; in float16 a variance of 10^5 would be infinite."""
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=4, gamma=0.7, dtype="float16")
    wide = {
        name: array.astype(np.float32) if ".1." in name else array
        for name, array in parameters.items()
    }
    wide["conva.1.running_var"][...] = 1e5
    x = draw((2, 6, 5, 7), scale=100.0).astype(np.float16)
    tape = nn.Tape()
    out, statistics = nn.rcca_head(wide, x, training=nn.Training(), tape=tape)
    assert out.dtype == np.float16 and np.isfinite(out.astype(float)).all()
    assert {array.dtype for array in statistics.values()} == {np.dtype(np.float32)}
    gradients = tape.pull(out, np.ones_like(out), wide)
    found = {name: array.dtype for name, array in gradients.items() if array is not None}
    assert found == {name: wide[name].dtype for name in found}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_other_dtypes(dtype):
    """Sums in float32, rounded once: close to the definition for the same parameters."""
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=4, gamma=0.7, seed=3, dtype=dtype)
    x = draw((2, 6, 5, 7)).astype(parameters["cca.gamma"].dtype)
    out = nn.rcca_head(parameters, x)
    assert out.dtype == x.dtype
    wide = {name: array.astype(float) for name, array in parameters.items()}
    expected = definitions.rcca_head(
        wide, x.astype(float), 2, "batch", 1, "leaky_relu", "leaky_relu", 1e-5, False
    )
    error = np.abs(out.astype(float) - expected).max() / np.abs(expected).max()
    assert error < {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5}[dtype]

    tape = nn.Tape()
    out = nn.rcca_head(parameters, x, tape=tape)
    dparameters, dx = tape.pull(out, np.ones_like(out), (parameters, x))
    assert dx.dtype == x.dtype
    assert {array.dtype for array in dparameters.values() if array is not None} == {x.dtype}
