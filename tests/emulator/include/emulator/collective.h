// Votes, reductions and shuffles of a warp.
#pragma once

#include <type_traits>

#include "barrier.h"

// Votes

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator::gather<unsigned>(
      EMULATOR_HERE("__ballot_sync"), mask, predicate, [](auto in, auto out, uint32_t mask) {
        unsigned votes = 0;
        for (uint32_t i = 0; i < 32; i++)
          if (mask >> i & 1 && *in[i]) votes |= 1u << i;
        for (uint32_t i = 0; i < 32; i++)
          if (mask >> i & 1) *out[i] = votes;
      });
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

// Reductions

namespace emulator {

template <class T>
inline T add(T a, T b) {
  // Integers wrap around, on every device.
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

template <class T, class Operation>
inline T reduce(Site site, uint32_t mask, T value, Operation operation) {
  return gather<T>(site, mask, value, [operation](auto in, auto out, uint32_t mask) {
    T result = *in[__builtin_ctz(mask)];
    for (uint32_t i = __builtin_ctz(mask) + 1; i < 32; i++)
      if (mask >> i & 1) result = operation(result, *in[i]);
    for (uint32_t i = 0; i < 32; i++)
      if (mask >> i & 1) *out[i] = result;
  });
}

}  // namespace emulator

#define EMULATOR_REDUCTION(name, T, expression)                                   \
  inline T name(unsigned mask, T value, EMULATOR_SITE) {                          \
    return emulator::reduce(EMULATOR_HERE(#name), mask, value,                    \
                            [](T a, T b) { return static_cast<T>(expression); }); \
  }
EMULATOR_REDUCTION(__reduce_add_sync, unsigned, a + b)
EMULATOR_REDUCTION(__reduce_add_sync, int, emulator::add(a, b))
EMULATOR_REDUCTION(__reduce_max_sync, unsigned, a > b ? a : b)
EMULATOR_REDUCTION(__reduce_max_sync, int, a > b ? a : b)
EMULATOR_REDUCTION(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATOR_REDUCTION(__reduce_min_sync, int, a < b ? a : b)
EMULATOR_REDUCTION(__reduce_and_sync, unsigned, a & b)
EMULATOR_REDUCTION(__reduce_or_sync, unsigned, a | b)
EMULATOR_REDUCTION(__reduce_xor_sync, unsigned, a ^ b)

// Shuffles

namespace emulator {

template <class T>
inline T shuffle(Site site, uint32_t mask, T value, uint32_t source) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "2, 4 or 8 bytes");
  struct In {
    T value;
    uint32_t source;
  };
  if (!(mask >> source & 1))
    fail("%s reads from lane %u, which is not in mask 0x%08x", Here(site).text, source, mask);
  return gather<T>(site, mask, In{value, source}, [](auto in, auto out, uint32_t mask) {
    for (uint32_t i = 0; i < 32; i++)
      if (mask >> i & 1) *out[i] = in[in[i]->source]->value;
  });
}

}  // namespace emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
  int first = emulator::lane() & ~(width - 1);
  return emulator::shuffle(EMULATOR_HERE("__shfl_sync"), mask, value,
                           first + (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_SITE) {
  int lane = emulator::lane(), source = lane ^ (bits & 31);
  // A lane of an earlier segment may be read from, one of a later segment not.
  if ((source & ~(width - 1)) > (lane & ~(width - 1))) source = lane;
  return emulator::shuffle(EMULATOR_HERE("__shfl_xor_sync"), mask, value, source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_SITE) {
  int lane = emulator::lane(), inside = lane & (width - 1);
  int source = inside + int(by & 31) < width ? lane + int(by & 31) : lane;
  return emulator::shuffle(EMULATOR_HERE("__shfl_down_sync"), mask, value, source);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_SITE) {
  int lane = emulator::lane(), inside = lane & (width - 1);
  int source = inside >= int(by & 31) ? lane - int(by & 31) : lane;
  return emulator::shuffle(EMULATOR_HERE("__shfl_up_sync"), mask, value, source);
}
