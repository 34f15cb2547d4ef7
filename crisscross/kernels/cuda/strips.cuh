// Where strips and their elements lie. arguments.py holds the same structures for Python.
#pragma once

#include "numbers.cuh"

// An array along a strip: strides in elements. Strips are numbered by four outer axes, the batch, the
// heads and the remaining spatial ones among them; where an array has not an axis, its stride is 0.
struct Array {
  void* data;
  long long position, channel, outer[4];
};

// The strips of one launch: those from `first` on, each cut into `tiles` tiles.
struct Strips {
  long long first, sizes[4];
  int length, tiles;

  __device__ long long count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
};

// One of these tiles, by its number, of so many rows each: the strip it is of, and where it begins.
struct Place {
  long long outer[4];
  int first_row;

  __device__ Place(const Strips& strips, unsigned int number, int rows) {
    long long index = strips.first + number / strips.tiles;
    first_row = number % strips.tiles * rows;
#pragma unroll
    for (int i = 3; i >= 0; i--) {
      outer[i] = index % strips.sizes[i];
      index /= strips.sizes[i];
    }
  }
};

// The strip of an array at this block's place.
template <class T>
struct Strip {
  T* data;
  long long position, channel;

  __device__ Strip(const Array& array, const Place& place)
      : position(array.position), channel(array.channel) {
    long long offset = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) offset += place.outer[i] * array.outer[i];
    data = static_cast<T*>(array.data) + offset;
  }
  __device__ Strip(T* data, long long position, long long channel)
      : data(data), position(position), channel(channel) {}
  __device__ explicit operator bool() const { return data != nullptr; }
  __device__ T& at(long long row) const { return data[row * position]; }
  __device__ T& at(long long row, long long column) const {
    return data[row * position + column * channel];
  }
};

// Choose field by field: of two structures one would be chosen by its address, out of local memory.
template <class T>
__device__ __forceinline__ Strip<T> choose(bool first, const Strip<T>& a, const Strip<T>& b) {
  return {first ? a.data : b.data, first ? a.position : b.position, first ? a.channel : b.channel};
}
