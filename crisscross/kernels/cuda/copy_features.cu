// Features from one layout to another, through a tile of shared memory: read along the axis on which
// they are neighbours in the one array, written along that of the other. Also rounds gradients that
// were summed in Compute.
#include "positions.cuh"

constexpr int edge = 32, threads = 256, warps = threads / 32;
// Many positions, for it is where channels end that sectors are shared. In the tile, neighbours along
// either axis lie in different banks.
constexpr int run = 512 / sizeof(Partial), pitch = run + (sizeof(Partial) == 2 ? 2 : 1);

struct Copy {
  Strips strips;
  Array from, to;
  int channels, channel_tiles;
  int reads_along_positions, writes_along_positions;
};

// Visit all elements of a tile of an array, of which `first` is the first; neighbours in memory are
// visited by neighbouring lanes.
template <class T, class Visit>
__device__ __forceinline__ void visit_tile(const Strip<T>& array, T* first, bool along_positions,
                                           int rows, int channels, Visit visit) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (along_positions) {
    for (int channel = warp; channel < channels; channel += warps)
      visit_positions(first + channel * array.channel, rows, lane,
                      [&](int row) { visit(row, channel); });
  } else if (is_inside(lane, channels)) {
#pragma unroll 4
    for (int row = warp; row < rows; row += warps) visit(row, lane);
  }
}

extern "C" __global__ void __launch_bounds__(threads, 1) copy_features(const __grid_constant__ Copy a) {
  __shared__ Partial tile[edge][pitch];
  const Place place(a.strips, blockIdx.x / a.channel_tiles, run);
  const int first_row = place.first_row, first_channel = blockIdx.x % a.channel_tiles * edge;
  const int rows = min(run, a.strips.length - first_row);
  const int channels = min(edge, a.channels - first_channel);
  const Strip<const Partial> from(a.from, place);
  const Strip<Element> to(a.to, place);
  const Partial* const source = &from.at(first_row, first_channel);
  Element* const target = &to.at(first_row, first_channel);

  visit_tile(from, source, a.reads_along_positions, rows, channels, [&](int row, int channel) {
    tile[channel][row] = source[row * from.position + channel * from.channel];
  });
  __syncthreads();
  visit_tile(to, target, a.writes_along_positions, rows, channels, [&](int row, int channel) {
    narrow(widen(tile[channel][row]), target[row * to.position + channel * to.channel]);
  });
}
