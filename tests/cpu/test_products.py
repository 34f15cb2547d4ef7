"""Products cut into pieces: every element once, in its place, whatever the sizes and strides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisscross.cpu import products

SIZES = st.integers(1, 11)


def multiply_in_pieces(weights, values, result, *, excluded):
    """In pieces of at most three channels and four rows or two, on any CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "has_small_kernels", lambda: True)
        patch.setattr(products, "_SMALL_PRODUCT", 60)
        patch.setattr(products, "_CHANNELS_OF_PIECE", 3)
        patch.setattr(products, "_ROWS_OF_PIECE", (4, 2))
        products.multiply(weights, values, result, excluded=excluded)


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


def test_large_products_are_cut_as_the_kernels_want_them():
    """CCNet's strips by channels alone; longer ones by rows; the longest not at all."""
    assert products._choose_piece(97, 97, 512) == (97, 64)
    assert products._choose_piece(256, 256, 64) == (32, 64)
    assert products._choose_piece(512, 512, 128) == (16, 64)
    assert products._choose_piece(2000, 2000, 64) == (2000, 64)


@pytest.mark.parametrize(("gap", "crowded"), [(0, True), (1, False)])
def test_positions_that_share_lines_of_a_cache_are_noticed(gap, crowded):
    """Columns of a map of 256 x 256 with 64 channels lie 64 KiB apart."""
    column = np.empty((256, 256 + gap, 64), np.float32)[:, 0]
    assert products._crowd(column) == crowded
