// Attentions over disjoint sets of keys become that over their union.
#include "strips.cuh"

constexpr int rows = 32, threads = 256, most_parts = 8;

struct Merge {
  Strips strips;
  // What was merged in a launch before, in Compute and in `lse`, comes first: carried.data may be null.
  Array outs[most_parts], lses[most_parts], carried, out, lse;
  int parts, head_size, along_positions;
};

// Stands for the weight of a part that saw no key, and may hold anything.
constexpr Compute no_key = -1;

extern "C" __global__ void __launch_bounds__(threads, 1) merge(const __grid_constant__ Merge a) {
  __shared__ Compute weights[most_parts + 1][rows];
  const Place place(a.strips, blockIdx.x, rows);
  const int first_row = place.first_row, length = a.strips.length;
  const Strip<const Compute> carried(a.carried, place);
  const Strip<Partial> out(a.out, place);
  const Strip<Compute> lse(a.lse, place);

  const int own = first_row + threadIdx.x;
  if (is_inside(threadIdx.x, rows) && is_inside(own, length)) {
    Compute before = carried ? lse.at(own) : minus_infinity(), largest = before;
    for (int i = 0; i < a.parts; i++)
      largest = max(largest, Strip<const Compute>(a.lses[i], place).at(own));
    Compute sum = 0;
    for (int i = 0; i <= a.parts; i++) {
      Compute part = i < a.parts ? Strip<const Compute>(a.lses[i], place).at(own) : before;
      Compute weight = part == minus_infinity() ? no_key : exponential(part - largest);
      weights[i][threadIdx.x] = weight;
      if (weight != no_key) sum += weight;
    }
    for (int i = 0; i <= a.parts; i++)
      if (weights[i][threadIdx.x] != no_key) weights[i][threadIdx.x] /= sum;
    lse.at(own) = sum == 0 ? minus_infinity() : largest + logarithm(sum);
  }
  __syncthreads();

  const int columns = (a.head_size + rows - 1) / rows * rows;
  for (int i = threadIdx.x; i < rows * columns; i += threads) {
    const int row = a.along_positions ? i % rows : i / columns;
    const int channel = a.along_positions ? i / rows : i % columns;
    if (!is_inside(first_row + row, length) || !is_inside(channel, a.head_size)) continue;
    Compute result = 0;
    for (int part = 0; part < a.parts; part++) {
      const Compute weight = weights[part][row];
      if (weight != no_key)
        result += weight * widen(Strip<const Element>(a.outs[part], place).at(first_row + row, channel));
    }
    if (weights[a.parts][row] != no_key)
      result += weights[a.parts][row] * carried.at(first_row + row, channel);
    narrow(result, out.at(first_row + row, channel));
  }
}
