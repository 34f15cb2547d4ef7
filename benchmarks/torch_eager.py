"""PyTorch, operation by operation: the two forms in which criss-cross attention is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from crisscross.bench.peer import Calls, Form, Inputs

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


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(results: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: _to_array(tensor.contiguous()) for name, tensor in results.items()}


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        from ml_dtypes import bfloat16

        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def prepare(inputs: Inputs, attend: Attention) -> Calls:
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    q, k, v, dout = (to_torch(x) for x in arrays)
    leaves = tuple(x.clone().requires_grad_() for x in (q, k, v))
    height = q.shape[2]
    hidden = torch.zeros(height, height, dtype=q.dtype).fill_diagonal_(float("-inf"))

    def forward() -> dict[str, Any]:
        with torch.no_grad():
            return {"out": attend(q, k, v, hidden)}

    def forward_backward() -> dict[str, Any]:
        out = attend(*leaves, hidden)
        dq, dk, dv = torch.autograd.grad(out, leaves, dout)
        # Detached, or the results would keep what the backward needed.
        return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}

    return Calls(forward, forward_backward, to_numpy)


FORMS = {
    "torch einsum": Form(lambda inputs: prepare(inputs, attend_by_einsum)),
    "torch bmm": Form(lambda inputs: prepare(inputs, attend_by_bmm)),
}
