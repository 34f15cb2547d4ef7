// Gradients of the positions of a strip: products of weights and features, written, or added to those
// of the axes before.
#pragma once

#include "backward_mma.cuh"
#include "runs.cuh"

constexpr int runs = Run<Partial>::count;

// Gradients of the positions of a strip.
struct Target {
  const Strip<Partial>& gradients;  // in shared memory: read anew each time, it takes no registers
  Compute factor;
  int length, size;
  unsigned parts = 0;  // of a lane's rows, a bit each: those of others are zero, or as before

  template <class Predicate>
  __device__ __forceinline__ Target(const Strip<Partial>& gradients, Compute factor, int length,
                                    int size, const Lane& lane, Predicate is_part)
      : gradients(gradients), factor(factor), length(length), size(size) {
#pragma unroll
    for (int m = 0; m < row_tiles; m++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (lane.has_tile(m) && is_part(lane.row(m, h))) parts |= 1u << (2 * m + h);
  }
  __device__ __forceinline__ bool takes_part(int m, int h) const {
    return parts >> (2 * m + h) & 1;
  }
  // Visit a lane's rows: where its first run of the channels from `channel` on is, and how many
  // channels are left there.
  template <class Visit>
  __device__ __forceinline__ void visit_rows(const Lane& lane, int channel, Visit visit) const {
    const int column = channel + find_run<Partial>(lane.index);
    Partial* here = &gradients.at(lane.row(0, 0), column);
    const long long stride = 8 * gradients.position;
#pragma unroll
    for (int m = 0; m < row_tiles; m++)
      if (lane.has_tile(m))
#pragma unroll
        for (int h = 0; h < 2; h++, here += stride) visit(m, h, here, size - column);
  }
};

// Some of a warp's pairs of tiles of gradients: products in units of the target's factor, and what
// the axes before have added up. Sums begin with the latter, so that it takes registers once.
template <int pairs>
struct Results {
  float sums[pairs][row_tiles][2][4];
  Run<Partial> before[pairs][row_tiles][2][runs];

  __device__ __forceinline__ void read(const Target& from, const Lane& lane, int channel) {
    if constexpr (ADDS)
      from.visit_rows(lane, channel, [&](int m, int h, const Partial* here, int left) {
#pragma unroll
        for (int p = 0; p < pairs; p++)
#pragma unroll
          for (int r = 0; r < runs; r++) {
            before[p][m][h][r] = {};
            if (from.takes_part(m, h))
              read_run(before[p][m][h][r], here + p * 16 + r * 8, left - p * 16 - r * 8);
          }
      });
  }
  __device__ __forceinline__ void begin(Compute factor, const Lane& lane) {
    // A factor of zero made all those before zero.
    const Compute inverse = factor == 0 ? 0 : 1 / factor;
#pragma unroll
    for (int m = 0; m < row_tiles; m++)
      if (!ADDS || lane.has_tile(m))  // of zeros a branch would cost registers
#pragma unroll
        for (int p = 0; p < pairs; p++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            float x[4] = {};
            if constexpr (ADDS) widen_runs(before[p][m][h], x, lane.index);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[p][m][i / 2][2 * h + i % 2] = inverse * x[i];
          }
  }
  // sums += factors . rows, of the chunk's channels from `channel` on; `find` gives a factor.
  template <class Find>
  __device__ __forceinline__ void add(const Lane& lane, const Row* rows, int channel, Find find) {
    // Beyond 112 keys compilers would read ahead until registers spill. Single pairs take factors
    // that are in registers.
    constexpr int at_once = pairs > 1 && KEYS > 112 ? 2 : key_steps;
#pragma unroll at_once
    for (int step = 0; step < key_steps; step++) {
      unsigned right[pairs][4];
#pragma unroll
      for (int p = 0; p < pairs; p++)
        load_transposed(right[p], &rows[step * 16 + lane.index % 16]
                                       [channel + p * 16 + lane.index / 16 * 8]);
#pragma unroll
      for (int m = 0; m < row_tiles; m++)
        if (lane.has_tile(m)) {
          const Factor factor = find(m, step);
#pragma unroll
          for (int p = 0; p < pairs; p++)
#pragma unroll
            for (int i = 0; i < 2; i++)
              mma_k16(sums[p][m][i], factor.at, right[p][2 * i], right[p][2 * i + 1]);
        }
    }
  }
  __device__ __forceinline__ void write(const Target& to, const Lane& lane, int channel) const {
    to.visit_rows(lane, channel, [&](int m, int h, Partial* here, int left) {
#pragma unroll
      for (int p = 0; p < pairs; p++) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          x[i] = to.takes_part(m, h) ? to.factor * sums[p][m][i / 2][2 * h + i % 2] : 0;
        Run<Partial> found[runs];
        narrow_to_runs(x, found, lane.index);
        if (ADDS ? !to.takes_part(m, h) : !is_inside(lane.row(m, h), to.length)) continue;
#pragma unroll
        for (int r = 0; r < runs; r++)
          write_run(here + p * 16 + r * 8, found[r], left - p * 16 - r * 8);
      }
    });
  }
};
