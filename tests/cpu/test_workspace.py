"""Scratch memory: lent to one at a time, kept within a limit, given up on request."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross.cpu import workspace
from crisscross.cpu.workspace import Workspace
from crisscross.testing import make_case
from tests.support.calls import run_whole


def kept_bytes() -> int:
    return sum(buffer.nbytes for buffer in workspace._pool.free)


def test_what_is_lent_is_aligned_and_shared_with_nobody():
    with Workspace() as one, Workspace() as two:
        arrays = [one.reuse("a", (3, 5), np.float32), one.reuse("b", (3, 5), np.float32)]
        arrays += [two.reuse("a", (3, 5), np.float32), two.reuse("b", (7,), np.float64)]
        for i, array in enumerate(arrays):
            assert array.ctypes.data % 64 == 0
            assert not any(np.shares_memory(array, other) for other in arrays[:i])


def test_the_same_name_is_the_same_memory_until_it_must_grow():
    with Workspace() as lent:
        first = lent.reuse("a", (4, 4), np.float32)
        assert np.shares_memory(first, lent.reuse("a", (2, 8), np.float32))
        grown = lent.reuse("a", (400, 400), np.float32)
        assert grown.shape == (400, 400)
        assert not np.shares_memory(first, grown)


def test_memory_is_used_again():
    crisscross.clear_workspace()
    with Workspace() as lent:
        address = lent.reuse("a", (100_000,), np.float32).ctypes.data
    with Workspace() as lent:
        assert lent.reuse("other", (99_000,), np.float32).ctypes.data == address


def test_clearing():
    case = make_case((97, 97), head_size_qk=8, head_size_v=64)
    crisscross.criss_cross_attention(case.q, case.k, case.v)
    assert kept_bytes() > 0
    crisscross.clear_workspace()
    assert kept_bytes() == 0


def test_the_limit_drops_the_oldest(monkeypatch):
    crisscross.clear_workspace()
    monkeypatch.setattr(workspace, "KEPT_BYTES", 1 << 20)
    for size in (300_000, 400_000, 500_000):
        with Workspace() as lent:
            lent.reuse("a", (size,), np.uint8)[:] = 0
            lent.reuse("b", (size,), np.uint8)[:] = 0
        assert kept_bytes() <= 1 << 20
    with Workspace() as lent:
        lent.reuse("larger than all that is kept", (2 << 20,), np.uint8)
    assert kept_bytes() <= 1 << 20
    assert max(buffer.nbytes for buffer in workspace._pool.free) >= 500_000


def test_clearing_does_not_disturb_what_is_lent():
    with Workspace() as lent:
        array = lent.reuse("a", (1000,), np.float64)
        array[:] = 3
        crisscross.clear_workspace()
        with Workspace() as other:
            other.reuse("a", (1000,), np.float64)[:] = 4
        assert (array == 3).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("spatial", [(61, 47), (1100,), (9, 17, 15)])
def test_poisoned_scratch_changes_nothing(monkeypatch, spatial, dtype, masked, channel_axis):
    """Whatever was left in it: no result depends on memory that the call has not written."""
    sizes = {"batch": 2, "head_size_qk": 8, "head_size_v": 24, "channel_axis": channel_axis}
    case = make_case(spatial, **sizes, dtype=dtype, masked=masked)
    expected = run_whole(case)
    take = workspace._Pool.take

    def take_poisoned(pool, size):
        buffer = take(pool, size)
        buffer[...] = 0xFF  # NaN in every dtype
        return buffer

    monkeypatch.setattr(workspace._Pool, "take", take_poisoned)
    for name, actual in run_whole(case).items():
        np.testing.assert_array_equal(actual, expected[name], err_msg=name)
