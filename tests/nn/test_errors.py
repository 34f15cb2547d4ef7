"""What does not fit is named, all of it at once, before anything is computed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from crisscross import ArgumentError, ArgumentTypeError, CrissCrossError, nn
from crisscross.ops.backends import BACKENDS
from crisscross.problem import PRECISIONS

X = np.random.default_rng(0).standard_normal((1, 8, 3, 4)).astype(np.float32)
BLOCK = nn.init_criss_cross_block(8, inner=2, gamma=0.5)
HEAD = nn.init_rcca_head(8, classes=3, inner=4, outer=6, gamma=0.5)
NON_LOCAL = nn.init_non_local_block(8, inner=2)


def without(parameters, *names):
    return {name: array for name, array in parameters.items() if name not in names}


CASES = [
    (nn.criss_cross_block, [], X, {}, ArgumentTypeError,
     ["parameters: expected a mapping of names to arrays, got list []"]),
    (nn.criss_cross_block, BLOCK, 3, {}, ArgumentTypeError,
     ["x: expected an array of NumPy ... got int"]),
    (nn.criss_cross_block, BLOCK, X[0, 0], {}, ArgumentError,
     ["x.shape: expected (N, C, *S) or (N, *S, C), got (3, 4)"]),
    (nn.criss_cross_block, BLOCK, X.astype(int), {}, ArgumentTypeError,
     ["x.dtype: expected one of float16, bfloat16, float32, float64, got int64"]),
    (nn.criss_cross_block, BLOCK, X, {"channel_axis": 2}, ArgumentError,
     ["channel_axis: expected 1 (N, C, *S) or -1 (N, *S, C), got 2"]),
    (nn.criss_cross_block, without(BLOCK, "gamma", "key_conv.bias"), X, {}, ArgumentError,
     ["parameters['gamma']: expected an array, got nothing of that name",
      "parameters['key_conv.bias']: expected an array, got nothing of that name"]),
    (nn.criss_cross_block, {**BLOCK, "spare": X}, X, {}, ArgumentError,
     ["parameters: expected names among ['gamma', 'key_conv.bias' ... got 'spare'"]),
    (nn.criss_cross_block, {**BLOCK, "gamma": 0.5}, X, {}, ArgumentTypeError,
     ["parameters['gamma']: expected an array of NumPy ... got float"]),
    (nn.criss_cross_block, {**BLOCK, "gamma": np.zeros(2, "f4")}, X, {}, ArgumentError,
     ["parameters['gamma'].shape: expected (1,), got (2,)"]),
    (nn.criss_cross_block,
     {**BLOCK, "key_conv.weight": np.zeros((3, 8), "f4"), "value_conv.bias": np.zeros(1, "f4")},
     X, {}, ArgumentError,
     ["parameters['key_conv.weight'].shape: expected (2, 8, 1, 1) or (2, 8), got (3, 8)",
      "parameters['value_conv.bias'].shape: expected (8,), got (1,)"]),
    (nn.criss_cross_block, {**BLOCK, "query_conv.weight": np.zeros((2, 8, 3, 3), "f4")}, X, {},
     ArgumentError, ["expected (2, 8, 1, 1) or (2, 8), got (2, 8, 3, 3)"]),
    (nn.criss_cross_block, {**BLOCK, "query_conv.weight": np.zeros((2, 8, 1), "f4")}, X, {},
     ArgumentError, ["expected (2, 8, 1, 1) or (2, 8), got (2, 8, 1)"]),
    (nn.criss_cross_block, {**BLOCK, "gamma": np.zeros(1)}, X, {}, ArgumentTypeError,
     ["parameters['gamma'].dtype: expected float32 like x, got float64"]),
    (nn.criss_cross_block, {**BLOCK, "gamma": torch.zeros(1)}, X, {}, ArgumentTypeError,
     ["parameters['gamma']: expected an array of numpy like x, got an array of torch"]),
    (nn.criss_cross_block, BLOCK, X, {"recurrence": -1}, ArgumentError,
     ["recurrence: expected at least 0, got -1"]),
    (nn.criss_cross_block, BLOCK, X, {"recurrence": 1.5}, ArgumentTypeError,
     ["recurrence: expected an integer, got 1.5"]),
    (nn.criss_cross_block, nn.init_criss_cross_block(8, recurrence=2), X, {"recurrence": 3},
     ArgumentError, ["recurrence: expected 2, as many as there are parameters for, got 3"]),
    (nn.position_attention_block, without(BLOCK, "gamma"), X, {}, ArgumentError,
     ["parameters['gamma']: expected an array, got nothing of that name"]),
    (nn.channel_attention_block, BLOCK, X, {}, ArgumentError,
     ["parameters: expected names among ['gamma'], got 'query_conv.weight', ... 'key_conv.bias'"]),
    (nn.non_local_block, NON_LOCAL, X, {"mode": "gaussian"}, ArgumentError,
     ["mode: expected one of ('embedded_gaussian', 'dot_product'), got 'gaussian'"]),
    (nn.non_local_block, {**NON_LOCAL, "W.weight": np.zeros((8, 3), "f4")}, X, {}, ArgumentError,
     ["parameters['W.weight'].shape: expected (8, 2, 1, 1) or (8, 2), got (8, 3)"]),
    (nn.rcca_head, HEAD, X, {"norm": "layer"}, ArgumentError,
     ["norm: expected one of ('batch', 'group', None), got 'layer'"]),
    (nn.rcca_head, HEAD, X, {"activation": "gelu", "last_activation": "elu"}, ArgumentError,
     ["activation: expected one of ('leaky_relu', 'relu', None), got 'gelu'",
      "last_activation: expected one of ('leaky_relu', 'relu', None), got 'elu'"]),
    (nn.rcca_head, {**HEAD, "conva.0.weight": np.zeros((4, 8, 2, 3), "f4")}, X, {}, ArgumentError,
     ["parameters['conva.0.weight'].shape: expected (4, 8, odd, odd), got (4, 8, 2, 3)"]),
    (nn.rcca_head, {**HEAD, "cca.gamma": np.zeros(3, "f4")}, X, {}, ArgumentError,
     ["parameters['cca.gamma'].shape: expected (1,), got (3,)"]),
    (nn.rcca_head, HEAD, X, {"norm": None}, ArgumentError,
     ["parameters: ... got 'conva.1.weight', 'conva.1.bias', "]),
    (nn.rcca_head, without(HEAD, "conva.1.running_var"), X, {}, ArgumentError,
     ["parameters['conva.1.running_var']: expected an array, got nothing of that name"]),
    (nn.rcca_head,
     without(HEAD, *(name for name in HEAD if "running" in name)), X,
     {"norm": "group", "groups": 4}, ArgumentError,
     ["groups: expected a divisor of 6, the channels of bottleneck, got 4"]),
    (nn.rcca_head, HEAD, X, {"training": True, "epsilon": 0}, ArgumentError,
     ["training: expected None or a Training, got True",
      "epsilon: expected a positive number, got 0"]),
    (nn.rcca_head, HEAD, X, {"training": nn.Training(0, dropout=1.0, momentum=1.5)}, ArgumentError,
     ["training.generator: expected None or a numpy Generator, ... got 0",
      "training.dropout: expected a share, dropout below 1, got 1.0",
      "training.momentum: expected a share, dropout below 1, got 1.5"]),
    (nn.rcca_head, HEAD, X, {"training": nn.Training(random.Random(0))}, ArgumentTypeError,
     ["training.generator: expected None or a numpy Generator, ... random(shape) ... got Random "]),
    (nn.rcca_head, HEAD, X, {"training": nn.Training(random)}, ArgumentTypeError,
     ["training.generator: expected None or a numpy Generator, ... random(shape) ... got module"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_errors(number):
    """Three dots stand for what is left out; each line is a mismatch."""
    function, parameters, x, options, kind, expected = CASES[number]
    with pytest.raises(kind) as raised:
        function(parameters, x, **options)
    found = list(map(str, raised.value.mismatches))
    assert len(found) == len(expected)
    for line, pattern in zip(found, expected, strict=True):
        assert all(part in line for part in pattern.split(" ... ")), line
    assert raised.value.function == function.__name__


BLOCKS = {
    "criss_cross_block": (nn.criss_cross_block, BLOCK),
    "no steps": (
        lambda *args, **options: nn.criss_cross_block(*args, recurrence=0, **options),
        BLOCK,
    ),
    "position_attention_block": (nn.position_attention_block, BLOCK),
    "non_local_block": (nn.non_local_block, NON_LOCAL),
    "rcca_head": (nn.rcca_head, HEAD),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_options_of_attention_are_named_with_the_rest(block):
    """In the block's name, before anything is computed, and even if nothing is attended to."""
    function, parameters = BLOCKS[block]
    first = next(iter(parameters))
    with pytest.raises(ArgumentError) as raised:
        function(without(parameters, first), X, precision="half", backend="tpu")
    assert raised.value.function == block.replace("no steps", "criss_cross_block")
    assert list(map(str, raised.value.mismatches)) == [
        f"parameters[{first!r}]: expected an array, got nothing of that name",
        f"backend: expected None or one of {BACKENDS}, got 'tpu'",
        f"precision: expected None or one of {PRECISIONS}, got 'half'",
    ]


@pytest.mark.parametrize("recurrence", [0, 1])
def test_options_of_the_criss_cross_block(recurrence):
    options = {"heads": 3, "scale": np.inf, "axes": (2,), "key_mask": np.ones((1, 3, 5))}
    with pytest.raises(ArgumentError) as raised:
        nn.criss_cross_block(BLOCK, X, recurrence=recurrence, **options)
    assert list(map(str, raised.value.mismatches)) == [
        "scale: expected a finite number, got inf",
        "key_mask.dtype: expected bool (True = takes part as a key), got float64",
        "q.shape[1]: expected a positive multiple of heads = 3, got 2",
        "v.shape[1]: expected a positive multiple of heads = 3, got 8",
        "key_mask.shape: expected (1, 3, 4) (N, *S), got (1, 3, 5)",
        "axes: expected a spatial axis in [-2, 2), got 2",
    ]


def test_each_recurrences_queries_are_held_to_the_heads():
    parameters = nn.init_criss_cross_block(8, recurrence=3, inner=4)
    other = nn.init_criss_cross_block(8, inner=6)
    parameters |= {f"1.{name}": array for name, array in other.items()}
    nn.criss_cross_block(parameters, X, heads=2)
    with pytest.raises(ArgumentError) as raised:
        nn.criss_cross_block(parameters, X, heads=4, scale=np.nan)
    assert list(map(str, raised.value.mismatches)) == [
        "scale: expected a finite number, got nan",
        "q.shape[1]: expected a positive multiple of heads = 4, got 6",
    ]


def test_what_a_missing_weight_would_tell_is_not_asked_of_others():
    """Of `key_conv.weight`, for instance, which has as many outputs."""
    with pytest.raises(ArgumentError) as raised:
        nn.criss_cross_block(without(BLOCK, "query_conv.weight"), X)
    assert [mismatch.argument for mismatch in raised.value.mismatches] == [
        "parameters['query_conv.weight']"
    ]
    strange = {**without(BLOCK, "query_conv.weight"), "key_conv.weight": np.zeros((2, 7), "f4")}
    with pytest.raises(
        ArgumentError, match=r"expected \(any, 8, 1, 1\) or \(any, 8\), got \(2, 7\)"
    ):
        nn.criss_cross_block(strange, X)
    names = ("conva.0.weight", "bottleneck.0.weight", "bottleneck.3.weight")
    with pytest.raises(ArgumentError) as raised:
        nn.rcca_head(without(HEAD, *names), X)
    assert [mismatch.argument for mismatch in raised.value.mismatches] == [
        f"parameters[{name!r}]" for name in names
    ]


def test_statistics_of_nothing():
    """A mean over no images would be NaN, and so would all that follows."""
    with pytest.raises(ArgumentError, match=r"x\.shape: expected positions .*, got \(0, 8, 3, 4\)"):
        nn.rcca_head(HEAD, X[:0], training=nn.Training())
    assert nn.rcca_head(HEAD, X[:0]).shape == (0, 3, 3, 4)


def test_options_that_have_no_part_in_the_dot_product_are_named():
    options = {"scale": 0.5, "precision": "tf32", "backend": "cpu"}
    with pytest.raises(ArgumentError) as raised:
        nn.non_local_block(NON_LOCAL, X, mode="dot_product", **options)
    end = "for 'dot_product', which is no attention"
    assert list(map(str, raised.value.mismatches)) == [
        f"scale: expected 1 {end}, got 0.5",
        f"precision: expected None {end}, got 'tf32'",
        f"backend: expected None {end}, got 'cpu'",
    ]


@pytest.mark.parametrize("block", [*BLOCKS, "channel_attention_block"])
def test_a_tape_is_one(block):
    """Named before anything is computed."""
    function, parameters = BLOCKS.get(
        block, (nn.channel_attention_block, nn.init_channel_attention_block())
    )
    with pytest.raises(ArgumentTypeError, match=r"tape: expected None or a Tape, got list \[\]"):
        function(parameters, X, tape=[])


def test_pairs_are_a_list():
    for function, parameters in ((nn.criss_cross_block, BLOCK), (nn.rcca_head, HEAD)):
        with pytest.raises(ArgumentTypeError, match="pairs: expected None or a list, got tuple"):
            function(parameters, X, pairs=())


def test_parameters_on_another_device():
    parameters = {name: torch.from_numpy(array) for name, array in BLOCK.items()}
    parameters["gamma"] = parameters["gamma"].to("meta")
    with pytest.raises(
        CrissCrossError, match=r"parameters\['gamma'\]: expected a tensor with memory"
    ):
        nn.criss_cross_block(parameters, torch.from_numpy(X))


#: What x is -> how the errors begin: of parameters all of which would not fit, x is told first.
OTHERS = {
    "channels": (np.zeros((1, 6, 3, 5)), "x.shape: expected (N, 8, *S) like parameters, with ch"),
    "layout": (
        np.zeros((1, 3, 5, 8)),
        "x.shape: expected (N, 8, *S) like parameters, with channel_",
    ),
    "axes": (
        np.zeros((3, 8, 5)),
        "x.shape: expected N, channels and 2 spatial sizes like parameters",
    ),
    "dtype": (
        np.zeros((1, 8, 3, 5), np.float32),
        "x.dtype: expected float64 like parameters, got f",
    ),
    "library": (torch.zeros(1, 8, 3, 5).double(), "x: expected an array of numpy like parameters"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_x_is_what_does_not_fit(name):
    x, beginning = OTHERS[name]
    blocks = {
        nn.criss_cross_block: nn.init_criss_cross_block(8, dtype="float64"),
        nn.non_local_block: nn.init_non_local_block(8, dtype="float64"),
        nn.rcca_head: nn.init_rcca_head(8, classes=3, dtype="float64"),
    }
    for block, parameters in blocks.items():
        with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
            block(parameters, x)
        assert str(caught.value.mismatches[0]).startswith(beginning)
        assert not any(str(each).startswith("x") for each in caught.value.mismatches[1:])
