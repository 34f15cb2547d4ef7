// What the strip kernels are given; arguments.py holds the same structures for Python.
#pragma once

#include "strips.cuh"

struct Forward {
  Strips strips;
  // mask.data may be null. out and lse are of all axes so far, and `before` is out of those before,
  // which may be the same memory; it is null for the first axis, and lse is not read.
  Array q, k, v, mask, before, out, lse;
  double scale;
  int head_size_qk, head_size_v;
  int include_self;
};

struct Backward {
  Strips strips;
  // dlse.data and mask.data may be null. delta is scratch: <dout, out> - dlse, written by the first
  // of the kernels, which is given `out`, and read by all others, which are not.
  Array q, k, v, mask, dout, out, lse, dlse, delta, dq, dk, dv;
  double scale;
  int head_size_qk, head_size_v;
  int include_self, adds;
};
