"""From CCNet and its ports to the modules: code by one import, checkpoints with strict=True."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from crisscross import nn
from crisscross.torch import (
    RCCA,
    ChannelAttention,
    CrissCrossAttention,
    NonLocalBlock,
    PositionAttention,
    ca_map,
    ca_softmax,
    ca_weight,
)
from tests.nn.test_checkpoints import BLOCKS, ORIGINALS
from tests.nn.test_checkpoints import read_state as read_original
from tests.nn.test_checkpoints_of_relatives import Channel, NonLocal, Position
from tests.with_torch.test_modules import assert_close, draw, draw_tensor, fill, read_state

CHANNELS, INNER, OUTER, CLASSES = 16, 8, 5, 3

# CCNet's modules, with attention by permute and bmm, and -inf where the column meets the row


class OfCCNet(torch.nn.Module):
    """``CrissCrossAttention`` of CCNet's pure PyTorch code."""

    def __init__(self, in_dim):
        super().__init__()
        self.query_conv = torch.nn.Conv2d(in_dim, in_dim // 8, 1)
        self.key_conv = torch.nn.Conv2d(in_dim, in_dim // 8, 1)
        self.value_conv = torch.nn.Conv2d(in_dim, in_dim, 1)
        self.gamma = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        n, _, height, width = x.shape

        def by_column(y):
            return y.permute(0, 3, 2, 1).reshape(n * width, height, -1)

        def by_row(y):
            return y.permute(0, 2, 3, 1).reshape(n * height, width, -1)

        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        itself = torch.diag(x.new_full((height,), math.inf))
        column = torch.bmm(by_column(q), by_column(k).mT) - torch.where(itself > 0, itself, 0.0)
        row = torch.bmm(by_row(q), by_row(k).mT)
        column = column.reshape(n, width, height, height).permute(0, 2, 1, 3)
        weights = torch.cat([column, row.reshape(n, height, width, width)], 3).softmax(3)
        column, row = weights.split([height, width], 3)
        column = column.permute(0, 2, 1, 3).reshape(n * width, height, height)
        along_column = torch.bmm(column, by_column(v)).reshape(n, width, height, -1)
        along_row = torch.bmm(row.reshape(n * height, width, width), by_row(v))
        out = along_column.permute(0, 3, 2, 1)
        out = out + along_row.reshape(n, height, width, -1).permute(0, 3, 1, 2)
        return self.gamma * out + x


class Norm(torch.nn.Module):
    """InPlaceABN: with an activation, the weight's absolute value, and no count of batches."""

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        weight = self.weight.abs() + 1e-5
        statistics = self.running_mean, self.running_var
        x = functional.batch_norm(x, *statistics, weight, self.bias, self.training)
        return functional.leaky_relu(x, 0.01)


class HeadOfCCNet(torch.nn.Module):
    """``RCCAModule``, with a recurrence of 2."""

    def __init__(self):
        super().__init__()

        def convolve(inputs, outputs):
            return torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), Norm(outputs)

        self.conva = torch.nn.Sequential(*convolve(CHANNELS, INNER))
        self.cca = OfCCNet(INNER)
        self.convb = torch.nn.Sequential(*convolve(INNER, INNER))
        self.bottleneck = torch.nn.Sequential(
            *convolve(CHANNELS + INNER, OUTER),
            torch.nn.Dropout2d(0.1),
            torch.nn.Conv2d(OUTER, CLASSES, 1),
        )

    def forward(self, x):
        features = self.convb(self.cca(self.cca(self.conva(x))))
        return self.bottleneck(torch.cat([x, features], 1))


def make_head(state, device, **options):
    """Make our head, of that state dict."""
    module = RCCA(CHANNELS, OUTER, CLASSES, inner=INNER, **options).to(device).double().eval()
    module.load_state_dict(state, strict=True)
    return module


def differentiate(module, x):
    """Return the output, and the gradients of x and of all parameters by name."""
    x = x.clone().requires_grad_()
    named = dict(module.named_parameters())
    out = module(x)
    dout = draw_tensor(out.shape, x.device)
    found = torch.autograd.grad(out, [x, *named.values()], dout)
    return out.detach(), dict(zip(["x", *named], found, strict=True))


def assert_same(ours, theirs, shape, device):
    """Hold outputs and gradients of one module to those of another, to 1e-12."""
    x = draw_tensor(shape, device)
    (out, found), (expected, gradients) = differentiate(ours, x), differentiate(theirs, x)
    assert_close(out, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert_close(gradient, gradients[name], name)


# Code: one import


class CCNetStyle(OfCCNet):
    """CCNet's module on its own functions; ``cc_attention`` has had both since the first."""

    def attend(self, q, k, v):
        energy = ca_weight(q, k)
        attention = functional.softmax(energy, 1)
        return ca_map(attention, v)

    def forward(self, x):
        out = self.attend(self.query_conv(x), self.key_conv(x), self.value_conv(x))
        return self.gamma * out + x


class WithNames(CCNetStyle):
    def attend(self, q, k, v):
        return ca_map(attention=ca_softmax(energy=ca_weight(q=q, k=k)), v=v)


SHAPES = [(2, 16, 5, 7), (1, 16, 6, 2), (2, 16, 1, 5), (2, 16, 3, 1), (1, 16, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [OfCCNet, CCNetStyle, WithNames])
def test_code_of_ccnet_computes_what_the_module_does(kind, shape, device):
    theirs = fill(kind(16), device=device)
    ours = CrissCrossAttention(16).double().to(device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs, shape, device)


def test_ported_code_trains_and_compiles(device):
    """A step of each optimiser goes the same way; the compiled one is one graph."""
    ported = fill(CCNetStyle(16), device=device).train()
    ours = CrissCrossAttention(16).double().to(device)
    ours.load_state_dict(ported.state_dict(), strict=True)
    torch.compiler.reset()
    steps = {}
    x = draw_tensor((2, 16, 5, 3), device)
    for name, module in {"ported": ported, "ours": ours, "compiled": copy.deepcopy(ported)}.items():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        run = compiled if name == "compiled" else module
        optimiser = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            run(x).square().mean().backward()
            optimiser.step()
        steps[name] = read_state(module)
    for name in ("ours", "compiled"):
        for each, array in steps[name].items():
            assert_close(array, steps["ported"][each], each)


# Checkpoints


def test_a_state_dict_of_ccnets_attention(device):
    """As it is, and as the converter gives it; the names and shapes are the same both ways."""
    theirs = fill(OfCCNet(16), device=device)
    state = theirs.state_dict()
    for loaded in (state, nn.from_ccnet(state), {**state}):
        ours = CrissCrossAttention(16, recurrence=2).double().to(device)
        ours.load_state_dict(loaded, strict=True)
        x = draw_tensor((2, 16, 3, 5), device)
        assert_close(ours(x), theirs(theirs(x)))
        OfCCNet(16).load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("negative", [False, True])
def test_a_state_dict_of_ccnets_head(negative, device):
    """By `from_ccnet`, to the last digit; as it is, but for what InPlaceABN does to weights."""
    theirs = fill(HeadOfCCNet(), device=device)
    state = theirs.state_dict()
    for name, weight in state.items():
        if name.endswith(".1.weight") and not negative:
            weight.abs_()
    assert not any("num_batches" in name for name in state)
    x = draw_tensor((2, CHANNELS, 4, 5), device)
    expected = theirs(x)
    ours = make_head(nn.from_ccnet(state), device)
    assert_close(ours(x), expected)
    assert ours.conva[1].num_batches_tracked == 0
    error = (make_head(state, device)(x) - expected).abs().max() / expected.abs().max()
    assert (error > 0.01) if negative else (error < 1e-3)
    # A whole network, which was trained in parallel.
    whole = {f"module.head.{name}": each for name, each in state.items()}
    whole["module.layer4.0.conv1.weight"] = torch.ones(3)
    assert torch.equal(make_head(nn.from_ccnet(whole), device)(x), ours(x))


def test_training_goes_on_as_ccnets_head_would(device):
    """Outputs, gradients and running statistics in training, from a checkpoint."""
    theirs = fill(HeadOfCCNet(), device=device).train()
    ours = make_head(nn.from_ccnet(theirs.state_dict()), device, dropout=0.0).train()
    theirs.bottleneck[2].p = 0.0
    x = draw_tensor((2, CHANNELS, 4, 5), device)
    (out, found), (expected, gradients) = differentiate(ours, x), differentiate(theirs, x)
    assert_close(out, expected)
    signs = {name: x.sign() for name, x in theirs.state_dict().items() if ".1.weight" in name}
    for name, gradient in found.items():
        assert_close(gradient, signs.get(name, 1) * gradients[name], name)
    for name, buffer in theirs.named_buffers():
        assert_close(ours.get_buffer(name), buffer, name)


@pytest.mark.parametrize("library", ORIGINALS)
def test_heads_of_others(library):
    """mmsegmentation's and PaddleSeg's, and CCNet's first names."""
    theirs, convert, options, _ = ORIGINALS[library]
    state = {name: torch.from_numpy(x) for name, x in read_original(theirs, library).items()}
    ours = make_head(convert(state), "cpu", reduction=4, **options)
    (x,) = map(torch.from_numpy, draw((2, CHANNELS, 4, 5)))
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("library", BLOCKS)
def test_blocks_of_others(library):
    theirs, convert = BLOCKS[library]
    state = fill(theirs).state_dict()
    ours = CrissCrossAttention(INNER, 4).double()
    ours.load_state_dict(convert(state), strict=True)
    (x,) = map(torch.from_numpy, draw((2, INNER, 4, 5)))
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_non_local_of_mmcv(ndim, norm, mode, device):
    theirs = fill(NonLocal(ndim, norm, True, mode), device=device)
    ours = NonLocalBlock(8, mode=mode, scale=4**-0.5, spatial_ndim=ndim).double().to(device)
    ours.load_state_dict(nn.from_mmcv(theirs.state_dict(), epsilon=1e-3), strict=True)
    x = draw_tensor((2, 8, 3, 5, 2)[: ndim + 2], device)
    assert_close(ours(x), theirs(x))


def test_danet_of_mmsegmentation(device):
    pairs = [(Position(), PositionAttention(8, 2)), (Channel(), ChannelAttention(8))]
    x = draw_tensor((2, 8, 4, 5), device)
    for theirs, ours in pairs:
        state = fill(theirs, device=device).state_dict()
        ours.double().to(device).load_state_dict(nn.from_mmcv(state), strict=True)
        assert_close(ours(x), theirs(x))


# Files, and from the functions' parameters to modules and back

GROUP = {"norm": "group", "groups": 2}
KINDS = {
    "attention":
        (lambda: CrissCrossAttention(8),
         functools.partial(nn.init_criss_cross_block, 8),
         nn.criss_cross_block),
    "attention, each its own":
        (lambda: CrissCrossAttention(8, recurrence=2, shared=False),
         functools.partial(nn.init_criss_cross_block, 8, recurrence=2),
         nn.criss_cross_block),
    "head":
        (lambda: RCCA(8, 6, 3),
         functools.partial(nn.init_rcca_head, 8, classes=3, outer=6),
         nn.rcca_head),
    "head, each its own":
        (lambda: RCCA(8, 6, 3, shared=False, **GROUP),
         functools.partial(nn.init_rcca_head, 8, classes=3, outer=6, recurrence=2, norm="group"),
         functools.partial(nn.rcca_head, **GROUP)),
    "non-local":
        (lambda: NonLocalBlock(8), functools.partial(nn.init_non_local_block, 8),
         nn.non_local_block),
    "position":
        (lambda: PositionAttention(8), functools.partial(nn.init_position_attention_block, 8),
         nn.position_attention_block),
    "channel":
        (lambda: ChannelAttention(8), nn.init_channel_attention_block,
         nn.channel_attention_block),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("name", KINDS)
def test_there_and_back(name, suffix, tmp_path):
    """Module, file, function; and what that read, in another module: to the last digit."""
    make, _, function = KINDS[name]
    module, again, path = fill(make()), make().double().eval(), tmp_path / f"state{suffix}"
    (x,) = draw((2, 8, 3, 5))
    if suffix == ".pt":
        torch.save(module.state_dict(), path)
        state = torch.load(path, weights_only=True)
        parameters = {each: tensor.numpy() for each, tensor in state.items() if tensor.ndim}
    else:
        nn.save_parameters(path, read_state(module))
        parameters = nn.load_parameters(path)
        state = {each: torch.from_numpy(array) for each, array in parameters.items()}
    again.load_state_dict(state, strict=True)
    for each, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[each])
    out = again(torch.from_numpy(x))
    assert torch.equal(out, module(torch.from_numpy(x)))
    assert_close(out, function(parameters, x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_parameters_of_the_functions_load(name, dtype, tmp_path):
    """Those that `init_...` draws, of whatever dtype, by way of a safetensors file."""
    make, draw_parameters, function = KINDS[name]
    parameters, path = draw_parameters(dtype=dtype), tmp_path / "state.safetensors"
    nn.save_parameters(path, parameters)
    module = make().to(getattr(torch, dtype)).eval()
    module.load_state_dict(safetensors.torch.load_file(path), strict=True)
    state = read_state(module.to(torch.float64))
    assert state.keys() == parameters.keys()
    for each, array in parameters.items():
        np.testing.assert_array_equal(state[each], array.astype("f8"), err_msg=each)
    (x,) = draw((2, 8, 3, 5))
    assert_close(module(torch.from_numpy(x)), function(state, x))


# The beginning


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_modules_begin_as_pytorch_and_the_functions_do(ndim):
    """The same names, shapes and bounds as what the functions draw; all of the interval."""
    torch.manual_seed(0)
    non_local = NonLocalBlock(64, zero=False, spatial_ndim=ndim)
    head = RCCA(64, 32, 9, spatial_ndim=ndim)
    for module, init, options in (
        (CrissCrossAttention(64, spatial_ndim=ndim), nn.init_criss_cross_block, {}),
        (PositionAttention(64, spatial_ndim=ndim), nn.init_position_attention_block, {}),
        (non_local, nn.init_non_local_block, {"zero": False}),
        (head, nn.init_rcca_head, {"classes": 9, "outer": 32}),
    ):
        state = read_state(module)
        drawn = init(64, spatial_ndim=ndim, **options)
        assert {name: x.shape for name, x in state.items()} == {
            name: x.shape for name, x in drawn.items()
        }
        for name, array in state.items():
            weight = f"{name.removesuffix('.bias').removesuffix('.weight')}.weight"
            if drawn[name].std() == 0:
                np.testing.assert_array_equal(array, drawn[name], err_msg=name)
                continue
            bound = 1 / math.sqrt(math.prod(state[weight].shape[1:]))
            for each in (array, drawn[name]):
                assert abs(each).max() <= bound * (1 + 1e-6), name
                if each.size > 100:
                    assert abs(each).max() > 0.9 * bound, name
                    assert abs(each.std() / bound - 3**-0.5) < 0.12, name


@pytest.mark.parametrize("name", [name for name in KINDS if "head" not in name])
def test_in_the_beginning_x_is_returned(name, device):
    """gamma is 0, or W; and what is trained first is that."""
    module = KINDS[name][0]().double().to(device)
    x = draw_tensor((2, 8, 3, 5), device)
    assert torch.equal(module(x), x)
    _, gradients = differentiate(module, x)
    first = {each for each, x in gradients.items() if each != "x" and bool(x.any())}
    assert first
    assert all("gamma" in each or each.startswith("W.") for each in first)
    assert all((x == 0).all() for name, x in module.named_parameters() if name in first)
