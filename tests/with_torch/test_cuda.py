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
    monkeypatch.setattr(crisscross.ops.call, "choose_backend", lambda *_: Choice("gpu", "", ()))
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
