// What the forward kernels on tensor cores are made of: softmax along tiles of keys.
#pragma once

#include "arguments.cuh"
#include "energies.cuh"
#include "products_mma.cuh"

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
        put_weights(packed, m, n, h, weights[2 * h], weights[2 * h + 1]);
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
