"""Every configuration of the strip kernels against the oracle, in any order of the threads."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.kernels import attention
from crisscross.kernels.select import STRIP_KERNELS, TABLE, Selection, configure
from crisscross.testing import assert_matches_reference, make_case
from tests.emulator.launch import Schedule
from tests.emulator.memory import allocate, place
from tests.kernels.emulated import EmulatedArray, EmulatorEngine
from tests.kernels.sweep import sample

TILES = [
    pytest.param(dtype, row.tile, id=f"{dtype}-{row.tile}".replace(" ", "-"))
    for dtype, rows in TABLE.items()
    for row in rows
]
SCHEDULES = [
    (Schedule.ASCENDING, 0),
    (Schedule.DESCENDING, 0),
    *((schedule, seed) for seed in (1, 2) for schedule in Schedule if "SHUFFLED" in schedule.name),
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
    }


def wide(tile):
    return tile.channels // tile.thread_columns


def run(case, tile, monkeypatch, *, schedule, seed):
    """Run forward and backward on views, with one tile for all strips."""
    monkeypatch.setattr(attention, "select", lambda *_: Selection(tile, "asked for by a test"))
    engine = EmulatorEngine(schedule=schedule, seed=seed)
    problem = case.problem
    names = ("q", "k", "v", "key_mask", "dout", "dlse")
    arrays = {
        name: None if (array := getattr(case, name)) is None else EmulatedArray(place(array))
        for name in names
    }
    shapes = {"out": "v", "dq": "q", "dk": "k", "dv": "v"}
    for name, like in shapes.items():
        given = getattr(case, like)
        arrays[name] = EmulatedArray(allocate(given.shape, given.dtype))
    arrays["lse"] = EmulatedArray(allocate(problem.lse_shape, problem.compute_dtype))
    views = {name: None if array is None else array.view for name, array in arrays.items()}
    forward = ("q", "k", "v", "key_mask", "out", "lse")
    attention.attention_forward(engine, problem, **{name: views[name] for name in forward})
    attention.attention_backward(engine, problem, **views)
    partial_dtype = problem.compute_dtype if len(problem.axes) > 2 else problem.dtype
    expected = {
        (configuration.kernel, configuration.options)
        for kernel in STRIP_KERNELS
        for configuration in [configure(kernel, problem.dtype, tile, partial_dtype=partial_dtype)]
    }
    assert expected <= engine.compiled
    return {name: arrays[name].array for name in (*shapes, "lse")}


@pytest.mark.parametrize("name", list(find_cases(TABLE["float32"][0].tile)))
@pytest.mark.parametrize(("dtype", "tile"), sample(TILES, 9, "strips"))
def test_every_tile(monkeypatch, dtype, tile, name):
    spatial, options = find_cases(tile)[name]
    # Read as they are, and copied to have their channels side by side.
    for channel_axis in sample([-1, 1], 1, f"{dtype}{tile}{name}"):
        for masked in sample([True, False], 1, f"{channel_axis}{tile}{dtype}{name}"):
            case = make_case(
                spatial, dtype=dtype, masked=masked, channel_axis=channel_axis, **options
            )
            for schedule, seed in sample(SCHEDULES, 1, f"{masked}{name}{dtype}{tile}"):
                results = run(case, tile, monkeypatch, schedule=schedule, seed=seed)
                assert_matches_reference(case, **results)


def test_no_schedule_changes_a_bit(monkeypatch):
    case = make_case((37, 5), heads=2, masked=True, channel_axis=-1)
    tile = TABLE["float32"][0].tile
    found = [
        run(case, tile, monkeypatch, schedule=schedule, seed=seed) for schedule, seed in SCHEDULES
    ]
    for results in found[1:]:
        for name, array in results.items():
            np.testing.assert_array_equal(array, found[0][name])
