// Gradients of the queries of attention along strips of any length, on tensor cores: dq for a tile of
// queries, and, along the first axis, their delta.
#include "backward_mma_stream.cuh"

extern "C" __global__ void __launch_bounds__(threads, BLOCKS)
    strip_backward_queries_mma(const __grid_constant__ Backward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, rows);
  const int first_row = place.first_row, length = a.strips.length;
  place_strips(memory, a, place);
  __syncthreads();
  find_known<true>(memory.known, memory, first_row, length);
  __syncthreads();
  const Share<rows, threads> share(threadIdx.x,
                                   [&](int row) { return memory.known.are_there[row]; });
  begin_own(share, memory, Q, DOUT, first_row, a);
  if (memory.out) {
    cp_async_wait<0>();  // a thread takes what it has copied itself, as `share` has it
#pragma unroll 1
    for (int channel = 0; channel < a.head_size_v; channel += CHANNELS)
      add_to_delta(memory.known.delta, share, memory.own[first_value + channel / CHANNELS],
                   [&](int i) {
                     return read_unit(share, i, memory.out, first_row, channel, a.head_size_v);
                   });
    __syncthreads();
    for (int i = threadIdx.x; i < rows; i += threads)
      if (is_inside(first_row + i, length)) memory.delta.at(first_row + i) = memory.known.delta[i];
  }
  make_gradients<DQ>(a, memory, first_row);
}
