"""Compile and launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crisscross.kernels.arguments import OUTER_AXES, STRUCTURES, list_fields
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Engine
from crisscross.kernels.geometry import Strips, Walk, find_strips
from crisscross.kernels.source import read_source
from crisscross.kernels.tiles import Tile
from crisscross.view import View

_NULL = Walk(0, 0, 0, (0,) * OUTER_AXES)


@dataclass(frozen=True)
class Block:
    """The work of a block: so many rows, a `share`-th of their channels, of so many strips."""

    rows: int
    threads: int
    share: int = 1
    strips: int = 1

    @classmethod
    def of(cls, tile: Tile) -> Block:
        return cls(tile.rows, tile.threads, strips=tile.strips)


def compile_kernel(engine: Engine, configuration: Configuration) -> Any:
    """Compile the kernel of a configuration for a device, unless that was done before."""
    return engine.compile(
        read_source(configuration.source),
        configuration.kernel,
        configuration.options,
        configuration.shared_bytes,
    )


def launch_strips(
    engine: Engine,
    configuration: Configuration,
    axis: int,
    arrays: Mapping[str, View | Sequence[View] | None],
    scalars: Mapping[str, float],
    *,
    block: Block,
) -> None:
    """Launch a kernel for all strips along a spatial axis.

    Parameters
    ----------
    engine, configuration
        The device, and the kernel.
    axis
        The spatial axis.
    arrays
        By their names in the kernel, (N, heads, *S) or (N, heads, *S, D). One that is None is a
        null pointer; several are an array of arrays.
    scalars
        By their names in the kernel.
    block
        What a block does.
    """
    kernel = compile_kernel(engine, configuration)
    given: dict[tuple[str, int], View] = {}
    for name, array in arrays.items():
        if isinstance(array, View):
            given[name, 0] = array
        elif array is not None:
            given |= {(name, i): view for i, view in enumerate(array)}
    for strips in find_strips(axis, given):
        tiles = -(-strips.length // block.rows)
        blocks = tiles * block.share
        most = engine.limits.grid // blocks // block.strips * block.strips
        for first in range(0, strips.count, most):
            argument = _fill(configuration.kernel, strips, first, tiles, scalars)
            grid = -(-min(most, strips.count - first) // block.strips) * blocks
            engine.launch(kernel, grid, block.threads, argument, configuration.shared_bytes)


def _fill(
    kernel: str,
    strips: Strips[tuple[str, int]],
    first: int,
    tiles: int,
    scalars: Mapping[str, float],
) -> np.ndarray:
    """Fill a kernel's structure: in one go, for fields one by one take as long as the kernel."""
    structure = STRUCTURES[kernel]
    values: list[Any] = []
    for name, count in list_fields(kernel):
        if name == "strips":
            values.append((first, strips.sizes, strips.length, tiles))
        elif name in scalars:
            values.append(scalars[name])
        else:
            walks = [strips.walks.get((name, i), _NULL) for i in range(count)]
            values.append(walks[0] if structure[name].shape == () else walks)
    return np.array([tuple(values)], structure)
