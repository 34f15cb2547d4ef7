// Attention along strips: each block computes out and lse for a tile of queries of one strip, and
// merges them with those of the axes before.
#include "arguments.cuh"
#include "energies.cuh"
#include "tiles.cuh"

extern "C" __global__ void __launch_bounds__(threads, 1) strip_forward(const __grid_constant__ Forward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, ROWS);
  const int length = a.strips.length, first_row = place.first_row;
  const Strip<const Element> q(a.q, place), k(a.k, place), v(a.v, place);
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<const Element> out_before(a.before, place);
  const Strip<Element> out(a.out, place);
  const Strip<Compute> lse(a.lse, place);
  const Compute scale = a.scale;

  for (int i = threadIdx.x; i < ROWS; i += threads)
    memory.row_is_there[i] = is_inside(first_row + i, length);

  // Read before anybody writes: lse of the axes before, -inf where there is none.
  Compute before[own_rows];
#pragma unroll
  for (int i = 0; i < own_rows; i++) {
    const int row = first_row + own_row(i);
    before[i] = out_before && is_inside(row, length) ? lse.at(row) : minus_infinity();
  }

  // Of each row: the largest energy so far, and the sum of exp(energy - largest). In the end: what
  // results are to be multiplied by, and what those of the axes before.
  Compute largest[own_rows], sum[own_rows], factor[own_rows], factor_before[own_rows];
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_v; channel += CHANNELS) {
    Compute results[own_rows][own_channels] = {};
#pragma unroll 1
    for (int first = 0; first < length; first += COLUMNS) {
      // All the keys in one tile: the weights stay for the channels to come.
      if (channel == 0 || length > COLUMNS) {
        for (int j = threadIdx.x; j < COLUMNS; j += threads)
          memory.column_is_there[j] =
              is_inside(first + j, length) && (!mask || mask.at(first + j));
        Compute weights[own_rows][own_columns] = {};
        add_products(weights, memory, q, first_row, k, first, a.head_size_qk);
#pragma unroll
        for (int i = 0; i < own_rows; i++) {
          const int row = first_row + own_row(i);
          const Compute so_far = first == 0 ? minus_infinity() : largest[i];
          largest[i] = so_far;
#pragma unroll
          for (int j = 0; j < own_columns; j++) {
            const int column = first + own_column(j);
            bool counts = memory.column_is_there[own_column(j)] && (a.include_self || row != column);
            Compute energy = modify_energy(scale * weights[i][j], row, column);
            weights[i][j] = counts ? energy : minus_infinity();
            largest[i] = max(largest[i], weights[i][j]);
          }
          largest[i] = max_over_lanes<THREAD_COLUMNS>(largest[i]);
          Compute added = 0;
#pragma unroll
          for (int j = 0; j < own_columns; j++) {
            Compute energy = weights[i][j];
            weights[i][j] = energy == minus_infinity() ? 0 : exponential(energy - largest[i]);
            added += weights[i][j];
          }
          added = sum_over_lanes<THREAD_COLUMNS>(added);
          if (first == 0) {
            sum[i] = added;
          } else {
            Compute kept = so_far == minus_infinity() ? 0 : exponential(so_far - largest[i]);
            sum[i] = sum[i] * kept + added;
#pragma unroll
            for (int j = 0; j < own_channels; j++) results[i][j] *= kept;
          }
        }
        store_weights(memory, weights);
      }
      add_weighted(results, memory, v, first_row, first, min(COLUMNS, length - first), channel,
                   a.head_size_v, !a.include_self);
    }

#pragma unroll
    for (int i = 0; i < own_rows; i++) {
      const int row = first_row + own_row(i);
      if (!is_inside(row, length)) continue;
      if (channel == 0) {
        // Not by the difference of two lse, each rounded: a weight near 1 would lose digits. A row
        // without a key has the sum 0, and NaN stays NaN.
        const Compute peak = max(largest[i], before[i]);
        const Compute own = largest[i] == minus_infinity() ? 0 : exponential(largest[i] - peak);
        const Compute other = before[i] == minus_infinity() ? 0 : exponential(before[i] - peak);
        const Compute total = sum[i] * own + other;
        factor[i] = total == 0 ? 0 : own / total;
        factor_before[i] = total == 0 ? 0 : other / total;
        if (own_column(0) == 0)
          lse.at(row) = total == 0 ? minus_infinity() : peak + logarithm(total);
      }
#pragma unroll
      for (int j = 0; j < own_channels; j += wide) {
        const int column = channel + own_channel(j);
        Compute x[wide], y[wide] = {};
        if (out_before) read_channels(y, out_before, row, column, a.head_size_v);
#pragma unroll
        for (int m = 0; m < wide; m++) {
          // Weights of zero and an infinite value make NaN, which is not the result of no key.
          x[m] = sum[i] == 0 ? 0 : factor[i] * results[i][j + m];
          if (out_before) x[m] += factor_before[i] * y[m];
        }
        write_channels(out, x, row, column, a.head_size_v);
      }
    }
  }
}
