"""Blocks on PyTorch tensors, against the modules that CCNet and its ports are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crisscross import nn
from crisscross.bridge import numpy_dtype

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


def to_torch(parameters, device):
    return {name: torch.from_numpy(array).to(device) for name, array in parameters.items()}


class Head(torch.nn.Module):
    """CCNet's head, around any attention."""

    def __init__(self, channels, inner, outer, classes, attend):
        super().__init__()

        def make(inputs, outputs):
            return torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(outputs),
                torch.nn.LeakyReLU(0.01),
            )

        self.conva, self.convb = make(channels, inner), make(inner, inner)
        convolution, norm, activation = make(channels + inner, outer)
        self.bottleneck = torch.nn.Sequential(
            convolution,
            norm,
            # The numbers of CCNet's modules: its norm activates too, and 2 is dropout.
            torch.nn.Sequential(activation, torch.nn.Dropout2d(0.0)),
            torch.nn.Conv2d(outer, classes, 1),
        )
        self.attend = attend

    def forward(self, x):
        features = self.convb(self.attend(self.conva(x)))
        return self.bottleneck(torch.cat([x, features], 1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_head_is_that_of_torchs_modules(dtype, training, device):
    """The same state dict in both, outputs, gradients and running statistics."""
    name = str(dtype).removeprefix("torch.")
    parameters = nn.init_rcca_head(12, classes=5, inner=8, outer=6, seed=1, gamma=0.6, dtype=name)
    rng = np.random.default_rng(2)
    for key, array in parameters.items():
        if ".1." in key:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    given = to_torch(parameters, device)
    cca = {k.removeprefix("cca."): x for k, x in given.items() if "cca" in k}

    class Attend(torch.autograd.Function):
        """The block inside of autograd, by its tape."""

        @staticmethod
        def forward(context, x):
            context.x, context.tape = x.detach(), nn.Tape()
            with torch.no_grad():
                context.out = nn.criss_cross_block(cca, context.x, recurrence=2, tape=context.tape)
            return context.out.clone()

        @staticmethod
        def backward(context, dout):
            return context.tape.pull(context.out, dout.contiguous(), context.x)

    head = Head(12, 8, 6, 5, Attend.apply).to(device, dtype).train(training)
    missing, unexpected = head.load_state_dict(
        {k: x for k, x in given.items() if "cca" not in k}, strict=False
    )
    assert all("num_batches" in key for key in missing) and not unexpected

    x, dout = (
        torch.from_numpy(rng.standard_normal(shape).astype(numpy_dtype(name))).to(device)
        for shape in ((2, 12, 7, 9), (2, 5, 7, 9))
    )
    leaf = x.clone().requires_grad_()
    expected = head(leaf)
    expected.backward(dout)

    tape = nn.Tape()
    found = nn.rcca_head(given, x, training=nn.Training() if training else None, tape=tape)
    out, statistics = found if training else (found, {})
    assert isinstance(out, torch.Tensor)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out, expected.detach(), **tolerance)
    dparameters, dx = tape.pull(out, dout, (given, x))
    torch.testing.assert_close(dx, leaf.grad, **tolerance)
    for key, parameter in head.named_parameters():
        torch.testing.assert_close(
            dparameters[key],
            parameter.grad,
            rtol=1e-3,
            atol=1e-3 if dtype is torch.float32 else 1e-9,
        )
    for key, array in statistics.items():
        torch.testing.assert_close(array, head.state_dict()[key], **tolerance)
    assert bool(statistics) is training


BLOCKS = {
    "criss_cross": (nn.criss_cross_block, lambda: nn.init_criss_cross_block(8, gamma=0.6)),
    "position": (
        nn.position_attention_block,
        lambda: nn.init_position_attention_block(8, gamma=0.6),
    ),
    "channel": (nn.channel_attention_block, lambda: nn.init_channel_attention_block(gamma=0.6)),
    "non_local": (nn.non_local_block, lambda: nn.init_non_local_block(8, zero=False)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_take_tensors(name, channels_last, device):
    """The results of NumPy arrays, whatever the memory format."""
    run, make = BLOCKS[name]
    parameters = make()
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 7)).astype(np.float32)
    tensor = torch.from_numpy(x).to(device)
    if channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    out = run(to_torch(parameters, device), tensor)
    assert isinstance(out, torch.Tensor) and out.device == tensor.device
    np.testing.assert_allclose(out.cpu().numpy(), run(parameters, x), 1e-5, 1e-5)


def draw(*shape, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def test_bfloat16_tensors(device):
    given = to_torch(BLOCKS["criss_cross"][1](), device)
    parameters = {name: x.bfloat16() for name, x in given.items()}
    x = draw(1, 8, 5, 7, device=device).bfloat16()
    out = nn.criss_cross_block(parameters, x, recurrence=2)
    wide = {name: array.double() for name, array in parameters.items()}
    expected = nn.criss_cross_block(wide, x.double(), recurrence=2)
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).abs().max() < 0.03 * expected.abs().max()


def test_autocast_does_not_round_what_blocks_multiply(device):
    """Energies of channels are sums over all positions: rounded to bfloat16 they are far off."""
    x = draw(1, 8, 30, 40, device=device)
    parameters = {"gamma": torch.ones(1, device=device)}
    expected = nn.channel_attention_block(parameters, x)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(nn.channel_attention_block(parameters, x), expected)
