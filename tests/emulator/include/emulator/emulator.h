// CUDA C++ for a host compiler: what a kernel's source finds in place of CUDA.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

// NVIDIA's own types work on the host.
#include <vector_functions.h>
#include <vector_types.h>

#undef __shared__
#undef __constant__
#undef __noinline__
// Found again in the symbol table, to be filled with NaN before each block.
#define __shared__ static __attribute__((used))
#define __constant__ static
#define __noinline__ __attribute__((noinline))
#define __builtin_assume(condition)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "launch.h"
#include "barrier.h"
#include "collective.h"
#include "mathematics.h"
#include "atomic.h"
#include "async.h"
#include "tensor.h"

// NVRTC has neither.
#undef INFINITY
#undef NAN
