"""Criss-cross attention on plain arrays: NumPy today, and whatever speaks DLPack with it.

Each position of a feature map attends to its row and its column, H+W-1 keys in place of H*W
(CCNet, Huang et al., ICCV 2019). Every function takes and returns the caller's own kind of array.
"""

from crisscross.bridge import from_dlpack, to_dlpack
from crisscross.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    BridgeError,
    CrissCrossError,
    MissingDependencyError,
)
from crisscross.ops import (
    Explanation,
    attention_entropy,
    attention_map,
    axial_attention,
    axial_attention_backward,
    ca_map,
    ca_map_backward,
    ca_softmax,
    ca_softmax_backward,
    ca_weight,
    ca_weight_backward,
    clear_workspace,
    compose_attention,
    criss_cross_attention,
    criss_cross_attention_backward,
    explain,
    from_port_layout,
    get_num_threads,
    merge_attentions,
    set_num_threads,
    to_port_layout,
)

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "BridgeError",
    "CrissCrossError",
    "Explanation",
    "MissingDependencyError",
    "__version__",
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
    "from_dlpack",
    "from_port_layout",
    "get_num_threads",
    "merge_attentions",
    "set_num_threads",
    "to_dlpack",
    "to_port_layout",
]
