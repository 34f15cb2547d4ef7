// From energies to weights and back.
#pragma once

#include "numbers.cuh"

// The place for whatever changes the energy of a query with a key by where they are: a relative bias,
// a causal order, a span. `modify_gradient` is its derivative times what arrives.
__device__ __forceinline__ Compute modify_energy(Compute energy, int, int) { return energy; }
__device__ __forceinline__ Compute modify_gradient(Compute denergy, int, int) { return denergy; }
