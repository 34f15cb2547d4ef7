// Stands in for the toolkit's header of this name, which NVIDIA's other headers include: the words
// that CUDA adds to C++ mean nothing, or something close, to a host compiler.
#pragma once

#define __host__
#define __device__
#define __global__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __no_return__ __attribute__((noreturn))
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#define __cudart_builtin__
#define __CUDA_ARCH_HAS_FEATURE__(feature) 0
#define CUDARTAPI
