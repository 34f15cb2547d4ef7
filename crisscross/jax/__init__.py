"""The JAX room: the only one that imports jax.

Every function of `crisscross` takes arrays of JAX, traced ones too; here are the blocks of
`crisscross.nn`, each a pair of functions on plain parameters.
"""

from crisscross.errors import MissingDependencyError

try:
    import jax as _jax  # noqa: F401
except ImportError:
    raise MissingDependencyError(
        "crisscross.jax needs JAX: pip install 'crisscross-attention[jax]'"
    ) from None

from crisscross.jax.blocks import (
    Block,
    channel_attention_block,
    criss_cross_block,
    non_local_block,
    position_attention_block,
    rcca_head,
)
from crisscross.jax.functions import (
    axial_attention,
    ca_map,
    ca_softmax,
    ca_weight,
    criss_cross_attention,
)
from crisscross.jax.training import Training

__all__ = [
    "Block",
    "Training",
    "axial_attention",
    "ca_map",
    "ca_softmax",
    "ca_weight",
    "channel_attention_block",
    "criss_cross_attention",
    "criss_cross_block",
    "non_local_block",
    "position_attention_block",
    "rcca_head",
]
