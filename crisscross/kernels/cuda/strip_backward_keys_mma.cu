// Gradients of the keys and values of attention along strips of any length, on tensor cores: dv and dk
// for a tile of keys.
#include "backward_mma_stream.cuh"

extern "C" __global__ void __launch_bounds__(threads, BLOCKS)
    strip_backward_keys_mma(const __grid_constant__ Backward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, rows);
  const int first_row = place.first_row;
  place_strips(memory, a, place);
  __syncthreads();
  find_known<false>(memory.known, memory, first_row, a.strips.length);
  __syncthreads();
  const Share<rows, threads> share(threadIdx.x,
                                   [&](int row) { return memory.known.are_there[row]; });
  begin_own(share, memory, K, V, first_row, a);
  make_gradients<DV>(a, memory, first_row);
  // What the ring held last has been used when all have begun to find what they walk along.
  make_gradients<DK>(a, memory, first_row);
}
