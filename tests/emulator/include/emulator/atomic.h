// Atomics: one thread runs at a time, and never gives way within an operation.
#pragma once

#include "collective.h"

namespace emulator {

template <class T, class Operation>
EMULATOR_UNTRACED T exchange(T* address, Operation operation) {
  T before = *address;
  *address = operation(before);
  return before;
}

template <class T, class Operation>
inline T update(Site site, T* address, Operation operation) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T))
    fail("%s: the address is not aligned to %zu bytes", Here(site).text, sizeof(T));
  trace::record(trace::Kind::atomic, address, sizeof(T), site.file, site.line);
  return exchange(address, operation);
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, T, expression)                                   \
  inline T name(T* address, T value, EMULATOR_SITE) {                          \
    return emulator::update(EMULATOR_HERE(#name), address, [value](T old) {    \
      return static_cast<T>(expression);                                       \
    });                                                                        \
  }
#define EMULATOR_ATOMICS(T)                                                    \
  EMULATOR_ATOMIC(atomicAdd, T, emulator::add(old, value))                     \
  EMULATOR_ATOMIC(atomicMax, T, old < value ? value : old)                     \
  EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old)                     \
  EMULATOR_ATOMIC(atomicAnd, T, old & value)                                   \
  EMULATOR_ATOMIC(atomicOr, T, old | value)                                    \
  EMULATOR_ATOMIC(atomicXor, T, old ^ value)                                   \
  EMULATOR_ATOMIC(atomicExch, T, value)                                        \
  inline T atomicCAS(T* address, T expected, T value, EMULATOR_SITE) {         \
    return emulator::update(EMULATOR_HERE("atomicCAS"), address,               \
                            [=](T old) { return old == expected ? value : old; }); \
  }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicSub, int, emulator::add(old, int(0u - unsigned(value))))
EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicExch, float, value)

#ifdef __CUDA_FP16_H__
EMULATOR_ATOMIC(atomicAdd, __half, __float2half(__half2float(old) + __half2float(value)))
EMULATOR_ATOMIC(atomicAdd, __half2, __hadd2(old, value))
#endif
#ifdef __CUDA_BF16_H__
EMULATOR_ATOMIC(atomicAdd, __nv_bfloat16,
                __float2bfloat16(__bfloat162float(old) + __bfloat162float(value)))
EMULATOR_ATOMIC(atomicAdd, __nv_bfloat162, __hadd2(old, value))
#endif
