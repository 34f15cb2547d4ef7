"""Fresh memory: aligned, compact, in the order of its model."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.bridge.memory import ALIGNMENT, allocate, copy_aligned


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 5, 7)])
@pytest.mark.parametrize("dtype", ["float16", "float64", "bool"])
def test_aligned_and_compact(shape, dtype):
    array = allocate(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0
    assert array.flags.c_contiguous and array.flags.writeable


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_in_the_order_of_its_model(order):
    model = np.zeros((2, 3, 4)).transpose(order)
    array = allocate(model.shape, "float32", like=model)
    assert [stride // 4 for stride in array.strides] == [stride // 8 for stride in model.strides]
    reversed_model = allocate(model.shape, "float32", like=model[:, ::-1])
    assert reversed_model.strides == array.strides


def test_copies_are_copies():
    source = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    copied = copy_aligned(source)
    np.testing.assert_array_equal(copied, source)
    assert not np.shares_memory(copied, source)
