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
