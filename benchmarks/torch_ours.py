"""This library on PyTorch's tensors: its operator, and the least that autograd can be given.

On small tensors their ratio is what the operator, which can be compiled and exported, costs beside
a plain `torch.autograd.Function` around the same functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch_eager import make_calls, measure_memory, to_torch
from torch_eager import release as release_torch

import crisscross
from crisscross.bench.peer import Calls, Form, Inputs
from crisscross.bench.shapes import DEVICES

__all__ = ["FORMS", "PACKAGES", "measure_memory", "release"]

PACKAGES = ("crisscross-attention", "torch")


def release() -> None:
    crisscross.clear_workspace()
    release_torch()


class Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # The functions for plain arrays, which ask nothing of PyTorch.
        out, lse = crisscross.criss_cross_attention.__wrapped__(q, k, v, return_lse=True)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> Any:
        return crisscross.criss_cross_attention_backward.__wrapped__(dout, *ctx.saved_tensors)


def prepare(inputs: Inputs, attend: Any) -> Calls:
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    return make_calls(attend, *(to_torch(x, inputs) for x in arrays))


FORMS = {
    "crisscross on tensors": Form(
        lambda inputs: prepare(inputs, crisscross.criss_cross_attention), devices=DEVICES
    ),
    "bare autograd.Function": Form(lambda inputs: prepare(inputs, Bare.apply), devices=DEVICES),
}
