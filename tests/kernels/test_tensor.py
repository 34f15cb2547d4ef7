"""The wrappers of tensor-core instructions against NumPy: assembly on a GPU, twins elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.kernels.configuration import Configuration
from crisscross.kernels.source import read_source
from crisscross.testing import numpy_dtype

ROWS, COLUMNS, DEPTH = 16, 8, 16
#: One warp: copies of 16 bytes, the last of them in part; then all ways to a product.
KERNEL = """
struct Argument {
  const Element *left, *right, *turned;
  float *k16, *k8, *k16_of_turned, *k8_of_turned, *pairs;
};
extern "C" __global__ void tensor(const __grid_constant__ Argument a) {
  __shared__ __align__(16) Element left[16][24], right[8][24], turned[16][8];
  const int lane = threadIdx.x;
  cp_async(&left[lane / 2][lane % 2 * 8], a.left + lane * 8, lane == 31 ? 6 : 16);
  if (lane < 16) cp_async(&right[lane / 2][lane % 2 * 8], a.right + lane * 8, 16);
  cp_async_commit();
  if (lane < 16) cp_async(&turned[lane][0], a.turned + lane * 8, 16);
  cp_async_commit();
  cp_async_wait<1>();
  __syncwarp();
  unsigned rows[4], four[4], two[2];
  load_matrices(rows, &left[lane % 16][lane / 16 * 8]);
  load_matrices(two, &right[lane % 8][lane / 8 % 2 * 8]);
  float sums[4][4] = {{1, 1, 1, 1}, {}, {}, {}};
  mma_k16(sums[0], rows, two[0], two[1]);
  mma_k8(sums[1], rows[0], rows[1], two[0]);
  cp_async_wait<0>();
  __syncwarp();
  load_transposed(two, &turned[lane % 16][0]);
  mma_k16(sums[2], rows, two[0], two[1]);
  load_transposed(four, &turned[lane % 16][0]);
  mma_k8(sums[3], rows[0], rows[1], four[0]);
  float* const targets[4] = {a.k16, a.k8, a.k16_of_turned, a.k8_of_turned};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      targets[i][(lane / 4 + j / 2 * 8) * 8 + lane % 4 * 2 + j % 2] = sums[i][j];
  const float2 pair = unpack(pack(lane + 0.5f, -lane - 0.25f));
  a.pairs[2 * lane] = pair.x;
  a.pairs[2 * lane + 1] = pair.y;
}
"""
FIELDS = ("left", "right", "turned", "k16", "k8", "k16_of_turned", "k8_of_turned", "pairs")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_wrappers(bench, dtype):
    rng = np.random.default_rng(0)
    shapes = {"left": (ROWS, DEPTH), "right": (COLUMNS, DEPTH), "turned": (DEPTH, COLUMNS)}
    given = {
        name: rng.integers(-4, 5, shape).astype(numpy_dtype(dtype))
        for name, shape in shapes.items()
    }
    options = Configuration("tensor", dtype).options
    with bench.open() as engine:
        views = {name: bench.put(array) for name, array in given.items()}
        views |= {name: bench.make((ROWS, COLUMNS), "float32") for name in FIELDS[3:-1]}
        views["pairs"] = bench.make((64,), "float32")
        kernel = engine.compile(read_source("tensor.cuh") + KERNEL, "tensor", options, 0)
        argument = np.array(
            [tuple(views[name].pointer for name in FIELDS)], [(name, "u8") for name in FIELDS]
        )
        engine.launch(kernel, 1, 32, argument, 0)
        found = {name: bench.get(views[name]) for name in FIELDS[3:]}
    left, right, turned = (given[name].astype(np.float32) for name in shapes)
    left[-1, -5:] = 0  # of the last 16 bytes, 6 were asked for
    expected = {
        "k16": 1 + left @ right.T,
        "k8": left[:, :8] @ right[:, :8].T,
        "k16_of_turned": left @ turned,
        "k8_of_turned": left[:, :8] @ turned[:8],
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    lanes = np.arange(32, dtype=np.float32)
    pairs = np.stack([lanes + 0.5, -lanes - 0.25], axis=1).reshape(-1)
    np.testing.assert_array_equal(found["pairs"], pairs.astype(numpy_dtype(dtype)))


#: One warp: a product of numbers of tf32, which ldmatrix takes four of at a time; and roundings.
KERNEL_OF_TF32 = """
struct Argument {
  const Element *left, *right, *numbers;
  float *product, *rounded;
};
extern "C" __global__ void tensor(const __grid_constant__ Argument a) {
  __shared__ __align__(16) Element left[16][12], right[8][12];
  const int lane = threadIdx.x;
  cp_async(&left[lane / 2][lane % 2 * 4], a.left + lane * 4, 16);
  if (lane < 16) cp_async(&right[lane / 2][lane % 2 * 4], a.right + lane * 4, 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  unsigned rows[4], two[2];
  load_matrices(rows, &left[lane % 16][lane / 16 * 4]);
  load_matrices(two, &right[lane % 8][lane / 8 % 2 * 4]);
  float numbers[4], sums[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; i++) numbers[i] = __uint_as_float(rows[i]);
  mma_tf32(sums, numbers, __uint_as_float(two[0]), __uint_as_float(two[1]));
  for (int i = 0; i < 4; i++)
    a.product[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  a.rounded[lane] = cvt_rna_tf32(a.numbers[lane]);
}
"""


def test_wrappers_of_tf32(bench):
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(32).astype(np.float32)
    tie = np.float32(1 + 2**-11)
    numbers[:8] = tie, -tie, np.nextafter(tie, np.float32(0)), 0, np.inf, -np.inf, np.nan, 2**-120
    # NaN by its last bit alone, which is cut off.
    numbers[8:9] = np.array([0x7F800001], np.uint32).view(np.float32)
    given = {
        "left": rng.integers(-4, 5, (16, 8)).astype(np.float32),
        "right": rng.integers(-4, 5, (8, 8)).astype(np.float32),
        "numbers": numbers,
    }
    fields = (*given, "product", "rounded")
    options = (*Configuration("tensor", "float32").options, "-DTERMS=1")
    with bench.open() as engine:
        views = {name: bench.put(array) for name, array in given.items()}
        views |= {
            "product": bench.make((16, 8), "float32"),
            "rounded": bench.make((32,), "float32"),
        }
        source = read_source("tensor.cuh") + KERNEL_OF_TF32
        kernel = engine.compile(source, "tensor", options, 0)
        argument = np.array(
            [tuple(views[name].pointer for name in fields)], [(name, "u8") for name in fields]
        )
        engine.launch(kernel, 1, 32, argument, 0)
        product, rounded = (bench.get(views[name]) for name in fields[3:])
    np.testing.assert_array_equal(product, 1 + given["left"] @ given["right"].T)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = 2.0 ** (np.floor(np.log2(np.abs(numbers, dtype=np.float64))) - 10)
        exact = np.copysign(np.floor(np.abs(numbers) / step + 0.5) * step, numbers)
    exact[3:7] = 0, np.inf, -np.inf, np.nan
    np.testing.assert_array_equal(rounded, exact)
