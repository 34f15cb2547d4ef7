// Attention along strips on tensor cores, where one tile holds all keys of a strip: energies are
// computed once, weights never leave registers, and each value is read once.
//
// A block has STRIPS strips, each of WARPS warps of ROW_TILES * 16 queries. The values stream by,
// CHANNELS channels at a time, while those before are multiplied.
#include "arguments.cuh"
#include "energies.cuh"
#include "features.cuh"
#include "positions.cuh"

constexpr int group_threads = WARPS * 32, warp_rows = ROW_TILES * 16, all_rows = WARPS * warp_rows;
constexpr int key_tiles = KEYS / 8, key_steps = ceil_div(KEYS, 16);
static_assert(KEYS % 8 == 0 && all_rows >= KEYS);

struct alignas(16) Memory {
  Row queries[STRIPS][all_rows];  // of each warp; in the end, its results
  Row values[2][STRIPS][KEYS];    // the second of them holds the keys first
  bool is_there[STRIPS][KEYS];
#if IS_ACROSS
  // Results, where neighbours in memory are positions. Four channels lie in different banks.
  Element across[STRIPS][CHANNELS][KEYS + 4];
#endif
};
static_assert(sizeof(Memory) == SHARED_BYTES, "configuration.py computes it too");

extern "C" __global__ void __launch_bounds__(STRIPS* group_threads, BLOCKS)
    strip_forward_mma(const __grid_constant__ Forward a) {
  extern __shared__ Wide dynamic[];
  Memory& memory = *reinterpret_cast<Memory*>(dynamic);
  const int group = threadIdx.x / group_threads, thread = threadIdx.x % group_threads;
  const int warp = thread / 32, lane = thread % 32, first_row = warp * warp_rows;
  const unsigned number = blockIdx.x * STRIPS + group;
  const Place place(a.strips, number, KEYS);
  // A strip behind the last one has no positions.
  const int length = is_inside(a.strips.first + number, a.strips.count()) ? a.strips.length : 0;
  const Strip<const Element> q(a.q, place), k(a.k, place), v(a.v, place);
  const Strip<const unsigned char> mask(a.mask, place);
  const Strip<const Element> out_before(a.before, place);
  const Strip<Element> out(a.out, place);
  const Strip<Compute> lse(a.lse, place);
  const Compute scale = a.scale;

  const auto is_key = [&](int row) { return is_inside(row, length) && (!mask || mask.at(row)); };
  const Share<all_rows, group_threads> query_share(thread, [&](int row) { return is_inside(row, length); });
  const Share<KEYS, group_threads> key_share(thread, is_key);
  const Share<warp_rows, 32> own_share(lane, [&](int row) { return is_inside(first_row + row, length); });
  for (int i = thread; i < KEYS; i += group_threads) memory.is_there[group][i] = is_key(i);

  // Of the fragments that this lane holds; see tensor.cuh.
  const int g = lane / 4, t = lane % 4 * 2;
  Row* const own_rows = memory.queries[group] + first_row;

  // Read before anybody writes: lse of the axes before, -inf where there is none.
  Compute before[ROW_TILES][2];
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = first_row + m * 16 + h * 8 + g;
      before[m][h] = out_before && is_inside(row, length) ? lse.at(row) : minus_infinity();
    }

  float weights[ROW_TILES][key_tiles][4] = {};
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
#pragma unroll
    for (int step = 0; step < CHANNELS; step += 16) {
      if (channel + step >= a.head_size_qk) break;  // zeros from here on, for all threads
      unsigned left[ROW_TILES][4];
#pragma unroll
      for (int m = 0; m < ROW_TILES; m++)
        load_matrices(left[m], &own_rows[m * 16 + lane % 16][step + lane / 16 * 8]);
#pragma unroll
      for (int n = 0; n + 1 < key_tiles; n += 2) {
        unsigned right[4];
        load_matrices(right, &memory.values[1][group][n * 8 + lane / 16 * 8 + lane % 8][step + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
          mma_k16(weights[m][n], left[m], right[0], right[1]);
          mma_k16(weights[m][n + 1], left[m], right[2], right[3]);
        }
      }
      if constexpr (key_tiles % 2) {
        unsigned right[2];
        load_matrices(right, &memory.values[1][group][KEYS - 8 + lane % 8][step + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
          mma_k16(weights[m][key_tiles - 1], left[m], right[0], right[1]);
      }
    }
  }

  // The part of the axes before begins to arrive where the queries were.
  __syncwarp();
  if (out_before) own_share.begin_copy(own_rows, out_before, first_row, 0, a.head_size_v);
  cp_async_commit();

  // What results are to be multiplied by, and what those of the axes before; weights as fragments.
  Compute factor[ROW_TILES][2], factor_before[ROW_TILES][2];
  unsigned packed[ROW_TILES][key_steps][4];
#pragma unroll
  for (int m = 0; m < ROW_TILES; m++) {
    Compute largest[2] = {minus_infinity(), minus_infinity()}, sum[2] = {};
#pragma unroll
    for (int n = 0; n < key_tiles; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i / 2, row = first_row + m * 16 + h * 8 + g, column = n * 8 + t + i % 2;
        const bool counts = memory.is_there[group][column] && (a.include_self || row != column);
        const Compute energy = modify_energy(scale * weights[m][n][i], row, column);
        weights[m][n][i] = counts ? energy : minus_infinity();
        largest[h] = max(largest[h], weights[m][n][i]);
      }
#pragma unroll
    for (int h = 0; h < 2; h++) largest[h] = max_over_lanes<4>(largest[h]);
#pragma unroll
    for (int n = 0; n < key_tiles; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Compute energy = weights[m][n][i];
        weights[m][n][i] = energy == minus_infinity() ? 0 : exponential(energy - largest[i / 2]);
        sum[i / 2] += weights[m][n][i];
      }
#pragma unroll
      for (int h = 0; h < 2; h++)
        packed[m][n / 2][n % 2 * 2 + h] = pack(weights[m][n][2 * h], weights[m][n][2 * h + 1]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[h] = sum_over_lanes<4>(sum[h]);
      const int row = first_row + m * 16 + h * 8 + g;
      // Not by the difference of two lse, each rounded: a weight near 1 would lose digits. A row
      // without a key has the sum 0, and NaN stays NaN.
      const Compute peak = max(largest[h], before[m][h]);
      const Compute own = largest[h] == minus_infinity() ? 0 : exponential(largest[h] - peak);
      const Compute other = before[m][h] == minus_infinity() ? 0 : exponential(before[m][h] - peak);
      const Compute total = sum[h] * own + other;
      // No results are to be multiplied, where weights are all zero and a value may be infinite.
      factor[m][h] = sum[h] == 0 ? -1 : own / total;
      factor_before[m][h] = total == 0 ? 0 : other / total;
      if (t == 0 && is_inside(row, length))
        lse.at(row) = total == 0 ? minus_infinity() : peak + logarithm(total);
    }
  }

  int stage = 0;
#pragma unroll 1
  for (int channel = 0; channel < a.head_size_v; channel += CHANNELS, stage ^= 1) {
    cp_async_wait<1>();  // the values are here; the part of the axes before may be under way
    __syncthreads();     // for all, and those before have been used
    if (channel + CHANNELS < a.head_size_v)
      key_share.begin_copy(memory.values[stage ^ 1][group], v, 0, channel + CHANNELS, a.head_size_v);
    cp_async_commit();
#pragma unroll
    for (int n = 0; n < CHANNELS; n += 16) {
      if (channel + n >= a.head_size_v) break;
      float results[ROW_TILES][2][4] = {};
#pragma unroll
      for (int step = 0; step < KEYS / 16; step++) {
        unsigned right[4];
        load_transposed(right, &memory.values[stage][group][step * 16 + lane % 16][n + lane / 16 * 8]);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
          mma_k16(results[m][0], packed[m][step], right[0], right[1]);
          mma_k16(results[m][1], packed[m][step], right[2], right[3]);
        }
      }
      if constexpr (KEYS % 16) {
        unsigned right[2];
        load_transposed(right, &memory.values[stage][group][KEYS - 8 + lane % 8][n + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            mma_k8(results[m][i], packed[m][key_steps - 1][0], packed[m][key_steps - 1][1], right[i]);
      }
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
            const int row = m * 16 + h * 8 + g, column = n + i * 8 + t;
            auto& pair = reinterpret_cast<unsigned&>(own_rows[row][column]);
            float2 x = {results[m][i][2 * h], results[m][i][2 * h + 1]};
            x.x = factor[m][h] < 0 ? 0 : factor[m][h] * x.x;
            x.y = factor[m][h] < 0 ? 0 : factor[m][h] * x.y;
            if (out_before) {
              const float2 y = unpack(pair);
              x.x += factor_before[m][h] * y.x;
              x.y += factor_before[m][h] * y.y;
            }
#if IS_ACROSS
            if (first_row + row >= KEYS) continue;
            narrow(x.x, memory.across[group][column][first_row + row]);
            narrow(x.y, memory.across[group][column + 1][first_row + row]);
#else
            pair = pack(x.x, x.y);
#endif
          }
    }
#if IS_ACROSS
    __syncthreads();
    for (int i = warp; i < min(CHANNELS, a.head_size_v - channel); i += WARPS) {
      Element* const target = &out.at(0, channel + i);
      visit_positions(target, length, lane,
                      [&](int row) { target[row] = memory.across[group][i][row]; });
    }
#else
    __syncwarp();
    own_share.write(own_rows, out, first_row, channel, a.head_size_v);
#endif
    __syncwarp();
    if (out_before && channel + CHANNELS < a.head_size_v)
      own_share.begin_copy(own_rows, out_before, first_row, channel + CHANNELS, a.head_size_v);
    cp_async_commit();
  }
  cp_async_wait<0>();
}
