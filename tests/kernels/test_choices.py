"""What was measured on a device takes the place of the table's choice, where it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

import crisscross
from crisscross.kernels.candidates import CANDIDATES, list_rows
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.select import list_fitting, select
from crisscross.kernels.tables import DIRECTIONS, TABLES, Strip
from crisscross.kernels.tiles import FmaTile, MmaBackwardTile, MmaForwardTile, MmaStreamTile
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.devices import copy_to_emulator
from tests.kernels.emulated import H100

WIDE = CANDIDATES["forward"]["bfloat16"][1].tile
STRIP = Strip("bfloat16", 129, 64, 512, True)
OLDER = replace(H100, architecture=75)
SMALL = replace(H100, architecture=120, shared_bytes=99 << 10)


def measure(direction, strip, tile, limits=H100):
    tiles = {(direction, strip): Choice(tile, 0.000123, 0.00015)}
    return replace(limits, measured=Choices("a GPU", tiles))


def test_what_was_measured_is_selected_and_says_so():
    found = select("forward", STRIP, measure("forward", STRIP, WIDE))
    assert found.tile == WIDE and isinstance(WIDE, MmaForwardTile) and WIDE.keys == 144
    told = "measured on a GPU: calls of 0.123 ms against 0.15 ms with the table's own"
    assert found.reason == told


@pytest.mark.parametrize("other", [{"length": 130}, {"arithmetic": "float16"}, {"head_size_v": 1}])
def test_another_strip_or_direction_is_the_tables(other):
    strip, limits = STRIP._replace(**other), measure("forward", STRIP, WIDE)
    assert select("forward", strip, limits) == select("forward", strip, H100)
    assert select("backward", STRIP, limits) == select("backward", STRIP, H100)


@pytest.mark.parametrize(
    ("direction", "strip", "tile", "limits"),
    [
        ("forward", STRIP._replace(length=145), WIDE, H100),
        ("forward", STRIP, WIDE, OLDER),
        ("forward", STRIP, replace(WIDE, warps=6), H100),
        (
            "forward",
            STRIP._replace(head_size_qk=65),
            CANDIDATES["forward"]["float16"][2].tile,
            H100,
        ),
        ("backward", STRIP, TABLES["backward"]["bfloat16"][3].tile, SMALL),
        (
            "backward",
            STRIP._replace(length=97, meets_itself=False),
            CANDIDATES["backward"]["bfloat16"][0].tile,
            H100,
        ),
        ("forward", STRIP._replace(arithmetic="tf32"), TABLES["forward"]["float32"][-1].tile, H100),
    ],
    ids=[
        "the strip is too long",
        "the device is too old",
        "the tile is not listed",
        "there are too many channels",
        "there is too little shared memory",
        "positions leave themselves out",
        "it would round otherwise than the backward",
    ],
)
def test_what_does_not_fit_is_left_out(direction, strip, tile, limits):
    found = select(direction, strip, measure(direction, strip, tile, limits))
    assert found == select(direction, strip, limits) and found.tile != tile


@pytest.mark.parametrize("limits", [H100, OLDER, SMALL])
def test_the_first_that_fits_is_the_tables_own(limits):
    for direction in DIRECTIONS:
        for arithmetic in TABLES[direction]:
            for length in (1, 64, 97, 129, 145):
                for sizes in ((64, 512), (64, 64), (512, 512), (600, 8)):
                    strip = Strip(arithmetic, length, *sizes, True)
                    rows = list_fitting(direction, strip, limits)
                    assert rows[0].tile == select(direction, strip, limits).tile
                    assert len({row.tile for row in rows}) == len(rows)
                    assert {row.tile for row in rows} <= {
                        row.tile for row in list_rows(direction, arithmetic)
                    }


def test_what_is_tried_are_later_rows_and_candidates():
    tiles = [row.tile for row in list_fitting("forward", STRIP._replace(length=97), H100)]
    own, *others = tiles
    assert own.keys == 104 and own.warps == 4
    assert {WIDE, *(row.tile for row in CANDIDATES["forward"]["bfloat16"])} < set(others)
    assert any(isinstance(tile, MmaStreamTile) for tile in others)
    assert not any(isinstance(tile, MmaForwardTile) and tile.keys < 97 for tile in others)
    strip = STRIP._replace(length=97, arithmetic="tf32", head_size_v=64)
    for direction in DIRECTIONS:
        rows = list_fitting(direction, strip, H100)
        assert len(rows) > 1 and not any(isinstance(row.tile, FmaTile) for row in rows)


def test_candidates_are_no_rows_of_the_tables():
    for direction, table in CANDIDATES.items():
        for arithmetic, rows in table.items():
            assert rows and all(row.reason for row in rows)
            own = {row.tile for row in TABLES[direction][arithmetic]}
            assert not own & {row.tile for row in rows}


def test_choices_are_part_of_what_is_cached():
    limits = measure("forward", STRIP, WIDE)
    first, before = select("forward", STRIP, limits), select.cache_info()
    assert select("forward", STRIP, limits) is first
    assert select.cache_info().hits == before.hits + 1
    # By identity: no call walks through them.
    assert hash(limits.measured) == object.__hash__(limits.measured)
    assert select("forward", STRIP, H100).tile != WIDE


CASE = make_case((5, 7), head_size_qk=8, head_size_v=16, dtype="bfloat16", channel_axis=-1)


@pytest.mark.parametrize(
    ("direction", "tile"),
    [
        ("forward", CANDIDATES["forward"]["bfloat16"][0].tile),
        ("backward", CANDIDATES["backward"]["bfloat16"][0].tile),
    ],
    ids=DIRECTIONS,
)
def test_calls_and_explanations_take_what_was_measured(emulated_device, direction, tile):
    assert isinstance(tile, MmaForwardTile | MmaBackwardTile)
    engine, problem = emulated_device.engine, CASE.problem
    strips = [Strip("bfloat16", length, 8, 16, True) for length in problem.spatial]
    choices = {(direction, strip): Choice(tile, 1e-4, 2e-4) for strip in strips}
    engine.limits = replace(H100, measured=Choices("the emulator", choices))
    names = ("q", "k", "v", "dout", "dlse")
    arrays = {name: copy_to_emulator(getattr(CASE, name)) for name in names}
    q, k, v, dout, dlse = arrays.values()
    out, lse = crisscross.criss_cross_attention(q, k, v, **CASE.options, return_lse=True)
    dq, dk, dv = crisscross.criss_cross_attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, **CASE.options
    )
    results = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    assert_matches_reference(CASE, **{name: x.array for name, x in results.items()})
    options = {f"-D{name}={value}" for name, value in tile.definitions.items()}
    of_direction = [found for kernel, found in engine.compiled if direction in kernel]
    assert of_direction and all(options <= set(found) for found in of_direction)
    told = crisscross.explain(q, k, v, **CASE.options).algorithm
    words = f"{direction} by {tile} (measured on the emulator: calls of 0.1 ms against 0.2 ms with"
    assert told.count(words) == 2 and told.count("measured") == 2
