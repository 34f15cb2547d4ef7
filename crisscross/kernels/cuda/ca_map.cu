// Sums of features along rows or columns, with the map's weights: the values of the keys that a pixel
// sees, or (transposed) the gradients of the queries that see it. Rows transposed have a kernel of
// their own.
#include "shares.cuh"

extern "C" __global__ void __launch_bounds__(threads) ca_map(const __grid_constant__ WeightedSum a) {
  const Axis& axis = a.axis;
  const Share share(axis, ceil_div(a.channels, own_channels));
  if (!share.is_there) return;
  const int first_channel = share.tile * own_channels;

  // Behind the end, the first channel or position is read once more, for nobody.
  long long channels[own_channels];
#pragma unroll
  for (int d = 0; d < own_channels; d++)
    channels[d] = is_inside(first_channel + d, a.channels) ? d * a.features.channel : 0;
  // The weights of each position walk through the map: through the channels of one pixel, or through
  // pixels in one channel. The column's channels close up over the pixel itself, so that it is passed
  // by without a step from channel to channel, or else with one more.
  const long long step = a.transposed ? a.map.along : a.map.channel;
  const long long step_at_self = a.transposed ? a.map.along + a.map.channel : 0;
  const Compute* weights[own_positions];
  int own[own_positions];
#pragma unroll
  for (int p = 0; p < own_positions; p++) {
    own[p] = is_inside(share.position(p), axis.length) ? share.position(p) : 0;
    const int channel = axis.first_channel() + (a.transposed ? own[p] - !axis.is_row : 0);
    weights[p] =
        find<const Compute>(a.map, share.image, channel, a.transposed ? 0 : own[p], share.across);
  }

  const Element* from = find<const Element>(a.features, share.image, first_channel, 0, share.across);
  Compute results[own_positions][own_channels] = {};
#pragma unroll 1
  for (int other = 0; other < axis.length; other++) {
    Compute x[own_channels];
#pragma unroll
    for (int d = 0; d < own_channels; d++) x[d] = widen(from[channels[d]]);
#pragma unroll
    for (int p = 0; p < own_positions; p++) {
      // Left out, not weighed with zero: 0 * NaN is NaN.
      const bool is_pair = axis.is_pair(own[p], other);
      if (is_pair) {
        const Compute weight = *weights[p];
#pragma unroll
        for (int d = 0; d < own_channels; d++) results[p][d] += weight * x[d];
      }
      weights[p] += is_pair ? step : step_at_self;
    }
    from += a.features.along;
  }

#pragma unroll
  for (int p = 0; p < own_positions; p++) {
    const int position = share.position(p);
    if (!is_inside(position, axis.length)) continue;
#pragma unroll
    for (int d = 0; d < own_channels; d++) {
      const int channel = first_channel + d;
      if (!is_inside(channel, a.channels)) continue;
      Compute& sum = *find<Compute>(a.sums, share.image, channel, position, share.across);
      if (axis.is_row)
        narrow(sum + results[p][d],
               *find<Element>(a.out, share.image, channel, position, share.across));
      else
        sum = results[p][d];
    }
  }
}
