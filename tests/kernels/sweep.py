"""How much of the sweep over configurations, cases and schedules a run takes on."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_CHOSEN = os.environ.get("KERNEL_SWEEP", "")
#: The whole of it, as CI does; else a sample, the same one each time.
FULL = {"": False, "tiles": False, "full": True}[_CHOSEN]
#: Of the strip kernels all tiles, each in a sample of cases.
ALL_TILES = _CHOSEN in ("tiles", "full")


def sample(items: Sequence[T], count: int, seed: str) -> list[T]:
    """Choose `count` of the items by a seed, or all of them in a full sweep."""
    if FULL or count >= len(items):
        return list(items)
    return random.Random(seed).sample(list(items), count)
