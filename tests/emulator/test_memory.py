"""Memory of an array's exact extent: what is where, and that it is given back."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.lib.array_utils import byte_bounds

from tests.emulator import memory
from tests.emulator.memory import allocate, place

DTYPES = [np.float16, np.float32, np.float64, np.bool_, np.int32, bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 2, 8, 136])
def test_a_copy_is_the_same_elsewhere(dtype, offset):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    copy = place(array, offset=offset)
    assert copy.dtype == array.dtype
    assert copy.ctypes.data % memory.ALIGNMENT == offset
    np.testing.assert_array_equal(copy, array)
    copy[...] = 0
    assert array.any()


BASE = np.arange(120, dtype=np.float32).reshape(4, 5, 6)


@pytest.mark.parametrize(
    "array",
    [
        BASE[::-1], BASE[:, ::-2, 1:-1], BASE.transpose(2, 0, 1), BASE[1:3, 2:4, ::5],
        np.broadcast_to(BASE[0, 0], (3, 6)), BASE[:, :0], BASE[1, 1, 1:2].reshape(()),
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
)  # fmt: skip
def test_strides_stay(array):
    copy = place(array)
    assert copy.strides == array.strides
    np.testing.assert_array_equal(copy, array)
    low, high = byte_bounds(copy)
    expected = byte_bounds(array)
    assert high - low == expected[1] - expected[0]
    assert not array.size or low % memory.ALIGNMENT == 0


def test_gaps_are_full_of_ones():
    copy = place(np.zeros((4, 6), np.float32)[:, ::2])
    low, high = byte_bounds(copy)
    whole = np.frombuffer(copy.base, np.uint8, high - low)
    expected = np.zeros((4, 6, 4), np.uint8)
    expected[:, 1::2] = 0xFF
    np.testing.assert_array_equal(whole, expected.reshape(-1)[: high - low])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bfloat16])
def test_fresh_memory_is_nan(dtype):
    fresh = allocate((3, 5), dtype)
    assert fresh.shape == (3, 5) and fresh.dtype == dtype
    assert np.isnan(fresh.astype(np.float64)).all()
    assert allocate(7, dtype, offset=16).ctypes.data % memory.ALIGNMENT == 16


def test_memory_is_freed_with_the_last_view(monkeypatch):
    freed = []
    free = memory._free
    monkeypatch.setattr(memory, "_free", lambda *args: (freed.append(args), free(*args)))
    view = place(np.arange(8.0))[2:4]
    gc.collect()
    assert not freed
    np.testing.assert_array_equal(view, [2, 3])
    del view
    gc.collect()
    assert len(freed) == 1
