// Twins of the tensor-core instructions, after the fragment layouts of the PTX ISA.
//
// In m16n8, lane l has g = l / 4 and t = l % 4. A fragment's registers hold neighbouring elements
// along k: two of 16 bits, or one of tf32. Register r of A covers row g + 8 * (r % 2), its columns
// begin at t * (elements a register) + (r / 2) * (4 registers' worth); B likewise, row and column
// exchanged, without the second row. C and D: rows g and g + 8, columns 2t and 2t + 1.
#pragma once

#include "mathematics.h"
#include "warp.h"

namespace emulator {

struct Float16 {
  static constexpr int per_register = 2;
  static float get(const uint32_t* registers, int i) {
    uint32_t bits = registers[i / 2] >> (i % 2 * 16) & 0xffffu;
    uint32_t sign = bits >> 15 << 31, exponent = bits >> 10 & 31u, fraction = bits & 1023u;
    float size = exponent == 31 ? reinterpret<float>(0x7f800000u | fraction << 13)
                                : ldexpf(float(exponent ? 1024u + fraction : fraction),
                                         (exponent ? int(exponent) : 1) - 25);
    return reinterpret<float>(reinterpret<uint32_t>(size) | sign);
  }
};
struct BFloat16 {
  static constexpr int per_register = 2;
  static float get(const uint32_t* registers, int i) {
    return reinterpret<float>(registers[i / 2] >> (i % 2 * 16) << 16);
  }
};
struct TFloat32 {
  static constexpr int per_register = 1;
  static float get(const uint32_t* registers, int i) {
    return reinterpret<float>(registers[i] & 0xffffe000u);  // hardware ignores the last 13 bits
  }
};

// As hardware rounds what it adds up; it does not say so, but measurements do.
inline float round_towards_zero(double x) {
  float rounded = float(x);
  return fabs(double(rounded)) > fabs(x) ? nextafterf(rounded, 0) : rounded;
}

// d = a * b + c, 16 x 8 from 16 x K and K x 8.
template <class Type, int K, int A, int B>
inline void mma_m16n8(float (&d)[4], const uint32_t (&a)[A], const uint32_t (&b)[B],
                      const float (&c)[4], Site site) {
  constexpr int each = Type::per_register;
  static_assert(A * each == 16 * K / 32 && B * each == 8 * K / 32);
  struct In {
    uint32_t a[A], b[B];
    float c[4];
  } in;
  struct Out {
    float d[4];
  };
  memcpy(in.a, a, sizeof a);
  memcpy(in.b, b, sizeof b);
  memcpy(in.c, c, sizeof c);
  Out result = gather<Out>(site, 0xffffffffu, in, [](auto ins, auto outs, uint32_t) {
    float left[16][K], right[K][8];
    for (int lane = 0; lane < 32; lane++) {
      int g = lane / 4, t = lane % 4;
      for (int i = 0; i < A * each; i++) {
        int r = i / each, k = t * each + i % each + r / 2 * 4 * each;
        left[g + r % 2 * 8][k] = Type::get(ins[lane]->a, i);
      }
      for (int i = 0; i < B * each; i++) {
        int r = i / each, k = t * each + i % each + r * 4 * each;
        right[k][g] = Type::get(ins[lane]->b, i);
      }
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = ins[lane]->c[i];
        for (int k = 0; k < K; k++) sum += double(left[row][k]) * right[k][column];
        outs[lane]->d[i] = round_towards_zero(sum);
      }
  });
  memcpy(d, result.d, sizeof d);
}

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], EMULATOR_SITE) {
  mma_m16n8<Float16, 16>(d, a, b, c, {"mma.m16n8k16.f16", file, line});
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], EMULATOR_SITE) {
  mma_m16n8<BFloat16, 16>(d, a, b, c, {"mma.m16n8k16.bf16", file, line});
}
inline void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                            const float (&c)[4], EMULATOR_SITE) {
  mma_m16n8<Float16, 8>(d, a, b, c, {"mma.m16n8k8.f16", file, line});
}
inline void mma_m16n8k8_bf16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                             const float (&c)[4], EMULATOR_SITE) {
  mma_m16n8<BFloat16, 8>(d, a, b, c, {"mma.m16n8k8.bf16", file, line});
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], EMULATOR_SITE) {
  mma_m16n8<TFloat32, 8>(d, a, b, c, {"mma.m16n8k8.tf32", file, line});
}

EMULATOR_UNTRACED inline void copy_row(void* to, const void* row) { memcpy(to, row, 16); }

// N matrices of 8 x 8 elements of 16 bits; lanes 8i to 8i + 7 give the rows of matrix i.
template <int N, bool transposed>
inline void ldmatrix(uint32_t (&registers)[N], const void* row, EMULATOR_SITE) {
  static_assert(N == 1 || N == 2 || N == 4);
  const char* name = transposed ? "ldmatrix.trans" : "ldmatrix";
  if (lane() < 8 * N) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
      fail("%s at %s:%d: the row's address is not aligned to 16 bytes", name, file, line);
#if defined(__SANITIZE_ADDRESS__)
    if (__asan_region_is_poisoned(const_cast<void*>(row), 16))
      fail("%s at %s:%d: reads out of bounds", name, file, line);
#endif
    trace::record(trace::Kind::read, row, 16, file, line);
  }
  struct Out {
    uint32_t registers[N];
  };
  Out result = gather<Out>({name, file, line}, 0xffffffffu, row, [](auto ins, auto outs, uint32_t) {
    uint16_t matrices[N][8][8];
    for (int lane = 0; lane < 8 * N; lane++) copy_row(matrices[lane / 8][lane % 8], *ins[lane]);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < N; i++) {
        auto& m = matrices[i];
        int g = lane / 4, t = lane % 4 * 2;
        uint32_t low = transposed ? m[t][g] : m[g][t];
        uint32_t high = transposed ? m[t + 1][g] : m[g][t + 1];
        outs[lane]->registers[i] = low | high << 16;
      }
  });
  memcpy(registers, result.registers, sizeof registers);
}

}  // namespace emulator
