"""Barriers, shared memory, schedules, arguments, and what is said when they are used wrongly."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.build import Mode, Source
from tests.emulator.launch import LaunchError, Module, Schedule
from tests.emulator.memory import allocate, place

KERNELS = """
extern "C" __global__ void reverse(const float* in, float* out, int n) {
  __shared__ float fixed[64];
  extern __shared__ __align__(16) float sized[];
  int i = threadIdx.x;
  fixed[i] = in[i];
  sized[i] = 2 * in[i];
  BARRIER
  out[blockIdx.x * n + i] = fixed[n - 1 - i] + sized[n - 1 - i];
}
extern "C" __global__ void leave(float* out) {
  __shared__ float left;
  if (threadIdx.x == 0) out[blockIdx.x] = left;
  __syncthreads();
  left = 1;
}
extern "C" __global__ void __launch_bounds__(64) index(int* out) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}
extern "C" __global__ void queue(int* next, int* order) {
  order[atomicAdd(next, 1)] = threadIdx.x;
}
extern "C" __global__ void leave_early(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = __syncthreads_count(threadIdx.x % 2);
}
extern "C" __global__ void vote(int* out) {
  int any = __syncthreads_or(threadIdx.x == 33), all = __syncthreads_and(threadIdx.x != 33);
  out[threadIdx.x] = 2 * any + all;
}
// Warp 0 hands a number to each of the others, which do not wait for one another.
extern "C" __global__ void hand_over(int* out) {
  __shared__ int number;
  int mine = threadIdx.x / 32;
  for (int warp = 1; warp < blockDim.x / 32; warp++) {
    if (mine != 0 && mine != warp) continue;
    if (threadIdx.x == 0) number = 10 * warp;
    emulator::wait_at_named_barrier(2 * warp, 64);
    if (mine) out[threadIdx.x] = number;
    emulator::wait_at_named_barrier(2 * warp + 1, 64);
  }
}
struct Part { int first; double by; const float* from; };
extern "C" __global__ void take(Part part, float* out) {
  out[threadIdx.x] = part.by * part.from[part.first + threadIdx.x];
}
extern "C" __global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }
extern "C" __global__ void every_size(bool a, short b, long long c, double d, int* out) {
  *out = a + b + c + d;
}
extern "C" __global__ __launch_bounds__(64) void nothing() {}
extern "C" __global__ void trap(int* out) { __trap(); }
"""


@cache
def load(barrier: str = "__syncthreads();") -> Module:
    return Module(Source(KERNELS.replace("BARRIER", barrier), mode=Mode.PLAIN))


@pytest.mark.parametrize("schedule", Schedule)
def test_shared_memory_and_barriers(schedule):
    values = np.arange(64, dtype=np.float32)
    out = allocate((3, 64), np.float32)
    counts = load().launch(
        "reverse", (3,), (64,), (values, out, np.int32(64)), shared_bytes=256, schedule=schedule
    )
    np.testing.assert_array_equal(out, np.tile(3 * values[::-1], (3, 1)))
    assert counts.blocks == 3
    assert counts.barriers == 3 * 64
    assert counts.trace is None
    assert load().shared["reverse::fixed"] == 256


@pytest.mark.parametrize("schedule", Schedule)
def test_a_missing_barrier_shows(schedule):
    """In no order does every thread run before every other."""
    out = np.empty((1, 64), np.float32)
    values = np.arange(64, dtype=np.float32)
    load("").launch("reverse", (1,), (64,), (values, out, np.int32(64)), shared_bytes=256,
                    schedule=schedule)  # fmt: skip
    assert np.isnan(out).any()


def test_shared_memory_is_poisoned_before_each_block():
    out = np.zeros(3, np.float32)
    load().launch("leave", (3,), (32,), (out,))
    assert np.isnan(out).all()


def test_indices_and_dimensions():
    out = np.zeros((2 * 3 * 4, 2 * 4 * 8), np.int32)
    load().launch("index", (2, 3, 4), (2, 4, 8), (out,))
    expected = 1000 * np.arange(24)[:, None] + np.arange(64)
    np.testing.assert_array_equal(out, expected)


def test_some_of_the_blocks():
    out = np.zeros((24, 64), np.int32)
    counts = load().launch("index", (2, 3, 4), (2, 4, 8), (out,), blocks=range(5, 9))
    assert counts.blocks == 4
    assert np.flatnonzero(out.any(axis=1)).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("schedule", [Schedule.SHUFFLED, Schedule.SHUFFLED_BY_WARP])
def test_a_seed_makes_an_order(schedule):
    """The same one each time, and another one for another seed."""

    def run(seed: int) -> list[int]:
        order = np.full(96, -1, np.int32)
        load().launch("queue", (1,), (96,), (np.zeros(1, np.int32), order), schedule=schedule,
                      seed=seed)  # fmt: skip
        assert sorted(order) == list(range(96))
        return list(order)

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1) != list(range(96))


def test_orders_without_a_seed():
    forward, backward = range(96), range(95, -1, -1)
    for schedule, expected in ((Schedule.ASCENDING, forward), (Schedule.DESCENDING, backward)):
        order = np.full(96, -1, np.int32)
        load().launch("queue", (1,), (96,), (np.zeros(1, np.int32), order), schedule=schedule)
        assert list(order) == list(expected)


def test_early_exit_is_no_missing_thread():
    out = np.zeros(40, np.int32)
    load().launch("leave_early", (1,), (64,), (out,))
    np.testing.assert_array_equal(out, 20)


def test_votes_at_barriers():
    out = np.zeros(64, np.int32)
    load().launch("vote", (1,), (64,), (out,))
    np.testing.assert_array_equal(out, 2)


@pytest.mark.parametrize("schedule", Schedule)
def test_named_barriers(schedule):
    out = np.zeros(128, np.int32)
    load().launch("hand_over", (1,), (128,), (out,), schedule=schedule, seed=2)
    np.testing.assert_array_equal(out, np.arange(128) // 32 * 10)


WRONG = {
    "divergent_barrier": (
        "if (threadIdx.x < 40) __syncthreads();\n else __syncthreads();",
        r"divergent barrier: this thread reached __syncthreads at strip\.cu:2 while others wait in "
        r"__syncthreads at strip\.cu:1",
    ),
    "barrier_and_collective": (
        "if (threadIdx.x < 40) __syncthreads();\n else out[0] = __shfl_xor_sync(~0u, 1, 1);",
        r"deadlock: 40 thread\(s\), 0 the first, wait in __syncthreads at strip\.cu:1; 24 "
        r"thread\(s\), 40 the first, wait in __shfl_xor_sync at strip\.cu:2 for mask 0xffffffff",
    ),
    "half_a_warp": (
        "if (threadIdx.x < 16) out[0] = __shfl_xor_sync(~0u, 1, 1); else __syncthreads();",
        r"deadlock: 16 thread\(s\), 0 the first, wait in __shfl_xor_sync at strip\.cu:1",
    ),
    "not_in_the_mask": (
        "out[0] = __shfl_sync(0xffffu, 1, 1);",
        r"thread \(16, 0, 0\): __shfl_sync at strip\.cu:1: lane 16 calls, but is not in mask "
        "0x0000ffff",
    ),
    "source_not_in_the_mask": (
        "if (threadIdx.x < 16) out[0] = __shfl_sync(0xffffu, 1, 20);",
        r"__shfl_sync at strip\.cu:1 reads from lane 20, which is not in mask 0x0000ffff",
    ),
    "mixed": (
        "if (threadIdx.x < 16) out[0] = __ballot_sync(~0u, 1);\n"
        " else out[0] = __shfl_sync(~0u, 1, 0);",
        r"warp collectives mixed: this lane is in __shfl_sync at strip\.cu:2, others are in "
        r"__ballot_sync at strip\.cu:1",
    ),
    "overlapping_masks": (
        "if (threadIdx.x < 16) out[0] = __ballot_sync(~0u, 1);\n"
        " else out[0] = __ballot_sync(0xffff0001u, 1);",
        r"__ballot_sync at strip\.cu:2: mask 0xffff0001 overlaps 0xffffffff of the unfinished "
        r"__ballot_sync at strip\.cu:1",
    ),
    "trapped": (
        "if (threadIdx.x == 5) __trap();",
        r"thread \(5, 0, 0\): __trap\(\) at strip\.cu:1",
    ),
    "other_counts": (
        "if (threadIdx.x < 32) emulator::wait_at_named_barrier(1, 32);\n"
        "else if (threadIdx.x < 34) emulator::wait_at_named_barrier(1, threadIdx.x * 32 - 992);",
        r"bar\.sync at strip\.cu:2: 64 threads here, 32 there",
    ),
    "no_such_barrier": (
        "emulator::wait_at_named_barrier(16, 64);",
        r"bar\.sync at strip\.cu:1: there is no barrier 16",
    ),
}


@cache
def load_wrong() -> Module:
    text = "".join(
        f'#line 1 "strip.cu"\nextern "C" __global__ void {name}(int* out) {{ {body} }}\n'
        for name, (body, _) in WRONG.items()
    )
    return Module(Source(text, mode=Mode.PLAIN))


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_line_block_and_thread(name):
    message = rf"^{name} \(kernel\.cu\), block \(0, 0, 0\)"
    with pytest.raises(LaunchError, match=message) as caught:
        load_wrong().launch(name, (2,), (64,), (np.zeros(64, np.int32),))
    assert caught.match(WRONG[name][1])


def test_many_modules_share_one_set_of_stacks():
    """A stack is two mappings of memory, and a process may have 65,530."""
    text = 'extern "C" __global__ void none() {}'
    modules = [Module(Source(text, options=(f"-DNUMBER={number}",))) for number in range(3)]

    def count_mappings():
        return len(Path("/proc/self/maps").read_text().splitlines())

    modules[0].launch("none", (1,), (512,), ())
    before = count_mappings()
    for module in modules * 2:
        module.launch("none", (1,), (512,), ())
    assert count_mappings() < before + 100


def test_after_an_error_the_module_still_works():
    with pytest.raises(LaunchError):
        load().launch("trap", (1,), (32,), (np.zeros(1, np.int32),))
    out = np.empty((1, 64), np.float32)
    ones = np.ones(64, np.float32)
    load().launch("reverse", (1,), (64,), (ones, out, np.int32(64)), shared_bytes=256)
    np.testing.assert_array_equal(out, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(4, np.float32),), "scale takes 2 arguments, got 1"),
        ((np.zeros(4, np.float32), 1.5), "argument 1 has 8 bytes, the kernel takes 4"),
        ((np.float32(1), np.float32(1)), "argument 0 has 4 bytes, the kernel takes 8"),
    ],
)
def test_arguments_are_held_to_the_kernel(arguments, message):
    with pytest.raises(LaunchError, match=message):
        load().launch("scale", (1,), (4,), arguments)


def test_a_kernel_that_is_not_there():
    with pytest.raises(LaunchError, match=r"kernel\.cu has no kernel other: reverse, "):
        load().launch("other", (1,), (4,), ())


def test_scalars_have_the_sizes_that_cupy_gives_them():
    out = np.zeros(1, np.int32)
    load().launch("every_size", (1,), (1,), (True, np.int16(20), 300, 4000.0, out))
    assert out[0] == 4321


def test_structures_are_passed_by_value():
    values = place(np.arange(10, dtype=np.float32))
    layout = {"names": ["first", "by", "from"], "formats": ["i4", "f8", "u8"], "itemsize": 24,
              "offsets": [0, 8, 16]}  # fmt: skip
    part = np.array((3, 2.5, values.ctypes.data), layout)
    for argument in (part, part[()]):
        out = np.zeros(4, np.float32)
        load().launch("take", (1,), (4,), (argument, out))
        np.testing.assert_array_equal(out, [7.5, 10, 12.5, 15])


@pytest.mark.parametrize("pointer", [np.uint64, np.intp, int])
def test_pointers_may_be_numbers(pointer):
    x = np.ones(4, np.float32)
    load().launch("scale", (1,), (4,), (pointer(x.ctypes.data), np.float32(3)))
    np.testing.assert_array_equal(x, 3)


def test_arrays_are_passed_where_they_lie():
    x = np.ones((4, 4), np.float32)
    load().launch("scale", (1,), (4,), (x[1:, 1:], np.float32(3)))
    np.testing.assert_array_equal(np.flatnonzero(x == 3), [5, 6, 7, 8])


@pytest.mark.parametrize("block", [(0,), (1025,), (1, 1, 65)])
def test_no_block_of_a_size_that_cuda_has_not(block):
    with pytest.raises(LaunchError, match="a block of"):
        load().launch("nothing", (1,), block, ())


@pytest.mark.parametrize("grid", [(0,), (2**31,), (1, 65536), (1, 1, 65536)])
def test_no_grid_of_a_size_that_cuda_has_not(grid):
    with pytest.raises(LaunchError, match="a grid of"):
        load().launch("nothing", grid, (1,), ())
