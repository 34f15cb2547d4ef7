"""The PyTorch room: the only one that imports torch.

Every function of `crisscross` takes tensors, and is differentiable; here are CCNet's modules and
their relatives. ``from crisscross.torch import ca_weight, ca_map`` is the whole port of code that
imports them from CCNet's ``cc_attention``.
"""

from crisscross.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # it is there, and broken
    raise MissingDependencyError(
        "crisscross.torch needs PyTorch: pip install 'crisscross-attention[torch]'"
    ) from None

import crisscross.torch.flops
import crisscross.torch.operators  # noqa: F401  (nor do exported programs)
from crisscross.ops import ca_map, ca_softmax, ca_weight
from crisscross.torch.modules import RCCA, CrissCrossAttention
from crisscross.torch.relatives import ChannelAttention, NonLocalBlock, PositionAttention

__all__ = [
    "RCCA",
    "ChannelAttention",
    "CrissCrossAttention",
    "NonLocalBlock",
    "PositionAttention",
    "ca_map",
    "ca_softmax",
    "ca_weight",
]
