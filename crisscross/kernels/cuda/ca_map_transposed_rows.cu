// Sums over the queries of each row: for each key, what its queries give back to it. A map has queries
// side by side in memory and its keys far apart, so here the lanes of a warp share out the sum itself.
#include "maps.cuh"

constexpr int own_keys = 4;
static_assert(own_keys * own_channels == 32, "a result for each lane, in the end");

// Sum each of 32 values over the lanes; lane i is left with the sum of the values i. Each step halves
// the values: half of the lanes go on with the one half of them, half with the other. A template, for
// values stay in registers only where each index is known to the compiler.
template <int half = 16>
__device__ __forceinline__ Compute sum_each(Compute (&values)[32]) {
  const bool is_upper = threadIdx.x & half;
#pragma unroll
  for (int i = 0; i < half; i++) {
    const Compute kept = is_upper ? values[i + half] : values[i];
    const Compute given = is_upper ? values[i] : values[i + half];
    values[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
  }
  if constexpr (half > 1) return sum_each<half / 2>(values);
  return values[0];
}

extern "C" __global__ void __launch_bounds__(threads)
    ca_map_transposed_rows(const __grid_constant__ WeightedSum a) {
  const int length = a.axis.length, lane = threadIdx.x % 32;
  const int channel_tiles = ceil_div(a.channels, own_channels), key_tiles = ceil_div(length, own_keys);
  long long index = own_warp(a.axis);
  const int first_channel = index % channel_tiles * own_channels;
  index /= channel_tiles;
  const int first_key = index % key_tiles * own_keys;
  index /= key_tiles;
  const int across = index % a.axis.across;
  const long long image = index / a.axis.across;
  if (!is_inside(image, a.axis.images)) return;  // all lanes together

  // Behind the end, the first key or channel is read once more, for nobody.
  long long keys[own_keys], channels[own_channels];
#pragma unroll
  for (int z = 0; z < own_keys; z++)
    keys[z] = is_inside(first_key + z, length) ? z * a.map.channel : 0;
#pragma unroll
  for (int d = 0; d < own_channels; d++)
    channels[d] = is_inside(first_channel + d, a.channels) ? d * a.features.channel : 0;

  const Compute* map = find<const Compute>(a.map, image, first_key, 0, across);
  const Element* from = find<const Element>(a.features, image, first_channel, 0, across);
  Compute results[32] = {};
#pragma unroll 1
  for (long long query = lane; is_inside(query, length); query += 32) {
    Compute x[own_channels];
#pragma unroll
    for (int d = 0; d < own_channels; d++) x[d] = widen(from[query * a.features.along + channels[d]]);
#pragma unroll
    for (int z = 0; z < own_keys; z++) {
      const Compute weight = map[query * a.map.along + keys[z]];
#pragma unroll
      for (int d = 0; d < own_channels; d++) results[d * own_keys + z] += weight * x[d];
    }
  }

  const Compute result = sum_each(results);
  const int key = first_key + lane % own_keys, channel = first_channel + lane / own_keys;
  if (is_inside(key, length) && is_inside(channel, a.channels))
    narrow(*find<const Compute>(a.sums, image, channel, key, across) + result,
           *find<Element>(a.out, image, channel, key, across));
}
