// Tiles of features in shared memory, of the arrays' own elements: positions x CHANNELS channels, for
// tensor cores.
#pragma once

#include "strips.cuh"
#include "tensor.cuh"

// Where all that is read or written begins at a multiple of 16 bytes, it is moved by so many at once.
constexpr int unit = (IS_ALIGNED ? 16 : 4) / sizeof(Element), units = CHANNELS / unit;
// Rows are an odd number of 16 bytes apart: eight of them, read at once, lie in different banks.
constexpr int pitch = CHANNELS + 16 / sizeof(Element);
using Row = Element[pitch];
// What a thread has under way at once: as much as there is, where it takes no registers.
constexpr int moved_at_once = IS_ALIGNED ? 32 : 4;

__device__ constexpr int ceil_div(int x, int y) { return (x + y - 1) / y; }

// What one of `threads` threads moves of a tile of `rows` positions: the same unit of channels of
// every `step`-th position.
template <int rows, int threads>
struct Share {
  static constexpr int step = threads / units, count = ceil_div(rows, step);
  static_assert(threads % units == 0 && count <= 32);

  int row, unit_channel;  // the first of its positions; the first channel of its unit
  unsigned are_there = 0;  // its positions, a bit each

  // `exists` says of a position of the tile whether it is there; it is not asked for others.
  template <class Predicate>
  __device__ __forceinline__ Share(int thread, Predicate exists)
      : row(thread / units), unit_channel(thread % units * unit) {
#pragma unroll
    for (int i = 0; i < count; i++)
      if ((rows % step == 0 || row + i * step < rows) && exists(row + i * step))
        are_there |= 1u << i;
  }

  // Begin to copy the channels from `channel` on, of `size`, of the positions from `first` on. What is
  // not there is zero. Units that are not aligned are copied at once.
  template <class T>
  __device__ __forceinline__ void begin_copy(Row* to, const Strip<T>& from, int first, int channel,
                                             int size) const {
    const Element* source = &from.at(first + row, channel + unit_channel);
    const long long stride = step * from.position;
    const int left = min(max(size - channel - unit_channel, 0), unit);
    Element* target = &to[row][unit_channel];
#pragma unroll moved_at_once
    for (int i = 0; i < count; i++, source += stride, target += step * pitch) {
      if (rows % step && row + i * step >= rows) break;
      const int wanted = are_there >> i & 1 ? left : 0;
      if constexpr (IS_ALIGNED) {
        cp_async(target, wanted ? source : from.data, wanted * sizeof(Element));
      } else {
#pragma unroll
        for (int m = 0; m < unit; m++)
          if (is_inside(m, wanted)) target[m] = source[m];
          else narrow(0, target[m]);
      }
    }
  }

  // Write them, from shared memory.
  __device__ __forceinline__ void write(const Row* from, const Strip<Element>& to, int first,
                                        int channel, int size) const {
    Element* target = &to.at(first + row, channel + unit_channel);
    const long long stride = step * to.position;
    const int left = size - channel - unit_channel;
    const Element* source = &from[row][unit_channel];
#pragma unroll moved_at_once
    for (int i = 0; i < count; i++, target += stride, source += step * pitch) {
      if (!(are_there >> i & 1)) continue;
      if (IS_ALIGNED && is_inside(unit - 1, left)) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
      } else {
#pragma unroll
        for (int m = 0; m < unit; m++)
          if (is_inside(m, left)) target[m] = source[m];
      }
    }
  }
};
