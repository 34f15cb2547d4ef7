// Walking along positions that are neighbours in memory.
#pragma once

#include "strips.cuh"

// Have a warp visit the positions 0 to count - 1 of a channel, of which `first` is the first. After the
// first few, its lanes begin where sectors of memory do, whatever the address: none is moved twice.
template <class T, class Visit>
__device__ __forceinline__ void visit_positions(const T* first, int count, int lane, Visit visit) {
  constexpr int sector = 32 / sizeof(T);
  const int begin = (0 - reinterpret_cast<unsigned long long>(first) / sizeof(T)) % sector;
  if (lane < min(begin, count)) visit(lane);
#pragma unroll 4
  for (int i = begin + lane; i < count; i += 32) visit(i);
  __syncwarp();  // or else lanes may be at different channels from here on
}
