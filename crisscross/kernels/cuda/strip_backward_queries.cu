// Gradients of the queries of attention along strips.
#include "strip_backward.cuh"

// dq for a tile of queries.
extern "C" __global__ void __launch_bounds__(threads, 1)
    strip_backward_queries(const __grid_constant__ Backward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, ROWS);
  const int length = a.strips.length, first_row = place.first_row;
  const Strip<const Element> q(a.q, place), k(a.k, place), v(a.v, place), dout(a.dout, place);
  const Strip<const Element> out(a.out, place);
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<const Compute> dlse(a.dlse, place), lse(a.lse, place);
  const Strip<Compute> delta(a.delta, place);
  const Strip<Partial> dq(a.dq, place);

  for (int i = threadIdx.x; i < ROWS; i += threads)
    memory.row_is_there[i] = is_inside(first_row + i, length);

  Compute row_lse[own_rows], row_delta[own_rows];
#pragma unroll
  for (int i = 0; i < own_rows; i++) {
    const int row = first_row + own_row(i);
    row_lse[i] = row_delta[i] = 0;
    const bool is_row = is_inside(row, length);
    if (is_row) row_lse[i] = lse.at(row);
    if (out) {
      Compute sum = 0;
      if (is_row)
        for (int channel = own_channel(0); is_inside(channel, a.head_size_v);
             channel += THREAD_COLUMNS * wide) {
          Compute x[wide] = {}, y[wide] = {};
          read_channels(x, dout, row, channel, a.head_size_v);
          read_channels(y, out, row, channel, a.head_size_v);
#pragma unroll
          for (int m = 0; m < wide; m++) sum += x[m] * y[m];
        }
      row_delta[i] = sum_over_lanes<THREAD_COLUMNS>(sum);
      if (is_row) {
        if (dlse) row_delta[i] -= dlse.at(row);
        if (own_column(0) == 0) delta.at(row) = row_delta[i];
      }
    } else if (is_row) {
      row_delta[i] = delta.at(row);
    }
  }

#pragma unroll 1
  for (int channel = 0; channel < a.head_size_qk; channel += CHANNELS) {
    Compute results[own_rows][own_channels] = {};
#pragma unroll 1
    for (int first = 0; first < length; first += COLUMNS) {
      if (channel == 0 || length > COLUMNS) {
        for (int j = threadIdx.x; j < COLUMNS; j += threads)
          memory.column_is_there[j] = is_inside(first + j, length) && (!mask || mask.at(first + j));
        Compute products[own_rows][own_columns] = {}, dweights[own_rows][own_columns] = {};
        add_products(products, memory, q, first_row, k, first, a.head_size_qk);
        add_products(dweights, memory, dout, first_row, v, first, a.head_size_v);
#pragma unroll
        for (int i = 0; i < own_rows; i++)
#pragma unroll
          for (int j = 0; j < own_columns; j++)
            products[i][j] =
                find_weight(a, products[i][j], dweights[i][j],
                            memory.column_is_there[own_column(j)] ? row_lse[i] : minus_infinity(),
                            row_delta[i], first_row + own_row(i), first + own_column(j))
                    .denergy;
        store_weights(memory, products);
      }
      add_weighted(results, memory, k, first_row, first, min(COLUMNS, length - first), channel,
                   a.head_size_qk, !a.include_self);
    }
    // A query without a key has no gradient, not even 0 * infinity.
#pragma unroll
    for (int i = 0; i < own_rows; i++)
      if (row_lse[i] == minus_infinity())
#pragma unroll
        for (int j = 0; j < own_channels; j++) results[i][j] = 0;
    write_gradients(dq, results, a.scale, first_row, length, channel, a.head_size_qk, a.adds);
  }
}
