// For the softmax: a lane for each pixel, and the warps of a block share out its keys.
#pragma once

#include "maps.cuh"

constexpr int shares = 8;

struct Softmax {
  Axis axis;  // rows
  Planes energy, attention, dattention, denergy;
  int keys;
};

struct Pixel {
  long long image;
  int y, x, share;
  bool is_there;

  __device__ explicit Pixel(const Axis& axis) : share(threadIdx.x / 32) {
    long long index = (axis.first + blockIdx.x) * 32 + threadIdx.x % 32;
    x = index % axis.length;
    index /= axis.length;
    y = index % axis.across;
    image = index / axis.across;
    is_there = is_inside(image, axis.images);
  }
  template <class T>
  __device__ T* find_first(const Planes& from) const {
    return find<T>(from, image, 0, x, y);
  }
};

// Each pixel's values of all shares, for all of them.
struct Exchange {
  Compute of[shares][32];

  __device__ void put(Compute x) {
    __syncthreads();  // all have done with what was here
    of[threadIdx.x / 32][threadIdx.x % 32] = x;
    __syncthreads();
  }
  __device__ Compute find_max(Compute x) {
    put(x);
    for (int i = 0; i < shares; i++) x = max(x, of[i][threadIdx.x % 32]);
    return x;
  }
  // In one order, whatever the share.
  __device__ Compute find_sum(Compute x) {
    put(x);
    x = 0;
    for (int i = 0; i < shares; i++) x += of[i][threadIdx.x % 32];
    return x;
  }
};
