// Features from one layout to another, through a tile of shared memory: read along the axis on which
// they are neighbours in the one array, written along that of the other. Also rounds gradients that
// were summed in Compute.
#include "strips.cuh"

constexpr int edge = 32, threads = 256;

struct Copy {
  Strips strips;
  Array from, to;
  int channels, channel_tiles;
  int reads_along_positions, writes_along_positions;
};

extern "C" __global__ void __launch_bounds__(threads, 1) copy_features(const __grid_constant__ Copy a) {
  __shared__ Partial tile[edge][edge + 1];  // columns in different banks, too
  const Place place(a.strips, blockIdx.x / a.channel_tiles, edge);
  const int first_row = place.first_row, length = a.strips.length;
  const int first_channel = blockIdx.x % a.channel_tiles * edge;
  const Strip<const Partial> from(a.from, place);
  const Strip<Element> to(a.to, place);
  const int lane = threadIdx.x % edge;

#pragma unroll
  for (int line = threadIdx.x / edge; line < edge; line += threads / edge) {
    const int row = a.reads_along_positions ? lane : line;
    const int channel = a.reads_along_positions ? line : lane;
    if (is_inside(first_row + row, length) && is_inside(first_channel + channel, a.channels))
      tile[row][channel] = from.at(first_row + row, first_channel + channel);
  }
  __syncthreads();
#pragma unroll
  for (int line = threadIdx.x / edge; line < edge; line += threads / edge) {
    const int row = a.writes_along_positions ? lane : line;
    const int channel = a.writes_along_positions ? line : lane;
    if (is_inside(first_row + row, length) && is_inside(first_channel + channel, a.channels))
      narrow(widen(tile[row][channel]), to.at(first_row + row, first_channel + channel));
  }
}
