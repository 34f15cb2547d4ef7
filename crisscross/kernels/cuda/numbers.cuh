// The numbers of a kernel: ELEMENT is what arrays hold, Compute what is computed in.
#pragma once

#if ELEMENT_BITS == 16 && ELEMENT_IS_BFLOAT
#include <cuda_bf16.h>
using Element = __nv_bfloat16;
using Compute = float;
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }
#elif ELEMENT_BITS == 16
#include <cuda_fp16.h>
using Element = __half;
using Compute = float;
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half(x); }
#elif ELEMENT_BITS == 32
using Element = float;
using Compute = float;
#else
using Element = double;
using Compute = double;
#endif
__device__ __forceinline__ Compute widen(Compute x) { return x; }
__device__ __forceinline__ void narrow(Compute x, Compute& to) { to = x; }
// What is kept of a result that is not the last: Element, or Compute where many are summed.
#if PARTIAL_IS_COMPUTE
using Partial = Compute;
#else
using Partial = Element;
#endif

// NVRTC has no INFINITY.
__device__ __forceinline__ Compute minus_infinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// Whether an index is one of an array's. Every bounds check is a call of this function: the mutation
// test takes them away one by one.
__device__ __forceinline__ bool is_inside(long long index, long long size) { return index < size; }

// Sixteen bytes of Compute, which shared memory delivers at once.
constexpr int wide = 16 / sizeof(Compute);
struct alignas(16) Wide {
  Compute at[wide];
};

// Sums and maxima over groups of `size` neighbouring lanes, for all of them.
template <int size>
__device__ __forceinline__ Compute sum_over_lanes(Compute x) {
#pragma unroll
  for (int step = size / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
template <int size>
__device__ __forceinline__ Compute max_over_lanes(Compute x) {
#pragma unroll
  for (int step = size / 2; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
