// Tensor cores and asynchronous copies: assembly on a device, elsewhere the emulator's twin of the
// instruction. fragments.cuh makes of them what is the same for elements of 16 bits and of 32.
#pragma once

#include "numbers.cuh"

// Fragments of 16 bits, of lane l, with g = l / 4 and t = 2 * (l % 4): left holds rows g and g + 8
// (registers even and odd), columns t, t + 1 and, from the second pair of registers on, eight further;
// right holds rows t, t + 1 and eight further, of column g; sum[2 * h + i] is row g + 8 * h, column
// t + i.
#if ELEMENT_BITS == 16
#if ELEMENT_IS_BFLOAT
#define MMA_TYPES ".f32.bf16.bf16.f32"
#define TWIN_OF_MMA_K16 emulator::mma_m16n8k16_bf16
#define TWIN_OF_MMA_K8 emulator::mma_m16n8k8_bf16
using Pair = __nv_bfloat162;
__device__ __forceinline__ Pair round_pair(float x, float y) { return __floats2bfloat162_rn(x, y); }
__device__ __forceinline__ float2 widen_pair(Pair pair) { return __bfloat1622float2(pair); }
#else
#define MMA_TYPES ".f32.f16.f16.f32"
#define TWIN_OF_MMA_K16 emulator::mma_m16n8k16_f16
#define TWIN_OF_MMA_K8 emulator::mma_m16n8k8_f16
using Pair = __half2;
__device__ __forceinline__ Pair round_pair(float x, float y) { return __floats2half2_rn(x, y); }
__device__ __forceinline__ float2 widen_pair(Pair pair) { return __half22float2(pair); }
#endif

// Two elements in one register, the first in its lower half.
__device__ __forceinline__ unsigned pack(float x, float y) {
  Pair pair = round_pair(x, y);
  return reinterpret_cast<unsigned&>(pair);
}
__device__ __forceinline__ float2 unpack(unsigned pair) {
  return widen_pair(reinterpret_cast<Pair&>(pair));
}

// sum += left . right, 16 x 8 from 16 x 16 and 16 x 8.
__device__ __forceinline__ void mma_k16(float (&sum)[4], const unsigned (&left)[4], unsigned right0,
                                        unsigned right1) {
#ifdef __CUDA_ARCH__
  asm volatile("mma.sync.aligned.m16n8k16.row.col" MMA_TYPES
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
#else
  const unsigned right[2] = {right0, right1};
  TWIN_OF_MMA_K16(sum, left, right, sum);
#endif
}
// The same of 16 x 8 and 8 x 8.
__device__ __forceinline__ void mma_k8(float (&sum)[4], unsigned left0, unsigned left1,
                                       unsigned right) {
#ifdef __CUDA_ARCH__
  asm volatile("mma.sync.aligned.m16n8k8.row.col" MMA_TYPES
               " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(left0), "r"(left1), "r"(right));
#else
  const unsigned left[2] = {left0, left1}, only[1] = {right};
  TWIN_OF_MMA_K8(sum, left, only, sum);
#endif
}
#else
// To the nearest number of tf32, which has 10 bits of fraction; ties away from zero, and beyond the
// largest number to infinity.
__device__ __forceinline__ float cvt_rna_tf32(float x) {
#ifdef __CUDA_ARCH__
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
#else
  const unsigned bits = __float_as_uint(x);
  const bool is_finite = (bits & 0x7f800000) != 0x7f800000;
  return is_finite ? __uint_as_float((bits + 0x1000) & 0xffffe000) : x != x ? x + x : x;
#endif
}
// sum += left . right, 16 x 8 from 16 x 8 and 8 x 8, of numbers of tf32: fragments as above, but
// left holds columns l % 4 and, in its second pair of registers, l % 4 + 4, and right such rows.
__device__ __forceinline__ void mma_tf32(float (&sum)[4], const float (&left)[4], float right0,
                                         float right1) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(left[0])), "r"(__float_as_uint(left[1])),
        "r"(__float_as_uint(left[2])), "r"(__float_as_uint(left[3])), "r"(__float_as_uint(right0)),
        "r"(__float_as_uint(right1)));
#else
  const unsigned(&bits)[4] = reinterpret_cast<const unsigned(&)[4]>(left);
  const unsigned right[2] = {__float_as_uint(right0), __float_as_uint(right1)};
  emulator::mma_m16n8k8_tf32(sum, bits, right, sum);
#endif
}
#endif

// Load 8 x 8 matrices of 16 bits from shared memory: lanes 8i to 8i + 7 give the rows of matrix i, 16
// bytes each. Of 32 bits they are matrices of 8 x 4.
__device__ __forceinline__ void load_matrices(unsigned (&matrices)[4], const Element* row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulator::ldmatrix<4, false>(matrices, row);
#endif
}
__device__ __forceinline__ void load_matrices(unsigned (&matrices)[2], const Element* row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulator::ldmatrix<2, false>(matrices, row);
#endif
}
__device__ __forceinline__ void load_transposed(unsigned (&matrices)[4], const Element* row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulator::ldmatrix<4, true>(matrices, row);
#endif
}
__device__ __forceinline__ void load_transposed(unsigned (&matrices)[2], const Element* row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulator::ldmatrix<2, true>(matrices, row);
#endif
}

// Begin to copy 16 bytes to shared memory, the first `count` from `from`, the others zero. What was
// begun before a commit is there, for this thread, after a wait for all but the last `left` commits.
__device__ __forceinline__ void cp_async(void* to, const void* from, int count) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(count)
               : "memory");
#else
  emulator::cp_async(to, from, 16, count);
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::cp_async_commit();
#endif
}
template <int left>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#else
  emulator::cp_async_wait(left);
#endif
}
