"""Products cut into pieces: every element once, in its place, whatever the sizes and strides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisscross.cpu import products
from crisscross.testing import make_case
from tests.support.calls import run_backward, run_forward

SIZES = st.integers(1, 11)


def multiply_in_pieces(weights, values, result, *, excluded):
    """In pieces of at most three channels and four rows or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_SMALL_PRODUCT", 60)
        patch.setattr(products, "_PIECES", ((4, None), (None, 3), (4, 3), (2, 3)))
        products.multiply(weights, values, result, excluded=excluded, in_pieces=True)


@settings(deadline=None)
@given(
    outer=st.lists(st.integers(1, 3), max_size=2),
    sizes=st.tuples(SIZES, SIZES, SIZES),
    turned=st.booleans(),
    gap=st.integers(0, 2),
)
def test_pieces_make_the_product(outer, sizes, turned, gap):
    rng = np.random.default_rng(0)
    rows, keys, channels = sizes
    weights = rng.integers(-9, 9, (*outer, rows, keys)).astype(np.float32)
    values = rng.integers(-9, 9, (*outer, keys, channels + gap)).astype(np.float32)[..., :channels]
    exact = weights @ values
    if turned:
        weights = np.ascontiguousarray(weights.swapaxes(-1, -2)).swapaxes(-1, -2)
    memory = np.full((*outer, rows, channels + gap), np.nan, np.float32)
    multiply_in_pieces(weights, values, memory[..., :channels], excluded=None)
    np.testing.assert_array_equal(memory[..., :channels], exact)
    assert np.isnan(memory[..., channels:]).all()


def test_what_is_excluded_has_no_part_in_a_product_of_pieces():
    weights = np.ones((2, 9, 9), np.float32)
    weights[:, range(9), range(9)] = 0
    values = np.ones((2, 9, 7), np.float32)
    values[1, 3] = np.nan
    result = np.empty((2, 9, 7), np.float32)
    multiply_in_pieces(weights, values, result, excluded=0)
    assert (result[0] == 8).all() and (result[1, 3] == 8).all()
    assert np.isnan(np.delete(result[1], 3, axis=0)).all()


@pytest.mark.parametrize(
    ("sizes", "piece"),
    [
        ((90, 90, 100), (90, 100)),
        ((256, 256, 100), (32, 100)),
        ((97, 97, 512), (97, 64)),
        ((256, 256, 512), (32, 64)),
        ((512, 512, 128), (16, 64)),
        ((2000, 2000, 64), (2000, 64)),
    ],
    ids=["small", "few rows", "CCNet's", "few rows and channels", "fewest rows", "too long"],
)
def test_large_products_are_cut_as_the_kernels_want_them(sizes, piece):
    assert products._choose_piece(*sizes) == piece


@pytest.mark.parametrize("most", range(1, 12))
@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_pieces_have_one_size_or_two_that_differ_by_one(count, most):
    sizes, reached = set(), 0
    for run in products._cut_even(count, most):
        size, rest = divmod(run.range.stop - run.range.start, run.pieces)
        assert (rest, run.range.start) == (0, reached)
        sizes.add(size)
        reached = run.range.stop
    assert reached == count
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(("gap", "crowded"), [(0, True), (1, False)])
def test_positions_that_share_lines_of_a_cache_are_left_whole(monkeypatch, kernels, gap, crowded):
    """Columns of a map of 256 x 256 with 64 channels lie 64 KiB apart."""
    monkeypatch.setattr(products, "has_small_kernels", lambda: kernels)
    columns = np.empty((256, 256 + gap, 64), np.float32).swapaxes(0, 1)
    assert products.suit_pieces(columns) == (kernels and not crowded)


@pytest.mark.parametrize("kernels", [False, True])
def test_forward_and_backward_multiply_in_pieces_where_there_are_kernels(monkeypatch, kernels):
    cut = []

    def look(weights, values, result, most):
        cut.append(values.shape[-1])
        multiply_pieces(weights, values, result, most)

    multiply_pieces = products._multiply_pieces
    monkeypatch.setattr(products, "has_small_kernels", lambda: kernels)
    monkeypatch.setattr(products, "_multiply_pieces", look)
    case = make_case((97, 61), head_size_qk=112, head_size_v=120, channel_axis=-1)
    result = run_forward(case)
    assert set(cut) == ({120} if kernels else set())
    cut.clear()
    run_backward(case, *result)
    assert set(cut) == ({112, 120} if kernels else set())
