"""Every configuration of the strip kernels against the oracle, in any order of the threads."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from crisscross.kernels.candidates import list_rows
from crisscross.kernels.tables import DIRECTIONS, TABLES, TERMS
from crisscross.kernels.tiles import FmaTile, MmaBackwardStreamTile, MmaStreamTile
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.devices import (
    EmulatedBench,
    make_arithmetic_case,
    run_attention,
    run_forward,
    select_tile,
)
from tests.kernels.emulated import EmulatorEngine
from tests.kernels.sweep import ALL_TILES, sample

TILES = [
    pytest.param(
        direction, arithmetic, row.tile, id=f"{direction}-{arithmetic}-{row.tile}".replace(" ", "-")
    )
    for direction in DIRECTIONS
    for arithmetic in TABLES[direction]
    for row in list_rows(direction, arithmetic)
    if arithmetic not in TERMS or not isinstance(row.tile, FmaTile)  # or it is float32's
]


def find_stratum(tile):
    """A sort of tile for elements of one size: a sample has one of each."""
    direction, arithmetic, tile = tile.values
    return direction, type(tile).__name__, arithmetic in ("float16", "bfloat16")


if not ALL_TILES:
    strata = sorted({find_stratum(tile) for tile in TILES})
    TILES = [
        tile
        for stratum in strata
        for tile in sample([t for t in TILES if find_stratum(t) == stratum], 1, str(stratum))
    ]
SMALLEST = TABLES["forward"]["float32"][0].tile


def find_cases(tile):
    """Cases that reach into every corner of a tile: what is drawn is sizes."""
    channels, vector, depth = tile.channels, 8, tile.channels
    widest = 512
    if isinstance(tile, FmaTile):
        one_tile, any_length = tile.columns, max(tile.columns, tile.rows) + 5
        depth, vector = tile.depth, tile.channels // tile.thread_columns
    elif isinstance(tile, MmaStreamTile):
        one_tile, any_length = tile.keys, max(tile.keys, tile.rows) + 5
        channels, depth = tile.group, tile.depth - 8
    elif isinstance(tile, MmaBackwardStreamTile):
        one_tile, any_length = tile.keys, max(tile.keys, tile.rows) + 5
        channels, depth, widest = tile.group, tile.depth - 8, tile.width
    else:
        one_tile = any_length = tile.keys
    return {
        # All keys in one tile, rows ragged, head sizes less than a vector.
        "single": ((one_tile - 3, 2), {"heads": 2, "head_size_qk": 3, "head_size_v": 7}),
        # Several tiles of keys, of rows and of channels, the last of each ragged.
        "several": (
            (2, any_length),
            {"head_size_qk": depth + 1, "head_size_v": min(channels + vector, widest) - 1},
        ),
        # Several tiles of channels, the last one ragged, and yet all vectors aligned.
        "several aligned": (
            (3, one_tile - 3),
            {"head_size_qk": depth + 8, "head_size_v": min(2 * channels + 24, widest)},
        ),
        # Sums of gradients over three axes; head sizes that fill a vector and begin another.
        "three axes": ((2, 3, 5), {"head_size_qk": 4, "head_size_v": 25, "batch": 2}),
        "one axis, self left out": (
            (3, one_tile - 7),
            {"axes": (1,), "include_self": False, "head_size_qk": 8, "head_size_v": 16},
        ),
        "a single position": ((1, 1), {"head_size_qk": 1, "head_size_v": 1}),
        "heads of CCNet": ((3, 9), {"head_size_qk": 64, "head_size_v": widest}),
    }


def run(bench, case, direction, tile, order=None):
    """Run one direction on views, with one tile for all strips; the other as it would be."""
    problem = case.problem
    with bench.open(order) as engine, select_tile(direction, tile):
        if tile.count_shared_bytes(problem.dtype) > engine.limits.shared_bytes:
            pytest.skip(f"the device has not the shared memory for tiles of {tile}")
        if tile.architecture > engine.limits.architecture:
            pytest.skip(f"the device is of compute capability {engine.limits.architecture / 10}")
        views = (run_forward if direction == "forward" else run_attention)(bench, engine, case)
        if isinstance(engine, EmulatorEngine):
            hold_to_be_compiled(direction, tile, engine.compiled)
        results = ("out", "lse") if direction == "forward" else ("dq", "dk", "dv")
        return {name: bench.get(views[name]) for name in results}


def hold_to_be_compiled(direction, tile, compiled):
    """Hold what has been compiled to the kernels of a tile."""
    options = {f"-D{name}={value}" for name, value in tile.definitions.items()}
    for kernel in tile.kernels:
        if direction in kernel:
            assert any(kernel == name and options <= set(found) for name, found in compiled)


@pytest.mark.parametrize("name", list(find_cases(SMALLEST)))
@pytest.mark.parametrize(("direction", "arithmetic", "tile"), TILES)
def test_every_tile(bench, direction, arithmetic, tile, name):
    spatial, options = find_cases(tile)[name]
    # Read as they are, or copied to have their channels side by side; with a mask, or without.
    variants = list(product([-1, 1], [True, False]))
    runs = max(len(variants), len(bench.orders))
    each = [(variants[i % len(variants)], bench.orders[i % len(bench.orders)]) for i in range(runs)]
    for (channel_axis, masked), order in sample(each, 1, f"{direction}{arithmetic}{tile}{name}"):
        case = make_arithmetic_case(
            spatial, arithmetic, masked=masked, channel_axis=channel_axis, **options
        )
        assert_matches_reference(case, **run(bench, case, direction, tile, order))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_schedule_changes_a_bit(direction, dtype):
    tile = TABLES[direction][dtype][0].tile
    spatial = (37, 5) if isinstance(tile, FmaTile) else (tile.keys - 1, 5)
    case = make_case(spatial, heads=2, masked=True, channel_axis=-1, dtype=dtype)
    bench = EmulatedBench()
    found = [run(bench, case, direction, tile, order) for order in bench.orders]
    for results in found[1:]:
        for name, array in results.items():
            np.testing.assert_array_equal(array, found[0][name])
