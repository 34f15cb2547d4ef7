"""PyTorch's compiler on the two forms of `torch_eager`."""

from __future__ import annotations

import torch._inductor.config
from torch_eager import (
    attend_by_bmm,
    attend_by_einsum,
    compile_for,
    measure_memory,
    prepare,
    release,
)

from crisscross.bench.peer import Form
from crisscross.bench.shapes import DEVICES

__all__ = ["FORMS", "PACKAGES", "measure_memory", "release"]

PACKAGES = ("torch",)

# A pool of compilers would start more processes than there are CPUs to spare; what they compile is
# the same.
torch._inductor.config.compile_threads = 1

FORMS = {
    "torch.compile einsum": Form(
        lambda inputs: prepare(inputs, compile_for(inputs, attend_by_einsum)), devices=DEVICES
    ),
    "torch.compile bmm": Form(
        lambda inputs: prepare(inputs, compile_for(inputs, attend_by_bmm)), devices=DEVICES
    ),
}
