"""The oracle: every operation written as its definition, position by position, slow and obvious.

It computes one step wider than its inputs (float64; for float64, the platform's long double) and
rounds once, at the outputs. Nothing here is shared with the other backends but the problem.
"""

from crisscross.reference.attention import attention_backward, attention_forward, merge
from crisscross.reference.ccnet import (
    ca_map,
    ca_map_backward,
    ca_softmax,
    ca_softmax_backward,
    ca_weight,
    ca_weight_backward,
    from_port_layout,
    to_port_layout,
)

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
