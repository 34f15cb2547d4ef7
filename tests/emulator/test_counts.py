"""Wavefronts and sectors: exact numbers for access patterns whose costs are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.emulator.build import Mode, Source
from tests.emulator.launch import Module
from tests.emulator.memory import allocate, place
from tests.emulator.trace import Total, Trace

KERNELS = """
#include <cuda_fp16.h>
// A block of 32 x 8 threads turns a tile of 32 x 32.
template <int pitch>
__device__ void turn(const float* in, float* out) {
  __shared__ float tile[32 * pitch];
  int x = threadIdx.x, y = threadIdx.y;
  for (int k = 0; k < 32; k += 8) tile[(y + k) * pitch + x] = in[(y + k) * 32 + x];
  __syncthreads();
  for (int k = 0; k < 32; k += 8) out[(y + k) * 32 + x] = tile[x * pitch + y + k];
}
extern "C" __global__ void turn_unpadded(const float* in, float* out) { turn<32>(in, out); }
extern "C" __global__ void turn_padded(const float* in, float* out) { turn<33>(in, out); }

#line 1 "lines.cu"
extern "C" __global__ void strided(const float* in, float* out, int stride) {
  out[threadIdx.x] =
    in[threadIdx.x * stride];
}
extern "C" __global__ void fours(const float4* in, float4* out) {
  out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void sums(const float4* in, float* out) {
  float4 v = in[threadIdx.x];
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
extern "C" __global__ void one(const float* in, float* out) { out[threadIdx.x] = in[0]; }
extern "C" __global__ void half_warp(const float* in, float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __ldg(in + threadIdx.x);
}
extern "C" __global__ void halves(const __half* in, __half* out) {
  out[threadIdx.x] = __hmul(in[threadIdx.x], __float2half(2.0f));
}
// Rows of 36 for a warp of 32: some lanes come by once more than others.
extern "C" __global__ void rows(float* out, int together) {
  for (int row = 0; row < 8; row++) {
    for (int i = threadIdx.x; i < 36; i += 32) out[row * 36 + i] = 1.0f;
    if (together) __syncwarp();
  }
}
extern "C" __global__ void add(float* out) { atomicAdd(out + threadIdx.x, 1.0f); }
extern "C" __global__ void shared_fours(const float4* in, float4* out, int pitch) {
  extern __shared__ float4 s[];
  s[threadIdx.x * pitch] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x * pitch];
}
extern "C" __global__ void shared_one(const float4* in, float4* out) {
  extern __shared__ float4 s[];
  if (threadIdx.x == 0) s[0] = in[0];
  __syncthreads();
  out[threadIdx.x] = s[0];
}
extern "C" __global__ void matrix(const uint4* in, unsigned* out, int pitch) {
  extern __shared__ uint4 s[];
  emulator::cp_async(s + threadIdx.x * pitch, in + threadIdx.x, 16, 16);
  emulator::cp_async_wait_all();
  __syncthreads();
  unsigned r[4];
  emulator::ldmatrix<4, false>(r, s + threadIdx.x * pitch);
  out[threadIdx.x] = r[0];
}
"""


@cache
def load() -> Module:
    return Module(Source(KERNELS, mode=Mode.TRACED))


def run(kernel, in_, out, *more, block=(32,), grid=(1,), **options) -> Trace:
    arguments = (*([] if in_ is None else [place(in_)]), place(out), *more)
    trace = load().launch(kernel, grid, block, arguments, **options).trace
    assert trace is not None
    return trace


FLOATS = np.arange(1024, dtype=np.float32)


@pytest.mark.parametrize(
    ("kernel", "read"), [("turn_unpadded", Total(32, 1024, 32)), ("turn_padded", Total(32, 32, 32))]
)
def test_bank_conflicts_of_a_transpose(kernel, read):
    trace = run(kernel, FLOATS, allocate(1024, np.float32), block=(32, 8))
    assert trace.total("shared", kind="write") == Total(32, 32, 32)
    assert trace.total("shared", kind="read") == read
    # In a tile of 32 columns rows are one transaction each, in and out.
    assert trace.total("global", array="argument 0") == Total(32, 128, 128)
    assert trace.total("global", array="argument 1") == Total(32, 128, 128)
    assert trace.total("global").requests == 64


@pytest.mark.parametrize(
    ("stride", "sectors", "ideal"), [(1, 4, 4), (2, 8, 4), (4, 16, 4), (8, 32, 4), (32, 32, 4)]
)
def test_sectors_of_strided_reads(stride, sectors, ideal):
    trace = run("strided", FLOATS, allocate(32, np.float32), np.int32(stride))
    (access,) = trace.find("global", kind="read")
    assert (access.file, access.line, access.bytes) == ("lines.cu", 3, 4)
    assert access.total == Total(1, sectors, ideal)
    (access,) = trace.find("global", kind="write")
    assert (access.line, access.total) == (2, Total(1, 4, 4))


def test_sectors_off_their_boundaries():
    arguments = (place(FLOATS[:32], offset=4), allocate(32, np.float32), np.int32(1))
    trace = load().launch("strided", (1,), (32,), arguments).trace
    assert trace.total("global", kind="read") == Total(1, 5, 4)


def test_barriers_bring_lanes_together():
    apart, together = (run("rows", None, allocate(288, np.float32), np.int32(i)) for i in (0, 1))
    # Each second row begins in the middle of a sector.
    assert together.total("global") == Total(16, 4 * (4 + 1) + 4 * (5 + 1), 8 * (4 + 1))
    assert apart.total("global") == Total(16, 47, 40)


@pytest.mark.parametrize(
    ("kernel", "read", "written"),
    [
        ("fours", Total(1, 16, 16), Total(1, 16, 16)),
        ("sums", Total(1, 16, 16), Total(1, 4, 4)),
        ("one", Total(1, 1, 1), Total(1, 4, 4)),
        ("half_warp", Total(1, 2, 2), Total(1, 2, 2)),
        ("halves", Total(1, 2, 2), Total(1, 2, 2)),
    ],
)
def test_sectors(kernel, read, written):
    trace = run(kernel, FLOATS, allocate(1024, np.float32))
    assert trace.total("global", kind="read") == read
    assert trace.total("global", kind="write") == written
    assert {access.file for access in trace.accesses} == {"lines.cu"}


def test_atomics_are_counted_apart():
    trace = run("add", None, FLOATS, block=(64,))
    assert trace.total("global", kind="atomic") == trace.total("global") == Total(2, 8, 8)


@pytest.mark.parametrize(("pitch", "wavefronts"), [(1, 4), (2, 8), (8, 32), (9, 4)])
def test_vectors_in_shared_memory(pitch, wavefronts):
    """Eight threads at a time: a pitch of eight vectors puts all of them in the same banks."""
    trace = run("shared_fours", FLOATS, allocate(1024, np.float32), np.int32(pitch),
                shared_bytes=512 * 9)  # fmt: skip
    for kind in ("read", "write"):
        assert trace.total("shared", kind=kind) == Total(1, wavefronts, 4)
    assert {a.array for a in trace.find("shared")} == {"dynamic shared memory"}


def test_one_vector_for_all_is_read_once_for_eight_threads():
    trace = run("shared_one", FLOATS, allocate(1024, np.float32), shared_bytes=16)
    assert trace.total("shared", kind="write") == Total(1, 1, 1)
    assert trace.total("shared", kind="read") == Total(1, 4, 4)


@pytest.mark.parametrize(("pitch", "wavefronts"), [(1, 4), (8, 32), (9, 4)])
def test_copies_and_matrices(pitch, wavefronts):
    trace = run("matrix", FLOATS, allocate(1024, np.float32), np.int32(pitch), shared_bytes=512 * 9)
    assert trace.total("global", kind="read") == Total(1, 16, 16)
    assert trace.total("shared", kind="write") == Total(1, wavefronts, 4)
    (access,) = trace.find("shared", kind="read")
    assert (access.bytes, access.total) == (16, Total(1, wavefronts, 4))


def test_some_blocks_are_counted():
    options = {"grid": (5,), "block": (64,)}
    assert run("add", None, FLOATS, **options).total("global").requests == 10
    assert run("add", None, FLOATS, counted=range(1, 3), **options).total("global").requests == 4


def test_names_of_arrays():
    in_, out = place(FLOATS), allocate(64, np.float32)
    arguments = (np.uint64(in_.ctypes.data), out)
    launch = load().launch
    trace = launch("one", (1,), (32,), arguments, arrays={"in": in_, "out": out}).trace
    assert {access.array for access in trace.accesses} == {"in", "out"}
    assert trace.total("global", line=12) == trace.total("global")
    assert "lines.cu:12: write of 4 bytes, global, out: 1 requests, 4 sectors of 4" in str(trace)
    assert {access.array for access in launch("one", (1,), (32,), arguments).trace.accesses} == {
        "argument 1"
    }
