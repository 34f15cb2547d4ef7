"""PyTorch's compiler on the two forms of `torch_eager`."""

from __future__ import annotations

import torch
from torch_eager import attend_by_bmm, attend_by_einsum, prepare

from crisscross.bench.peer import Calls, Form, Inputs

PACKAGES = ("torch",)

_shapes: set[tuple[int, ...]] = set()


def prepare_compiled(inputs: Inputs, attend: object) -> Calls:
    # Both forms of a shape are compiled before the next shape comes.
    if inputs.v.shape not in _shapes:
        torch._dynamo.reset()
        _shapes.clear()
        _shapes.add(inputs.v.shape)
    return prepare(inputs, torch.compile(attend, dynamic=False))


FORMS = {
    "torch.compile einsum": Form(lambda inputs: prepare_compiled(inputs, attend_by_einsum)),
    "torch.compile bmm": Form(lambda inputs: prepare_compiled(inputs, attend_by_bmm)),
}
