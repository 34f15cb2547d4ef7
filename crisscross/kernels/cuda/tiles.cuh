// The two products that attention is made of, for one block: tile of energies from two tiles of
// features, and tile of results from weights and features. A block has THREAD_ROWS x THREAD_COLUMNS
// threads; each owns the same share of all tiles, in registers.
//
// The rows of a tile are the positions whose results the block computes; its columns those that it
// walks along: keys in the forward, for instance. Positions that are not there (behind the end of the
// strip, or hidden by the mask) are never read, and count as zero.
#pragma once

#include "strips.cuh"

constexpr int threads = THREAD_ROWS * THREAD_COLUMNS;
constexpr int own_rows = ROWS / THREAD_ROWS;
constexpr int own_columns = COLUMNS / THREAD_COLUMNS;
constexpr int own_channels = CHANNELS / THREAD_COLUMNS;
static_assert(32 % THREAD_COLUMNS == 0, "sums over a row stay within a warp");
static_assert(COLUMNS % SLICE == 0 && SLICE % wide == 0 && DEPTH % wide == 0);

// Rows that are read side by side end in 16 bytes of nothing, to begin in different banks.
struct alignas(16) Memory {
  Compute weights[ROWS][COLUMNS + wide];
  union {
    struct {
      Compute left[ROWS][DEPTH + wide], right[COLUMNS][DEPTH + wide];
    };
    Compute matrix[SLICE][CHANNELS];
  };
  bool row_is_there[ROWS], column_is_there[COLUMNS];
};
static_assert(sizeof(Memory) == SHARED_BYTES, "tiles.py computes it too");

// What this thread owns: a run of rows, every THREAD_COLUMNS-th column, and runs of `wide` channels.
__device__ __forceinline__ int own_row(int i) { return threadIdx.x / THREAD_COLUMNS * own_rows + i; }
__device__ __forceinline__ int own_column(int j) {
  return threadIdx.x % THREAD_COLUMNS + j * THREAD_COLUMNS;
}
__device__ __forceinline__ int own_channel(int j) {
  return (j / wide * THREAD_COLUMNS + threadIdx.x % THREAD_COLUMNS) * wide + j % wide;
}

// Load height x width elements into shared memory, a few at a time to have several under way.
template <int height, int width, int pitch>
__device__ __forceinline__ void load_tile(Compute* to, const Strip<const Element>& from, int first,
                                          const bool* is_there, int channel, int size) {
  constexpr int each = height * width / threads, batch = each % 4 == 0 ? 4 : 2;
  static_assert(height * width % threads == 0 && each % batch == 0);
#pragma unroll 1
  for (int i = 0; i < each; i += batch) {
    Compute x[batch];
#pragma unroll
    for (int j = 0; j < batch; j++) {
      int element = (i + j) * threads + threadIdx.x;
      int row = element / width, column = channel + element % width;
      x[j] = 0;
      if (is_there[row] && is_inside(column, size)) x[j] = widen(from.at(first + row, column));
    }
#pragma unroll
    for (int j = 0; j < batch; j++) {
      int element = (i + j) * threads + threadIdx.x;
      to[element / width * pitch + element % width] = x[j];
    }
  }
}

// products += left . right, over `size` channels of the rows of one strip and the columns of another.
__device__ __forceinline__ void add_products(Compute (&products)[own_rows][own_columns],
                                             Memory& memory, const Strip<const Element>& left,
                                             int first_row, const Strip<const Element>& right,
                                             int first_column, int size) {
#pragma unroll 1
  for (int channel = 0; channel < size; channel += DEPTH) {
    __syncthreads();  // all have done with what lay here, and set what is there
    load_tile<ROWS, DEPTH, DEPTH + wide>(memory.left[0], left, first_row, memory.row_is_there,
                                         channel, size);
    load_tile<COLUMNS, DEPTH, DEPTH + wide>(memory.right[0], right, first_column,
                                            memory.column_is_there, channel, size);
    __syncthreads();
    int end = min(DEPTH, size - channel);
#pragma unroll 1
    for (int d = 0; d < end; d += wide) {
      Wide row[own_rows];
#pragma unroll
      for (int i = 0; i < own_rows; i++)
        row[i] = *reinterpret_cast<const Wide*>(&memory.left[own_row(i)][d]);
#pragma unroll
      for (int j = 0; j < own_columns; j++) {
        Wide column = *reinterpret_cast<const Wide*>(&memory.right[own_column(j)][d]);
#pragma unroll
        for (int i = 0; i < own_rows; i++)
#pragma unroll
          for (int n = 0; n < wide; n++) products[i][j] += row[i].at[n] * column.at[n];
      }
    }
  }
}

// results += weights . matrix: the weights in shared memory with `count` columns of a strip, for the
// channels from `channel` on. With `skips_self` a row does not meet itself, not even as 0 * NaN.
__device__ __forceinline__ void add_weighted(Compute (&results)[own_rows][own_channels],
                                             Memory& memory, const Strip<const Element>& matrix,
                                             int first_row, int first_column, int count,
                                             int channel, int size, bool skips_self) {
#pragma unroll 1
  for (int slice = 0; slice < count; slice += SLICE) {
    __syncthreads();  // the weights are there, and the slice before has been used
    load_tile<SLICE, CHANNELS, CHANNELS>(memory.matrix[0], matrix, first_column + slice,
                                         memory.column_is_there + slice, channel, size);
    __syncthreads();
    int end = min(SLICE, count - slice);
#pragma unroll 1
    for (int k = 0; k < end; k += wide) {
      Wide weights[own_rows];
#pragma unroll
      for (int i = 0; i < own_rows; i++)
        weights[i] = *reinterpret_cast<const Wide*>(&memory.weights[own_row(i)][slice + k]);
      // Where among these rows the first of these columns is.
      int self = first_column + slice + k - first_row - own_row(0);
      bool meets_self = skips_self && self > -wide && self < own_rows;
#pragma unroll
      for (int n = 0; n < wide; n++)
#pragma unroll
        for (int j = 0; j < own_channels; j += wide) {
          if (channel + j * THREAD_COLUMNS >= size) break;  // zeros from here on, for all threads
          Wide x = *reinterpret_cast<const Wide*>(&memory.matrix[k + n][own_channel(j)]);
#pragma unroll
          for (int i = 0; i < own_rows; i++)
            if (!meets_self || self + n != i)
#pragma unroll
              for (int m = 0; m < wide; m++) results[i][j + m] += weights[i].at[n] * x.at[m];
        }
    }
  }
}

// Put this thread's share of the weights where all threads of its rows find it.
__device__ __forceinline__ void store_weights(Memory& memory,
                                              const Compute (&weights)[own_rows][own_columns]) {
#pragma unroll
  for (int i = 0; i < own_rows; i++)
#pragma unroll
    for (int j = 0; j < own_columns; j++) memory.weights[own_row(i)][own_column(j)] = weights[i][j];
}

// `wide` channels of an array, read or written at once where they are neighbours in memory.
template <class T>
struct alignas(wide * sizeof(T)) Pack {
  T at[wide];
};
template <class T>
__device__ __forceinline__ bool is_pack(const Strip<T>& strip, int row, int channel, int size) {
  return strip.channel == 1 && is_inside(channel + wide - 1, size) &&
         reinterpret_cast<unsigned long long>(&strip.at(row, channel)) % sizeof(Pack<T>) == 0;
}
template <class T>
__device__ __forceinline__ void read_channels(Compute (&x)[wide], const Strip<T>& from, int row,
                                              int channel, int size) {
  if (is_pack(from, row, channel, size)) {
    const auto pack = reinterpret_cast<const Pack<T>&>(from.at(row, channel));
#pragma unroll
    for (int m = 0; m < wide; m++) x[m] = widen(pack.at[m]);
  } else {
#pragma unroll
    for (int m = 0; m < wide; m++)
      if (is_inside(channel + m, size)) x[m] = widen(from.at(row, channel + m));
  }
}
template <class T>
__device__ __forceinline__ void write_channels(const Strip<T>& to, const Compute (&x)[wide], int row,
                                               int channel, int size) {
  if (is_pack(to, row, channel, size)) {
    Pack<T> pack;
#pragma unroll
    for (int m = 0; m < wide; m++) narrow(x[m], pack.at[m]);
    reinterpret_cast<Pack<T>&>(to.at(row, channel)) = pack;
  } else {
#pragma unroll
    for (int m = 0; m < wide; m++)
      if (is_inside(channel + m, size)) narrow(x[m], to.at(row, channel + m));
  }
}
