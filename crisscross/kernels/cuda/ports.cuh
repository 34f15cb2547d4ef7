// From CCNet's layout of a map, (N, H+W-1, H, W), to that of its ports, (N, H, W, H+W), and back. In the
// one, pixels are side by side in memory, in the other a pixel's entries: the column first, with one for
// the pixel itself, then the row. Tiles of both are turned in shared memory.
#pragma once

#include "maps.cuh"

constexpr int side = 32, rows_at_once = 8;

struct Ports {
  Axis axis;  // rows
  Planes weights, ported;
  double self_value;
};

// A block's tile: `side` pixels of a row, and as many entries.
struct Tile {
  long long image;
  int first_entry, first_x, y, width, height;

  __device__ explicit Tile(const Axis& axis) : width(axis.length), height(axis.across) {
    const int entry_tiles = ceil_div(width + height, side), pixel_tiles = ceil_div(width, side);
    long long index = axis.first + blockIdx.x;
    first_entry = index % entry_tiles * side;
    index /= entry_tiles;
    first_x = index % pixel_tiles * side;
    index /= pixel_tiles;
    y = index % height;
    image = index / height;
  }
  __device__ bool has(int x, int entry) const {
    return is_inside(x, width) && is_inside(entry, width + height);
  }
  // The weight of an entry, which must not be the column's for the pixel itself.
  template <class T>
  __device__ T& find_weight(const Planes& weights, int x, int entry) const {
    const int channel = entry < height ? width + entry - (entry > y) : entry - height;
    return *find<T>(weights, image, channel, x, y);
  }
  template <class T>
  __device__ T& find_ported(const Planes& ported, int x, int entry) const {
    return *find<T>(ported, image, entry, x, y);
  }
};
