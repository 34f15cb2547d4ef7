"""What PyTorch's counter says of the operators: their products, as of PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

import crisscross
from crisscross import nn
from crisscross.torch import (
    RCCA,
    ChannelAttention,
    CrissCrossAttention,
    NonLocalBlock,
    PositionAttention,
    ca_map,
    ca_weight,
)
from tests.nn.definitions import find_neighbours
from tests.with_torch.test_port import CCNetStyle, OfCCNet

N = 2  # images
OF_QK, OF_V = 4, 6  # channels
SIZES = {1: (7,), 2: (3, 5), 3: (2, 3, 4)}


def count(run):
    """Return what is counted, by operator."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts().get("Global", {})
    return {str(name).rpartition(".")[2]: flops for name, flops in found.items()}


def draw(*shape, needs_grad=False):
    return torch.randn(shape, requires_grad=needs_grad)


def draw_qkv(spatial, channel_axis=1, needs_grad=False):
    def draw_one(channels):
        shape = (N, channels, *spatial) if channel_axis == 1 else (N, *spatial, channels)
        return draw(*shape, needs_grad=needs_grad)

    return [draw_one(channels) for channels in (OF_QK, OF_QK, OF_V)]


def count_pairs(spatial, axes=None):
    """Count who sees whom, one by one."""
    return N * int(find_neighbours(spatial, axes).sum())


def list_attention():
    for ndim, spatial in SIZES.items():
        for channel_axis in (1, -1):
            for axes in [None, (0,), (-1,), *([(0, -1)] if ndim > 2 else [])]:
                options = {"axes": axes, "heads": 2, "channel_axis": channel_axis}
                pairs = count_pairs(spatial, axes)
                yield crisscross.criss_cross_attention, spatial, options, pairs
            for axis in (0, -1):
                pairs = count_pairs(spatial, (axis,))
                options = {"axis": axis, "channel_axis": channel_axis}
                yield crisscross.axial_attention, spatial, options, pairs
                options = {**options, "include_self": False}
                pairs -= N * torch.Size(spatial).numel()
                yield crisscross.axial_attention, spatial, options, pairs


@pytest.mark.parametrize(("function", "spatial", "options", "pairs"), [*list_attention()])
def test_attention(function, spatial, options, pairs):
    """Products of q and k, and of weights and v; in the backward the former again, and four."""
    inputs = draw_qkv(spatial, options["channel_axis"])
    forward = 2 * pairs * (OF_QK + OF_V)
    assert count(lambda: function(*inputs, **options)) == {function.__name__: forward}
    leaves = draw_qkv(spatial, options["channel_axis"], needs_grad=True)
    assert count(lambda: function(*leaves, **options).sum().backward()) == {
        function.__name__: forward,
        f"{function.__name__}_backward": 2 * pairs * (3 * OF_QK + 2 * OF_V),
    }


def test_ccnets_operators():
    q, k, v = draw_qkv(SIZES[2], needs_grad=True)
    pairs = count_pairs(SIZES[2])
    assert count(lambda: ca_map(ca_weight(q, k).softmax(1), v).sum().backward()) == {
        "ca_weight": 2 * pairs * OF_QK,
        "ca_map": 2 * pairs * OF_V,
        "ca_weight_backward": 4 * pairs * OF_QK,
        "ca_map_backward": 4 * pairs * OF_V,
    }


def test_whatever_the_way():
    """Compiled, exported, mapped over and without memory, it is the same."""
    q, k, v = draw_qkv(SIZES[2])
    expected = count(lambda: crisscross.criss_cross_attention(q, k, v))
    compiled = torch.compile(crisscross.criss_cross_attention, backend="aot_eager")
    assert count(lambda: compiled(q, k, v)) == expected
    samples = [x[:, None] for x in (q, k, v)]
    assert count(lambda: vmap(crisscross.criss_cross_attention)(*samples)) == expected
    mode = torch._subclasses.fake_tensor.FakeTensorMode()
    with mode:
        fakes = [mode.from_tensor(x) for x in (q, k, v)]
        assert count(lambda: crisscross.criss_cross_attention(*fakes)) == expected


# Against PyTorch's own products: of CCNet's code, which multiplies a column of H and a row of W,
# the query itself in both, where there are H + W - 1 keys.

H, W, C = 6, 7, 16
INNER = C // 8


def count_module(module):
    """Return the forward's, and those of the backward alone, without convolutions."""
    x = draw(N, C, H, W, needs_grad=True)
    forward, both = count(lambda: module(x)), count(lambda: module(x).sum().backward())
    names = {*both} - {"convolution", "convolution_backward"}
    ahead = sum(forward.get(name, 0) for name in names)
    return ahead, sum(both[name] for name in names) - ahead


def test_against_the_products_of_a_port():
    forward, backward = count_module(OfCCNet(C))
    ours = count_module(CrissCrossAttention(C))
    of_operators = count_module(CCNetStyle(C))
    assert ours[0] * (H + W) == forward * (H + W - 1) > 0
    assert of_operators[0] == ours[0]
    # The port keeps its map; we compute the energies again, as part of the backward.
    energies = 2 * N * H * W * (H + W - 1) * INNER
    assert (ours[1] - energies) * (H + W) == backward * (H + W - 1) > 0
    assert of_operators[1] == ours[1] - energies


MODULES = {
    "attention": (
        lambda: CrissCrossAttention(C, recurrence=3),
        lambda: nn.count_criss_cross_block((H, W), C, recurrence=3, batch=N),
    ),
    "head": (
        lambda: RCCA(C, 5, 3),
        lambda: nn.count_rcca_head((H, W), C, classes=3, outer=5, batch=N),
    ),
    "position": (
        lambda: PositionAttention(C),
        lambda: nn.count_position_attention_block((H, W), C, batch=N),
    ),
    "non-local": (
        lambda: NonLocalBlock(C),
        lambda: nn.count_non_local_block((H, W), C, batch=N),
    ),
    "non-local, dot product": (
        lambda: NonLocalBlock(C, mode="dot_product"),
        lambda: nn.count_non_local_block((H, W), C, mode="dot_product", batch=N),
    ),
    "channel": (
        lambda: ChannelAttention(C),
        lambda: nn.count_channel_attention_block((H, W), C, batch=N),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_cost_what_their_functions_say(name):
    """Attention and convolutions together, as `crisscross.nn` counts them by formulas."""
    make, count_by_formula = MODULES[name]
    module, x = make(), draw(N, C, H, W)
    assert sum(count(lambda: module(x)).values()) == count_by_formula().flops
