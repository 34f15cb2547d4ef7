"""Compile and launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crisscross.kernels.arguments import STRUCTURES
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Engine
from crisscross.kernels.geometry import find_strips
from crisscross.kernels.source import read_source
from crisscross.view import View


@dataclass(frozen=True)
class Block:
    """The work of a block: so many rows of a strip, a `share`-th of their channels."""

    rows: int
    threads: int
    share: int = 1


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
        argument = np.zeros(1, STRUCTURES[configuration.kernel])
        for name, value in scalars.items():
            argument[name] = value
        for (name, i), walk in strips.walks.items():
            field = argument[name].reshape(-1)[i : i + 1]
            for part, content in vars(walk).items():
                field[part] = content
        argument["strips"]["sizes"] = strips.sizes
        argument["strips"]["length"], argument["strips"]["tiles"] = strips.length, tiles
        blocks = tiles * block.share
        most = engine.limits.grid // blocks
        for first in range(0, strips.count, most):
            argument["strips"]["first"] = first
            grid = min(most, strips.count - first) * blocks
            engine.launch(kernel, grid, block.threads, argument, configuration.shared_bytes)
