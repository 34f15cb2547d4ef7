"""CUDA sources and the code that selects, configures, compiles and launches them.

This room knows no array library: kernels get pointers, sizes and strides. On what they run is an
`Engine`: CuPy's in the room `gpu`, an emulator's in the tests.
"""
