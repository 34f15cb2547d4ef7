"""What modules are given: arguments, features, and lists to fill; all that is wrong at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crisscross
from crisscross import ArgumentError, ArgumentTypeError, CrissCrossError, nn
from crisscross.torch import (
    RCCA,
    ChannelAttention,
    CrissCrossAttention,
    NonLocalBlock,
    PositionAttention,
)
from tests.with_torch.test_modules import assert_close, draw, fill, read_state

WRONG = [
    (CrissCrossAttention, (0, -1, 1.5),
     {"heads": True, "axes": "rows", "spatial_ndim": 4},
     "axes heads in_dim recurrence reduction spatial_ndim"),
    (CrissCrossAttention, (8,), {"axes": (0, 2), "spatial_ndim": 2}, "axes"),
    (CrissCrossAttention, (8,), {"spatial_ndim": [2]}, "spatial_ndim"),
    (CrissCrossAttention, (8,), {"spatial_ndim": 2.0}, "spatial_ndim"),
    (CrissCrossAttention, (8,),
     {"shared": "no", "scale": "1", "precision": "high", "backend": "tpu"},
     "backend precision scale shared"),
    (CrissCrossAttention, (8, 8), {"heads": 2}, "heads"),
    (RCCA, (0, -1, 1.5),
     {"inner": 0, "norm": "layer", "groups": 0, "activation": "gelu", "last_activation": 1,
      "spatial_ndim": 0},
     "activation groups in_channels inner last_activation norm num_classes out_channels"
     " spatial_ndim"),
    (RCCA, (8, 6, 3), {"dropout": 1.5, "recurrence": -1, "reduction": 0, "heads": 0},
     "dropout heads recurrence reduction"),
    (RCCA, (8, 6, 3), {"dropout": "much"}, "dropout"),
    (RCCA, (8, 6, 3), {"norm": "group", "groups": 4, "inner": 8}, "groups"),
    (NonLocalBlock, (0, 0), {"mode": "gaussian", "spatial_ndim": 4}, "in_channels inner mode"
     " spatial_ndim"),
    (NonLocalBlock, (8,), {"scale": "1", "zero": 1, "precision": "high", "backend": "tpu"},
     "backend precision scale zero"),
    (PositionAttention, (0, 0), {"spatial_ndim": 4, "precision": "high", "backend": "tpu"},
     "backend in_dim precision reduction spatial_ndim"),
    (ChannelAttention, (-1,), {}, "in_dim"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "args", "options", "names"), WRONG)
def test_every_wrong_argument_is_named_at_once(kind, args, options, names):
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        kind(*args, **options)
    assert caught.value.function == kind.__name__
    assert sorted(each.argument for each in caught.value.mismatches) == names.split()


def test_axes_may_be_any_iterable():
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    modules = [CrissCrossAttention(8, axes=axes) for axes in ((1,), [1], iter((1,)), np.array([1]))]
    outs = [fill(module)(x) for module in modules]
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrissCrossAttention(8, 1),
        lambda: CrissCrossAttention(8, recurrence=0),
        lambda: RCCA(8, 6, 3, norm=None),
        lambda: NonLocalBlock(8),
        lambda: NonLocalBlock(8, mode="dot_product"),
        lambda: PositionAttention(8, 1),
    ],
)
def test_an_image_without_a_batch_is_refused(make):
    """PyTorch's convolutions take one, but its channels would be taken for images."""
    module, (x,) = fill(make()), map(torch.from_numpy, draw((8, 3, 5)))
    for each in (x, x[None, ..., None]):
        with pytest.raises(ArgumentError, match=r"x\.shape"):
            module(each)


BACKENDS = {
    "criss-cross": lambda **options: CrissCrossAttention(8, **options),
    "head": lambda **options: RCCA(8, 6, 3, **options),
    "non-local": lambda **options: NonLocalBlock(8, **options),
    "position": lambda **options: PositionAttention(8, **options),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_and_precision_are_handed_on(name, monkeypatch):
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    with torch.no_grad(), pytest.raises(crisscross.BackendError, match="gpu: it serves arrays in"):
        fill(BACKENDS[name](backend="gpu"))(x)
    asked = []
    find_problem = crisscross.ops.attention.attention_problem

    def watch(*args, **options):
        asked.append(options["precision"])
        return find_problem(*args, **options)

    monkeypatch.setattr(crisscross.ops.attention, "attention_problem", watch)
    with torch.no_grad():
        fill(BACKENDS[name](precision="tf32x3"))(x)
    assert asked and set(asked) == {"tf32x3"}


def test_hooks_of_every_part_of_a_head_are_called():
    head, (x,) = fill(RCCA(8, 6, 3)), map(torch.from_numpy, draw((2, 8, 3, 5)))
    called = set()
    for name, module in head.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    head(x)
    assert called == {name for name, _ in head.named_modules()}


@pytest.mark.parametrize("dropout", [float("nan"), -0.1, 1.1])
def test_a_dropout_that_is_no_share(dropout):
    with pytest.raises(ArgumentError, match="dropout: expected a share"):
        RCCA(8, 6, 3, dropout=dropout)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_modules_serve_other_sizes():
    module, (x,) = fill(CrissCrossAttention(8)), map(torch.from_numpy, draw((2, 8, 3, 5)))
    traced = torch.jit.trace(module, x)
    (other,) = map(torch.from_numpy, draw((1, 8, 6, 4)))
    assert_close(traced(other), module(other))


def test_pairs_have_gradients():
    module, (x,) = fill(CrissCrossAttention(8)), map(torch.from_numpy, draw((2, 8, 3, 5)))
    pairs = []
    module(x, pairs=pairs)
    ((q, k),) = pairs
    weights = module.query_conv.weight, module.key_conv.weight
    assert all(g.abs().max() > 0 for g in torch.autograd.grad((q * k).sum(), weights))


TAKING = {
    "criss-cross": lambda: CrissCrossAttention(8),
    "criss-cross, each its own": lambda: CrissCrossAttention(8, recurrence=2, shared=False),
    "head": lambda: RCCA(8, 6, 3),
    "non-local": lambda: NonLocalBlock(8),
    "position": lambda: PositionAttention(8),
}


@pytest.mark.parametrize("name", TAKING)
def test_features_that_do_not_fit_are_named_at_once(name):
    """Of channels and dtype, not by a convolution."""
    module = fill(TAKING[name]())
    with pytest.raises(CrissCrossError) as caught:
        module(torch.ones(2, 7, 3, 5, dtype=torch.int32))
    assert caught.value.function == type(module).__name__
    assert [str(each) for each in caught.value.mismatches] == [
        "x.shape: expected (N, 8, H, W), got (2, 7, 3, 5)",
        "x.dtype: expected one of float16, bfloat16, float32, float64, got int32",
    ]
    for wrong in (np.ones((2, 8, 3, 5)), None):
        with pytest.raises(ArgumentTypeError, match="x: expected a tensor"):
            module(wrong)


@pytest.mark.parametrize("dynamic", [False, True])
def test_features_that_do_not_fit_are_named_by_the_compiler_too(dynamic):
    """In an error of its own; and those that fit are one graph for all sizes."""
    module = fill(CrissCrossAttention(8))
    torch.compiler.reset()
    run = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with pytest.raises(Exception, match=r"x\.shape: expected \(N, 8, H, W\), got \(2, 7, 3, 5\)"):
        run(torch.ones(2, 7, 3, 5, dtype=torch.float64))
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    assert_close(run(x), module(x))


def test_what_takes_the_place_of_a_convolution_answers_for_itself():
    """As adapters do that are put around one, and pruning, which leaves other channels."""
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    module = fill(CrissCrossAttention(8))
    expected = module(x)
    module.query_conv = torch.nn.Sequential(module.query_conv)
    assert torch.equal(module(x), expected)
    with pytest.raises(RuntimeError, match="channels"):
        module(x[:, :7])
    for name in ("query", "key", "value"):
        setattr(module, f"{name}_conv", torch.nn.Conv2d(6, 1, 1).double())
    assert module(x[:, :6]).shape == (2, 6, 3, 5)


# What is looked at


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_pairs_are_those_of_the_function(shared, compiled):
    """q and k of each recurrence, behind what the list holds; results stay what they are."""
    module, (x,) = fill(CrissCrossAttention(8, 2, 3, shared=shared)), draw((2, 8, 3, 5))
    pairs, expected = ["first"], []
    result = nn.criss_cross_block(read_state(module), x, recurrence=3, pairs=expected)
    torch.compiler.reset()
    run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    tensor = torch.from_numpy(x)
    assert_close(run(tensor, pairs=pairs), result)
    assert pairs.pop(0) == "first" and len(pairs) == 3
    for found, wanted in zip(pairs, expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    at = [(1, 2), (0, 4)]
    composed = crisscross.compose_attention(pairs, at=at)
    assert_close(composed, crisscross.compose_attention(expected, at=at))
    assert torch.equal(module(tensor), module(tensor, pairs=None))


def test_pairs_of_a_head():
    module, (x,) = fill(RCCA(8, 6, 3, inner=4)), draw((2, 8, 3, 5))
    pairs, expected = [], []
    result = nn.rcca_head(read_state(module), x, pairs=expected)
    assert_close(module(torch.from_numpy(x), pairs=pairs), result)
    assert len(pairs) == len(expected) == 2
    for found, wanted in zip(pairs, expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("make", [lambda: CrissCrossAttention(8), lambda: RCCA(8, 6, 3)])
def test_pairs_are_a_list(make):
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    with pytest.raises(ArgumentTypeError, match="pairs: expected None or a list, got tuple"):
        fill(make())(x, pairs=())
