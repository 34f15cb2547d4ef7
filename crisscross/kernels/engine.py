"""What kernels run on: a device behind three functions, so that tests can put an emulator there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crisscross.dispatch import Held
from crisscross.kernels.choices import Choices

#: Of every architecture since 2012.
LARGEST_GRID = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """What a device has, and what is known of it.

    Attributes
    ----------
    architecture
        Compute capability, ten times the major number plus the minor one: 90 for an H100.
    shared_bytes
        Shared memory that one block may have.
    cache_bytes
        Of the L2 cache.
    grid
        Blocks of one launch.
    measured
        Tiles that were measured on it to be faster than those of the tables; None if none were.
    """

    architecture: int
    shared_bytes: int
    cache_bytes: int
    grid: int = LARGEST_GRID
    measured: Choices | None = None


class Engine(Protocol):
    """A device at work on a stream: what is launched and made is in its order."""

    @property
    def limits(self) -> Limits: ...

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        """Compile a kernel that may ask for so much shared memory; the same one is kept."""

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        """Launch a kernel with a structure of one element as its only argument, passed by value."""

    def make(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, /) -> Held:
        """Make an array, aligned to 256 bytes, that holds anything; its owner keeps it alive."""
