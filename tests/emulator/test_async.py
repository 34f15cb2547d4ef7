"""cp.async: when copies arrive, and what becomes of those that nobody waits for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.emulator.build import Mode, Source
from tests.emulator.launch import LaunchError, Module, Schedule
from tests.emulator.memory import allocate, place

BODIES = {
    "waited": "COPY(0, 16) COMMIT WAIT(0) __syncthreads(); USE",
    "waited_all": "COPY(0, 16) WAIT_ALL __syncthreads(); USE",
    "no_wait": "COPY(0, 16) COMMIT __syncthreads(); USE __syncthreads(); WAIT(0)",
    "no_commit": "COPY(0, 16) WAIT(0) __syncthreads(); USE __syncthreads(); WAIT_ALL",
    "never": "COPY(0, 16) COMMIT",
    "filled_up": "COPY(0, 8) COMMIT WAIT(0) __syncthreads(); USE",
    "one_left": "COPY(256, 16) COMMIT COPY(0, 16) COMMIT WAIT(1)"
    " __syncthreads(); USE __syncthreads(); WAIT(0)",
    "none_left": "COPY(256, 16) COMMIT COPY(0, 16) COMMIT WAIT(0) __syncthreads(); USE",
    "not_aligned": "emulator::cp_async(tile + 1, in, 16, 16);",
    "too_many_bytes": "emulator::cp_async(tile, in, 8, 12);",
}

# Each thread copies four numbers, and hands on those of its neighbour.
KERNELS = """
#define COPY(at, bytes) emulator::cp_async(tile + 4 * i + at, in + 4 * i, 16, bytes);
#define COMMIT emulator::cp_async_commit();
#define WAIT(left) emulator::cp_async_wait(left);
#define WAIT_ALL emulator::cp_async_wait_all();
#define USE for (int k = 0; k < 4; k++) out[4 * i + k] = tile[4 * (i ^ 5) + k];
""" + "".join(
    f"""
#line 1 "copies.cu"
extern "C" __global__ void {name}(const float* in, float* out) {{
  __shared__ __align__(16) float tile[512];
  int i = threadIdx.x;
  {body}
}}
"""
    for name, body in BODIES.items()
)
VALUES = np.arange(256, dtype=np.float32).reshape(64, 4)
MOVED = VALUES[np.arange(64) ^ 5]


@cache
def load(mode: Mode = Mode.PLAIN) -> Module:
    return Module(Source(KERNELS, mode=mode))


def run(name: str, schedule: Schedule = Schedule.ASCENDING, mode: Mode = Mode.PLAIN) -> np.ndarray:
    out = allocate((64, 4), np.float32)
    load(mode).launch(name, (1,), (64,), (place(VALUES), out), schedule=schedule, seed=4)
    return out


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.TRACED])
@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", ["waited", "waited_all", "none_left"])
def test_copies_arrive_by_the_wait(name, schedule, mode):
    np.testing.assert_array_equal(run(name, schedule, mode), MOVED)


def test_copies_fill_up_with_zeros():
    np.testing.assert_array_equal(run("filled_up"), MOVED * [1, 1, 0, 0])


@pytest.mark.parametrize("name", ["no_wait", "no_commit", "one_left"])
def test_no_copy_arrives_before_the_wait(name):
    """Not even one that was waited for, but of a group not committed, or of a later one."""
    assert np.isnan(run(name)).all()


def test_some_copies_may_arrive_early():
    out = run("no_wait", Schedule.SHUFFLED)
    arrived = ~np.isnan(out)
    np.testing.assert_array_equal(out[arrived], MOVED[arrived])
    assert 0 < arrived.sum() < out.size


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", ["no_wait", "no_commit", "one_left"])
def test_what_is_used_before_the_wait_is_a_race(name, schedule):
    message = (
        rf"{name}::tile\+\d+: cp\.async at copies\.cu:4 by thread .*, read at copies\.cu:4 by "
        r"thread .*, before anybody waited for the copy"
    )
    with pytest.raises(LaunchError, match=message):
        run(name, schedule, Mode.TRACED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("never", r"the thread ends without having waited for cp\.async at copies\.cu:4"),
        ("not_aligned", r"cp\.async at copies\.cu:4: an address is not aligned to 16 bytes"),
        ("too_many_bytes", r"cp\.async at copies\.cu:4: 12 of 8 bytes"),
    ],
)
def test_errors(name, message):
    with pytest.raises(LaunchError, match=message):
        run(name)
