// How ca_weight and ca_map deal out pixels to threads.
#pragma once

#include "maps.cuh"

// A thread's share of the positions along the axis; every value that it loads is used as often.
constexpr int own_positions = 4;

// What a thread works on: positions `step` apart along the axis, and one of `tiles` tiles of something
// else. Neighbours in x are neighbouring lanes, for that is how images lie in memory; the warps of a
// block take different tiles of the same pixels, and find them in the cache.
struct Share {
  long long image;
  int tile, along, across, step;
  bool is_there;

  __device__ Share(const Axis& axis, int tiles) : step(ceil_div(axis.length, own_positions)) {
    const long long warp = own_warp(axis);
    const int in_x = axis.is_row ? step : axis.across, in_y = axis.is_row ? axis.across : step;
    long long index = warp / tiles * 32 + threadIdx.x % 32;
    tile = warp % tiles;
    const int x = index % in_x;
    index /= in_x;
    const int y = index % in_y;
    image = index / in_y;
    is_there = is_inside(image, axis.images);
    along = axis.is_row ? x : y;
    across = axis.is_row ? y : x;
  }
  __device__ int position(int p) const { return along + p * step; }
};
