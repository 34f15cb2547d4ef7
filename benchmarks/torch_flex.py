"""Two calls of FlexAttention, compiled, along rows and along columns, merged by their lse.

As one call over all positions, with the cross as its mask, it would visit whole blocks of 128 x 128
positions; in row-major order a column touches every one of them. Gradients by autograd, lse's too.

By itself FlexAttention computes fewer than 128 queries by a kernel for decoding, made for few
queries and many keys, as in no strip. The forward is measured by either kernel; the backward has
one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention
from torch_eager import (
    compile_for,
    make_calls,
    measure_memory,
    release,
    to_torch,
)

from crisscross.bench.peer import Calls, Form, Inputs, NotServed
from crisscross.bench.shapes import CUDA

__all__ = ["FORMS", "PACKAGES", "measure_memory", "release"]

PACKAGES = ("torch",)

#: Channels of v a call: with 512 a block's results alone are all the registers of a multiprocessor.
PART = 128
#: So many queries are not decoded.
NOT_DECODED = 128

Tensor = torch.Tensor


def hide_self(energy: Tensor, _batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.where(query == key, -float("inf"), energy)


def attend_along(
    q: Tensor, k: Tensor, v: Tensor, hide: object, decoding: bool
) -> tuple[Tensor, Tensor]:
    """(batch, heads, length, channels); each strip is a head."""
    found = [
        flex_attention(
            q,
            k,
            part,
            hide,
            scale=1.0,
            kernel_options={"FORCE_USE_FLEX_ATTENTION": not decoding},
            return_aux=AuxRequest(lse=True),
        )
        for part in v.split(PART, -1)
    ]
    return torch.cat([out for out, _ in found], -1), found[0][1].lse


def attend(q: Tensor, k: Tensor, v: Tensor, decoding: bool) -> Tensor:
    """(N, C, H, W); only channels-first ones are copied."""
    rows = [x.permute(0, 2, 3, 1).contiguous() for x in (q, k, v)]
    columns = [x.transpose(1, 2) for x in rows]
    by_row, row = attend_along(*rows, None, decoding)
    by_column, column = attend_along(*columns, hide_self, decoding)
    by_column, column = by_column.transpose(1, 2), column.transpose(1, 2)
    # Of a column of one nothing is left: its lse is -inf, its share 0.
    share = torch.sigmoid(row - column)[..., None]
    out = share * by_row + torch.sigmoid(column - row)[..., None] * by_column
    return out.to(v.dtype).permute(0, 3, 1, 2)


def prepare(inputs: Inputs, decoding: bool = False) -> Calls:
    height, width = inputs.q.shape[2:]
    if decoding and min(height, width) >= NOT_DECODED:
        raise NotServed(
            f"this kernel takes strips shorter than {NOT_DECODED}, got {height} and {width}"
        )
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    q, k, v, dout = (to_torch(x, inputs) for x in arrays)
    # On the CPU, where the tests run it, as it comes.
    function = attend
    if inputs.device == CUDA:
        function = compile_for(inputs, attend, mode="max-autotune-no-cudagraphs")
    return make_calls(lambda *given: function(*given, decoding), q, k, v, dout)


FORMS = {
    f"two FlexAttention, merged (v in parts of {PART})": Form(prepare, devices=(CUDA,)),
    f"two FlexAttention, merged (decoding, v in parts of {PART})": Form(
        partial(prepare, decoding=True), devices=(CUDA,)
    ),
}
