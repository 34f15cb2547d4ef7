// What CCNet's operators share. Channels 0..W-1 of a map are the row of a pixel, itself included;
// channels W..W+H-2 its column without itself. A launch is for one of the two.
//
// ccnet.py holds the same structures and the same numbers for Python.
#pragma once

#include "numbers.cuh"

constexpr int warps = 4, threads = 32 * warps;

// Features (N, C, H, W) or a map (N, H+W-1, H, W), as seen along an axis: strides in elements.
struct Planes {
  void* data;
  long long image, channel, along, across;
};
template <class T>
__device__ __forceinline__ T* find(const Planes& from, long long image, long long channel,
                                   long long along, long long across) {
  return static_cast<T*>(from.data) + image * from.image + channel * from.channel +
         along * from.along + across * from.across;
}

// The rows, or else the columns, of some images; `first` is the launch's first block of all.
struct Axis {
  long long first, images;
  int length, across, is_row;

  // Channels of the map before those of this axis: a column has as many neighbours as a row is long.
  __device__ int first_channel() const { return is_row ? 0 : across; }
  // What counts as a key: the column leaves the pixel itself out, for the row has it.
  __device__ bool is_pair(int query, int key) const { return is_row || query != key; }
  __device__ int channel(int query, int key) const {
    return is_row ? key : across + key - (key > query);
  }
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ long long own_warp(const Axis& axis) {
  return (axis.first + blockIdx.x) * warps + threadIdx.x / 32;
}

// The argument of ca_map and ca_map_transposed_rows. Columns come first, and write `sums`; rows add
// to them, and write `out`, which is rounded once. The two may be one array.
constexpr int own_channels = 8;
struct WeightedSum {
  Axis axis;
  Planes map, features, sums, out;
  int channels, transposed;
};
