// What the backward on tensor cores is made of: a strip's tiles in shared memory, its weights and their
// gradients.
#pragma once

#include "arguments.cuh"
#include "delta.cuh"
#include "energies.cuh"

constexpr int group_threads = WARP_ROWS * WARP_COLUMNS * 32, key_steps = KEYS / 16;
// A warp's tiles of 16 rows, fewer of the last warps; of 8 keys; pairs of tiles of 8 channels.
constexpr int row_tiles = ceil_div(KEYS / 16, WARP_ROWS), column_tiles = KEYS / 8 / WARP_COLUMNS;
constexpr int channel_pairs = CHANNELS / 16 / WARP_COLUMNS;
static_assert(KEYS % 16 == 0 && KEYS / 8 % WARP_COLUMNS == 0 && column_tiles <= 16);
static_assert(CHANNELS % 32 == 0 && CHANNELS / 16 % WARP_COLUMNS == 0);

// As odd a number of 16 bytes apart as those of features.
using WeightRow = Element[KEYS + 8];
using Positions = Share<KEYS, group_threads>;

// What is read, and with it what is made of it: dv, dk and dq.
enum Feature { DOUT, Q, K, V };

struct alignas(16) Group {
  Row left[2][KEYS];  // q, then dout; in the second walk, q and k
  union {
    Row right[2][KEYS];  // k, then v
    WeightRow denergies[KEYS];
  };
  WeightRow weights[KEYS];
  Compute lse[KEYS], delta[KEYS];  // lse is -inf for what is no query, or meets no key
  bool is_key[KEYS];
  // Where they begin would take too many registers.
  Strip<const Element> features[4], out;
  Strip<Partial> gradients[3];
};
struct Memory {
  Group groups[STRIPS];
};
static_assert(sizeof(Memory) == SHARED_BYTES, "tiles.py computes it too");

// What a lane owns of its warp's tiles; g and t as in tensor.cuh.
struct Lane {
  int index, g, t, first_row, first_column, first_channel;

  __device__ __forceinline__ explicit Lane(int thread)
      : index(thread % 32),
        g(index / 4),
        t(index % 4 * 2),
        first_row(thread / 32 / WARP_COLUMNS * row_tiles * 16),
        first_column(thread / 32 % WARP_COLUMNS * column_tiles * 8),
        first_channel(thread / 32 % WARP_COLUMNS * channel_pairs * 16) {}
  __device__ __forceinline__ bool has_tile(int m) const {
    return KEYS / 16 % WARP_ROWS == 0 || first_row + m * 16 < KEYS;
  }
  __device__ __forceinline__ int row(int m, int h) const { return first_row + m * 16 + h * 8 + g; }
  __device__ __forceinline__ int column(int n) const { return first_column + n * 8 + t; }
};

using Products = float[row_tiles][column_tiles][4];

// sums += left . right^T over the channels of a chunk, of which there are `size`.
__device__ __forceinline__ void add_products(Products& sums, const Lane& lane, const Row* left,
                                             const Row* right, int size) {
  // All of a chunk where compilers find the registers for it. (Elsewhere they spill some, and, for no
  // reason that could be found, NVRTC 13 for sm_80 does here if they come one by one.)
  constexpr int at_once = ADDS || !IS_ALIGNED || KEYS > 112 ? 1 : CHANNELS / 32;
#pragma unroll at_once
  for (int step = 0; step < CHANNELS; step += 32) {
    if (step >= size) break;  // zeros from here on, for all threads
    unsigned rows[row_tiles][2][4];
#pragma unroll
    for (int m = 0; m < row_tiles; m++)
      if (lane.has_tile(m))
#pragma unroll
        for (int i = 0; i < 2; i++)
          load_matrices(rows[m][i], &left[lane.first_row + m * 16 + lane.index % 16]
                                         [step + i * 16 + lane.index / 16 * 8]);
#pragma unroll
    for (int n = 0; n < column_tiles; n++) {
      unsigned columns[4];
      load_matrices(columns, &right[lane.first_column + n * 8 + lane.index % 8]
                                   [step + lane.index / 8 * 8]);
#pragma unroll
      for (int m = 0; m < row_tiles; m++)
        if (lane.has_tile(m)) {
          mma_k16(sums[m][n], rows[m][0], columns[0], columns[1]);
          mma_k16(sums[m][n], rows[m][1], columns[2], columns[3]);
        }
    }
  }
}

// Of sums over all channels, energies: put the weights, rounded, where shared memory has them; of
// gradients of weights: put those of energies. Both are zero where query and key do not meet,
// whatever has been summed up there. Sums begin anew.
template <bool is_gradient>
__device__ __forceinline__ void store_weights(Group& group, Products& sums, const Lane& lane,
                                              const Backward& a) {
  const Compute scale = a.scale;
  unsigned are_keys = 0;
#pragma unroll
  for (int n = 0; n < column_tiles; n++)
#pragma unroll
    for (int i = 0; i < 2; i++)
      are_keys |= static_cast<unsigned>(group.is_key[lane.column(n) + i]) << (2 * n + i);
#pragma unroll
  for (int m = 0; m < row_tiles; m++)
    if (lane.has_tile(m))
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = lane.row(m, h);
        const Compute lse = group.lse[row], delta = is_gradient ? group.delta[row] : 0;
#pragma unroll
        for (int n = 0; n < column_tiles; n++) {
          const int column = lane.column(n);
          unsigned& weights = reinterpret_cast<unsigned&>(group.weights[row][column]);
          const float2 pair = is_gradient ? unpack(weights) : float2{};
          float found[2] = {pair.x, pair.y};
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const Compute sum = sums[m][n][2 * h + i];
            sums[m][n][2 * h + i] = 0;
            const bool meet = lse != minus_infinity() && (are_keys >> (2 * n + i) & 1) &&
                              (a.include_self || row != column + i);
            if constexpr (is_gradient)
              found[i] = modify_gradient(found[i] * (sum - delta), row, column + i);
            else
              found[i] = exponential(modify_energy(scale * sum, row, column + i) - lse);
            if (!meet) found[i] = 0;
          }
          unsigned& target =
              is_gradient ? reinterpret_cast<unsigned&>(group.denergies[row][column]) : weights;
          target = pack(found[0], found[1]);
        }
      }
}

// Of the left operand of a product, weights or their transpose: what a warp needs of one of its
// tiles of rows, at one step of 16.
struct Factor {
  unsigned at[4];
};
using Factors = Factor[row_tiles][key_steps];
template <bool is_transposed>
__device__ __forceinline__ Factor load_factor(const Lane& lane, const WeightRow* weights, int m,
                                              int step) {
  const int row = lane.first_row + m * 16, key = step * 16, l = lane.index;
  Factor factor;
  if constexpr (is_transposed)
    load_transposed(factor.at, &weights[key + l / 16 * 8 + l % 8][row + l / 8 % 2 * 8]);
  else
    load_matrices(factor.at, &weights[row + l % 16][key + l / 16 * 8]);
  return factor;
}
template <bool is_transposed>
__device__ __forceinline__ void load_factors(Factors& factors, const Lane& lane,
                                             const WeightRow* weights) {
#pragma unroll
  for (int m = 0; m < row_tiles; m++)
    if (lane.has_tile(m))
#pragma unroll
      for (int step = 0; step < key_steps; step++)
        factors[m][step] = load_factor<is_transposed>(lane, weights, m, step);
}
