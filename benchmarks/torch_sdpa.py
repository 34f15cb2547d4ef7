"""Two calls of PyTorch's fused attention, along rows and along columns, merged by their lse.

Both calls count self, so that neither needs a mask; what is once too much is taken off in the
merge. A row's sum of weights is no less than the weight of self, so no digits are lost there. The
backward of a kernel, given out and lse of the whole, gives its strips' part of the gradients.

The operators are those that `scaled_dot_product_attention` chooses from; called by name, as here,
they return lse, and which one it was is no question. Strips are its batch or its heads, so that
channels-last arrays are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch_eager import (
    compile_for,
    find_format,
    measure_memory,
    release,
    to_numpy,
    to_torch,
    wait,
)

from crisscross.bench.peer import Calls, Form, Inputs, NotServed
from crisscross.bench.shapes import CUDA

__all__ = ["FORMS", "PACKAGES", "Kernel", "measure_memory", "prepare", "release"]

PACKAGES = ("torch",)

Tensor = torch.Tensor
aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """Attention of q to k (batch, heads, length, C') with v (batch, heads, length, C).

    Attributes
    ----------
    forward : callable
        Takes q, k and v; returns out, lse and what the backward wants besides.
    backward : callable
        Takes dout, q, k, v, out, lse and that; returns dq, dk and dv.
    find_part : callable
        Takes `Inputs` and returns how many channels of v a call takes, or raises `NotServed`.
    """

    forward: Callable[..., tuple[Tensor, Tensor, tuple[Any, ...]]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    find_part: Callable[[Inputs], int]


def to_rows(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N*H, 1, W, C)."""
    return x.flatten(0, 1)[:, None]


def from_rows(x: Tensor, batch: int) -> Tensor:
    return x[:, 0].unflatten(0, (batch, -1))


def to_columns(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, W, H, C)."""
    return x.transpose(1, 2)


def from_columns(x: Tensor, _batch: int) -> Tensor:
    return x.transpose(1, 2)


AXES = ((to_rows, from_rows), (to_columns, from_columns))


def merge(
    q: Tensor, k: Tensor, v: Tensor, outs: list[list[Tensor]], lses: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Weigh the outs of rows and columns, each in parts of channels, and take self off once."""
    wide = lses[0].dtype
    row, column = lses
    own = (q.to(wide) * k.to(wide)).sum(-1)
    peak = torch.maximum(row, column)
    weights = [torch.exp(x - peak)[..., None] for x in (row, column, own)]
    by_row, by_column = (torch.cat(parts, -1).to(wide) for parts in outs)
    total = weights[0] + weights[1] - weights[2]
    out = (weights[0] * by_row + weights[1] * by_column - weights[2] * v.to(wide)) / total
    return out.to(v.dtype), peak + torch.log(total[..., 0])


def add_up(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: list[list[tuple[Tensor, ...]]],
) -> tuple[Tensor, ...]:
    """Sum the gradients of rows and columns, each in parts, and take off those of self once."""
    dtype, wide = q.dtype, lse.dtype
    q, k, v, dout, out = (x.to(wide) for x in (q, k, v, dout, out))
    weight = torch.exp((q * k).sum(-1) - lse)[..., None]
    slope = weight * (dout * (v - out)).sum(-1, keepdim=True)
    parts = [part for axis in gradients for part in axis]
    dq = sum(part[0].to(wide) for part in parts) - slope * k
    dk = sum(part[1].to(wide) for part in parts) - slope * q
    by_row, by_column = (torch.cat([part[2] for part in axis], -1).to(wide) for axis in gradients)
    dv = by_row + by_column - weight * dout
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def fit(lse: Tensor, like: Tensor) -> Tensor:
    """Lay lse out as a kernel does, which may add queries that have nothing to attend to."""
    padded = torch.full_like(like, float("inf"))
    padded[..., : lse.shape[-1]] = lse
    return padded


class Merged:
    """A kernel along both axes, for the arrays of one case."""

    def __init__(self, kernel: Kernel, part: int, inputs: Inputs) -> None:
        self.kernel, self.part = kernel, part
        on_gpu = inputs.device == CUDA
        self.merge = compile_for(inputs, merge) if on_gpu else merge
        self.add_up = compile_for(inputs, add_up) if on_gpu else add_up

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Take (N, H, W, channels); return out, lse (N, H, W) and what the kernel left."""
        outs: list[list[Tensor]] = [[], []]
        lses, left = [], []
        for number, (to_strips, from_strips) in enumerate(AXES):
            for part in v.split(self.part, -1):
                out, lse, rest = self.kernel.forward(*map(to_strips, (q, k, part)))
                outs[number].append(from_strips(out, len(q)))
            length = out.shape[2]
            lses.append(from_strips(lse[..., :length], len(q)))
            left.append((lse, rest))
        return *self.merge(q, k, v, outs, lses), left

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, left: Any
    ) -> tuple[Tensor, ...]:
        gradients: list[list[tuple[Tensor, ...]]] = [[], []]
        for number, (to_strips, from_strips) in enumerate(AXES):
            like, rest = left[number]
            whole = fit(to_strips(lse), like)
            parts = zip(*(x.split(self.part, -1) for x in (dout, v, out)), strict=True)
            for dout_part, v_part, out_part in parts:
                found = self.kernel.backward(
                    *map(to_strips, (dout_part, q, k, v_part, out_part)), whole, rest
                )
                gradients[number].append(tuple(from_strips(x, len(q)) for x in found))
        return self.add_up(q, k, v, dout, out, lse, gradients)


def prepare(inputs: Inputs, kernel: Kernel) -> Calls:
    part = kernel.find_part(inputs)
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    q, k, v, dout = (to_torch(x, inputs) for x in arrays)
    merged = Merged(kernel, part, inputs)

    def forward() -> dict[str, Any]:
        with torch.no_grad():
            out, _, _ = merged.forward(*map(to_last, (q, k, v)))
            return {"out": to_first(out)}

    def forward_backward() -> dict[str, Any]:
        with torch.no_grad():
            given = [to_last(x) for x in (q, k, v)]
            results = merged.forward(*given)
            gradients = merged.backward(to_last(dout), *given, *results)
            named = zip(("out", "dq", "dk", "dv"), (results[0], *gradients), strict=True)
            return {name: to_first(x) for name, x in named}

    def to_last(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous()

    def to_first(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous(memory_format=find_format(inputs))

    return Calls(forward, forward_backward, to_numpy, wait)


def attend_efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, *rest = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=1.0)
    return out, lse, tuple(rest)


def differentiate_efficient(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = [True, True, True, False]
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        dout, q, k, v, None, out, lse, *rest, 0.0, wanted, scale=1.0
    )
    return dq, dk, dv


def attend_flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, *rest, _ = aten._scaled_dot_product_flash_attention(q, k, v, scale=1.0)
    return out, lse, tuple(rest)


def differentiate_flash(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    *lengths, seed, offset = rest
    return aten._scaled_dot_product_flash_attention_backward(
        dout, q, k, v, out, lse, *lengths, 0.0, False, seed, offset, scale=1.0
    )


def attend_cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, *rest, _ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=1.0)
    # Some versions of PyTorch add an axis to lse, and want it back.
    return out, lse.reshape(out.shape[:3]), (lse.shape, *rest)


def differentiate_cudnn(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    shape, *lengths, seed, offset = rest
    return aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse.reshape(shape), seed, offset, None, *lengths, 0.0, False, scale=1.0
    )


def require_half(inputs: Inputs) -> None:
    name = inputs.q.dtype.name
    if name not in ("float16", "bfloat16"):
        raise NotServed(f"this kernel takes float16 and bfloat16, got {name}")


def take_all(inputs: Inputs) -> int:
    return inputs.v.shape[1]


def take_as_many_as_q(inputs: Inputs) -> int:
    """Flash attention has one size for q, k and v, a multiple of 8 up to 256."""
    require_half(inputs)
    key_channels, channels = inputs.q.shape[1], inputs.v.shape[1]
    if key_channels % 8 or key_channels > 256 or channels % key_channels:
        raise NotServed(
            "this kernel needs C' to be a multiple of 8 up to 256, and C one of C': "
            f"got C/C' = {channels}/{key_channels}"
        )
    return key_channels


def take_128(inputs: Inputs) -> int:
    """cuDNN takes up to 128 channels, in eights, wherever it takes any; and no strips of 1."""
    require_half(inputs)
    key_channels, channels = inputs.q.shape[1], inputs.v.shape[1]
    if key_channels % 8 or key_channels > 128 or channels % 8:
        raise NotServed(
            "this kernel needs C' to be a multiple of 8 up to 128, and C one of 8: "
            f"got C/C' = {channels}/{key_channels}"
        )
    if 1 in inputs.q.shape[2:]:
        raise NotServed("this kernel takes no strips of length 1")
    return 128


KERNELS = {
    "efficient": Kernel(attend_efficient, differentiate_efficient, take_all),
    "flash, v in parts of C'": Kernel(attend_flash, differentiate_flash, take_as_many_as_q),
    "cuDNN, v in parts of 128": Kernel(attend_cudnn, differentiate_cudnn, take_128),
}
FORMS = {
    f"two SDPA, merged ({name})": Form(
        lambda inputs, kernel=kernel: prepare(inputs, kernel), devices=(CUDA,)
    )
    for name, kernel in KERNELS.items()
}
