"""Further tiles, which no table selects: what `crisscross tune` tries beside the table's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crisscross.kernels.tables import TABLES, Direction, Row
from crisscross.kernels.tiles import MmaBackwardTile, MmaForwardTile, MmaStreamTile

_HALF_FORWARD = (
    Row(
        MmaForwardTile(104, strips=1, warps=7, row_tiles=1, blocks=2),
        104,
        "16 queries a warp read shared memory more, but leave room for 14 warps on a "
        "multiprocessor in place of 8 to 12",
    ),
    Row(
        MmaForwardTile(144, strips=1, warps=5, row_tiles=2, blocks=1),
        144,
        "32 queries a warp need fewer reads of shared memory than 16, but nearly all registers, "
        "and there are 5 warps in place of 9",
    ),
    Row(
        MmaStreamTile(32, warps=4, row_tiles=1, depth=64, group=256, blocks=2),
        None,
        "half as many walks along the keys as for 128 channels at once, but each product reads "
        "shared memory twice as often",
        deepest=64,
    ),
)
_HALF_BACKWARD = (
    Row(
        MmaBackwardTile(112, strips=1, warp_rows=4, warp_columns=2, blocks=1),
        112,
        "eight warps in place of four on each strip, which read shared memory more",
    ),
)
#: Rows for each arithmetic, as in `TABLES`; those without an entry have none.
CANDIDATES: Mapping[Direction, Mapping[str, Sequence[Row]]] = {
    "forward": {"float16": _HALF_FORWARD, "bfloat16": _HALF_FORWARD},
    "backward": {"float16": _HALF_BACKWARD, "bfloat16": _HALF_BACKWARD},
}


def list_rows(direction: Direction, arithmetic: str) -> tuple[Row, ...]:
    """List the rows of the table, in their order, and then the further ones."""
    return (*TABLES[direction][arithmetic], *CANDIDATES[direction].get(arithmetic, ()))
