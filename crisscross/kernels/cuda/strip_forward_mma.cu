// Attention along strips on tensor cores, where one tile holds all keys of a strip: energies are
// computed once, weights never leave registers, and each value is read once.
//
// A block has STRIPS strips, each of WARPS warps of ROW_TILES * 16 queries. The values stream by,
// CHANNELS channels at a time, while those before are multiplied.
#include "forward_mma.cuh"
#include "positions.cuh"

constexpr int group_threads = WARPS * 32, all_rows = WARPS * warp_rows;
static_assert(all_rows >= KEYS);

struct alignas(16) Memory {
  Row queries[STRIPS][all_rows];  // of each warp; in the end, its results
  Row values[2][STRIPS][KEYS];    // the second of them holds the keys first
  bool are_keys[STRIPS][KEYS];
  // Where they begin would take too many registers.
  Strip<const Element> v[STRIPS], out_before[STRIPS];
  Strip<Element> out[STRIPS];
#if IS_ACROSS
  // Results, where neighbours in memory are positions. Four channels lie in different banks.
  Element across[STRIPS][CHANNELS][KEYS + 4];
#endif
};
static_assert(sizeof(Memory) == SHARED_BYTES, "tiles.py computes it too");

extern "C" __global__ void __launch_bounds__(STRIPS* group_threads, BLOCKS)
    strip_forward_mma(const __grid_constant__ Forward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const int group = threadIdx.x / group_threads, thread = threadIdx.x % group_threads;
  const int warp = thread / 32, first_row = warp * warp_rows;
  const unsigned number = blockIdx.x * STRIPS + group;
  const Place place(a.strips, number, KEYS);
  // A strip behind the last one has no positions.
  const int length = is_inside(a.strips.first + number, a.strips.count()) ? a.strips.length : 0;
  const Lane lane(thread, first_row, length);
  const Strip<const Element> q(a.q, place), k(a.k, place);
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<Compute> lse(a.lse, place);
  if (thread == 0) {
    memory.v[group] = {a.v, place};
    memory.out_before[group] = {a.before, place};
    memory.out[group] = {a.out, place};
  }
  __syncthreads();
  const auto &v = memory.v[group], &out_before = memory.out_before[group];
  const auto& out = memory.out[group];
  const bool merges = a.before.data;

  const auto is_query = [&](int row) { return is_inside(row, length); };
  const auto is_key = [&](int row) { return is_inside(row, length) && (!mask || mask.at(row)); };
  const Share<all_rows, group_threads> query_share(thread, is_query);
  const Share<KEYS, group_threads> key_share(thread, is_key);
  const Share<warp_rows, 32> own_share(lane.index,
                                       [&](int row) { return is_query(first_row + row); });
  for (int i = thread; i < KEYS; i += group_threads) memory.are_keys[group][i] = is_key(i);

  Row* const own_rows = memory.queries[group] + first_row;
  Rows before;  // read before anybody writes
  read_before(before, lane, merges, lse, length);

  Weights products = {};
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_qk; channel += CHANNELS) {
    if (channel > 0) __syncthreads();  // all have done with the channels before
    query_share.begin_copy(memory.queries[group], q, 0, channel, a.head_size_qk);
    key_share.begin_copy(memory.values[1][group], k, 0, channel, a.head_size_qk);
    cp_async_commit();
    if (channel == 0) {
      key_share.begin_copy(memory.values[0][group], v, 0, 0, a.head_size_v);
      cp_async_commit();
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    add_products(products, lane, own_rows, memory.values[1][group], a.head_size_qk - channel);
  }

  // The part of the axes before begins to arrive where the queries were.
  __syncwarp();
  if (merges) own_share.begin_copy(own_rows, out_before, first_row, 0, a.head_size_v);
  cp_async_commit();

  Packed packed;
  Factors factors;
  {
    Rows largest, sum, kept;
    weigh<true>(packed, largest, sum, kept, products, lane, memory.are_keys[group], 0, a);
    find_factors(factors, largest, sum, before, lane, lse, length, true);
  }

  int stage = 0;
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_v; channel += CHANNELS, stage ^= 1) {
    cp_async_wait<1>();  // the values are here; the part of the axes before may be under way
    __syncthreads();     // for all, and those before have been used
    const int next = channel + CHANNELS;
    if (next < a.head_size_v)
      key_share.begin_copy(memory.values[stage ^ 1][group], v, 0, next, a.head_size_v);
    cp_async_commit();
#pragma unroll
    for (int n = 0; n < CHANNELS; n += 16) {
      if (channel + n >= a.head_size_v) break;
      float results[ROW_TILES][2][4] = {};
      add_values(results, packed, lane, memory.values[stage][group], n, 0, !a.include_self);
      if (n == 0) {
        cp_async_wait<1>();  // the part of the axes before is here
        __syncwarp();
      }
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int row = lane.row(m, h), column = n + i * 8 + lane.t;
            auto& pair = reinterpret_cast<unsigned&>(own_rows[row - first_row][column]);
            float2 x = {apply(factors.own[m][h], results[m][i][2 * h]),
                        apply(factors.own[m][h], results[m][i][2 * h + 1])};
            if (merges) {
              const float2 y = unpack(pair);
              x.x += factors.before[m][h] * y.x;
              x.y += factors.before[m][h] * y.y;
            }
#if IS_ACROSS
            if (row >= KEYS) continue;
            narrow(x.x, memory.across[group][column][row]);
            narrow(x.y, memory.across[group][column + 1][row]);
#else
            pair = pack(x.x, x.y);
#endif
          }
    }
#if IS_ACROSS
    __syncthreads();
    for (int i = warp; i < min(CHANNELS, a.head_size_v - channel); i += WARPS) {
      Element* const target = &out.at(0, channel + i);
      visit_positions(target, length, lane.index,
                      [&](int row) { target[row] = memory.across[group][i][row]; });
    }
#else
    __syncwarp();
    own_share.write(own_rows, out, first_row, channel, a.head_size_v);
#endif
    // Where this lane itself has read.
    if (merges && next < a.head_size_v)
      own_share.begin_copy(own_rows, out_before, first_row, next, a.head_size_v);
    cp_async_commit();
  }
}
