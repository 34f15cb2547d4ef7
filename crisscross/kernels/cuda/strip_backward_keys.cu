// Gradients of the keys and values of attention along strips.
#include "strip_backward.cuh"

// dk and dv for a tile of keys: what strip_backward_queries does, rows and columns exchanged.
extern "C" __global__ void __launch_bounds__(threads, 1)
    strip_backward_keys(const __grid_constant__ Backward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, ROWS);
  const int length = a.strips.length, first_row = place.first_row;
  const Strip<const Element> q(a.q, place), k(a.k, place), v(a.v, place), dout(a.dout, place);
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<const Compute> lse(a.lse, place), delta(a.delta, place);
  const Strip<Partial> dk(a.dk, place), dv(a.dv, place);

  for (int i = threadIdx.x; i < ROWS; i += threads)
    memory.row_is_there[i] =
        is_inside(first_row + i, length) && (!mask || mask.at(first_row + i));

  // First dv with the weights, then dk with the gradients of the energies.
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++) {
    const Strip<const Element> matrix = choose(turn == 0, dout, q);
    const int size = turn == 0 ? a.head_size_v : a.head_size_qk;
#pragma unroll 1
    for (int channel = 0; channel < size; channel += CHANNELS) {
      Compute results[own_rows][own_channels] = {};
#pragma unroll 1
      for (int first = 0; first < length; first += COLUMNS) {
        if (channel == 0 || length > COLUMNS) {
          // A query without a key takes no part, whatever its dout.
          for (int j = threadIdx.x; j < COLUMNS; j += threads)
            memory.column_is_there[j] =
                is_inside(first + j, length) && lse.at(first + j) != minus_infinity();
          Compute products[own_rows][own_columns] = {}, dweights[own_rows][own_columns] = {};
          add_products(products, memory, k, first_row, q, first, a.head_size_qk);
          if (turn == 1) add_products(dweights, memory, v, first_row, dout, first, a.head_size_v);
#pragma unroll
          for (int j = 0; j < own_columns; j++) {
            const int column = first + own_column(j);
            const bool is_column = memory.column_is_there[own_column(j)];
            const Compute column_lse = is_column ? lse.at(column) : minus_infinity();
            const Compute column_delta = is_column ? delta.at(column) : 0;
#pragma unroll
            for (int i = 0; i < own_rows; i++) {
              Weight found = find_weight(a, products[i][j], dweights[i][j], column_lse, column_delta,
                                         column, first_row + own_row(i));
              products[i][j] = turn == 0 ? found.weight : found.denergy;
            }
          }
          store_weights(memory, products);
        }
        add_weighted(results, memory, matrix, first_row, first, min(COLUMNS, length - first),
                     channel, size, !a.include_self);
      }
      // Weights of a hidden key are zero, and yet NaN in dout would reach it as 0 * NaN.
#pragma unroll
      for (int i = 0; i < own_rows; i++)
        if (!memory.row_is_there[own_row(i)])
#pragma unroll
          for (int j = 0; j < own_channels; j++) results[i][j] = 0;
      write_gradients(choose(turn == 0, dv, dk), results, turn == 0 ? 1 : a.scale, first_row, length,
                      channel, size, a.adds);
    }
  }
}
