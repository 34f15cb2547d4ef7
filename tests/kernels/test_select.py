"""The tables: which tile for which strips, and why not those before it."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

from crisscross.kernels.attention import can_write_across
from crisscross.kernels.catalogue import all_configurations
from crisscross.kernels.select import find_strip, select
from crisscross.kernels.tables import DIRECTIONS, TABLES, Strip
from crisscross.kernels.tiles import (
    FmaTile,
    MmaBackwardStreamTile,
    MmaBackwardTile,
    MmaForwardTile,
    MmaStreamTile,
)
from crisscross.testing import make_case
from crisscross.view import View
from tests.kernels.emulated import H100

HALF = ("float16", "bfloat16")


def choose(direction, dtype, length, qk=64, v=512, *, meets_itself=True, limits=H100):
    return select(direction, Strip(dtype, length, qk, v, meets_itself), limits)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("length", "forward", "backward"),
    [(1, 32, 32), (32, 32, 32), (33, 64, 64), (97, 104, 112), (105, 144, 112), (129, 144, 144)],
)
def test_a_strip_of_up_to_144_is_one_tile(dtype, length, forward, backward):
    tile = choose("forward", dtype, length).tile
    assert isinstance(tile, MmaForwardTile) and tile.keys == forward
    tile = choose("backward", dtype, length).tile
    assert isinstance(tile, MmaBackwardTile) and tile.keys == backward


@pytest.mark.parametrize(
    ("head_size_qk", "head_size_v", "depth", "group"),
    [(1, 1, 64, 64), (64, 64, 64, 64), (64, 65, 64, 128), (65, 8, 256, 128), (512, 512, 512, 256)],
)
def test_longer_strips_stream(head_size_qk, head_size_v, depth, group):
    tile = choose("forward", "bfloat16", 145, head_size_qk, head_size_v).tile
    assert isinstance(tile, MmaStreamTile) and (tile.depth, tile.group) == (depth, group)


@pytest.mark.parametrize(
    ("sizes", "shared_bytes", "rows", "group"),
    [
        ((64, 64), 227 << 10, 128, 64),
        ((64, 512), 227 << 10, 128, 128),
        ((1, 65), 227 << 10, 128, 128),
        ((64, 512), 163 << 10, 64, 256),
        ((64, 512), 99 << 10, 64, 256),
        ((65, 8), 99 << 10, 64, 256),
        ((256, 256), 99 << 10, 64, 256),
        ((257, 8), 99 << 10, 32, 256),
        ((512, 512), 99 << 10, 32, 256),
    ],
)
def test_longer_strips_stream_backward(sizes, shared_bytes, rows, group):
    limits = dataclasses.replace(H100, shared_bytes=shared_bytes)
    tile = choose("backward", "bfloat16", 145, *sizes, limits=limits).tile
    assert isinstance(tile, MmaBackwardStreamTile) and (tile.rows, tile.group) == (rows, group)
    assert sizes[0] <= tile.depth and sizes[1] <= tile.width


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("dtype", "length"), [("float32", 97), ("float64", 9), ("float32", 500)])
def test_wider_numbers_do_without_tensor_cores(direction, dtype, length):
    assert isinstance(choose(direction, dtype, length).tile, FmaTile)


@pytest.mark.parametrize("arithmetic", ["tf32", "tf32x3"])
@pytest.mark.parametrize("limits", [H100, dataclasses.replace(H100, shared_bytes=99 << 10)])
def test_less_than_ieee_takes_tensor_cores_both_ways_or_neither(arithmetic, limits):
    for length in (1, 97, 145):
        for qk, v in product((1, 64, 65, 513), (1, 64, 65, 512, 513)):
            tiles = [
                choose(each, arithmetic, length, qk, v, limits=limits).tile for each in DIRECTIONS
            ]
            expected = (FmaTile, FmaTile)
            if qk <= 64 and v <= 512:
                expected = (MmaStreamTile, MmaBackwardStreamTile)
            assert tuple(map(type, tiles)) == expected
    older = dataclasses.replace(H100, architecture=75)
    assert isinstance(choose("forward", arithmetic, 97, limits=older).tile, FmaTile)


def test_reasons_name_what_was_in_the_way():
    older = dataclasses.replace(H100, architecture=75)
    found = choose("forward", "float16", 97, limits=older)
    assert isinstance(found.tile, FmaTile)
    assert "tensor cores are used from compute capability 8.0 on" in found.reason
    assert isinstance(choose("forward", "float16", 145, qk=513).tile, FmaTile)
    # What a position does not see must not reach it as 0 * infinity.
    found = choose("backward", "float16", 97, meets_itself=False)
    assert isinstance(found.tile, MmaBackwardStreamTile) and "weights of zero" in found.reason
    assert isinstance(choose("backward", "float16", 145, v=513).tile, FmaTile)
    assert isinstance(choose("forward", "float16", 97, meets_itself=False).tile, MmaForwardTile)
    small = dataclasses.replace(H100, architecture=120, shared_bytes=99 << 10)
    found = choose("backward", "float16", 129, limits=small)
    assert isinstance(found.tile, MmaBackwardStreamTile)
    assert "needs 130512 bytes of shared memory, a block has 101376" in found.reason


def test_what_is_selected_has_room_for_the_strip():
    for direction, table in TABLES.items():
        for dtype in table:
            for length in (1, 31, 32, 33, 64, 65, 104, 105, 112, 113, 144, 145, 1000):
                for sizes in ((1, 1), (64, 512), (300, 20), (513, 64)):
                    tile = choose(direction, dtype, length, *sizes).tile
                    if isinstance(tile, MmaForwardTile | MmaBackwardTile):
                        assert length <= tile.keys
                    if isinstance(tile, MmaStreamTile | MmaBackwardStreamTile):
                        assert sizes[0] <= tile.depth
                    if isinstance(tile, MmaBackwardStreamTile):
                        assert sizes[1] <= tile.width


def test_every_tile_is_selected_for_some_strip():
    selected = {
        choose(direction, dtype, length, *sizes, meets_itself=meets, limits=limits).tile
        for direction, table in TABLES.items()
        for dtype in table
        for length in (32, 64, 104, 112, 144, 145)
        for sizes in ((64, 64), (64, 512), (256, 256), (512, 512), (513, 1))
        for meets in (True, False)
        for limits in (
            H100,
            dataclasses.replace(H100, shared_bytes=163 << 10),
            dataclasses.replace(H100, architecture=75),
        )
    }
    assert selected == {row.tile for rows in TABLES.values() for t in rows.values() for row in t}


def test_names_of_configurations_tell_them_apart():
    configurations = list(all_configurations())
    assert len({str(each) for each in configurations}) == len(configurations)
    assert len({(each.kernel, each.options) for each in configurations}) == len(configurations)


def test_results_are_written_across_where_positions_are_neighbours():
    case = make_case((5, 7), dtype="float16")
    tile = select("forward", find_strip(case.problem, 1), H100).tile
    out = View(0, (1, 1, 5, 7, 8), (280, 280, 7, 1, 35), "float16")
    assert can_write_across(tile, out, 1)
    assert not can_write_across(tile, out, 0)
    assert not can_write_across(TABLES["forward"]["float32"][0].tile, out, 1)
