// What CUDA adds to <cmath>, conversions, bits, and loads and stores with a hint.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

namespace emulator {

template <class To, class From>
inline To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// To a whole number as the device does: nothing for NaN, the nearest that fits for what does not.
template <class To>
inline To to_integer(double rounded) {
  constexpr bool is_signed = To(-1) < To(0);
  constexpr To most = is_signed ? To(~0u >> 1) : To(~0u), least = is_signed ? -most - 1 : 0;
  if (rounded != rounded) return 0;
  return rounded >= most ? most : rounded <= least ? least : To(rounded);
}

}  // namespace emulator

// Bits

inline int __float_as_int(float x) { return emulator::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::reinterpret<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned turned = 0;
  for (int i = 0; i < 32; i++) turned |= (x >> i & 1u) << (31 - i);
  return turned;
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// Mathematics: the quick forms are as accurate as the others here.

inline float __expf(float x) { return ::expf(x); }
inline float __exp10f(float x) { return ::powf(10.0f, x); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __log10f(float x) { return ::log10f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __sinf(float x) { return ::sinf(x); }
inline float __cosf(float x) { return ::cosf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __float2int_rn(float x) { return emulator::to_integer<int>(::rint(double(x))); }
inline int __float2int_rz(float x) { return emulator::to_integer<int>(::trunc(double(x))); }
inline int __float2int_rd(float x) { return emulator::to_integer<int>(::floor(double(x))); }
inline int __float2int_ru(float x) { return emulator::to_integer<int>(::ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return emulator::to_integer<unsigned>(::rint(double(x))); }
inline unsigned __float2uint_rz(float x) { return emulator::to_integer<unsigned>(::trunc(double(x))); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
#define EMULATOR_EXTREMES(T)                       \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATOR_EXTREMES(int)
EMULATOR_EXTREMES(unsigned)
EMULATOR_EXTREMES(long)
EMULATOR_EXTREMES(unsigned long)
EMULATOR_EXTREMES(long long)
EMULATOR_EXTREMES(unsigned long long)
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }

// Hints for the caches. Always inlined: an access belongs to the line that calls.

#define EMULATOR_LOAD(name)                                               \
  template <class T>                                                      \
  __attribute__((always_inline)) inline T name(const T* address) {        \
    return *address;                                                      \
  }
#define EMULATOR_STORE(name)                                              \
  template <class T>                                                      \
  __attribute__((always_inline)) inline void name(T* address, T value) {  \
    *address = value;                                                     \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
