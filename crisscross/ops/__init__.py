"""The functional API: check the problem, allocate the outputs, hand them to a backend."""

from crisscross.cpu.threads import get_num_threads, set_num_threads
from crisscross.cpu.workspace import clear_workspace
from crisscross.ops.attention import (
    axial_attention,
    axial_attention_backward,
    criss_cross_attention,
    criss_cross_attention_backward,
)
from crisscross.ops.ccnet import (
    ca_map,
    ca_map_backward,
    ca_softmax,
    ca_softmax_backward,
    ca_weight,
    ca_weight_backward,
    from_port_layout,
    to_port_layout,
)
from crisscross.ops.explain import Explanation, explain
from crisscross.ops.maps import attention_entropy, attention_map, compose_attention
from crisscross.ops.merge import merge_attentions

__all__ = [
    "Explanation",
    "attention_entropy",
    "attention_map",
    "axial_attention",
    "axial_attention_backward",
    "ca_map",
    "ca_map_backward",
    "ca_softmax",
    "ca_softmax_backward",
    "ca_weight",
    "ca_weight_backward",
    "clear_workspace",
    "compose_attention",
    "criss_cross_attention",
    "criss_cross_attention_backward",
    "explain",
    "from_port_layout",
    "get_num_threads",
    "merge_attentions",
    "set_num_threads",
    "to_port_layout",
]
