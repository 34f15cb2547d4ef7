// A warp's operands of products along a strip, of 16 bits or of 32: at each step 32 bytes of every row.
// A warp has ROW_TILES tiles of 16 of the strip's positions, rows, and walks along those that they
// meet, KEYS at a time: keys, or queries where the rows are keys.
#pragma once

#include "features.cuh"

constexpr int step_size = 32 / sizeof(Element), half_step = step_size / 2;
constexpr int warp_rows = ROW_TILES * 16, key_tiles = KEYS / 8;
constexpr int key_steps = ceil_div(KEYS, step_size);
static_assert(KEYS % 8 == 0 && CHANNELS % step_size == 0);

// What a lane holds of its warp's fragments; g and t as in tensor.cuh.
struct Lane {
  int index, g, t, first_row;
  bool has_last;  // tile of rows; without any of them it is not multiplied

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
// Weights as the left operands of products with values.
using Packed = unsigned[ROW_TILES][key_steps][4];
// A value for each of a lane's rows.
using Rows = Compute[ROW_TILES][2];

// results += weights . values of two positions, the first of which is `key`, for those of 16 rows that
// are neither; of `row` and `column` there are those of a lane's rows and columns.
__device__ __forceinline__ void add_pair(float (&results)[2][4], const float2 (&row)[2],
                                         const float2 (&column)[2][2], int key, const Lane& lane) {
#pragma unroll
  for (int n = 0; n < 8; n++) {
    const int h = n / 4, i = n / 2 % 2, j = n % 2, own = lane.g + 8 * h;
    if (key != own) results[i][2 * h + j] += row[h].x * column[i][j].x;
    if (key + 1 != own) results[i][2 * h + j] += row[h].y * column[i][j].y;
  }
}

#if ELEMENT_BITS == 16

// sum += left . right.
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4],
                                         unsigned right0, unsigned right1) {
  mma_k16(sum, left, right0, right1);
}
// Weights of row h of a tile with two neighbouring keys, those of lane.t in tile n, rounded.
__device__ __forceinline__ void put_weights(Packed& packed, int m, int n, int h, float x, float y) {
  packed[m][n / 2][n % 2 * 2 + h] = pack(x, y);
}
__device__ __forceinline__ float2 get_weights(const Packed& packed, int m, int n, int h) {
  return unpack(packed[m][n / 2][n % 2 * 2 + h]);
}
// The right operands of two tiles of channels, of the positions of one step.
__device__ __forceinline__ void load_values(unsigned (&right)[4], const Row* values, int channel,
                                            const Lane& lane) {
  load_transposed(right, &values[lane.index % 16][channel + lane.index / 16 * 8]);
}

constexpr unsigned exponent_bits = ELEMENT_IS_BFLOAT ? 0x7f800000 : 0x7c000000;
__device__ __forceinline__ bool is_nonfinite(unsigned pair) {
  return (pair & exponent_bits) == exponent_bits || (pair << 16 & exponent_bits) == exponent_bits;
}

// results += weights . values for 16 positions that do not meet themselves, and two tiles of channels:
// what tensor cores would do, but that a weight of zero is not multiplied by a value that is not
// finite. `first` is where the positions begin in the 16 rows.
__device__ __forceinline__ void add_others(float (&results)[2][4], const unsigned (&weights)[4],
                                           const unsigned (&values)[4], int first, const Lane& lane) {
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
      add_pair(results, row, column, first + k * 8 + quarter * 2, lane);
    }
}

#else

__device__ __forceinline__ bool is_nonfinite(unsigned value) {
  return (value & 0x7f800000) == 0x7f800000;
}
// Finite numbers stay finite: the last ones are cut off.
__device__ __forceinline__ float round_to_tf32(float x) {
  const float rounded = cvt_rna_tf32(x);
  return is_nonfinite(__float_as_uint(rounded)) && !is_nonfinite(__float_as_uint(x))
             ? __uint_as_float(__float_as_uint(x) & 0xffffe000)
             : rounded;
}
// What the high part leaves of a number, zero where it is infinite; and a high part to multiply it by,
// which is zero in place of infinity: 0 * infinity is no correction.
__device__ __forceinline__ float find_low(float x, float high) {
  const float rest = x - high;
  return rest == rest ? round_to_tf32(rest) : 0;
}
__device__ __forceinline__ float keep_finite(float high) { return high - high == 0 ? high : 0; }

// sum += left . right, rounded to tf32; of TERMS 3 with what rounding leaves, but for the product of
// two such rests. These three are summed up by themselves, for a tensor core rounds what it adds to a
// sum towards zero, and of a long sum that would be all that three products gain.
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&left)[4],
                                         unsigned right0, unsigned right1) {
  float high[4];
#pragma unroll
  for (int i = 0; i < 4; i++) high[i] = round_to_tf32(__uint_as_float(left[i]));
  const float x = __uint_as_float(right0), y = __uint_as_float(right1);
  const float high_x = round_to_tf32(x), high_y = round_to_tf32(y);
  if constexpr (TERMS == 3) {
    float low[4], finite[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      low[i] = find_low(__uint_as_float(left[i]), high[i]);
      finite[i] = keep_finite(high[i]);
    }
    float part[4] = {};
    mma_tf32(part, low, keep_finite(high_x), keep_finite(high_y));
    mma_tf32(part, finite, find_low(x, high_x), find_low(y, high_y));
    mma_tf32(part, high, high_x, high_y);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += part[i];
  } else {
    mma_tf32(sum, high, high_x, high_y);
  }
}
// Weights of row h of a tile with two neighbouring keys, those of lane.t in tile n. The product takes
// them for columns t / 2 and t / 2 + 4: so values have the same order.
__device__ __forceinline__ void put_weights(Packed& packed, int m, int n, int h, float x, float y) {
  packed[m][n][h] = __float_as_uint(x);
  packed[m][n][2 + h] = __float_as_uint(y);
}
__device__ __forceinline__ float2 get_weights(const Packed& packed, int m, int n, int h) {
  return {__uint_as_float(packed[m][n][h]), __uint_as_float(packed[m][n][2 + h])};
}
// The right operands of two tiles of channels, of the positions of one step.
__device__ __forceinline__ void load_values(unsigned (&right)[4], const Row* values, int channel,
                                            const Lane& lane) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    right[i] = __float_as_uint(values[lane.t + i % 2][channel + i / 2 * 8 + lane.g]);
}

// results += weights . values for 8 positions that do not meet themselves, and two tiles of channels:
// what tensor cores would do, but that a weight of zero is not multiplied by a value that is not
// finite. `first` is where the positions begin in the 16 rows.
__device__ __forceinline__ void add_others(float (&results)[2][4], const unsigned (&weights)[4],
                                           const unsigned (&values)[4], int first, const Lane& lane) {
#pragma unroll 1
  for (int quarter = 0; quarter < 4; quarter++) {
    const auto take = [](unsigned x, unsigned y, int from) {
      return float2{__uint_as_float(__shfl_sync(0xffffffffu, x, from)),
                    __uint_as_float(__shfl_sync(0xffffffffu, y, from))};
    };
    float2 row[2], column[2][2];
#pragma unroll
    for (int h = 0; h < 2; h++) row[h] = take(weights[h], weights[2 + h], lane.g * 4 + quarter);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        column[i][j] = take(values[2 * i], values[2 * i + 1], (lane.t + j) * 4 + quarter);
    add_pair(results, row, column, first + quarter * 2, lane);
  }
}

#endif

// Whether any of a warp's elements is infinite or NaN.
__device__ __forceinline__ bool has_nonfinite(const unsigned (&values)[4]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < 4; i++) found |= is_nonfinite(values[i]);
  return __any_sync(0xffffffffu, found);
}
