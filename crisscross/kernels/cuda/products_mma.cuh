// Products on tensor cores along a strip: energies of rows and keys, and sums of weighted values.
#pragma once

#include "fragments.cuh"

// sums += rows . keys, over the channels of a chunk of either, of which there are `size`.
__device__ __forceinline__ void add_products(Weights& sums, const Lane& lane, const Row* rows,
                                             const Row* keys, int size) {
#pragma unroll
  for (int step = 0; step < CHANNELS; step += step_size) {
    if (step >= size) break;  // zeros from here on, for all threads
    unsigned left[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
      load_matrices(left[m],
                    &rows[m * 16 + lane.index % 16][step + lane.index / 16 * half_step]);
    const int column = step + lane.index / 8 % 2 * half_step;
#pragma unroll
    for (int n = 0; n + 1 < key_tiles; n += 2) {
      unsigned right[4];
      load_matrices(right, &keys[n * 8 + lane.index / 16 * 8 + lane.index % 8][column]);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
        if (lane.multiplies(m)) {
          multiply(sums[m][n], left[m], right[0], right[1]);
          multiply(sums[m][n + 1], left[m], right[2], right[3]);
        }
    }
    if constexpr (key_tiles % 2) {
      unsigned right[2];
      load_matrices(right, &keys[KEYS - 8 + lane.index % 8][column]);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
        if (lane.multiplies(m)) multiply(sums[m][key_tiles - 1], left[m], right[0], right[1]);
    }
  }
}

// results += weights . values, for 16 channels from `channel` on of a tile of values, whose first
// position is `first_key`. With `skips_self` positions do not meet themselves, not even as 0 * NaN.
__device__ __forceinline__ void add_values(float (&results)[ROW_TILES][2][4], const Packed& packed,
                                           const Lane& lane, const Row* values, int channel,
                                           int first_key, bool skips_self) {
  // Where the positions of a step begin in those of a tile of rows, if they are some of these.
  const auto find_first = [&](int m, int step) {
    return first_key + step * step_size - (lane.first_row + m * 16);
  };
  const auto must_skip = [&](int m, int step, const unsigned(&right)[4]) {
    return skips_self && find_first(m, step) >= 0 && find_first(m, step) < 16 &&
           has_nonfinite(right);
  };
#pragma unroll
  for (int step = 0; step < KEYS / step_size; step++) {
    unsigned right[4];
    load_values(right, &values[step * step_size], channel, lane);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      if (must_skip(m, step, right)) {
        add_others(results[m], packed[m][step], right, find_first(m, step), lane);
      } else if (lane.multiplies(m)) {
        multiply(results[m][0], packed[m][step], right[0], right[1]);
        multiply(results[m][1], packed[m][step], right[2], right[3]);
      }
    }
  }
#if ELEMENT_BITS == 16
  if constexpr (KEYS % 16) {
    constexpr int step = key_steps - 1;
    unsigned last[2];
    load_transposed(last, &values[KEYS - 8 + lane.index % 8][channel + lane.index / 8 % 2 * 8]);
    const unsigned right[4] = {last[0], 0, last[1], 0};
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      if (must_skip(m, step, right)) {
        const unsigned left[4] = {packed[m][step][0], packed[m][step][1], 0, 0};
        add_others(results[m], left, right, find_first(m, step), lane);
      } else if (lane.multiplies(m)) {
        mma_k8(results[m][0], packed[m][step][0], packed[m][step][1], last[0]);
        mma_k8(results[m][1], packed[m][step][0], packed[m][step][1], last[1]);
      }
    }
  }
#endif
}
