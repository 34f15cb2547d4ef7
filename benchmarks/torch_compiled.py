"""PyTorch's compiler on the two forms of `torch_eager`."""

from __future__ import annotations

import torch
import torch._inductor.config
from torch_eager import attend_by_bmm, attend_by_einsum, prepare

from crisscross.bench.peer import Calls, Form, Inputs

PACKAGES = ("torch",)

# A pool of compilers would start more processes than there are CPUs to spare; what they compile is
# the same.
torch._inductor.config.compile_threads = 1

_compiled: list[Inputs] = []


def prepare_compiled(inputs: Inputs, attend: object) -> Calls:
    # After a number of shapes the compiler would give up and run the rest eagerly.
    if not any(inputs is last for last in _compiled):
        torch._dynamo.reset()
        _compiled[:] = [inputs]
    return prepare(inputs, torch.compile(attend, dynamic=False))


FORMS = {
    "torch.compile einsum": Form(lambda inputs: prepare_compiled(inputs, attend_by_einsum)),
    "torch.compile bmm": Form(lambda inputs: prepare_compiled(inputs, attend_by_bmm)),
}
