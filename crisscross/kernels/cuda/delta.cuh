// delta, <dout, out> of each query, from dout in shared memory and out as it comes from memory.
#pragma once

#include "features.cuh"

// A unit of channels, in registers.
constexpr int in_register = 4 / sizeof(Element);
struct alignas(sizeof(Element) * unit) Unit {
  unsigned words[unit / in_register];
};
#if ELEMENT_BITS == 16
__device__ __forceinline__ unsigned join(const Element* from, int left) {
  return pack(is_inside(0, left) ? widen(from[0]) : 0, is_inside(1, left) ? widen(from[1]) : 0);
}
__device__ __forceinline__ float multiply_words(unsigned a, unsigned b) {
  const float2 x = unpack(a), y = unpack(b);
  return x.x * y.x + x.y * y.y;
}
#else
__device__ __forceinline__ unsigned join(const Element* from, int left) {
  return is_inside(0, left) ? __float_as_uint(from[0]) : 0;
}
__device__ __forceinline__ float multiply_words(unsigned a, unsigned b) {
  return __uint_as_float(a) * __uint_as_float(b);
}
#endif

// Of a chunk of `out`, that of a thread's i-th position; `first` is the first of the tile.
template <int rows, int threads>
__device__ __forceinline__ Unit read_unit(const Share<rows, threads>& share, int i,
                                          const Strip<const Element>& out, int first, int channel,
                                          int size) {
  const Element* source = &out.at(first + share.row + i * share.step, channel + share.unit_channel);
  const int left = share.are_there >> i & 1 ? size - channel - share.unit_channel : 0;
  if (IS_ALIGNED && is_inside(unit - 1, left)) return *reinterpret_cast<const Unit*>(source);
  Unit found;
#pragma unroll
  for (int m = 0; m < unit; m += in_register)
    found.words[m / in_register] = join(source + m, left - m);
  return found;
}
// delta += <dout, out> over the channels of a chunk; `read` gives the units of `out`.
template <int rows, int threads, class Read>
__device__ __forceinline__ void add_to_delta(Compute* delta, const Share<rows, threads>& share,
                                             const Row* dout, Read read) {
  // Small units are too many for that.
  constexpr int at_once = IS_ALIGNED ? Share<rows, threads>::count : 1;
#pragma unroll at_once
  for (int i = 0; i < share.count; i++) {
    const int row = share.row + i * share.step;
    const bool is_row = rows % share.step == 0 || row < rows;
    Compute sum = 0;
    if (is_row) {
      const Unit theirs = read(i);
      const Unit ours = *reinterpret_cast<const Unit*>(&dout[row][share.unit_channel]);
#pragma unroll
      for (int m = 0; m < unit / in_register; m++)
        sum += multiply_words(ours.words[m], theirs.words[m]);
    }
    sum = sum_over_lanes<units>(sum);
    if (is_row && share.unit_channel == 0) delta[row] += sum;
  }
}
