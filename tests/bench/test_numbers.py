"""Statistics, shapes and the floor, on made-up numbers."""

from __future__ import annotations

import pytest

from crisscross.bench.ratios import Spread, pair, summarise
from crisscross.bench.shapes import (
    DTYPES,
    FORWARD,
    FORWARD_BACKWARD,
    GPU_SHAPES,
    PASSES,
    QUICK_GPU_SHAPES,
    QUICK_SHAPES,
    SHAPES,
    Shape,
    count_bytes,
    count_flops,
    count_sets,
    find_floor,
    parse_shape,
)
from crisscross.testing import make_case


def test_the_spread_is_the_quartiles():
    assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert summarise([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratios_are_paired():
    """The machine is ten times as slow in one round: the ratio does not see it."""
    theirs, ours = [2.0, 20.0, 2.2, 1.8, 2.0], [1.0, 10.0, 1.0, 1.0, 1.0]
    assert pair(theirs, ours) == Spread(2.0, 2.0, 2.0)
    assert summarise(theirs).high / summarise(ours).median > 2.1


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError, match="argument 2"):
        pair([1.0], [1.0, 2.0])


@pytest.mark.parametrize("shape", [Shape(6, 3, 5, 7, 2), Shape(1, 1, 1, 1), Shape(8, 2, 9, 4)])
def test_the_floor_is_the_count_of_the_products(shape):
    """Count them one by one: (rows, inner, columns) of every matmul of every strip."""
    strips = [(shape.width, shape.height), (shape.height, shape.width)]  # number, length
    forward, backward = 0, 0
    for number, length in strips:
        energies = (length, shape.key_channels, length)
        weighted = (length, length, shape.channels)
        products = [energies, weighted]
        gradients = [
            energies,
            (length, shape.channels, length),  # dP = dout v^T
            (length, length, shape.key_channels),  # dq = dE k
            (length, length, shape.key_channels),  # dk = dE^T q
            (length, length, shape.channels),  # dv = P^T dout
        ]
        images = shape.batch * number
        forward += images * sum(2 * m * k * n for m, k, n in products)
        backward += images * sum(2 * m * k * n for m, k, n in gradients)
    assert count_flops(shape, FORWARD) == forward
    assert count_flops(shape, FORWARD_BACKWARD) == forward + backward
    assert set(PASSES) == {FORWARD, FORWARD_BACKWARD}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_least_bytes_are_those_of_all_arrays(dtype):
    shape = Shape(6, 3, 5, 7, 2)
    case = make_case((5, 7), batch=2, head_size_qk=3, head_size_v=6, dtype=dtype, with_dlse=False)
    forward = [case.q, case.k, case.v, case.exact["out"]]
    backward = [*forward, case.dout, *(case.exact[name] for name in ("dq", "dk", "dv"))]
    item = case.q.dtype.itemsize
    assert count_bytes(shape, FORWARD, dtype) == sum(x.size for x in forward) * item
    both = sum(x.size for x in [*forward, *backward]) * item
    assert count_bytes(shape, FORWARD_BACKWARD, dtype) == both


def test_the_floor_is_the_larger_of_the_two():
    shape = Shape(64, 8, 10, 20)
    flops, moved = count_flops(shape, FORWARD), count_bytes(shape, FORWARD, "float16")
    for ratio in (0.5, 2.0):
        floor = find_floor(shape, FORWARD, "float16", flops, moved * ratio)
        assert floor == max(1.0, 1 / ratio)
    assert find_floor(shape, FORWARD, "float16", flops / 3, None) == pytest.approx(3)


@pytest.mark.parametrize("shape", [*GPU_SHAPES, Shape(8, 2, 4, 4)])
def test_what_is_read_between_two_turns_of_a_set_is_twice_the_cache(shape):
    cache = 50 * 2**20
    sets = count_sets(shape, "bfloat16", cache)
    positions = shape.batch * shape.height * shape.width
    size = 2 * positions * (2 * shape.key_channels + shape.channels)
    assert (sets - 1) * size >= 2 * cache or sets == 32
    assert (sets - 2) * size < 2 * cache


@pytest.mark.parametrize(
    ("text", "shape"),
    [("64/8,5x7", Shape(64, 8, 5, 7)), ("512/64,97x97,3", Shape(512, 64, 97, 97, 3))],
)
def test_shapes_are_read(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    "text", ["", "64,5x7", "64/8", "64/8,5", "0/8,5x7", "64/8,5x7,0", "64/8,5x7,", "-1/8,5x7", "a"]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match="expected C/C',HxW"):
        parse_shape(text)


def test_the_shapes():
    assert len(set(SHAPES)) == 8
    assert set(QUICK_SHAPES) <= set(SHAPES)
    assert len(set(GPU_SHAPES)) == 6
    assert set(QUICK_GPU_SHAPES) <= set(GPU_SHAPES)
    assert GPU_SHAPES[0] == Shape(512, 64, 97, 97, 8)
