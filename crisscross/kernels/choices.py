"""What was measured on a device, in place of what the tables would choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crisscross.kernels.tables import Direction, Strip
from crisscross.kernels.tiles import Tile


@dataclass(frozen=True)
class Choice:
    """A tile that was faster than the table's own.

    Attributes
    ----------
    tile
        The tile.
    seconds, table_seconds
        What a whole call took with it, and with the table's own.
    """

    tile: Tile
    seconds: float
    table_seconds: float


@dataclass(frozen=True, eq=False)
class Choices:
    """The choices for a device; equal to itself alone, so that a hash of it costs nothing.

    Attributes
    ----------
    device
        Where they were measured.
    tiles
        By direction and strip.
    is_stale
        Whether there are others, which were measured when something else was installed.
    """

    device: str
    tiles: Mapping[tuple[Direction, Strip], Choice]
    is_stale: bool = False
