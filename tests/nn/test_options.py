"""What blocks pass on, the forms that parameters may have, and what is assumed if nobody says."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from crisscross import nn
from crisscross.nn import attending
from tests.nn import definitions
from tests.nn.test_blocks import OPTIONS, check_gradients, draw, lay

X = draw((2, 8, 5, 7))
CALLS = {
    "criss_cross": (
        nn.criss_cross_block,
        nn.init_criss_cross_block(8, gamma=0.5, **OPTIONS),
        {"scale": 0.5},
    ),
    "position": (
        nn.position_attention_block,
        nn.init_position_attention_block(8, gamma=0.5, **OPTIONS),
        {},
    ),
    "non_local": (
        nn.non_local_block,
        nn.init_non_local_block(8, zero=False, **OPTIONS),
        {"scale": 0.5},
    ),
    "head": (
        nn.rcca_head,
        nn.init_rcca_head(8, classes=3, inner=8, outer=4, gamma=0.5, **OPTIONS),
        {},
    ),
}


@pytest.mark.parametrize("with_tape", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_options_reach_attention_and_its_backward(name, with_tape, monkeypatch):
    run, parameters, options = CALLS[name]
    options = {**options, "precision": "tf32", "backend": "reference"}
    seen = []

    def watch(function):
        def call(*arrays, **given):
            seen.append((function.__name__, {each: given.get(each) for each in options}))
            return function(*arrays, **given)

        return call

    for each in ("criss_cross_attention", "axial_attention"):
        for function in (each, f"{each}_backward"):
            monkeypatch.setattr(attending, function, watch(getattr(attending, function)))
    tape = nn.Tape() if with_tape else None
    out = run(parameters, X, tape=tape, **options)
    if with_tape:
        tape.pull(out, out, X)
        assert any(function.endswith("_backward") for function, _ in seen)
    assert seen and all(given == options for _, given in seen)


#: Of many products, or of large ones: in 16 bits these would be infinite, or far off.
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["position", "channel", "non_local", "dot_product"])
def test_relatives_add_up_16_bits_in_float32(name, dtype):
    make = {
        "position": lambda: nn.init_position_attention_block(8, gamma=0.5, seed=3, dtype=dtype),
        "channel": lambda: nn.init_channel_attention_block(gamma=0.5, dtype=dtype),
    }.get(name, lambda: nn.init_non_local_block(8, zero=False, seed=3, dtype=dtype))
    parameters = make()
    kind = next(iter(parameters.values())).dtype
    x = (draw((1, 8, 48, 40)) + 2).astype(kind)
    wide = {each: array.astype(float) for each, array in parameters.items()}
    exact = x.astype(float)
    if name == "channel":
        out, expected = (
            nn.channel_attention_block(parameters, x),
            definitions.channel_attention(wide, exact),
        )
    elif name == "position":
        out, expected = (
            nn.position_attention_block(parameters, x),
            definitions.position_attention(wide, exact),
        )
    else:
        mode = "dot_product" if name == "dot_product" else "embedded_gaussian"
        out = nn.non_local_block(parameters, x, mode=mode)
        expected = definitions.non_local(wide, exact, mode)
    assert out.dtype == kind
    error = np.abs(out.astype(float) - expected).max() / np.abs(expected).max()
    assert error < {"float16": 2e-3, "bfloat16": 1.6e-2}[dtype]


def test_large_features_of_16_bits_are_added_before_they_are_rounded():
    """Of 40000 and -0.7 * 60000 the sum is within float16, the product times 2 is not."""
    gamma = np.array([2.0], np.float16)
    parameters = {**nn.init_position_attention_block(1, inner=1, dtype="float16"), "gamma": gamma}
    parameters |= {name: np.zeros_like(x) for name, x in parameters.items() if name != "gamma"}
    parameters["value_conv.bias"] = np.array([40000.0], np.float16)
    x = np.full((1, 1, 3, 4), -60000.0, np.float16)
    out = nn.position_attention_block(parameters, x)
    np.testing.assert_array_equal(out, np.float16(20000))


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("sizes", [(5, 5), (1, 3), (7, 1)])
def test_kernels_of_any_odd_size(sizes, channel_axis):
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=4, norm=None, gamma=0.7, **OPTIONS)
    for name in ("conva", "convb", "bottleneck"):
        shape = (*parameters[f"{name}.0.weight"].shape[:2], *sizes)
        parameters[f"{name}.0.weight"] = draw(shape, 4, 0.2)
    x = draw((2, 6, 5, 4))

    def run(parameters, x, tape):
        return nn.rcca_head(parameters, x, norm=None, channel_axis=channel_axis, tape=tape)

    expected = definitions.rcca_head(
        parameters, x, 2, None, 1, "leaky_relu", "leaky_relu", 1e-5, False
    )
    given = lay(x, channel_axis)
    np.testing.assert_allclose(
        run(parameters, given, None), lay(expected, channel_axis), 1e-11, 1e-11
    )
    check_gradients(run, parameters, given)


def test_parameters_of_other_shapes_have_gradients_of_theirs():
    """gamma of shape (), as mmcv's, and weights without sizes of 1."""
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    parameters = {
        name: array.reshape(array.shape[:2]) if name.endswith("weight") else array
        for name, array in parameters.items()
    }
    parameters["gamma"] = parameters["gamma"].reshape(())

    def run(parameters, x, tape):
        if not isinstance(parameters["gamma"], np.ndarray):  # what NumPy makes of a sum
            parameters = {**parameters, "gamma": np.array(parameters["gamma"])}
        return nn.criss_cross_block(parameters, x, recurrence=2, tape=tape)

    check_gradients(run, parameters, X)


def test_values_of_non_local_may_have_a_width_of_their_own():
    parameters = nn.init_non_local_block(8, inner=3, zero=False, **OPTIONS)
    other = nn.init_non_local_block(8, inner=5, zero=False, **OPTIONS)
    parameters |= {name: other[name] for name in ("g.weight", "g.bias", "W.weight")}
    for mode in ("embedded_gaussian", "dot_product"):
        out = nn.non_local_block(parameters, X, mode=mode)
        np.testing.assert_allclose(out, definitions.non_local(parameters, X, mode), 1e-12, 1e-12)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_the_running_variance_is_without_bias(channel_axis):
    parameters = nn.init_rcca_head(6, classes=3, inner=8, outer=4, gamma=0.7, **OPTIONS)
    x = draw((2, 6, 5, 3))
    _, statistics = nn.rcca_head(
        parameters, lay(x, channel_axis), training=nn.Training(), channel_axis=channel_axis
    )
    convolved = definitions.convolve(parameters["conva.0.weight"], x)
    expected = 0.9 + 0.1 * convolved.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(statistics["conva.1.running_var"], expected, 1e-12)


def test_axes_may_be_walked_through_once():
    _, parameters, _ = CALLS["criss_cross"]
    for recurrence in (1, 2):
        expected = nn.criss_cross_block(parameters, X, recurrence=recurrence, axes=(0,))
        out = nn.criss_cross_block(parameters, X, recurrence=recurrence, axes=iter((0,)))
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("shape", [(2, 8, 0, 5), (0, 8, 4, 5)])
@pytest.mark.parametrize(
    "run",
    [
        lambda x: nn.non_local_block(CALLS["non_local"][1], x, mode="dot_product"),
        lambda x: nn.non_local_block(CALLS["non_local"][1], x),
        lambda x: nn.position_attention_block(CALLS["position"][1], x),
        lambda x: nn.criss_cross_block(CALLS["criss_cross"][1], x),
        lambda x: nn.channel_attention_block({"gamma": np.ones(1)}, x),
        lambda x: nn.rcca_head(CALLS["head"][1], x),
        lambda x: nn.rcca_head(
            nn.init_rcca_head(8, classes=8, inner=8, outer=4, norm="group", **OPTIONS),
            x,
            norm="group",
            groups=2,
        ),
    ],
)
def test_no_positions_at_all(run, shape):
    """Nothing comes of nothing, and nobody warns of it."""
    out = run(np.zeros(shape))
    assert out.shape[0] == shape[0] and out.shape[2:] == shape[2:] and out.size == 0


def test_what_is_assumed():
    """As CCNet has it, and its ports."""
    assert nn.Training() == (None, 0.1, 0.1)
    head = inspect.signature(nn.rcca_head).parameters
    assert [head[name].default for name in ("groups", "epsilon", "activation")] == [
        32, 1e-5, "leaky_relu"
    ]  # fmt: skip
    for convert in (nn.from_ccnet, nn.from_mmcv):
        assert inspect.signature(convert).parameters["epsilon"].default == 1e-5
