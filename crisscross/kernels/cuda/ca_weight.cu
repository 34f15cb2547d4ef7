// Dot products of each pixel's channels with those of its row, or of its column.
#include "shares.cuh"

constexpr int own_keys = 8;

struct DotProducts {
  Axis axis;
  Planes q, k, map;
  int channels;
};

extern "C" __global__ void __launch_bounds__(threads) ca_weight(const __grid_constant__ DotProducts a) {
  const int length = a.axis.length;
  const Share share(a.axis, ceil_div(length, own_keys));
  if (!share.is_there) return;
  const int first_key = share.tile * own_keys;
  const Element* q = find<const Element>(a.q, share.image, 0, 0, share.across);
  const Element* k = find<const Element>(a.k, share.image, 0, first_key, share.across);

  // Behind the end, the first position is read once more, for nobody: loads need no condition.
  long long queries[own_positions], keys[own_keys];
#pragma unroll
  for (int p = 0; p < own_positions; p++)
    queries[p] = is_inside(share.position(p), length) ? share.position(p) * a.q.along : 0;
#pragma unroll
  for (int z = 0; z < own_keys; z++)
    keys[z] = is_inside(first_key + z, length) ? z * a.k.along : 0;

  Compute products[own_positions][own_keys] = {};
#pragma unroll 1
  for (int channel = 0; channel < a.channels; channel++) {
    Compute x[own_positions], y[own_keys];
#pragma unroll
    for (int p = 0; p < own_positions; p++) x[p] = widen(q[queries[p]]);
#pragma unroll
    for (int z = 0; z < own_keys; z++) y[z] = widen(k[keys[z]]);
#pragma unroll
    for (int p = 0; p < own_positions; p++)
#pragma unroll
      for (int z = 0; z < own_keys; z++) products[p][z] += x[p] * y[z];
    q += a.q.channel;
    k += a.k.channel;
  }

#pragma unroll
  for (int p = 0; p < own_positions; p++) {
    const int query = share.position(p);
    if (!is_inside(query, length)) continue;
#pragma unroll
    for (int z = 0; z < own_keys; z++) {
      const int key = first_key + z;
      if (is_inside(key, length) && a.axis.is_pair(query, key))
        *find<Compute>(a.map, share.image, a.axis.channel(query, key), query, share.across) =
            products[p][z];
    }
  }
}
