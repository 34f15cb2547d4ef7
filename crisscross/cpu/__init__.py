"""The NumPy backend: matmul along strips and log-sum-exp merge, and no attention map to keep.

Half precision is computed in float32 and rounded once, at the outputs. Strips are shared out among
threads; `threads` says how many, and what that means for NumPy's BLAS.
"""

from crisscross.cpu.backward import attention_backward
from crisscross.cpu.ccnet import (
    ca_map,
    ca_map_backward,
    ca_softmax,
    ca_softmax_backward,
    ca_weight,
    ca_weight_backward,
    from_port_layout,
    to_port_layout,
)
from crisscross.cpu.forward import attention_forward
from crisscross.cpu.merge import merge

__all__ = [
    "attention_backward",
    "attention_forward",
    "ca_map",
    "ca_map_backward",
    "ca_softmax",
    "ca_softmax_backward",
    "ca_weight",
    "ca_weight_backward",
    "from_port_layout",
    "merge",
    "to_port_layout",
]
