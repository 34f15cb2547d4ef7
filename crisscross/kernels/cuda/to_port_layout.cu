// A map in the layout of CCNet's ports.
#include "ports.cuh"

extern "C" __global__ void __launch_bounds__(side* rows_at_once)
    to_port_layout(const __grid_constant__ Ports a) {
  __shared__ Element turned[side][side + 1];  // one more, for another bank
  const Tile tile(a.axis);
  const int column = threadIdx.x % side;
  for (int row = threadIdx.x / side; row < side; row += rows_at_once) {
    const int entry = tile.first_entry + row, x = tile.first_x + column;
    if (!tile.has(x, entry)) continue;
    if (entry == tile.y)
      turned[row][column] = a.self_value;
    else
      turned[row][column] = tile.find_weight<const Element>(a.weights, x, entry);
  }
  __syncthreads();
  for (int row = threadIdx.x / side; row < side; row += rows_at_once) {
    const int entry = tile.first_entry + column, x = tile.first_x + row;
    if (tile.has(x, entry)) tile.find_ported<Element>(a.ported, x, entry) = turned[column][row];
  }
}
