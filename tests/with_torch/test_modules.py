"""The modules: what the functions of `crisscross.nn` compute on the same parameters, and more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from crisscross import nn
from crisscross.torch import (
    RCCA,
    ChannelAttention,
    CrissCrossAttention,
    NonLocalBlock,
    PositionAttention,
)

# The same numbers as the functions


class Case(NamedTuple):
    make: Callable[[], torch.nn.Module]
    function: Callable[..., Any]
    options: dict[str, Any]
    shape: tuple[int, ...]


def attention(shape, recurrence=1, options=(), **of_module):
    """A case of `CrissCrossAttention`; `options` have the same names in both."""
    options = dict(options)
    of_module |= {"recurrence": recurrence, "spatial_ndim": len(shape) - 2, **options}
    return Case(
        lambda: CrissCrossAttention(shape[1], **of_module),
        nn.criss_cross_block,
        {"recurrence": recurrence, **options},
        shape,
    )


def head(shape, options=(), inner=4, shared=True, reduction=8):
    """A case of `RCCA`, without dropout."""
    options = dict(options)
    of_module = {"inner": inner, "dropout": 0.0, "shared": shared, "reduction": reduction}
    of_module |= {"spatial_ndim": len(shape) - 2, **options}
    return Case(lambda: RCCA(shape[1], 6, 3, **of_module), nn.rcca_head, options, shape)


def non_local(shape, inner=None, **options):
    of_module = {"zero": False, "spatial_ndim": len(shape) - 2, **options}
    return Case(
        lambda: NonLocalBlock(shape[1], inner, **of_module), nn.non_local_block, options, shape
    )


def position(shape, reduction=8):
    return Case(
        lambda: PositionAttention(shape[1], reduction, spatial_ndim=len(shape) - 2),
        nn.position_attention_block,
        {},
        shape,
    )


def channel(shape):
    return Case(lambda: ChannelAttention(shape[1]), nn.channel_attention_block, {}, shape)


CASES = {
    "criss-cross": attention((2, 8, 3, 5)),
    "criss-cross, twice": attention((2, 8, 7, 4), 2),
    "criss-cross, each its own": attention((1, 8, 5, 3), 2, shared=False),
    "criss-cross, heads": attention((2, 8, 3, 6), 2, {"heads": 2, "scale": 0.6}, reduction=2),
    "criss-cross, rows": attention((2, 8, 3, 5), 2, {"axes": (-1,)}, reduction=4),
    "criss-cross, columns": attention((2, 8, 3, 5), 1, {"axes": [0]}, shared=False),
    "criss-cross, one row": attention((2, 3, 1, 9), 2),
    "criss-cross, 1-D": attention((2, 8, 7), 2),
    "criss-cross, 3-D": attention((1, 8, 3, 2, 5), 1, {"axes": (2, 0)}),
    "head": head((2, 8, 3, 5)),
    "head, three times": head((2, 8, 4, 3), {"recurrence": 3}, inner=None),
    "head, each its own": head((2, 8, 3, 5), {"recurrence": 2}, 8, shared=False, reduction=2),
    "head, 1-D": head((3, 8, 7), {"recurrence": 1}),
    "head, 3-D": head((2, 8, 2, 3, 3), {"norm": "group", "groups": 2}),
    "non-local": non_local((2, 8, 3, 5)),
    "non-local, scale": non_local((2, 8, 5, 2), 3, scale=0.4),
    "non-local, dot product": non_local((2, 8, 3, 5), mode="dot_product"),
    "non-local, 1-D": non_local((2, 1, 7)),
    "non-local, 3-D": non_local((2, 8, 2, 3, 3), mode="dot_product"),
    "position": position((2, 8, 3, 5)),
    "position, 1-D": position((2, 8, 7), 2),
    "position, 3-D": position((1, 4, 2, 3, 3)),
    "channel": channel((2, 8, 3, 5)),
    "channel, 3-D": channel((2, 3, 2, 3, 3)),
}
_AFTER = {"leaky_relu": "relu", "relu": None, None: "leaky_relu"}
HEADS = {
    f"{norm}, {activation}": head(
        (2, 8, 3, 5),
        {"norm": norm, "groups": 2, "activation": activation, "last_activation": last},
    )
    for norm in ("batch", "group", None)
    for activation, last in _AFTER.items()
}
#: One of each, for what follows from none of the options.
FEW = (
    "criss-cross, each its own",
    "criss-cross, heads",
    "head",
    "non-local",
    "non-local, dot product",
    "position",
    "channel",
)


def fill(module, seed=0, device="cpu"):
    """Draw every number, in float64: nothing is at what it began with, gamma and W neither."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else 0.6 * drawn)
    return module.to(device)


def read_state(module):
    """Copy the parameters into NumPy, as `crisscross.nn` takes them."""
    state = module.state_dict().items()
    return {name: x.cpu().numpy().copy() for name, x in state if "num_batches" not in name}


def draw(*shapes):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape) for shape in shapes]


def draw_tensor(shape, device):
    return torch.from_numpy(*draw(shape)).to(device)


def assert_close(actual, expected, name=""):
    actual, expected = (
        x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (actual, expected)
    )
    bound = 1e-12 * max(1.0, abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=name)


def assert_same(case, module, **of_function):
    """Hold output and all gradients to those of the function on NumPy arrays, and of its tape.

    Returns what else the function returned.
    """
    parameters, (x,) = read_state(module), draw(case.shape)
    tape = nn.Tape()
    result = case.function(parameters, x, tape=tape, **case.options, **of_function)
    expected, rest = result if isinstance(result, tuple) else (result, None)
    (dout,) = draw(expected.shape)
    dparameters, dx = tape.pull(expected, dout, (parameters, x))

    device = next(module.parameters()).device
    tensor = torch.from_numpy(x).to(device).requires_grad_()
    out = module(tensor)
    assert_close(out, expected)
    named = dict(module.named_parameters())
    assert named.keys() == {name for name in parameters if "running" not in name}
    found = torch.autograd.grad(out, [tensor, *named.values()], torch.from_numpy(dout).to(device))
    assert_close(found[0], dx, "x")
    for name, gradient in zip(named, found[1:], strict=True):
        assert abs(dparameters[name]).max() > 0 or name.endswith("key_conv.bias"), name
        assert_close(gradient, dparameters[name], name)
    return rest


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_its_function(name, device):
    case = CASES[name]
    assert_same(case, fill(case.make(), device=device))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_its_function(name, training, device):
    """With every norm and activation; the running statistics follow, twice."""
    case = HEADS[name]
    module = fill(case.make(), device=device).train(training)
    for number in range(2):
        before = read_state(module)
        statistics = assert_same(case, module, training=nn.Training() if training else None)
        after = read_state(module)
        assert sorted(statistics or {}) == sorted(
            name for name in after if training and "running" in name
        )
        for each, array in after.items():
            if each in (statistics or {}):
                assert_close(array, statistics[each], each)
                assert (array != before[each]).all()
            else:
                assert (array == before[each]).all()
        if "batch" in name:
            count = module.conva[1].num_batches_tracked
            assert count == (number + 1 if training else 0)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dropout_takes_whole_channels_while_training(ndim, device):
    """Where the function has it: with its draw in the place of PyTorch's, the logits are its."""
    shape = (3, 8, 3, 5, 2)[: ndim + 2]
    module = fill(RCCA(8, 6, 3, dropout=0.4, spatial_ndim=ndim), device=device).train()
    passed = []
    module.bottleneck[2].register_forward_hook(lambda *passing: passed.append(passing[1:]))
    parameters, (x,) = read_state(module), draw(shape)
    tensor = torch.from_numpy(x).to(device)
    torch.manual_seed(0)
    module(tensor)
    (((before,), after),) = passed
    kept = (after / before).detach().flatten(2)
    assert torch.allclose(kept, kept[..., :1])
    assert {round(float(each), 6) for each in kept.unique()} == {0, round(1 / 0.6, 6)}

    training = nn.Training(np.random.default_rng(2), dropout=0.4)
    expected, _ = nn.rcca_head(parameters, x, training=training)
    drawn = np.random.default_rng(2).random((3, 6)) >= 0.4
    factor = torch.from_numpy(drawn / 0.6).reshape(3, 6, *[1] * ndim).to(device)
    module.bottleneck[2].register_forward_hook(lambda _, inputs, __: inputs[0] * factor)
    assert_close(module(tensor), expected)

    module.eval()
    assert torch.equal(*(module(tensor) for _ in range(2)))


def test_the_usual_dropout():
    """CCNet's: a tenth; as in `nn.Training`."""
    assert RCCA(8, 6, 3).bottleneck[2].p == nn.Training().dropout


def test_a_mask_hides_keys(device):
    """In each recurrence."""
    case = CASES["criss-cross, twice"]
    module, (x,) = fill(case.make(), device=device), draw(case.shape)
    mask = np.random.default_rng(2).random((2, 7, 4)) < 0.6
    expected = nn.criss_cross_block(read_state(module), x, key_mask=mask, recurrence=2)
    tensor, hiding = (torch.from_numpy(each).to(device) for each in (x, mask))
    out = module(tensor, hiding)
    assert_close(out, expected)
    assert torch.equal(out, module(tensor, key_mask=hiding))
    assert not torch.allclose(out, module(tensor))


@pytest.mark.parametrize("shared", [True, False])
def test_no_recurrence_returns_x(shared):
    (x,) = map(torch.from_numpy, draw((2, 8, 3, 5)))
    module = fill(CrissCrossAttention(8, recurrence=0, shared=shared))
    assert torch.equal(module(x), x)
    assert bool(module.state_dict()) == shared


def test_relu_of_infinity_is_zero():
    """As of the function, not NaN: -inf reaches both activations, and neither passes it on."""
    module = fill(RCCA(1, 2, 3, norm=None, activation="relu"))
    for part in (module.conva, module.bottleneck):
        part[0].weight.detach().abs_()
    x = np.full((1, 1, 1, 1), -np.inf)
    expected = nn.rcca_head(read_state(module), x, norm=None, activation="relu")
    assert np.isfinite(expected).all()
    assert_close(module(torch.from_numpy(x)), expected)


# Layouts and dtypes


@pytest.mark.parametrize("name", [*FEW, "non-local, 3-D", "criss-cross, 3-D"])
def test_channels_last(name, device):
    """The layout of x is that of the output, and nothing depends on it."""
    case = CASES[name]
    module, x = fill(case.make(), device=device), draw_tensor(case.shape, device)
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    for each in (module, copy.deepcopy(module).to(memory_format=layout)):
        turned = x.to(memory_format=layout, copy=True).requires_grad_()
        out = each(turned)
        assert out.is_contiguous(memory_format=layout)
        assert not out.is_contiguous()
        assert_close(out, module(x))
        dout = torch.randn_like(out)
        (gradient,) = torch.autograd.grad(out, turned, dout)
        straight = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(module(straight), straight, dout)
        assert_close(gradient, expected)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, name, device):
    """In and out, and near to what the rounded parameters give in float64."""
    case = CASES[name]
    module, x = fill(case.make(), device=device), draw_tensor(case.shape, device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    module = module.to(dtype)
    x = (0.5 * x).to(dtype).requires_grad_()
    wide, wide_x = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    out, expected = module(x), wide(wide_x)
    assert out.dtype is dtype
    bound = 8 * torch.finfo(dtype).eps

    def assert_near(actual, expected):
        size = 1 + float(expected.detach().abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=bound * size)

    assert_near(out, expected)
    out.sum().backward()
    expected.sum().backward()
    for one, other in zip([x, *module.parameters()], [wide_x, *wide.parameters()], strict=True):
        assert one.grad.dtype is dtype
        assert_near(one.grad, other.grad)


def test_energies_of_channels_are_those_of_float32_under_autocast(device):
    """They are sums over all positions, and the softmax is of their differences."""
    x = 3 * draw_tensor((2, 16, 9, 11), device).float()
    module = fill(ChannelAttention(), device=device).float()
    with torch.autocast(device, torch.bfloat16):
        out = module(x)
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-5)
