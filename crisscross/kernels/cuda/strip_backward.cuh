// What the two kernels of the backward share. Weights are computed again from q, k and lse; each gradient is
// summed by one block alone, in one order, so that results are the same bits each time.
#pragma once

#include "arguments.cuh"
#include "energies.cuh"
#include "tiles.cuh"

// The weight of a query with a key, and the gradient of their energy; zero where they do not meet, or
// where lse says that the query meets no key at all.
struct Weight {
  Compute weight, denergy;
};
__device__ __forceinline__ Weight find_weight(const Backward& a, Compute product, Compute dweight,
                                              Compute lse, Compute delta, int query, int key) {
  if (lse == minus_infinity() || (!a.include_self && query == key)) return {0, 0};
  Compute scale = a.scale;
  Compute weight = exponential(modify_energy(scale * product, query, key) - lse);
  return {weight, modify_gradient(weight * (dweight - delta), query, key)};
}

// Write gradients, or add them to those of the axes before.
__device__ __forceinline__ void write_gradients(const Strip<Partial>& to,
                                                const Compute (&results)[own_rows][own_channels],
                                                Compute factor, int first_row, int length,
                                                int channel, int size, bool adds) {
#pragma unroll
  for (int i = 0; i < own_rows; i++) {
    const int row = first_row + own_row(i);
    if (!is_inside(row, length)) continue;
#pragma unroll
    for (int j = 0; j < own_channels; j += wide) {
      const int column = channel + own_channel(j);
      Compute x[wide], before[wide] = {};
      if (adds) read_channels(before, to, row, column, size);
#pragma unroll
      for (int m = 0; m < wide; m++) x[m] = before[m] + factor * results[i][j + m];
      write_channels(to, x, row, column, size);
    }
  }
}
