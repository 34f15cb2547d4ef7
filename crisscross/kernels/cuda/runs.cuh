// Results straight from fragments to memory, 8 bytes a lane: of 16 bits, a lane has four channels of
// one tile of a pair, of 32 bits, two of either. So four lanes fill a sector.
#pragma once

#include "strips.cuh"
#include "tensor.cuh"

template <class T>
struct alignas(8) Run {
  static constexpr int size = 8 / sizeof(T), count = 4 / size;
  T at[size];
};

// Where in a pair of tiles, 16 channels, the first run of a lane begins. Its second is 8 on.
template <class T>
__device__ __forceinline__ int find_run(int lane) {
  return Run<T>::count == 1 ? lane % 2 * 8 + lane % 4 / 2 * 4 : lane % 4 * 2;
}

// `left` is how many channels there are; the others are zero, or are not written.
template <class T>
__device__ __forceinline__ void read_run(Run<T>& to, const T* from, int left) {
  if (IS_ALIGNED && is_inside(Run<T>::size - 1, left)) {
    to = *reinterpret_cast<const Run<T>*>(from);
  } else {
#pragma unroll
    for (int m = 0; m < Run<T>::size; m++)
      if (is_inside(m, left)) to.at[m] = from[m];
      else narrow(0, to.at[m]);
  }
}
template <class T>
__device__ __forceinline__ void write_run(T* to, const Run<T>& from, int left) {
  if (IS_ALIGNED && is_inside(Run<T>::size - 1, left)) {
    *reinterpret_cast<Run<T>*>(to) = from;
  } else {
#pragma unroll
    for (int m = 0; m < Run<T>::size; m++)
      if (is_inside(m, left)) to[m] = from.at[m];
  }
}

// From a lane's two channels of either tile of a pair, as fragments have them, to its runs, or back.
__device__ __forceinline__ void narrow_to_runs(const float (&x)[4], Run<float> (&to)[2], int) {
#pragma unroll
  for (int i = 0; i < 4; i++) to[i / 2].at[i % 2] = x[i];
}
__device__ __forceinline__ void widen_runs(const Run<float> (&from)[2], float (&x)[4], int) {
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = from[i / 2].at[i % 2];
}
#if ELEMENT_BITS == 16
// Of 16 bits, each of two neighbours gives what the other one needs.
__device__ __forceinline__ void exchange(unsigned (&pairs)[2], int lane) {
  const bool is_odd = lane % 2;
  const unsigned taken = __shfl_xor_sync(0xffffffffu, is_odd ? pairs[0] : pairs[1], 1);
  pairs[0] = is_odd ? taken : pairs[0];
  pairs[1] = is_odd ? pairs[1] : taken;
}
__device__ __forceinline__ void narrow_to_runs(const float (&x)[4], Run<Element> (&to)[1], int lane) {
  unsigned pairs[2] = {pack(x[0], x[1]), pack(x[2], x[3])};
  exchange(pairs, lane);
  to[0] = reinterpret_cast<const Run<Element>&>(pairs);
}
__device__ __forceinline__ void widen_runs(const Run<Element> (&from)[1], float (&x)[4], int lane) {
  const auto& two = reinterpret_cast<const unsigned(&)[2]>(from[0]);
  unsigned pairs[2] = {two[0], two[1]};
  exchange(pairs, lane);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float2 pair = unpack(pairs[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
#endif
