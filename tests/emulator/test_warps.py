"""Shuffles, votes, reductions, atomics and mathematics against what they are defined to be."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ml_dtypes import bfloat16

from tests.emulator.build import Mode, Source
from tests.emulator.launch import Module, Schedule

LANES = np.arange(32)
VALUES = np.random.default_rng(0).integers(0, 1000, 32, dtype=np.int32)

COLLECTIVES = {
    "from_one": ("__shfl_sync(~0u, x, 7)", VALUES[7]),
    "from_one_of_eight": ("__shfl_sync(~0u, x, 3, 8)", VALUES[LANES // 8 * 8 + 3]),
    "crosswise": ("__shfl_xor_sync(~0u, x, 5)", VALUES[LANES ^ 5]),
    "crosswise_in_eight": ("__shfl_xor_sync(~0u, x, 4, 8)", VALUES[LANES ^ 4]),
    "down": ("__shfl_down_sync(~0u, x, 3)", VALUES[np.where(LANES + 3 < 32, LANES + 3, LANES)]),
    "down_in_four": (
        "__shfl_down_sync(~0u, x, 1, 4)",
        VALUES[np.where(LANES % 4 < 3, LANES + 1, LANES)],
    ),
    "up": ("__shfl_up_sync(~0u, x, 3)", VALUES[np.where(LANES >= 3, LANES - 3, LANES)]),
    "of_a_double": ("int(__shfl_sync(~0u, double(x), 9))", VALUES[9]),
    "ballot": ("__ballot_sync(~0u, i % 3 == 0)", sum(1 << i for i in range(0, 32, 3))),
    "any": ("__any_sync(~0u, i == 9)", 1),
    "all": ("__all_sync(~0u, i != 9)", 0),
    "total": ("__reduce_add_sync(~0u, x)", VALUES.sum()),
    "largest": ("__reduce_max_sync(~0u, x)", VALUES.max()),
    "smallest": ("__reduce_min_sync(~0u, x)", VALUES.min()),
    "bits": ("__reduce_or_sync(~0u, unsigned(x))", np.bitwise_or.reduce(VALUES)),
    "common_bits": (
        "__reduce_and_sync(~0u, unsigned(x) | 1024u)",
        1024 | np.bitwise_and.reduce(VALUES),
    ),
}

MATHEMATICS = {
    "bit_count": ("__popc(x) + __popcll(x)", [2 * int(v).bit_count() for v in VALUES]),
    "leading_zeros": ("__clz(x)", [32 - int(v).bit_length() for v in VALUES]),
    "turned": ("int(__brev(unsigned(x)) >> 16)", [int(f"{v:032b}"[::-1], 2) >> 16 for v in VALUES]),
    "high_half": ("__umulhi(unsigned(x) << 20, 1u << 20)", VALUES << 8),
    "rounded": ("__float2int_rn(x * 0.5f)", np.rint(VALUES * 0.5)),
    "clamped": ("__float2int_rz(x * 1e9f - 1e11f)", np.clip(
        np.float64(np.float32(VALUES) * np.float32(1e9) - np.float32(1e11)), -(2**31), 2**31 - 1)),
    "float_bits": ("__float_as_int(__int_as_float(x + 8388608))", VALUES + 8388608),
    "floats": (
        "int(1000.5f * (exp2f(1.0f) + fmaxf(0.0f, fminf(x, 2.0f)) + fmaf(2.0f, 3.0f, 1.0f)"
        " + __expf(0.0f) + exp(0.0f) + log(1.0f) + fma(1.0f, 1.0f, 1.0f) + rsqrtf(0.25f)"
        " + isinf(exp2f(500.0f)) + isnan(0.0f) + min(1, 2) + max(1.0f, 2.0f)))",
        np.where(VALUES >= 2, int(1000.5 * 21), 0),
    ),
    "hints": ("__ldg(in + i) + __ldcs(in + i) + (__stcs(out + i, 7), out[i])", 2 * VALUES + 7),
}  # fmt: skip


def _write(cases: dict[str, tuple[str, object]]) -> str:
    return "".join(
        f'extern "C" __global__ void {name}(const int* in, int* out) '
        f"{{ int i = threadIdx.x, x = in[i]; out[i] = {expression}; }}\n"
        for name, (expression, _) in cases.items()
    )


ATOMICS = {
    "int": np.int32, "unsigned": np.uint32, "unsigned long long": np.uint64,
    "float": np.float32, "double": np.float64, "__half": np.float16, "__nv_bfloat16": bfloat16,
}  # fmt: skip

OTHERS = """
extern "C" __global__ void halves(const int* in, int* out) {
  int i = threadIdx.x, x = in[i];
  unsigned half = i < 16 ? 0xffffu : 0xffff0000u;
  for (int n = 0; n < (i < 16 ? 3 : 7); n++) x = __shfl_xor_sync(half, x, 1);
  out[i] = x;
}
extern "C" __global__ void sum(const int* in, int* out) {
  int i = threadIdx.x, x = in[i];
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  out[i] = x;
}
extern "C" __global__ void integers(int* out, unsigned* bits) {
  atomicMax(out, int(threadIdx.x) - 40);
  atomicMin(out + 1, 40 - int(threadIdx.x));
  atomicSub(out + 2, 2);
  atomicOr(bits, 1u << threadIdx.x % 8);
  atomicInc(bits + 1, 9u);
  if (atomicCAS(out + 3, 0, int(threadIdx.x) + 1) == 0) atomicExch(out + 4, int(threadIdx.x) + 1);
}
extern "C" __global__ void pairs(__half2* a, __nv_bfloat162* b) {
  atomicAdd(a, __floats2half2_rn(1.0f, 2.0f));
  atomicAdd(b, __floats2bfloat162_rn(1.0f, 2.0f));
}
extern "C" __global__ void halve(float* x) { x[0] = x[0] * 0.5f; }
""" + "".join(
    f'extern "C" __global__ void add_{number}({kind}* total)'
    f" {{ {kind} one = 1.0f; atomicAdd(total, one); }}\n"
    for number, kind in enumerate(ATOMICS)
)


@cache
def load() -> Module:
    includes = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    text = includes + _write(COLLECTIVES) + _write(MATHEMATICS) + OTHERS
    return Module(Source(text, mode=Mode.PLAIN))


def run(kernel: str, schedule: Schedule = Schedule.ASCENDING, seed: int = 0) -> np.ndarray:
    out = np.full(32, -1, np.int32)
    load().launch(kernel, (1,), (32,), (VALUES, out), schedule=schedule, seed=seed)
    return out


def assert_same(found: np.ndarray, expected: object) -> None:
    whole = np.broadcast_to(np.asarray(expected), 32).astype(np.int64)
    np.testing.assert_array_equal(found, whole.astype(np.int32))


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives(name, schedule):
    assert_same(run(name, schedule, seed=3), COLLECTIVES[name][1])


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics(name):
    assert_same(run(name), MATHEMATICS[name][1])


@pytest.mark.parametrize("schedule", Schedule)
def test_two_halves_go_their_own_ways(schedule):
    """As many collectives as each half likes: their masks do not overlap."""
    np.testing.assert_array_equal(run("halves", schedule, seed=5), VALUES[LANES ^ 1])


def test_sums_by_shuffles():
    np.testing.assert_array_equal(run("sum"), VALUES.sum())


@pytest.mark.parametrize("kind", ATOMICS)
def test_atomic_sums(kind):
    total = np.zeros(1, ATOMICS[kind])
    kernel = f"add_{list(ATOMICS).index(kind)}"
    load().launch(kernel, (4,), (64,), (total,), schedule=Schedule.SHUFFLED)
    assert total[0] == 256


def test_atomic_sums_of_pairs():
    a, b = np.zeros(2, np.float16), np.zeros(2, bfloat16)
    load().launch("pairs", (1,), (64,), (a, b))
    assert a.tolist() == b.tolist() == [64, 128]


def test_other_atomics():
    out, bits = np.array([-1000, 1000, 200, 0, 0], np.int32), np.zeros(2, np.uint32)
    load().launch("integers", (1,), (64,), (out, bits), schedule=Schedule.DESCENDING)
    assert out.tolist() == [23, -23, 72, 64, 64]
    assert bits.tolist() == [255, 4]


def test_denormal_numbers_are_zero():
    x = np.array([np.finfo(np.float32).tiny])
    load().launch("halve", (1,), (1,), (x,))
    assert x[0] == 0
    # and are numbers again outside
    assert np.finfo(np.float32).tiny * np.float32(0.5) > 0
