// A map back from the layout of CCNet's ports; the column's entries for the pixel itself are dropped.
#include "ports.cuh"

extern "C" __global__ void __launch_bounds__(side* rows_at_once)
    from_port_layout(const __grid_constant__ Ports a) {
  __shared__ Element turned[side][side + 1];  // one more, for another bank
  const Tile tile(a.axis);
  const int column = threadIdx.x % side;
  for (int row = threadIdx.x / side; row < side; row += rows_at_once) {
    const int entry = tile.first_entry + column, x = tile.first_x + row;
    if (tile.has(x, entry)) turned[row][column] = tile.find_ported<const Element>(a.ported, x, entry);
  }
  __syncthreads();
  for (int row = threadIdx.x / side; row < side; row += rows_at_once) {
    const int entry = tile.first_entry + row, x = tile.first_x + column;
    if (tile.has(x, entry) && entry != tile.y)
      tile.find_weight<Element>(a.weights, x, entry) = turned[column][row];
  }
}
