"""Blocks as plain functions on parameters: CCNet's, its head, and its relatives.

Written once, for arrays of NumPy, CuPy, PyTorch and JAX. Parameters are mappings of the originals'
names to arrays; a `Tape` gives gradients where the array library has none.
"""

from crisscross.nn.checkpoints import (
    from_ccnet,
    from_mmcv,
    from_paddleseg,
    load_parameters,
    save_parameters,
)
from crisscross.nn.costs import (
    Cost,
    count_channel_attention_block,
    count_criss_cross_block,
    count_non_local_block,
    count_position_attention_block,
    count_rcca_head,
)
from crisscross.nn.criss_cross import criss_cross_block
from crisscross.nn.initial import (
    init_channel_attention_block,
    init_criss_cross_block,
    init_non_local_block,
    init_position_attention_block,
    init_rcca_head,
)
from crisscross.nn.rcca import Training, rcca_head
from crisscross.nn.relatives import (
    channel_attention_block,
    non_local_block,
    position_attention_block,
)
from crisscross.nn.tape import Tape

__all__ = [
    "Cost",
    "Tape",
    "Training",
    "channel_attention_block",
    "count_channel_attention_block",
    "count_criss_cross_block",
    "count_non_local_block",
    "count_position_attention_block",
    "count_rcca_head",
    "criss_cross_block",
    "from_ccnet",
    "from_mmcv",
    "from_paddleseg",
    "init_channel_attention_block",
    "init_criss_cross_block",
    "init_non_local_block",
    "init_position_attention_block",
    "init_rcca_head",
    "load_parameters",
    "non_local_block",
    "position_attention_block",
    "rcca_head",
    "save_parameters",
]
