// What the forward kernels on tensor cores are made of. A warp has ROW_TILES tiles of 16 queries, and
// KEYS keys at a time.
#pragma once

#include "arguments.cuh"
#include "energies.cuh"
#include "features.cuh"

constexpr int warp_rows = ROW_TILES * 16, key_tiles = KEYS / 8, key_steps = ceil_div(KEYS, 16);
static_assert(KEYS % 8 == 0);

// What a lane holds of its warp's fragments; g and t as in tensor.cuh.
struct Lane {
  int index, g, t, first_row;
  bool has_last;  // tile of queries; without any of them it is not multiplied

  __device__ __forceinline__ Lane(int thread, int first_row, int length)
      : index(thread % 32),
        g(index / 4),
        t(index % 4 * 2),
        first_row(first_row),
        has_last(first_row + (ROW_TILES - 1) * 16 < length) {}
  __device__ __forceinline__ bool multiplies(int m) const { return m < ROW_TILES - 1 || has_last; }
  __device__ __forceinline__ int row(int m, int h) const { return first_row + m * 16 + h * 8 + g; }
};

using Weights = float[ROW_TILES][key_tiles][4];
using Packed = unsigned[ROW_TILES][key_steps][4];
// A value for each of a lane's rows.
using Rows = Compute[ROW_TILES][2];

// lse of the axes before, -inf where there is none.
__device__ __forceinline__ void read_before(Rows& before, const Lane& lane, bool merges,
                                            const Strip<Compute>& lse, int length) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = lane.row(m, h);
      before[m][h] = merges && is_inside(row, length) ? lse.at(row) : minus_infinity();
    }
}

// sums += queries . keys, over the channels of a tile of either, of which there are `size`.
__device__ __forceinline__ void add_products(Weights& sums, const Lane& lane, const Row* queries,
                                             const Row* keys, int size) {
#pragma unroll
  for (int step = 0; step < CHANNELS; step += 16) {
    if (step >= size) break;  // zeros from here on, for all threads
    unsigned left[ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
      load_matrices(left[m], &queries[m * 16 + lane.index % 16][step + lane.index / 16 * 8]);
    const int column = step + lane.index / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n + 1 < key_tiles; n += 2) {
      unsigned right[4];
      load_matrices(right, &keys[n * 8 + lane.index / 16 * 8 + lane.index % 8][column]);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
        if (lane.multiplies(m)) {
          mma_k16(sums[m][n], left[m], right[0], right[1]);
          mma_k16(sums[m][n + 1], left[m], right[2], right[3]);
        }
    }
    if constexpr (key_tiles % 2) {
      unsigned right[2];
      load_matrices(right, &keys[KEYS - 8 + lane.index % 8][column]);
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
        if (lane.multiplies(m)) mma_k16(sums[m][key_tiles - 1], left[m], right[0], right[1]);
    }
  }
}

// From products to weights, as fragments: exp(energy - largest), of the largest energy of each row so
// far, and to this lane's share of their sum. `kept` is what all that was summed up before, with an
// earlier largest, is to be multiplied by.
template <bool is_first>
__device__ __forceinline__ void weigh(Packed& packed, Rows& largest, Rows& sum, Rows& kept,
                                      Weights& products, const Lane& lane, const bool* are_there,
                                      int first_key, const Forward& a) {
  const Compute scale = a.scale;
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
    Compute so_far[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      so_far[h] = is_first ? minus_infinity() : largest[m][h];
      largest[m][h] = so_far[h];
    }
#pragma unroll
    for (int n = 0; n < key_tiles; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = lane.row(m, i / 2), column = n * 8 + lane.t + i % 2;
        const bool counts = are_there[column] && (a.include_self || row != first_key + column);
        const Compute energy =
            modify_energy(scale * products[m][n][i], row, first_key + column);
        products[m][n][i] = counts ? energy : minus_infinity();
        largest[m][i / 2] = max(largest[m][i / 2], products[m][n][i]);
      }
    Compute added[2] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) largest[m][h] = max_over_lanes<4>(largest[m][h]);
#pragma unroll
    for (int n = 0; n < key_tiles; n++) {
      float weights[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Compute energy = products[m][n][i];
        weights[i] = energy == minus_infinity() ? 0 : exponential(energy - largest[m][i / 2]);
        added[i / 2] += weights[i];
      }
#pragma unroll
      for (int h = 0; h < 2; h++)
        packed[m][n / 2][n % 2 * 2 + h] = pack(weights[2 * h], weights[2 * h + 1]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      kept[m][h] = so_far[h] == minus_infinity() ? 0 : exponential(so_far[h] - largest[m][h]);
      sum[m][h] = is_first ? added[h] : sum[m][h] * kept[m][h] + added[h];
    }
  }
}

// What results are to be multiplied by, and what those of the axes before. Negative where no results
// are to be multiplied, for weights are all zero and a value may be infinite.
struct Factors {
  Rows own, before;
};
__device__ __forceinline__ void find_factors(Factors& factors, const Rows& largest, const Rows& sums,
                                             const Rows& before, const Lane& lane,
                                             const Strip<Compute>& lse, int length,
                                             bool writes_lse) {
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const Compute sum = sum_over_lanes<4>(sums[m][h]);
      const int row = lane.row(m, h);
      // Not by the difference of two lse, each rounded: a weight near 1 would lose digits. A row
      // without a key has the sum 0, and NaN stays NaN.
      const Compute peak = max(largest[m][h], before[m][h]);
      const Compute own = largest[m][h] == minus_infinity() ? 0 : exponential(largest[m][h] - peak);
      const Compute other = before[m][h] == minus_infinity() ? 0 : exponential(before[m][h] - peak);
      const Compute total = sum * own + other;
      factors.own[m][h] = sum == 0 ? -1 : own / total;
      factors.before[m][h] = total == 0 ? 0 : other / total;
      if (writes_lse && lane.t == 0 && is_inside(row, length))
        lse.at(row) = total == 0 ? minus_infinity() : peak + logarithm(total);
    }
}
__device__ __forceinline__ Compute apply(Compute factor, Compute result) {
  return factor < 0 ? 0 : factor * result;
}

// Whether any of a warp's elements is infinite or NaN.
__device__ __forceinline__ bool has_nonfinite(const unsigned (&pairs)[4]) {
  constexpr unsigned exponent = ELEMENT_IS_BFLOAT ? 0x7f80 : 0x7c00;
  bool found = false;
#pragma unroll
  for (int i = 0; i < 4; i++)
    found |= (pairs[i] & exponent) == exponent || (pairs[i] >> 16 & exponent) == exponent;
  return __any_sync(0xffffffffu, found);
}

// results += weights . values for 16 positions that do not meet themselves, and two tiles of channels:
// what tensor cores would do, but that a weight of zero is not multiplied by a value that is not
// finite.
__device__ __forceinline__ void add_others(float (&results)[2][4], const unsigned (&weights)[4],
                                           const unsigned (&values)[4], const Lane& lane) {
#pragma unroll
  for (int k = 0; k < 2; k++)
#pragma unroll 1
    for (int quarter = 0; quarter < 4; quarter++) {
      float2 row[2], column[2][2];
#pragma unroll
      for (int h = 0; h < 2; h++)
        row[h] = unpack(__shfl_sync(0xffffffffu, weights[h + 2 * k], lane.g * 4 + quarter));
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          column[i][j] = unpack(
              __shfl_sync(0xffffffffu, values[2 * i + k], (lane.t + j) * 4 + quarter));
      const int key = k * 8 + quarter * 2;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const int h = n / 4, i = n / 2 % 2, j = n % 2, own = lane.g + 8 * h;
        if (key != own) results[i][2 * h + j] += row[h].x * column[i][j].x;
        if (key + 1 != own) results[i][2 * h + j] += row[h].y * column[i][j].y;
      }
    }
}

// results += weights . values, for 16 channels from `channel` on of a tile of values, whose first
// position is `first_key`. With `skips_self` positions do not meet themselves, not even as 0 * NaN.
__device__ __forceinline__ void add_values(float (&results)[ROW_TILES][2][4], const Packed& packed,
                                           const Lane& lane, const Row* values, int channel,
                                           int first_key, bool skips_self) {
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++) {
    unsigned right[4];
    load_transposed(right,
                    &values[step * 16 + lane.index % 16][channel + lane.index / 16 * 8]);
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      if (skips_self && first_key + step * 16 == lane.first_row + m * 16 && has_nonfinite(right)) {
        add_others(results[m], packed[m][step], right, lane);
      } else if (lane.multiplies(m)) {
        mma_k16(results[m][0], packed[m][step], right[0], right[1]);
        mma_k16(results[m][1], packed[m][step], right[2], right[3]);
      }
    }
  }
  if constexpr (KEYS % 16) {
    constexpr int step = key_steps - 1;
    unsigned last[2];
    load_transposed(last, &values[KEYS - 8 + lane.index % 8][channel + lane.index / 8 % 2 * 8]);
    const unsigned right[4] = {last[0], 0, last[1], 0};
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
      if (skips_self && first_key + step * 16 == lane.first_row + m * 16 && has_nonfinite(right)) {
        const unsigned left[4] = {packed[m][step][0], packed[m][step][1], 0, 0};
        add_others(results[m], left, right, lane);
      } else if (lane.multiplies(m)) {
        mma_k8(results[m][0], packed[m][step][0], packed[m][step][1], last[0]);
        mma_k8(results[m][1], packed[m][step][0], packed[m][step][1], last[1]);
      }
    }
  }
}
