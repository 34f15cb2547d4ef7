"""The Non-local block's attention, to all positions: another function, whose cost CCNet saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch_eager import to_numpy, to_torch

from crisscross.bench.peer import DENSE, Calls, Form, Inputs, NotServed
from crisscross.bench.shapes import FORWARD

PACKAGES = ("torch",)

#: Beyond it a call takes seconds.
_MOST_POSITIONS = 10_000


def prepare(inputs: Inputs) -> Calls:
    height, width = inputs.q.shape[2:]
    if height * width > _MOST_POSITIONS:
        raise NotServed(f"measured up to {_MOST_POSITIONS:,} positions, got {height * width:,}")
    # (N, heads, positions, channels), contiguous.
    q, k, v = (
        to_torch(x, inputs).flatten(2).transpose(1, 2)[:, None].contiguous()
        for x in (inputs.q, inputs.k, inputs.v)
    )

    def forward() -> dict[str, Any]:
        with torch.no_grad():
            return {"out": scaled_dot_product_attention(q, k, v, scale=1.0)}

    def restore(results: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        out = results["out"][:, 0].transpose(1, 2).unflatten(2, (height, width))
        return to_numpy({"out": out})

    return Calls(forward, None, restore)


FORMS = {"dense, all positions (SDPA)": Form(prepare, function=DENSE, passes=(FORWARD,))}
