"""Races that the trace sees whatever the order of the threads, and accesses that are none."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.emulator.build import Mode, Source
from tests.emulator.launch import LaunchError, Module, Schedule
from tests.emulator.memory import place

# Bodies for two warps: s is shared, g global; i, w and l are thread, warp and lane.
RIGHT = {
    "barrier": "s[i] = i; __syncthreads(); g[i] = s[i ^ 33];",
    "barrier_twice": "s[i] = i; __syncthreads(); int x = s[i ^ 33]; __syncthreads(); s[i] = x;",
    "warp_barrier": "s[i] = i; __syncwarp(); g[i] = s[i ^ 1];",
    "half_warp_barrier": "unsigned m = l < 16 ? 0xffffu : 0xffff0000u;"
    " s[i] = i; __syncwarp(m); g[i] = s[i ^ 1];",
    "chain_of_halves": "if (l < 16) { s[i] = i; __syncwarp(0xffffu); }"
    " __syncwarp(); if (l >= 16) g[i] = s[i ^ 16];",
    "named_barrier": "if (w == 1) s[i] = i; emulator::wait_at_named_barrier(1, 64);"
    " if (w == 0) g[i] = s[i + 32];",
    "own": "s[i] = i; g[i] = s[i];",
    "readers": "if (i == 0) s[0] = 1; __syncthreads(); g[i] = s[0];",
    "atomics": "if (i == 0) s[0] = 0; __syncthreads();"
    " atomicAdd(s, 1); __syncthreads(); g[i] = s[0];",
    "bytes": "auto* b = reinterpret_cast<char*>(s); b[i] = 1; __syncthreads();"
    " g[i] = s[i / 4] + b[i ^ 33];",
    "vote_barrier": "s[i] = i; __syncthreads_or(1); g[i] = s[i ^ 33];",
    "early_exit": "s[i] = i; if (i == 7) return; __syncthreads(); g[i] = s[7];",
    "global_barrier": "g[i] = i; __syncthreads(); int x = g[i ^ 33]; __syncthreads(); g[i] = x;",
    "global_atomics": "atomicAdd(g, 1);",
    "wait_then_barrier": "emulator::cp_async(s + 4 * i, h + 4 * i, 16, 16);"
    " emulator::cp_async_wait_all(); __syncthreads(); g[i] = s[i];",
}
WRONG = {
    "no_barrier": ("s[i] = i; g[i] = s[i ^ 33];", "shared memory, no_barrier::s"),
    "read_then_write": ("s[i] = i; __syncthreads(); int x = s[i ^ 33]; s[i] = x;", "shared memory"),
    "warp_barrier_only": ("s[i] = i; __syncwarp(); g[i] = s[i ^ 33];", "shared memory"),
    "no_warp_barrier": ("s[i] = i; g[i] = s[i ^ 1];", "shared memory, no_warp_barrier::s"),
    "shuffle_instead": (
        "s[i] = i; __shfl_xor_sync(~0u, i, 1); g[i] = s[i ^ 1];",
        "shared memory, shuffle_instead::s",
    ),
    "other_half": (
        "unsigned m = l < 16 ? 0xffffu : 0xffff0000u; s[i] = i; __syncwarp(m); g[i] = s[i ^ 16];",
        "shared memory, other_half::s",
    ),
    "another_named_barrier": (
        "s[i] = i; emulator::wait_at_named_barrier(1 + w, 32); g[i] = s[i ^ 32];",
        "shared memory, another_named_barrier::s",
    ),
    "readers_of_both_warps": (
        "if (i == 0) s[0] = 1; __syncthreads(); g[i] = s[0]; __syncwarp(); if (i == 0) s[0] = 2;",
        r"readers_of_both_warps::s\+0",
    ),
    "all_write": ("s[0] = i;", r"shared memory, all_write::s\+0: write .* write"),
    "atomic_and_read": (
        "atomicAdd(s, 1); if (i == 0) g[0] = s[0];",
        r"atomic .* read|read .* atomic",
    ),
    "overlap": (
        "s[i] = 0; __syncthreads(); auto* b = reinterpret_cast<char*>(s);"
        " if (i == 9) b[17] = 1; if (i == 40) g[i] = s[4];",
        r"overlap::s\+1[67]:",
    ),
    "barrier_before_wait": (
        "emulator::cp_async(s + 4 * i, h + 4 * i, 16, 16); __syncthreads();"
        " emulator::cp_async_wait_all(); g[i] = s[i];",
        r"barrier_before_wait::s\+\d+: .*cp\.async",
    ),
    "copy_over_readers": (
        "s[i] = i; __syncthreads(); g[i] = s[i ^ 33];"
        " emulator::cp_async(s + 4 * i, h + 4 * i, 16, 16); emulator::cp_async_wait_all();",
        r"read at race\.cu:1 by thread .*, cp\.async|cp\.async at race\.cu:1 by thread .*, read",
    ),
    "matrix_rows": (
        "s[i] = 0; s[64 + i] = 0; unsigned r[1]; emulator::ldmatrix<1, false>(r, s + 4 * l);",
        r"matrix_rows::s\+\d+: ",
    ),
    "dynamic": ("d[i] = i; g[i] = d[i ^ 33];", "shared memory, dynamic shared memory"),
    "global_no_barrier": ("g[i] = i; h[i] = g[i ^ 33];", r"global memory, argument 0\+\d+: "),
    "global_all_write": ("g[0] = i;", r"global memory, argument 0\+0: write .* write"),
}
BETWEEN_BLOCKS_RIGHT = {
    "atomics_of_blocks": "atomicAdd(g, 1);",
    "readers_of_blocks": "g[64 * blockIdx.x + i] = h[0];",
}
BETWEEN_BLOCKS_WRONG = {
    "written_twice": ("g[i] = i;", "write .* write"),
    "written_then_read": (
        "if (blockIdx.x == 0) h[i] = 1; else g[i] = h[i];",
        r"global memory, argument 1\+0: write at race\.cu:1 by block \(0, 0, 0\), thread .*, "
        r"read at race\.cu:1 by block \(1, 0, 0\), thread .*, between blocks",
    ),
    "read_then_written": ("if (blockIdx.x == 0) g[i] = h[i]; else h[i] = 1;", "read .* write"),
    "atomic_or_not": ("if (blockIdx.x == 0) atomicAdd(g, 1); else g[0] = 1;", "atomic .* write"),
}


@cache
def load() -> Module:
    bodies = {**RIGHT, **BETWEEN_BLOCKS_RIGHT}
    bodies |= {name: body for name, (body, _) in {**WRONG, **BETWEEN_BLOCKS_WRONG}.items()}
    text = "".join(
        f'#line 1 "race.cu"\nextern "C" __global__ void {name}(int* g, int* h) {{'
        " __shared__ __align__(16) int s[256]; extern __shared__ int d[];"
        f" int i = threadIdx.x, w = i / 32, l = i % 32; {body} }}\n"
        for name, body in bodies.items()
    )
    return Module(Source(text, mode=Mode.TRACED))


def run(name: str, schedule: Schedule = Schedule.ASCENDING, blocks: int = 1) -> None:
    g, h = (place(np.zeros(256, np.int32)) for _ in range(2))
    load().launch(name, (blocks,), (64,), (g, h), shared_bytes=256, schedule=schedule, seed=6)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_in_order_is_no_race(name, schedule):
    run(name, schedule)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", WRONG)
def test_races_show_in_every_order(name, schedule):
    with pytest.raises(LaunchError, match=r"race on .*" + WRONG[name][1]) as caught:
        run(name, schedule)
    assert caught.match(r"at race\.cu:1 by thread \(\d+, 0, 0\), .* at race\.cu:1 by thread")


@pytest.mark.parametrize("name", BETWEEN_BLOCKS_RIGHT)
def test_blocks_may_share(name):
    run(name, blocks=3)


@pytest.mark.parametrize("name", BETWEEN_BLOCKS_WRONG)
def test_races_between_blocks(name):
    with pytest.raises(LaunchError, match=r"race on .*" + BETWEEN_BLOCKS_WRONG[name][1]):
        run(name, blocks=2)


def test_both_lines_are_named():
    text = """
#line 1 "first.cuh"
__device__ void put(int* to, int value) {
  *to = value;
}
#line 1 "second.cu"
extern "C" __global__ void k(int* g) {
  __shared__ int s[64];
  put(s + threadIdx.x, 1);

  g[threadIdx.x] = s[63 - threadIdx.x];
}
"""
    message = (
        r"read at second\.cu:5 by thread \(31, 0, 0\), write at first\.cuh:2 by thread \(32, 0, 0\)"
    )
    with pytest.raises(LaunchError, match=message):
        Module(Source(text, mode=Mode.TRACED)).launch("k", (1,), (64,), (np.zeros(64, np.int32),))


def test_arrays_behind_pointers_are_watched_when_they_are_named():
    g = place(np.zeros(64, np.int32))
    arguments = (np.uint64(g.ctypes.data), np.uint64(0))
    launch = load().launch
    launch("global_all_write", (1,), (64,), arguments)
    with pytest.raises(LaunchError, match=r"global memory, out\+0"):
        launch("global_all_write", (1,), (64,), arguments, arrays={"out": g})
