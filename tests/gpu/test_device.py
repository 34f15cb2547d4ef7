"""What a real device alone can show: ``pytest -m gpu``.

The tests of results are those of ``tests/kernels``, which the same mark runs on the device.
"""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross.testing import assert_matches_reference, make_case

pytestmark = pytest.mark.gpu

CASE = make_case((33, 29), batch=2, heads=2, head_size_qk=16, head_size_v=40, masked=True)
#: A kernel that keeps its stream busy for about a tenth of a second.
SPIN = """
extern "C" __global__ void spin(long long cycles) {
  for (long long start = clock64(); clock64() - start < cycles;) {
  }
}
"""
CYCLES = 150_000_000


def put(cupy, case):
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    return {
        name: None if (array := getattr(case, name)) is None else cupy.asarray(array)
        for name in names
    }


def run(case, arrays):
    """Forward and backward on arrays of any library."""
    options = {**case.options, "key_mask": arrays["key_mask"]}
    q, k, v = (arrays[name] for name in "qkv")
    out, lse = crisscross.criss_cross_attention(q, k, v, **options, return_lse=True)
    gradients = crisscross.criss_cross_attention_backward(
        arrays["dout"], q, k, v, out, lse, dlse=arrays["dlse"], **options
    )
    return dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=True))


def get(results):
    return {name: array.get() for name, array in results.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_hundred_runs_give_the_same_bits(cupy, dtype):
    case = make_case(
        (97, 41), batch=2, heads=2, head_size_qk=64, head_size_v=128, dtype=dtype, masked=True
    )
    arrays = put(cupy, case)
    first = get(run(case, arrays))
    for _ in range(99):
        for name, array in get(run(case, arrays)).items():
            np.testing.assert_array_equal(array, first[name])


def test_the_current_stream_is_the_one(cupy):
    """Inputs that are written late on a side stream are read later still."""
    spin = cupy.RawKernel(SPIN, "spin")
    stream = cupy.cuda.Stream(non_blocking=True)
    sources = put(cupy, CASE)
    cupy.cuda.Device().synchronize()
    with stream:
        arrays = {
            name: None if array is None else cupy.zeros_like(array)
            for name, array in sources.items()
        }
        spin((1,), (1,), (CYCLES,))
        for name, array in sources.items():
            if array is not None:
                arrays[name][...] = array
        results = run(CASE, arrays)
    stream.synchronize()
    assert_matches_reference(CASE, **get(results))


def test_a_call_waits_for_nothing(cupy):
    spin = cupy.RawKernel(SPIN, "spin")
    arrays = put(cupy, CASE)
    run(CASE, arrays)  # compiles
    cupy.cuda.Device().synchronize()
    spin((1,), (1,), (10 * CYCLES,))
    busy = cupy.cuda.Event(disable_timing=True)
    busy.record()
    results = run(CASE, arrays)
    assert not busy.done
    assert_matches_reference(CASE, **get(results))


def test_a_second_device(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one CUDA device")
    with cupy.cuda.Device(1):
        arrays = put(cupy, CASE)
    # The current device is another one, and stays so.
    results = run(CASE, arrays)
    assert cupy.cuda.runtime.getDevice() == 0
    assert {array.device.id for array in results.values()} == {1}
    assert_matches_reference(CASE, **get(results))


def test_a_graph_captures_a_call(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        arrays = put(cupy, CASE)
        run(CASE, arrays)  # compiles, and leaves memory in the pool
        stream.synchronize()
        stream.begin_capture()
        results = run(CASE, arrays)
        graph = stream.end_capture()
        for array in results.values():
            array.fill(np.nan)
        graph.launch(stream)
    stream.synchronize()
    assert_matches_reference(CASE, **get(results))


@pytest.mark.parametrize("channel_axis", [-1, 1])
def test_peak_memory(cupy, channel_axis):
    """Channels-last: out and lse, and nothing else. Channels-first: copies of a group of images."""
    case = make_case(
        (97, 97), batch=8, head_size_qk=64, head_size_v=256, dtype="float16",
        channel_axis=channel_axis,
    )  # fmt: skip
    arrays = {name: cupy.asarray(getattr(case, name)) for name in "qkv"}
    pool = cupy.get_default_memory_pool()
    # Compiled before: code lies in memory too, but not in the pool.
    crisscross.criss_cross_attention(*(array[:1] for array in arrays.values()), **case.options)
    pool.free_all_blocks()
    before = pool.total_bytes()
    out, lse = crisscross.criss_cross_attention(*arrays.values(), **case.options, return_lse=True)
    peak = pool.total_bytes() - before
    results = out.nbytes + lse.nbytes
    image = sum(array.nbytes for array in (*arrays.values(), out)) // 8
    cache = cupy.cuda.Device().attributes["L2CacheSize"]
    allowed = results if channel_axis == -1 else results + max(image, cache)
    rounding = 8 * 512  # the pool's, for each array
    assert results <= peak <= allowed + rounding


def test_torch_tensors_keep_their_library_stream_and_allocator(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        arrays = {
            name: None if (array := getattr(CASE, name)) is None else torch.from_numpy(array).cuda()
            for name in names
        }
        before = cupy.get_default_memory_pool().total_bytes()
        results = run(CASE, arrays)
        assert cupy.get_default_memory_pool().total_bytes() == before
    stream.synchronize()
    assert all(isinstance(result, torch.Tensor) for result in results.values())
    assert_matches_reference(CASE, **{n: result.cpu().numpy() for n, result in results.items()})


def test_jax_arrays_keep_their_library(cupy):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no CUDA device")
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    arrays = {
        name: None if (array := getattr(CASE, name)) is None else jax.numpy.asarray(array)
        for name in names
    }
    results = run(CASE, arrays)
    assert all(isinstance(result, jax.Array) for result in results.values())
    assert_matches_reference(CASE, **{n: np.asarray(result) for n, result in results.items()})
