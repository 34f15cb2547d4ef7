// Gradients of attention along strips on tensor cores, where one tile holds a whole strip: dq, dk
// and dv of all its positions, each summed by one warp alone, in one order, so that results are the
// same bits each time.
//
// The first walk: chunks of q and k sum up to energies, which become the weights, rounded and kept
// in shared memory. Each chunk of dout and v is used twice while it is there: it adds to gradients
// of the weights, in registers, and makes that chunk of dv = weights^T . dout. So neither is read
// again. The gradients of the weights become those of the energies, which take the place of v. The
// second walk: dk = denergies^T . q and dq = denergies . k, chunk by chunk. While one chunk is
// multiplied, the next one arrives.
//
// A block has STRIPS strips, each of WARP_ROWS x WARP_COLUMNS warps, which are laid over queries x
// keys, and then over positions x CHANNELS. ADDS is whether to add to what is there, as all axes do
// but the first; as an argument it would take registers.
#include "gradients_mma.cuh"

// What all threads of a strip go by.
struct Work {
  const Backward& a;
  Group& group;
  const Lane lane;
  const Positions queries, keys;
  const int length;  // of the strip

  __device__ __forceinline__ int size_of(int feature) const {
    return feature == DOUT || feature == V ? a.head_size_v : a.head_size_qk;
  }
  __device__ __forceinline__ int chunks_of(int feature) const {
    return ceil_div(size_of(feature), CHANNELS);
  }
  __device__ __forceinline__ void begin_copy(Row* to, int feature, int channel) const {
    Positions share = queries;
    if (feature == K || feature == V) share.are_there = keys.are_there;
    share.begin_copy(to, group.features[feature], 0, channel, size_of(feature));
  }
  __device__ __forceinline__ Target find_target(int feature) const {
    const Compute factor = feature == DOUT ? 1 : static_cast<Compute>(a.scale);
    return {group.gradients[feature], factor, length, size_of(feature), lane, [&](int row) {
              return feature == K ? group.lse[row] != minus_infinity() : group.is_key[row];
            }};
  }
};

// Of the pairs of dv, all at once, so that weights are read once for all of them. Gradients of 32
// bits leave no registers for that.
constexpr int value_pairs = PARTIAL_IS_COMPUTE ? 1 : channel_pairs;

// One chunk of dout and v, which are here: it adds to gradients of the weights and to delta, and
// makes its part of dv.
__device__ __forceinline__ void use_values(const Work& work, Products& products, const Row* dout,
                                           const Row* v, int channel, const Target& kept) {
  Group& group = work.group;
  const Lane& lane = work.lane;
  const int size = work.a.head_size_v;
  // Found anew where there is no register to keep it in.
  const auto find_target = [&] {
    if constexpr (ADDS) return work.find_target(DOUT);
    else return kept;
  };
  // What comes from global memory, before it is needed, where it fits into registers.
  constexpr bool reads_first = ADDS && IS_ALIGNED;
  const auto read = [&](int i) { return read_unit(work.queries, i, group.out, 0, channel, size); };
  Unit outputs[IS_ALIGNED ? Positions::count : 1];
  if constexpr (IS_ALIGNED && !ADDS)
#pragma unroll
    for (int i = 0; i < Positions::count; i++) outputs[i] = read(i);
  Results<value_pairs> results;
  if constexpr (reads_first)
    results.read(find_target(), lane, channel + lane.first_channel);
  add_products(products, lane, dout, v, size - channel);
  if constexpr (!ADDS)
    add_to_delta(group.delta, work.queries, dout, [&](int i) {
      if constexpr (IS_ALIGNED) return outputs[i];
      else return read(i);
    });
  const Target target = find_target();
#pragma unroll 1
  for (int pair = 0; pair < channel_pairs; pair += value_pairs) {
    const int first = lane.first_channel + pair * 16;
    if (channel + first >= size) break;  // padding from here on
    if (!reads_first || pair > 0) results.read(target, lane, channel + first);
    results.begin(target.factor, lane);
    results.add(lane, dout, first, [&](int m, int step) {
      return load_factor<true>(lane, group.weights, m, step);
    });
    results.write(target, lane, channel + first);
  }
}

// Leaves the gradients of the energies, and the last chunk of q here or on its way.
__device__ __forceinline__ void walk_first(const Work& work) {
  Group& group = work.group;
  const int last = (work.chunks_of(Q) - 1) * CHANNELS;
  int stage = 0;
  const auto begin_copies = [&](int to, Feature left, Feature right, int channel) {
    work.begin_copy(group.left[to], left, channel);
    work.begin_copy(group.right[to], right, channel);
    cp_async_commit();
  };
  begin_copies(stage, Q, K, 0);
  Products products = {};
#pragma unroll 1
  for (int channel = 0; channel <= last; channel += CHANNELS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // the chunks are here for all, and those before have been used
    if (channel < last) begin_copies(stage ^ 1, Q, K, channel + CHANNELS);
    else begin_copies(stage ^ 1, DOUT, V, 0);
    add_products(products, work.lane, group.left[stage], group.right[stage],
                 work.a.head_size_qk - channel);
  }
  store_weights<false>(group, products, work.lane, work.a);
  const Target target = work.find_target(DOUT);
#pragma unroll 1
  for (int channel = 0; channel < work.a.head_size_v; channel += CHANNELS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // and so are the weights
    if (channel + CHANNELS < work.a.head_size_v) {
      begin_copies(stage ^ 1, DOUT, V, channel + CHANNELS);
    } else if (channel > 0) {  // or else it is still here
      work.begin_copy(group.left[stage ^ 1], Q, last);
      cp_async_commit();
    }
    use_values(work, products, group.left[stage], group.right[stage], channel, target);
  }
  __syncthreads();  // delta is complete, and the buffers on the right are free
  store_weights<true>(group, products, work.lane, work.a);
}

// Chunks backwards: the last ones may be in a cache, or here.
__device__ __forceinline__ void walk_second(const Work& work) {
  const Group& group = work.group;
  const Lane& lane = work.lane;
  const int last = (work.chunks_of(Q) - 1) * CHANNELS;
  int stage = (work.chunks_of(Q) + work.chunks_of(V)) % 2;  // where the first walk has put it
#pragma unroll 1
  for (int feature = Q; feature <= K; feature++) {
    const Target target = work.find_target(feature);
    Factors factors;
#pragma unroll 1
    for (int channel = last; channel >= 0; channel -= CHANNELS, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();
      if (channel > 0 || feature == Q)
        work.begin_copy(work.group.left[stage ^ 1], channel > 0 ? feature : K,
                        channel > 0 ? channel - CHANNELS : last);
      cp_async_commit();
      if (channel == last) {
        if (feature == Q) load_factors<true>(factors, lane, group.denergies);
        else load_factors<false>(factors, lane, group.denergies);
      }
#pragma unroll 1
      for (int pair = 0; pair < channel_pairs; pair++) {
        const int first = lane.first_channel + pair * 16;
        if (channel + first >= target.size) break;  // padding from here on
        Results<1> results;
        results.read(target, lane, channel + first);
        results.begin(target.factor, lane);
        results.add(lane, group.left[stage], first,
                    [&](int m, int step) { return factors[m][step]; });
        results.write(target, lane, channel + first);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(STRIPS* group_threads, BLOCKS)
    strip_backward_mma(const __grid_constant__ Backward a) {
  extern __shared__ Wide dynamic[];
  const int thread = threadIdx.x % group_threads, group_number = threadIdx.x / group_threads;
  Group& group = reinterpret_cast<Memory*>(dynamic)->groups[group_number];
  const unsigned number = blockIdx.x * STRIPS + group_number;
  const Place place(a.strips, number, KEYS);
  // A strip behind the last one has no positions.
  const int length = is_inside(a.strips.first + number, a.strips.count()) ? a.strips.length : 0;
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<const Compute> lse(a.lse, place), dlse(a.dlse, place);
  const Strip<Compute> delta(a.delta, place);

  if (thread == 0) {
    group.features[DOUT] = {a.dout, place};
    group.features[Q] = {a.q, place};
    group.features[K] = {a.k, place};
    group.features[V] = {a.v, place};
    group.out = {a.out, place};
    group.gradients[DOUT] = {a.dv, place};
    group.gradients[Q] = {a.dk, place};
    group.gradients[K] = {a.dq, place};
  }
  for (int i = thread; i < KEYS; i += group_threads) {
    const bool is_row = is_inside(i, length);
    group.lse[i] = is_row ? lse.at(i) : minus_infinity();
    group.is_key[i] = is_row && (!mask || mask.at(i));
    if constexpr (ADDS) group.delta[i] = is_row ? delta.at(i) : 0;
    else group.delta[i] = is_row && dlse ? -dlse.at(i) : 0;
  }
  __syncthreads();
  const Work work = {
      a, group, Lane(thread),
      Positions(thread, [&](int row) { return group.lse[row] != minus_infinity(); }),
      Positions(thread, [&](int row) { return group.is_key[row]; }), length};
  walk_first(work);
  if constexpr (!ADDS)
    for (int i = thread; i < KEYS; i += group_threads)
      if (is_inside(i, length)) delta.at(i) = group.delta[i];
  walk_second(work);
}
