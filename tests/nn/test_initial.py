"""Parameters to begin with: the same each time, within bounds, and such as blocks take."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from crisscross import ArgumentError, ArgumentTypeError, nn
from crisscross.testing import numpy_dtype

DRAWN = {
    "criss_cross": nn.init_criss_cross_block,
    "position": nn.init_position_attention_block,
    "non_local": lambda channels, **options: nn.init_non_local_block(
        channels, zero=False, **options
    ),
    "head": lambda channels, **options: nn.init_rcca_head(
        channels, classes=5, inner=16, outer=24, **options
    ),
}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def is_drawn(name: str) -> bool:
    """Whether a parameter is random: those of norms, gamma and statistics are not."""
    return "gamma" not in name and ".1." not in name


@pytest.mark.parametrize("block", DRAWN)
def test_a_seed_gives_the_same_parameters(block):
    one, again, other = (DRAWN[block](32, seed=seed) for seed in (3, 3, 4))
    assert list(one) == list(again) == list(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other[name]).any() == is_drawn(name), name


@pytest.mark.parametrize("block", DRAWN)
def test_parameters_differ_from_each_other(block):
    """Each is drawn anew: keys do not begin as queries."""
    parameters = DRAWN[block](32)
    drawn = [array.ravel()[:4].tobytes() for name, array in parameters.items() if is_drawn(name)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("spatial_ndim", [1, 2, 3])
@pytest.mark.parametrize("block", DRAWN)
def test_the_bounds_are_those_of_torch(block, spatial_ndim):
    """Uniform within 1 / sqrt(inputs) of a position of the output, the biases too."""
    torch.manual_seed(0)
    parameters = DRAWN[block](64, spatial_ndim=spatial_ndim)
    for name, array in parameters.items():
        if not is_drawn(name):
            continue
        weight = parameters[name.replace("bias", "weight")]
        bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
        assert np.abs(array).max() <= bound, name
        if array.size > 200:
            assert np.abs(array).max() > 0.95 * bound, name
            # Uniform: a standard deviation of bound / sqrt(3), and no mean.
            error = 4 * bound / math.sqrt(array.size)
            assert abs(array.std(dtype=np.float64) - bound / math.sqrt(3)) < error, name
            assert abs(array.mean(dtype=np.float64)) < error, name
    # That this is what torch does.
    conv = torch.nn.Conv2d(64, 32, 3)
    bound = 1 / math.sqrt(64 * 9)
    assert 0.95 * bound < conv.weight.abs().max() <= bound
    assert 0.8 * bound < conv.bias.abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_parameters_have_the_dtype(dtype):
    made = [make(16, dtype=dtype) for make in DRAWN.values()]
    made.append(nn.init_channel_attention_block(dtype=dtype))
    for parameters in made:
        assert {array.dtype for array in parameters.values()} == {numpy_dtype(dtype)}


def test_float32_is_the_default():
    made = [make(16) for make in DRAWN.values()] + [nn.init_channel_attention_block()]
    assert {array.dtype for parameters in made for array in parameters.values()} == {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_roundings_of_one_draw(dtype):
    exact = nn.init_criss_cross_block(16, dtype="float64", seed=5)
    for name, array in nn.init_criss_cross_block(16, dtype=dtype, seed=5).items():
        np.testing.assert_array_equal(array, exact[name].astype(numpy_dtype(dtype)))
    assert numpy_dtype("bfloat16") == ml_dtypes.bfloat16


GAMMAS = {
    "criss_cross": lambda **options: nn.init_criss_cross_block(8, **options),
    "criss_cross of its own": lambda **options: nn.init_criss_cross_block(
        8, recurrence=3, **options
    ),
    "position": lambda **options: nn.init_position_attention_block(8, **options),
    "channel": nn.init_channel_attention_block,
    "head": lambda **options: nn.init_rcca_head(8, classes=2, **options),
}


@pytest.mark.parametrize("block", GAMMAS)
def test_gamma(block):
    """0 as in the originals, where nobody says."""
    for options, value in (({}, 0), ({"gamma": 0.25}, 0.25)):
        gammas = {k: v for k, v in GAMMAS[block](**options).items() if k.endswith("gamma")}
        assert len(gammas) == (3 if block == "criss_cross of its own" else 1)
        assert all(gamma.shape == (1,) and gamma == value for gamma in gammas.values())


@pytest.mark.parametrize("prefix", ["", "cca."])
def test_each_recurrence_may_have_its_own(prefix):
    def make(recurrence):
        if prefix:
            return nn.init_rcca_head(8, classes=2, inner=8, recurrence=recurrence)
        return nn.init_criss_cross_block(8, recurrence=recurrence)

    shared = {name.removeprefix(prefix) for name in make(None) if "conva" not in name}
    shared = {name for name in shared if name == "gamma" or "_conv" in name}
    assert len(shared) == 7
    for recurrence in (1, 2, 3):
        made = make(recurrence)
        expected = {f"{prefix}{step}.{name}" for step in range(recurrence) for name in shared}
        assert {name for name in made if "gamma" in name or "_conv" in name} == expected
        weights = [made[f"{prefix}{step}.query_conv.weight"] for step in range(recurrence)]
        assert len({weight.tobytes() for weight in weights}) == recurrence


@pytest.mark.parametrize("spatial_ndim", [1, 2, 3])
def test_shapes(spatial_ndim):
    """Matrices have sizes of 1, kernels of 3, one for each spatial axis."""
    ones, threes = (1,) * spatial_ndim, (3,) * spatial_ndim
    block = nn.init_criss_cross_block(24, spatial_ndim=spatial_ndim)
    assert {name: array.shape for name, array in block.items()} == {
        "query_conv.weight": (3, 24, *ones),
        "query_conv.bias": (3,),
        "key_conv.weight": (3, 24, *ones),
        "key_conv.bias": (3,),
        "value_conv.weight": (24, 24, *ones),
        "value_conv.bias": (24,),
        "gamma": (1,),
    }
    other = nn.init_position_attention_block(24, inner=5, spatial_ndim=spatial_ndim)
    assert other["key_conv.weight"].shape == (5, 24, *ones)
    non_local = nn.init_non_local_block(24, spatial_ndim=spatial_ndim)
    assert non_local["theta.weight"].shape == (12, 24, *ones)
    assert non_local["W.weight"].shape == (24, 12, *ones)
    head = nn.init_rcca_head(32, classes=3, outer=7, spatial_ndim=spatial_ndim)
    shapes = {name: array.shape for name, array in head.items()}
    assert shapes["conva.0.weight"] == (8, 32, *threes)
    assert shapes["cca.query_conv.weight"] == (1, 8, *ones)
    assert shapes["convb.0.weight"] == (8, 8, *threes)
    assert shapes["bottleneck.0.weight"] == (7, 40, *threes)
    assert shapes["bottleneck.1.running_var"] == shapes["bottleneck.1.weight"] == (7,)
    assert shapes["bottleneck.3.weight"] == (3, 7, *ones)
    assert shapes["bottleneck.3.bias"] == (3,)
    assert not any(name.endswith(".0.bias") for name in shapes)  # a norm would take it away


def test_ccnets_widths_are_the_defaults():
    head = nn.init_rcca_head(classes=19)
    assert head["conva.0.weight"].shape == (512, 2048, 3, 3)
    assert head["cca.query_conv.weight"].shape == (64, 512, 1, 1)
    assert head["bottleneck.0.weight"].shape == (512, 2560, 3, 3)


@pytest.mark.parametrize(
    ("norm", "parts"),
    [
        ("batch", {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}),
        ("group", {"weight": 1, "bias": 0}),
        (None, {}),
    ],
)
def test_norms_begin_without_effect(norm, parts):
    head = nn.init_rcca_head(16, classes=2, norm=norm)
    found = {name: array for name, array in head.items() if ".1." in name}
    assert set(found) == {
        f"{x}.1.{part}" for x in ("conva", "convb", "bottleneck") for part in parts
    }
    for name, array in found.items():
        assert (array == parts[name.rpartition(".")[2]]).all()


@pytest.mark.parametrize("spatial_ndim", [1, 2, 3])
def test_blocks_take_them_and_return_their_input(spatial_ndim):
    """gamma and W are 0; heads return logits. Few channels are enough for one query channel."""
    x = np.random.default_rng(0).standard_normal((2, 4, *(3, 4, 2)[:spatial_ndim]), np.float32)
    options = {"spatial_ndim": spatial_ndim}
    for recurrence in (None, 2):
        parameters = nn.init_criss_cross_block(4, recurrence=recurrence, **options)
        np.testing.assert_array_equal(nn.criss_cross_block(parameters, x), x)
    parameters = nn.init_position_attention_block(4, **options)
    np.testing.assert_array_equal(nn.position_attention_block(parameters, x), x)
    parameters = nn.init_channel_attention_block()
    np.testing.assert_array_equal(nn.channel_attention_block(parameters, x), x)
    parameters = nn.init_non_local_block(4, **options)
    np.testing.assert_array_equal(nn.non_local_block(parameters, x), x)
    assert not parameters["W.bias"].any() and parameters["g.weight"].any()
    for norm in ("batch", "group", None):
        parameters = nn.init_rcca_head(4, classes=3, outer=4, inner=4, norm=norm, **options)
        logits = nn.rcca_head(parameters, x, norm=norm, groups=2)
        assert logits.shape == (2, 3, *x.shape[2:])


@pytest.mark.parametrize(
    ("make", "arguments", "options", "expected"),
    [
        (nn.init_criss_cross_block, (0,), {"inner": -1, "recurrence": 0, "spatial_ndim": 1.5},
         ["channels: expected at least 1, got 0", "inner: expected at least 1, got -1",
          "recurrence: expected at least 1, got 0", "spatial_ndim: expected an integer, got 1.5"]),
        (nn.init_criss_cross_block, (None,), {}, ["channels: expected an integer, got None"]),
        (nn.init_position_attention_block, (8,), {"seed": -1, "gamma": "0", "dtype": "int8"},
         ["seed: expected at least 0, got -1", "gamma: expected a real number, got '0'",
          f"dtype: expected one of {DTYPES}, got 'int8'"]),
        (nn.init_channel_attention_block, (), {"gamma": None, "dtype": float},
         ["gamma: expected a real number, got None",
          f"dtype: expected one of {DTYPES}, got type <class 'float'>"]),
        (nn.init_non_local_block, (True,), {"inner": 0},
         ["channels: expected an integer, got True", "inner: expected at least 1, got 0"]),
        (nn.init_rcca_head, (8,), {"classes": 0, "outer": 0, "norm": "layer"},
         ["classes: expected at least 1, got 0", "outer: expected at least 1, got 0",
          "norm: expected one of ('batch', 'group', None), got 'layer'"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make, arguments, options, expected):
    """All of it, in the name of what was called."""
    with pytest.raises((ArgumentError, ArgumentTypeError)) as raised:
        make(*arguments, **options)
    assert raised.value.function == make.__name__
    assert list(map(str, raised.value.mismatches)) == expected
