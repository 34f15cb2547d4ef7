"""Every configuration of the strip kernels against the oracle, in any order of the threads."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.kernels import attention
from crisscross.kernels.select import STRIP_KERNELS, TABLE, Selection, configure
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.devices import EmulatedBench, run_attention
from tests.kernels.emulated import EmulatorEngine
from tests.kernels.sweep import sample

TILES = [
    pytest.param(dtype, row.tile, id=f"{dtype}-{row.tile}".replace(" ", "-"))
    for dtype, rows in TABLE.items()
    for row in rows
]


def find_cases(tile):
    """Cases that reach into every corner of a tile: what is drawn is sizes."""
    rows, columns, channels = tile.rows, tile.columns, tile.channels
    return {
        # All keys in one tile, rows ragged, head sizes less than a vector.
        "single": ((columns - 3, 2), {"heads": 2, "head_size_qk": 3, "head_size_v": 7}),
        # Several tiles of keys, of rows and of channels, the last of each ragged.
        "several": (
            (2, max(columns, rows) + 5),
            {"head_size_qk": tile.depth + 1, "head_size_v": channels + wide(tile) + 1},
        ),
        # Sums of gradients over three axes; head sizes that fill a vector and begin another.
        "three axes": ((2, 3, 5), {"head_size_qk": 4, "head_size_v": 25, "batch": 2}),
        "one axis, self left out": (
            (3, columns + 1),
            {"axes": (1,), "include_self": False, "head_size_qk": 8, "head_size_v": 16},
        ),
        "a single position": ((1, 1), {"head_size_qk": 1, "head_size_v": 1}),
        "heads of CCNet": ((3, 9), {"head_size_qk": 64, "head_size_v": 512}),
    }


def wide(tile):
    return tile.channels // tile.thread_columns


def run(bench, case, tile, monkeypatch, order=None):
    """Run forward and backward on views, with one tile for all strips."""
    monkeypatch.setattr(attention, "select", lambda *_: Selection(tile, "asked for by a test"))
    problem = case.problem
    with bench.open(order) as engine:
        if tile.count_shared_bytes(problem.dtype) > engine.limits.shared_bytes:
            pytest.skip(f"the device has not the shared memory for tiles of {tile}")
        views = run_attention(bench, engine, case)
        if isinstance(engine, EmulatorEngine):
            assert find_expected(problem, tile) <= engine.compiled
        return {name: bench.get(views[name]) for name in ("out", "lse", "dq", "dk", "dv")}


def find_expected(problem, tile):
    """Find what is to be compiled."""
    partial_dtype = problem.compute_dtype if len(problem.axes) > 2 else problem.dtype
    configurations = [
        configure(kernel, problem.dtype, tile, partial_dtype=partial_dtype)
        for kernel in STRIP_KERNELS
    ]
    return {(each.kernel, each.options) for each in configurations}


@pytest.mark.parametrize("name", list(find_cases(TABLE["float32"][0].tile)))
@pytest.mark.parametrize(("dtype", "tile"), sample(TILES, 9, "strips"))
def test_every_tile(bench, monkeypatch, dtype, tile, name):
    spatial, options = find_cases(tile)[name]
    # Read as they are, and copied to have their channels side by side.
    for channel_axis in sample([-1, 1], 1, f"{dtype}{tile}{name}"):
        for masked in sample([True, False], 1, f"{channel_axis}{tile}{dtype}{name}"):
            case = make_case(
                spatial, dtype=dtype, masked=masked, channel_axis=channel_axis, **options
            )
            for order in sample(bench.orders, 1, f"{masked}{name}{dtype}{tile}"):
                results = run(bench, case, tile, monkeypatch, order)
                assert_matches_reference(case, **results)


def test_no_schedule_changes_a_bit(monkeypatch):
    case = make_case((37, 5), heads=2, masked=True, channel_axis=-1)
    tile = TABLE["float32"][0].tile
    bench = EmulatedBench()
    found = [run(bench, case, tile, monkeypatch, order) for order in bench.orders]
    for results in found[1:]:
        for name, array in results.items():
            np.testing.assert_array_equal(array, found[0][name])
