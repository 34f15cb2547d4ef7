"""CUDA sources and the code that selects, configures, compiles and launches them.

There are none in this version. This room knows no array library: kernels get pointers, sizes and
strides.
"""
