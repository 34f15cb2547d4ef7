"""How much of the sweep over configurations, cases and schedules a run takes on."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: The whole of it, as CI does; else a sample, the same one each time.
FULL = {"": False, "full": True}[os.environ.get("KERNEL_SWEEP", "")]


def sample(items: Sequence[T], count: int, seed: str) -> list[T]:
    """Choose `count` of the items by a seed, or all of them in a full sweep."""
    if FULL or count >= len(items):
        return list(items)
    return random.Random(seed).sample(list(items), count)
