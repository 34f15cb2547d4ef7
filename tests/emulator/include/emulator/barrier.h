// Barriers of the block, of some of its threads, and of a warp; fences.
#pragma once

#include "warp.h"

#define EMULATOR_HERE(name) emulator::Site{name, file, line}

inline void __syncthreads(EMULATOR_SITE) {
  emulator::wait_at_barrier(0, 0, 1, EMULATOR_HERE("__syncthreads"));
}
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator::wait_at_barrier(0, 0, predicate, EMULATOR_HERE("__syncthreads_or")).any;
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator::wait_at_barrier(0, 0, predicate, EMULATOR_HERE("__syncthreads_and")).all;
}
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator::wait_at_barrier(0, 0, predicate, EMULATOR_HERE("__syncthreads_count")).count;
}

namespace emulator {

// The twin of bar.sync with a number and a count of threads.
inline void wait_at_named_barrier(int number, int threads, EMULATOR_SITE) {
  if (threads <= 0 || threads % lanes) fail("bar.sync at %s:%d: %d threads", file, line, threads);
  wait_at_barrier(number, threads, 1, EMULATOR_HERE("bar.sync"));
}

// Of all warp collectives this one alone orders accesses to memory.
inline void order_lanes(uint32_t mask) {
  uint32_t first = block->current->rank / lanes * lanes, ranks[lanes], count = 0;
  for (uint32_t i = 0; i < lanes; i++)
    if (mask >> i & 1) ranks[count++] = first + i;
  trace::order(ranks, count);
}

struct Nothing {};

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::gather<emulator::Nothing>(
      EMULATOR_HERE("__syncwarp"), mask, emulator::Nothing{},
      [](auto, auto, uint32_t mask) { emulator::order_lanes(mask); });
}
inline void __threadfence() {}  // one thread runs at a time
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(EMULATOR_SITE) {
  emulator::fail("__trap() at %s:%d", file, line);
  __builtin_unreachable();
}
