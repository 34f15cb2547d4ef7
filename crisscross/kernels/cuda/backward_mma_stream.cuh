// Gradients along strips of any length on tensor cores, with memory that does not grow with it.
//
// A block has a tile of rows, positions of one strip whose gradients it makes: WARPS warps of
// ROW_TILES * 16. Their features stay in shared memory. It walks along the positions that they meet,
// KEYS at a time, whose features come in chunks of CHANNELS channels, a job each; while one is
// multiplied, the next two arrive. Gradients of GROUP channels are in registers; more channels are
// more walks, each of which computes the weights again.
#pragma once

#include "arguments.cuh"
#include "delta.cuh"
#include "energies.cuh"
#include "products_mma.cuh"
#include "runs.cuh"

constexpr int threads = WARPS * 32, rows = WARPS * warp_rows, stages = 3;
// Chunks of the rows' features: of q and k there are DEPTH channels, of v and dout WIDTH.
constexpr int first_value = DEPTH / CHANNELS, own_chunks = first_value + WIDTH / CHANNELS;
constexpr int group_chunks = GROUP / CHANNELS, pairs = CHANNELS / 16;
constexpr int runs = Run<Partial>::count;
static_assert(DEPTH % CHANNELS == 0 && WIDTH % CHANNELS == 0 && GROUP % CHANNELS == 0);

enum Feature { Q, K, V, DOUT };
enum Gradient { DQ, DK, DV };

// Besides features: of keys, whether they are there; of queries, whether they meet a key.
template <int count>
struct Known {
  Compute lse[count], delta[count];  // of queries
  bool are_there[count];
};

struct alignas(16) Memory {
  Row own[own_chunks][rows], walked[stages][KEYS];
  Known<rows> known;
  Known<KEYS> known_walked[2];  // of the tile walked along, and of the next one
  // Where they begin would take too many registers.
  Strip<const Element> features[4], out;
  Strip<Partial> gradients[3];
  Strip<const unsigned char> mask;
  Strip<const Compute> lse, dlse;
  Strip<Compute> delta;
};
static_assert(sizeof(Memory) == SHARED_BYTES, "tiles.py computes it too");

// Once, by all threads; then they have to wait for each other.
__device__ __forceinline__ void place_strips(Memory& memory, const Backward& a, const Place& place) {
  if (threadIdx.x != 0) return;
  memory.features[Q] = {a.q, place};
  memory.features[K] = {a.k, place};
  memory.features[V] = {a.v, place};
  memory.features[DOUT] = {a.dout, place};
  memory.out = {a.out, place};
  memory.gradients[DQ] = {a.dq, place};
  memory.gradients[DK] = {a.dk, place};
  memory.gradients[DV] = {a.dv, place};
  memory.mask = {a.mask, place};
  memory.lse = {a.lse, place};
  memory.dlse = {a.dlse, place};
  memory.delta = {a.delta, place};
}

// Find what there is to know of a tile of positions, all threads together.
template <bool are_queries, int count>
__device__ __forceinline__ void find_known(Known<count>& known, const Memory& memory, int first,
                                           int length) {
  for (int i = threadIdx.x; i < count; i += threads) {
    const int position = first + i;
    const bool is_there = is_inside(position, length);
    if constexpr (are_queries) {
      known.lse[i] = is_there ? memory.lse.at(position) : minus_infinity();
      known.delta[i] = 0;  // but for what is given, where it is to be made
      if (is_there && !memory.out) known.delta[i] = memory.delta.at(position);
      if (is_there && memory.dlse) known.delta[i] = -memory.dlse.at(position);
      known.are_there[i] = known.lse[i] != minus_infinity();
    } else {
      known.are_there[i] = is_there && (!memory.mask || memory.mask.at(position));
    }
  }
}

// What is done with a chunk: products of q and k are energies, those of dout and v gradients of the
// weights; and then a chunk is summed up, by the weights or by the gradients of the energies.
enum Phase { ENERGIES, WEIGHTS, SUMS };

template <Gradient gradient>
__device__ __forceinline__ Feature find_feature(Phase phase) {
  if (phase == ENERGIES) return gradient == DQ ? K : Q;
  if (phase == WEIGHTS) return gradient == DQ ? V : DOUT;
  return gradient == DQ ? K : gradient == DK ? Q : DOUT;
}
__device__ __forceinline__ int find_size(const Backward& a, Feature feature) {
  return feature == V || feature == DOUT ? a.head_size_v : a.head_size_qk;
}

// A chunk that the block walks over: all phases for each tile of positions, for each group of channels
// of the gradient.
template <Gradient gradient>
struct Job {
  int group, first, channel;
  Phase phase;

  __device__ __forceinline__ bool exists(const Backward& a) const {
    return group < find_size(a, find_feature<gradient>(SUMS));
  }
  __device__ __forceinline__ bool begins_tile() const { return phase == ENERGIES && channel == 0; }
  __device__ __forceinline__ void advance(const Backward& a) {
    channel += CHANNELS;
    const int size = find_size(a, find_feature<gradient>(phase));
    if (channel < (phase == SUMS ? min(size, group + GROUP) : size)) return;
    phase = phase == SUMS ? ENERGIES : phase == WEIGHTS || gradient == DV ? SUMS : WEIGHTS;
    if (phase == ENERGIES) first += KEYS;
    if (first >= a.strips.length) {
      first = 0;
      group += GROUP;
    }
    channel = phase == SUMS ? group : 0;
  }
};

// The chunks of all jobs in turn, through a ring of stages.
template <Gradient gradient>
struct Chunks {
  const Backward& a;
  Memory& memory;
  Job<gradient> ahead = {0, 0, 0, ENERGIES};  // what is begun next, and the stage that it goes to
  int stage = 0, tile = 0;

  __device__ __forceinline__ Chunks(const Backward& a, Memory& memory) : a(a), memory(memory) {
    find_known<gradient != DQ>(memory.known_walked[0], memory, 0, a.strips.length);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < stages - 1; i++) begin_job();
  }
  __device__ __forceinline__ void begin_job() {
    if (ahead.exists(a)) {
      const Share<KEYS, threads> share(
          threadIdx.x, [&](int row) { return memory.known_walked[tile % 2].are_there[row]; });
      const Feature feature = find_feature<gradient>(ahead.phase);
      share.begin_copy(memory.walked[stage], memory.features[feature], ahead.first, ahead.channel,
                       find_size(a, feature));
      ahead.advance(a);
      // It is needed from the next job on, that of the tile before the last one no more.
      if (ahead.exists(a) && ahead.begins_tile()) {
        tile++;
        find_known<gradient != DQ>(memory.known_walked[tile % 2], memory, ahead.first,
                                   a.strips.length);
      }
    }
    cp_async_commit();
    stage = find_next(stage);
  }
  __device__ __forceinline__ static int find_next(int stage) {
    return stage == stages - 1 ? 0 : stage + 1;
  }
  // Return the next chunk, when it is here: of a full ring, what has been under way for longest.
  __device__ __forceinline__ const Row* await() {
    cp_async_wait<stages - 2>();
    __syncthreads();  // for all, and the stage before has been used
    const Row* chunk = memory.walked[find_next(stage)];
    begin_job();
    return chunk;
  }
};

// From energies to weights; or, of weights and their gradients, to those of the energies: as fragments.
// Zero where query and key do not meet. Sums begin anew.
template <Gradient gradient, bool is_gradient>
__device__ __forceinline__ void find_weights(Packed& packed, Weights& sums, const Lane& lane,
                                             const Memory& memory, const Known<KEYS>& walked,
                                             int first_row, int first, const Backward& a) {
  const Compute scale = a.scale;
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int n = 0; n < key_tiles; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float2 before = is_gradient ? get_weights(packed, m, n, h) : float2{};
        float found[2] = {before.x, before.y};
        const int row = lane.row(m, h), own = row - first_row;
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int column = n * 8 + lane.t + i;
          const int query = gradient == DQ ? row : first + column;
          const int key = gradient == DQ ? first + column : row;
          const Compute sum = sums[m][n][2 * h + i];
          sums[m][n][2 * h + i] = 0;
          if constexpr (is_gradient) {
            const Compute delta = gradient == DQ ? memory.known.delta[own] : walked.delta[column];
            found[i] = modify_gradient(found[i] * (sum - delta), query, key);
          } else {
            const Compute lse = gradient == DQ ? memory.known.lse[own] : walked.lse[column];
            found[i] = exponential(modify_energy(scale * sum, query, key) - lse);
          }
          if (!walked.are_there[column] || (!a.include_self && query == key)) found[i] = 0;
        }
        put_weights(packed, m, n, h, found[0], found[1]);
      }
}

using Sums = float[group_chunks * pairs][ROW_TILES][2][4];

// Write gradients of GROUP channels, or add them to what is there: those of positions that do not take
// part are zero, or as before.
__device__ __forceinline__ void write_gradients(const Sums& sums, const Lane& lane,
                                                const Memory& memory,
                                                const Strip<Partial>& gradients, Compute factor,
                                                int first_row, int group, int size,
                                                const Backward& a) {
#pragma unroll
  for (int pair = 0; pair < group_chunks * pairs; pair++) {
    const int channel = group + pair * 16 + find_run<Partial>(lane.index), left = size - channel;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = lane.row(m, h);
        const bool takes_part = memory.known.are_there[row - first_row];
        Run<Partial> run[runs] = {};
        float x[4], y[4] = {};
        if (a.adds) {
#pragma unroll
          for (int r = 0; r < runs; r++)
            if (takes_part) read_run(run[r], &gradients.at(row, channel + r * 8), left - r * 8);
          widen_runs(run, y, lane.index);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
          x[i] = takes_part ? factor * sums[pair][m][i / 2][2 * h + i % 2] + y[i] : 0;
        narrow_to_runs(x, run, lane.index);
        if (a.adds ? !takes_part : !is_inside(row, a.strips.length)) continue;
#pragma unroll
        for (int r = 0; r < runs; r++)
          write_run(&gradients.at(row, channel + r * 8), run[r], left - r * 8);
      }
  }
}

// Begin to copy the rows' own features.
__device__ __forceinline__ void begin_own(const Share<rows, threads>& share, Memory& memory,
                                          Feature of_energies, Feature of_weights, int first_row,
                                          const Backward& a) {
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_qk; channel += CHANNELS)
    share.begin_copy(memory.own[channel / CHANNELS], memory.features[of_energies], first_row, channel,
                     a.head_size_qk);
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_v; channel += CHANNELS)
    share.begin_copy(memory.own[first_value + channel / CHANNELS], memory.features[of_weights],
                     first_row, channel, a.head_size_v);
  cp_async_commit();
}

// Make one gradient of the block's rows, whose features are here or on their way.
template <Gradient gradient>
__device__ __forceinline__ void make_gradients(const Backward& a, Memory& memory, int first_row) {
  const int length = a.strips.length, warp_row = threadIdx.x / 32 * warp_rows;
  const int size = find_size(a, find_feature<gradient>(SUMS));
  const Lane lane(threadIdx.x, first_row + warp_row, length);
  Chunks<gradient> chunks(a, memory);
  int number = 0;  // of the tile walked along
#pragma unroll 1
  for (int group = 0; group < size; group += GROUP) {
    Sums sums = {};
#pragma unroll 1
    for (int first = 0; first < length; first += KEYS, number++) {
      const Known<KEYS>& walked = memory.known_walked[number % 2];
      Packed packed;
      Weights products = {};
#pragma unroll 1
      for (int channel = 0; channel < a.head_size_qk; channel += CHANNELS) {
        const Row* chunk = chunks.await();
        add_products(products, lane, memory.own[channel / CHANNELS] + warp_row, chunk,
                     a.head_size_qk - channel);
      }
      find_weights<gradient, false>(packed, products, lane, memory, walked, first_row, first, a);
      if constexpr (gradient != DV) {
#pragma unroll 1
        for (int channel = 0; channel < a.head_size_v; channel += CHANNELS) {
          const Row* chunk = chunks.await();
          add_products(products, lane, memory.own[first_value + channel / CHANNELS] + warp_row,
                       chunk, a.head_size_v - channel);
        }
        find_weights<gradient, true>(packed, products, lane, memory, walked, first_row, first, a);
      }
#pragma unroll
      for (int chunk_number = 0; chunk_number < group_chunks; chunk_number++) {
        const int channel = group + chunk_number * CHANNELS;
        if (channel >= size) break;
        const Row* chunk = chunks.await();
#pragma unroll
        for (int pair = 0; pair < pairs; pair++) {
          if (channel + pair * 16 >= size) break;
          add_values(sums[chunk_number * pairs + pair], packed, lane, chunk, pair * 16, first,
                     !a.include_self);
        }
      }
    }
    write_gradients(sums, lane, memory, memory.gradients[gradient],
                    gradient == DV ? 1 : static_cast<Compute>(a.scale), first_row, group, size, a);
  }
}
