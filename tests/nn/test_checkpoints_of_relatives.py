"""Non-local and DANet's modules of mmcv and mmsegmentation, by the names of theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crisscross import ArgumentError, nn
from tests.nn.test_checkpoints import Scale, fill, run

CHANNELS, INNER = 8, 4
X = np.random.default_rng(1).standard_normal((2, CHANNELS, 4, 5))


def make_convolution(ndim, *sizes, bias=True):
    return getattr(torch.nn, f"Conv{ndim}d")(*sizes, 1, bias=bias)


class Unit(torch.nn.Module):
    """mmcv's ConvModule without activation: a convolution, and a norm in place of a bias."""

    def __init__(self, ndim, inputs, outputs, norm=False):
        super().__init__()
        self.conv = make_convolution(ndim, inputs, outputs, bias=not norm)
        if norm:
            self.bn = getattr(torch.nn, f"BatchNorm{ndim}d")(outputs, eps=1e-3)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) if hasattr(self, "bn") else x


class NonLocal(torch.nn.Module):
    def __init__(self, ndim, norm, use_scale, mode):
        super().__init__()
        self.g, self.theta, self.phi = (Unit(ndim, CHANNELS, INNER) for _ in range(3))
        self.conv_out = Unit(ndim, INNER, CHANNELS, norm)
        self.use_scale, self.mode = use_scale, mode

    def forward(self, x):
        g, theta, phi = (unit(x).flatten(2) for unit in (self.g, self.theta, self.phi))
        energies = theta.transpose(1, 2) @ phi
        if self.mode == "dot_product":
            weights = energies / energies.shape[-1]
        else:
            weights = (energies / INNER**0.5 if self.use_scale else energies).softmax(-1)
        attended = g @ weights.transpose(1, 2)
        return x + self.conv_out(attended.reshape(len(x), INNER, *x.shape[2:]))


class Position(torch.nn.Module):
    """mmsegmentation's PAM."""

    def __init__(self):
        super().__init__()
        for name, outputs in (("key", INNER), ("query", INNER), ("value", CHANNELS)):
            setattr(self, f"{name}_project", make_convolution(2, CHANNELS, outputs))
        self.gamma = Scale()

    def forward(self, x):
        q, k, v = (
            getattr(self, f"{name}_project")(x).flatten(2) for name in ("query", "key", "value")
        )
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return self.gamma.scale * (v @ weights.transpose(1, 2)).reshape(x.shape) + x


class Channel(torch.nn.Module):
    """mmsegmentation's CAM."""

    def __init__(self):
        super().__init__()
        self.gamma = Scale()

    def forward(self, x):
        flat = x.flatten(2)
        energies = flat @ flat.transpose(1, 2)
        weights = (energies.amax(-1, keepdim=True) - energies).softmax(-1)
        return self.gamma.scale * (weights @ flat).reshape(x.shape) + x


def read_state(module, prefix=""):
    return {prefix + name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_non_local(ndim, norm, use_scale, mode):
    module = fill(NonLocal(ndim, norm, use_scale, mode))
    x = np.random.default_rng(1).standard_normal((2, CHANNELS, 4, 3, 2)[: ndim + 2])
    scale = INNER**-0.5 if use_scale and mode != "dot_product" else 1.0
    for prefix in ("", "module."):
        parameters = nn.from_mmcv(read_state(module, prefix), epsilon=1e-3)
        assert set(parameters) == set(nn.init_non_local_block(CHANNELS))
        out = nn.non_local_block(parameters, x, mode=mode, scale=scale)
        np.testing.assert_allclose(out, run(module, x), 1e-10, 1e-12)


def test_the_names_of_non_local():
    names = "g.conv.weight theta.conv.bias phi.conv.weight conv_out.conv.weight conv_out.bn.weight"
    names += " conv_out.bn.num_batches_tracked"
    assert set(names.split()) <= set(read_state(NonLocal(2, True, True, "embedded_gaussian")))


def test_a_norm_is_folded_in_the_callers_library():
    state = fill(NonLocal(2, True, True, "embedded_gaussian")).state_dict()
    parameters = nn.from_mmcv(state, epsilon=1e-3)
    assert all(isinstance(tensor, torch.Tensor) for tensor in parameters.values())
    expected = nn.from_mmcv({name: x.numpy() for name, x in state.items()}, epsilon=1e-3)
    for name, tensor in parameters.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], 1e-12)


def test_a_norm_without_its_convolution_is_named():
    state = read_state(NonLocal(2, True, True, "embedded_gaussian"))
    del state["conv_out.conv.weight"]
    with pytest.raises(ArgumentError, match=r"got 'conv_out\.bn\.weight'"):
        nn.from_mmcv(state)


def test_danet():
    position, channel = fill(Position()), fill(Channel())
    parameters = nn.from_mmcv(read_state(position))
    out = nn.position_attention_block(parameters, X)
    np.testing.assert_allclose(out, run(position, X), 1e-10, 1e-12)
    out = nn.channel_attention_block(nn.from_mmcv(read_state(channel)), X)
    np.testing.assert_allclose(out, run(channel, X), 1e-10, 1e-12)
