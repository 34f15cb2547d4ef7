"""mma.sync and ldmatrix against NumPy, by the fragment layouts of the PTX ISA."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ml_dtypes import bfloat16

from tests.emulator.build import Mode, Source
from tests.emulator.launch import LaunchError, Module, Schedule
from tests.emulator.memory import allocate, place

GROUP, IN_GROUP = np.divmod(np.arange(32)[:, None], 4)

KERNELS = "".join(
    f"""
extern "C" __global__ void {name}(const uint4* left, const uint2* right, const float4* add,
                                  float4* out) {{
  int lane = threadIdx.x;
  unsigned a[4] = {{left[lane].x, left[lane].y, left[lane].z, left[lane].w}};
  unsigned b[2] = {{right[lane].x, right[lane].y}};
  float c[4] = {{add[lane].x, add[lane].y, add[lane].z, add[lane].w}}, d[4];
  emulator::{name}(d, a, b, c);
  out[lane] = make_float4(d[0], d[1], d[2], d[3]);
}}
"""
    for name in ("mma_m16n8k16_f16", "mma_m16n8k16_bf16", "mma_m16n8k8_tf32")
) + "".join(
    f"""
extern "C" __global__ void load_{matrices}_{transposed}(const uint4* rows, unsigned* out,
                                                            int offset) {{
  __shared__ uint4 tile[32];
  tile[threadIdx.x] = rows[threadIdx.x];
  __syncthreads();
  unsigned r[{matrices}];
  auto* row = reinterpret_cast<const char*>(&tile[threadIdx.x]) + offset * (threadIdx.x == 3);
  emulator::ldmatrix<{matrices}, {transposed}>(r, row);
  for (int i = 0; i < {matrices}; i++) out[threadIdx.x * {matrices} + i] = r[i];
}}
"""
    for matrices in (1, 2, 4)
    for transposed in ("false", "true")
)


@cache
def load() -> Module:
    return Module(Source(KERNELS, mode=Mode.PLAIN))


def pack(elements: np.ndarray) -> np.ndarray:
    """Put the elements of each lane side by side into registers of 32 bits."""
    return place(np.ascontiguousarray(elements).view(np.uint32))


def multiply(name, a, b, c, rows_a, columns_a, rows_b, schedule):
    """Run one instruction on fragments: 32 lanes by the elements of each."""
    i = np.arange(4)
    rows, columns = GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2
    out = allocate((32, 4), np.float32)
    arguments = (
        pack(a[rows_a, columns_a]),
        pack(b[rows_b, np.broadcast_to(GROUP, rows_b.shape)]),
        place(c[rows, columns]),
        out,
    )
    load().launch(name, (1,), (32,), arguments, schedule=schedule, seed=1)
    d = np.empty((16, 8), np.float32)
    d[rows, columns] = out
    return d


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", bfloat16)])
def test_products_of_16_bits(name, dtype, schedule):
    random = np.random.default_rng(0)
    a = random.standard_normal((16, 16)).astype(dtype)
    b = random.standard_normal((16, 8)).astype(dtype)
    a[3, 4], b[5, 6] = 2.0**-15 / 8, -(2.0**-16)  # the first is denormal in float16
    c = random.standard_normal((16, 8)).astype(np.float32)
    i, j = np.arange(8), np.arange(4)
    rows_a = GROUP + 8 * (i // 2 % 2)
    columns_a = 2 * IN_GROUP + i % 2 + 8 * (i // 4)
    rows_b = 2 * IN_GROUP + j % 2 + 8 * (j // 2)
    d = multiply(f"mma_m16n8k16_{name}", a, b, c, rows_a, columns_a, rows_b, schedule)
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_allclose(d, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [np.inf, np.nan, 0.0])
def test_special_values_of_float16(special):
    a, b = np.zeros((16, 16), np.float16), np.eye(16, 8, dtype=np.float16)
    a[2, 3] = -special
    c = np.zeros((16, 8), np.float32)
    i, j = np.arange(8), np.arange(4)
    d = multiply(
        "mma_m16n8k16_f16", a, b, c, GROUP + 8 * (i // 2 % 2),
        2 * IN_GROUP + i % 2 + 8 * (i // 4), 2 * IN_GROUP + j % 2 + 8 * (j // 2),
        Schedule.ASCENDING,
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("schedule", Schedule)
def test_products_of_tf32(schedule):
    random = np.random.default_rng(0)
    a = random.standard_normal((16, 8)).astype(np.float32)
    b = random.standard_normal((8, 8)).astype(np.float32)
    c = random.standard_normal((16, 8)).astype(np.float32)
    i, j = np.arange(4), np.arange(2)
    d = multiply(
        "mma_m16n8k8_tf32", a, b, c, GROUP + 8 * (i % 2), IN_GROUP + 4 * (i // 2),
        IN_GROUP + 4 * j, schedule,
    )  # fmt: skip

    def cut(values: np.ndarray) -> np.ndarray:
        return (values.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64)

    np.testing.assert_allclose(d, cut(a) @ cut(b) + c, rtol=1e-5, atol=1e-5)
    assert abs(d - (a.astype(np.float64) @ b + c)).max() > 1e-5


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(matrices, transposed, schedule):
    rows = np.random.default_rng(0).integers(0, 2**16, (32, 8), dtype=np.uint16)
    out = allocate((32, matrices), np.uint32)
    kernel = f"load_{matrices}_{str(transposed).lower()}"
    load().launch(kernel, (1,), (32,), (place(rows), out, np.int32(0)), schedule=schedule)
    found = out.view(np.uint16).reshape(32, matrices, 2)
    for i in range(matrices):
        matrix = rows[8 * i : 8 * i + 8]
        columns = 2 * IN_GROUP + np.arange(2)
        expected = matrix[columns, GROUP] if transposed else matrix[GROUP, columns]
        np.testing.assert_array_equal(found[:, i], expected)


def test_rows_of_ldmatrix_are_aligned():
    rows, out = place(np.zeros((32, 8), np.uint16)), allocate((32, 2), np.uint32)
    message = r"thread \(3, 0, 0\): ldmatrix at kernel\.cu:\d+: .* not aligned to 16 bytes"
    with pytest.raises(LaunchError, match=message):
        load().launch("load_2_false", (1,), (32,), (rows, out, np.int32(8)))
