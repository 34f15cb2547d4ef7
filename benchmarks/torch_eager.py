"""PyTorch, operation by operation: the two forms in which criss-cross attention is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from crisscross.bench.peer import Calls, Form, Inputs, NotServed
from crisscross.bench.shapes import CHANNELS_LAST, CUDA, DEVICES

PACKAGES = ("torch",)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attend_by_einsum(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Energies of column and row by einsum, one softmax over both, and einsum again.

    `hidden` (H, H) is -inf on the diagonal, where the column would count self a second time.
    """
    height = q.shape[2]
    column = torch.einsum("nchw,nciw->nhwi", q, k) + hidden[:, None]
    row = torch.einsum("nchw,nchj->nhwj", q, k)
    weights = torch.cat((column, row), dim=-1).softmax(dim=-1)
    out = torch.einsum("nhwi,nciw->nchw", weights[..., :height], v)
    return out + torch.einsum("nhwj,nchj->nchw", weights[..., height:], v)


def attend_by_bmm(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Columns and rows each copied to be the batch of a matrix product."""
    batch, _, height, width = q.shape

    def columns(x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2).contiguous().view(batch * width, -1, height)

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 1, 3).contiguous().view(batch * height, -1, width)

    column = torch.bmm(columns(q).transpose(1, 2), columns(k)) + hidden
    row = torch.bmm(rows(q).transpose(1, 2), rows(k))
    column = column.view(batch, width, height, height).permute(0, 2, 1, 3)
    weights = torch.cat((column, row.view(batch, height, width, width)), dim=3).softmax(dim=3)
    of_column = weights[..., :height].permute(0, 2, 1, 3).reshape(-1, height, height)
    of_row = weights[..., height:].reshape(-1, width, width)
    by_column = torch.bmm(columns(v), of_column.transpose(1, 2))
    by_row = torch.bmm(rows(v), of_row.transpose(1, 2))
    out = by_column.view(batch, width, -1, height).permute(0, 2, 3, 1)
    return out + by_row.view(batch, height, -1, width).permute(0, 2, 1, 3)


def find_format(inputs: Inputs) -> torch.memory_format:
    """PyTorch keeps the order of a shape, whatever the layout."""
    return torch.channels_last if inputs.layout == CHANNELS_LAST else torch.contiguous_format


def to_torch(array: np.ndarray, inputs: Inputs) -> torch.Tensor:
    if inputs.device == CUDA and not torch.cuda.is_available():
        raise NotServed(f"PyTorch {torch.__version__} finds no CUDA device")
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(inputs.device).contiguous(memory_format=find_format(inputs))


def to_numpy(results: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: _to_array(tensor.contiguous().cpu()) for name, tensor in results.items()}


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        from ml_dtypes import bfloat16

        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def wait(results: dict[str, torch.Tensor]) -> None:
    if results["out"].is_cuda:
        torch.cuda.synchronize()


def release() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def measure_memory(call: Callable[[], dict[str, torch.Tensor]]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    wait(results)
    return torch.cuda.max_memory_allocated() - before


_compiled: list[Inputs] = []


def compile_for(inputs: Inputs, function: Callable[..., Any], **options: str) -> Callable[..., Any]:
    """Compile for the shapes of one case."""
    # After a number of shapes the compiler would give up and run the rest eagerly.
    if not any(inputs is last for last in _compiled):
        torch._dynamo.reset()
        _compiled[:] = [inputs]
    return torch.compile(function, dynamic=False, **options)


def prepare(inputs: Inputs, attend: Attention) -> Calls:
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    q, k, v, dout = (to_torch(x, inputs) for x in arrays)
    height = q.shape[2]
    hidden = torch.zeros(height, height, dtype=q.dtype, device=q.device)
    hidden.fill_diagonal_(float("-inf"))
    return make_calls(lambda *given: attend(*given, hidden), q, k, v, dout)


def make_calls(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dout: torch.Tensor,
) -> Calls:
    """Forward without a graph; forward and backward by autograd."""
    leaves = tuple(x.detach().requires_grad_() for x in (q, k, v))

    def forward() -> dict[str, Any]:
        with torch.no_grad():
            return {"out": attend(q, k, v)}

    def forward_backward() -> dict[str, Any]:
        out = attend(*leaves)
        dq, dk, dv = torch.autograd.grad(out, leaves, dout)
        # Detached, or the results would keep what the backward needed.
        return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}

    return Calls(forward, forward_backward, to_numpy, wait)


FORMS = {
    "torch einsum": Form(lambda inputs: prepare(inputs, attend_by_einsum), devices=DEVICES),
    "torch bmm": Form(lambda inputs: prepare(inputs, attend_by_bmm), devices=DEVICES),
}
