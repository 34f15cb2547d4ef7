// Attention along strips of any length on tensor cores, with memory that does not grow with it.
//
// A block has a tile of queries of one strip: WARPS warps of ROW_TILES * 16. It walks along the keys,
// KEYS at a time, with a running maximum; results of GROUP channels are in registers. More channels
// are more walks, each of which computes the energies again. Keys and values come in chunks of
// CHANNELS channels, a job each; while one is multiplied, the next two arrive.
#include "forward_mma.cuh"
#include "runs.cuh"

constexpr int threads = WARPS * 32, rows = WARPS * warp_rows, stages = 3;
constexpr int query_chunks = DEPTH / CHANNELS, group_chunks = GROUP / CHANNELS;
constexpr int pairs = CHANNELS / 16, runs = Run<Element>::count;

struct alignas(16) Memory {
  Row queries[query_chunks][rows], features[stages][KEYS];
  Compute before[rows];  // lse of the axes before, -inf where there is none
  bool are_keys[2][KEYS];  // of the tile walked along, and of the next one
  // Where they begin would take too many registers.
  Strip<const Element> k, v, out_before;
  Strip<const unsigned char> mask;
  Strip<Element> out;
  Strip<Compute> lse;
};
static_assert(sizeof(Memory) == SHARED_BYTES, "tiles.py computes it too");

// A chunk that the block walks over: of keys, then of values, for each tile of keys, for each group of
// channels of values.
struct Job {
  int group, first_key, channel;
  bool is_value;

  __device__ __forceinline__ bool exists(const Forward& a) const { return group < a.head_size_v; }
  __device__ __forceinline__ void advance(const Forward& a) {
    channel += CHANNELS;
    const int end = is_value ? min(a.head_size_v, group + GROUP) : a.head_size_qk;
    if (channel < end) return;
    is_value = !is_value;
    if (!is_value) first_key += KEYS;
    if (first_key >= a.strips.length) {
      first_key = 0;
      group += GROUP;
    }
    channel = is_value ? group : 0;
  }
};

using Results = float[group_chunks * pairs][ROW_TILES][2][4];

// Merge results with those of the axes before, and write them.
__device__ __forceinline__ void write_results(Results& results, const Factors& factors,
                                              const Lane& lane, const Strip<Element>& out,
                                              const Strip<const Element>& out_before, int length,
                                              int group, int size) {
#pragma unroll
  for (int pair = 0; pair < group_chunks * pairs; pair++) {
    const int channel = group + pair * 16 + find_run<Element>(lane.index), left = size - channel;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = lane.row(m, h);
        Run<Element> run[runs] = {};
        float x[4], y[4] = {};
        if (out_before) {
#pragma unroll
          for (int r = 0; r < runs; r++)
            if (is_inside(row, length))
              read_run(run[r], &out_before.at(row, channel + r * 8), left - r * 8);
          widen_runs(run, y, lane.index);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          x[i] = apply(factors.own[m][h], results[pair][m][i / 2][2 * h + i % 2]);
          if (out_before) x[i] += factors.before[m][h] * y[i];
        }
        narrow_to_runs(x, run, lane.index);
        if (!is_inside(row, length)) continue;
#pragma unroll
        for (int r = 0; r < runs; r++)
          write_run(&out.at(row, channel + r * 8), run[r], left - r * 8);
      }
  }
}

extern "C" __global__ void __launch_bounds__(threads, BLOCKS)
    strip_forward_mma_stream(const __grid_constant__ Forward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const Place place(a.strips, blockIdx.x, rows);
  const int length = a.strips.length, warp_row = threadIdx.x / 32 * warp_rows;
  const Lane lane(threadIdx.x, place.first_row + warp_row, length);
  if (threadIdx.x == 0) {
    memory.k = {a.k, place};
    memory.v = {a.v, place};
    memory.mask = {a.mask, place};
    memory.out_before = {a.before, place};
    memory.out = {a.out, place};
    memory.lse = {a.lse, place};
  }
  __syncthreads();

  for (int i = threadIdx.x; i < rows; i += threads) {
    const int row = place.first_row + i;
    memory.before[i] =
        a.before.data && is_inside(row, length) ? memory.lse.at(row) : minus_infinity();
  }
  {
    const Strip<const Element> q(a.q, place);
    const Share<rows, threads> share(
        threadIdx.x, [&](int row) { return is_inside(place.first_row + row, length); });
#pragma unroll
    for (int chunk = 0; chunk < query_chunks; chunk++)
      if (chunk * CHANNELS < a.head_size_qk)
        share.begin_copy(memory.queries[chunk], q, place.first_row, chunk * CHANNELS,
                         a.head_size_qk);
  }

  // The job that is begun next, and the stage of the ring that it goes to.
  Job ahead = {0, 0, 0, false};
  int stage = 0, tile = 0;
  const auto begin_job = [&] {
    if (ahead.exists(a)) {
      const Share<KEYS, threads> share(threadIdx.x, [&](int row) {
        const int key = ahead.first_key + row;
        return is_inside(key, length) && (!memory.mask || memory.mask.at(key));
      });
      if (!ahead.is_value && ahead.channel == 0) {
        // Which keys are there, for as long as their tile is walked over.
#pragma unroll
        for (int i = 0; i < share.count; i++) {
          const int row = share.row + i * share.step;
          if (share.unit_channel == 0 && row < KEYS)
            memory.are_keys[tile % 2][row] = share.are_there >> i & 1;
        }
        tile++;
      }
      share.begin_copy(memory.features[stage], ahead.is_value ? memory.v : memory.k, ahead.first_key,
                       ahead.channel, ahead.is_value ? a.head_size_v : a.head_size_qk);
      ahead.advance(a);
    }
    cp_async_commit();
    stage = stage == stages - 1 ? 0 : stage + 1;
  };
#pragma unroll
  for (int i = 0; i < stages - 1; i++) begin_job();
  // Return the chunk of the next job in turn, when it is here.
  int arrived = 0;
  const auto await_job = [&] {
    cp_async_wait<stages - 2>();
    __syncthreads();  // for all, and the stage before has been used
    begin_job();
    const Row* chunk = memory.features[arrived];
    arrived = arrived == stages - 1 ? 0 : arrived + 1;
    return chunk;
  };

  int number = 0;  // of the tile of keys
#pragma unroll 1
  for (int group = 0; group < a.head_size_v; group += GROUP) {
    Results results = {};
    Rows largest, sum;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        largest[m][h] = minus_infinity();
        sum[m][h] = 0;
      }
#pragma unroll 1
    for (int first_key = 0; first_key < length; first_key += KEYS, number++) {
      Weights products = {};
#pragma unroll 1
      for (int channel = 0; channel < a.head_size_qk; channel += CHANNELS) {
        const Row* keys = await_job();
        add_products(products, lane, memory.queries[channel / CHANNELS] + warp_row, keys,
                     a.head_size_qk - channel);
      }
      Packed packed;
      Rows kept;
      weigh<false>(packed, largest, sum, kept, products, lane, memory.are_keys[number % 2],
                   first_key, a);
#pragma unroll
      for (int pair = 0; pair < group_chunks * pairs; pair++)
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
          for (int i = 0; i < 8; i++) results[pair][m][i / 4][i % 4] *= kept[m][i % 4 / 2];
#pragma unroll
      for (int chunk = 0; chunk < group_chunks; chunk++) {
        if (group + chunk * CHANNELS >= a.head_size_v) break;
        const Row* values = await_job();
#pragma unroll
        for (int pair = 0; pair < pairs; pair++) {
          if (group + chunk * CHANNELS + pair * 16 >= a.head_size_v) break;
          add_values(results[chunk * pairs + pair], packed, lane, values, pair * 16, first_key,
                     !a.include_self);
        }
      }
    }
    Factors factors;
    Rows before;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) before[m][h] = memory.before[lane.row(m, h) - place.first_row];
    find_factors(factors, largest, sum, before, lane, memory.lse, length, group == 0);
    write_results(results, factors, lane, memory.out, memory.out_before, length, group,
                  a.head_size_v);
  }
}
