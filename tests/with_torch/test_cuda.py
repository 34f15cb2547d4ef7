"""PyTorch tensors where kernels run; an emulator stands in for the device."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import crisscross.ops.call
from crisscross import gpu
from crisscross.ops.backends import Choice
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.emulated import EmulatorEngine


class Engine(EmulatorEngine):
    """An engine that makes arrays as it was told to."""

    def __init__(self, stream, make):
        super().__init__(stream=stream)
        self._make, self.made_by_caller = make, []

    def make(self, shape, strides, dtype, /):
        held = self._make(shape, strides, dtype)
        held.owner.fill_(float("nan"))
        self.made_by_caller.append(held.owner)
        return held


@pytest.fixture
def engines(monkeypatch):
    """The engines of all calls."""
    opened = []

    @contextmanager
    def open_device(device, stream, make):
        opened.append(Engine(stream, make))
        yield gpu.GpuBackend(opened[-1])

    monkeypatch.setattr(gpu, "open_device", open_device)
    monkeypatch.setattr(crisscross.ops.call, "recall_choice", lambda *_: Choice("gpu", "", ()))
    current = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
    return opened


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_memory_stream_and_allocator(engines, dtype, channels_last):
    name = str(dtype).removeprefix("torch.")
    case = make_case((5, 7), heads=2, head_size_qk=3, head_size_v=6, dtype=name)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def convert(array):
        exact = torch.from_numpy(array.astype(np.float64)).to(dtype)
        return exact.contiguous(memory_format=layout)

    q, k, v = (convert(getattr(case, name)) for name in "qkv")
    out, lse = crisscross.criss_cross_attention(q, k, v, **case.options, return_lse=True)
    assert_matches_reference(case, out=out, lse=lse)
    (engine,) = engines
    assert engine.stream == 1234
    assert out.is_contiguous(memory_format=layout)
    made = engine.made_by_caller
    assert any(out is tensor for tensor in made) and any(lse is tensor for tensor in made)
    # Channels side by side need no scratch; others do, of the caller's library.
    assert len(made) == (2 if channels_last else 6)
    first = next(a for a in engine.arguments if a.dtype.names[1] == "q")
    assert (first["q"]["data"] == q.data_ptr()) == channels_last


def test_autograd_runs_the_kernels(engines):
    """Forward and backward, each on an engine opened for the caller's stream and allocator."""
    case = make_case((5, 7), heads=2, head_size_qk=3, head_size_v=6, dtype="float32")
    arrays = (case.q, case.k, case.v, case.dout, case.dlse)
    q, k, v, dout, dlse = (torch.from_numpy(np.array(array)) for array in arrays)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out, lse = crisscross.criss_cross_attention(*inputs, **case.options, return_lse=True)
    dq, dk, dv = torch.autograd.grad((out, lse), inputs, (dout, dlse))
    results = {"out": out.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}
    assert_matches_reference(case, **results)
    assert [engine.stream for engine in engines] == [1234, 1234]
    assert all(engine.arguments for engine in engines)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_map_in_memory(dtype):
    """Channels-last: outputs, lse and gradients; a map would be 15 MB more."""
    shape = (2, 97, 97)
    q, k = (torch.randn(shape[0], 64, *shape[1:], device="cuda", dtype=dtype) for _ in range(2))
    v = torch.randn(shape[0], 256, *shape[1:], device="cuda", dtype=dtype)
    q, k, v = (x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in (q, k, v))
    dout = torch.randn_like(v)

    def step():
        out = crisscross.criss_cross_attention(q, k, v)
        return out, torch.autograd.grad(out, (q, k, v), dout)

    step()  # kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, gradients = step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    positions = q.numel() // 64
    expected = sum(x.nbytes for x in (out, *gradients)) + 4 * positions
    # Delta, one float32 a position, and the rounding of the allocator.
    assert peak <= expected + 4 * positions + 8 * 2**20
