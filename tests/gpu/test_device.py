"""What a real device alone can show: ``pytest -m gpu``.

The tests of results are those of ``tests/kernels``, which the same mark runs on the device.
"""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest

import crisscross
from crisscross.kernels.attention import count_group_images
from crisscross.problem import COMPUTE_DTYPES
from crisscross.testing import assert_matches_reference, make_case, numpy_dtype
from tests.kernels.devices import copy_from_gpu, copy_to_gpu
from tests.support.closeness import assert_close

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


def put(case):
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    return {
        name: None if (array := getattr(case, name)) is None else copy_to_gpu(array)
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
    return {name: copy_from_gpu(array) for name, array in results.items()}


def take_first(array, heads):
    """Take the first image's first head: the oracle takes its time."""
    return array[:1, : array.shape[1] // heads]


def find_first(case):
    """Find the case of the first image's first head."""
    heads = case.problem.heads
    names = ("q", "k", "v", "dout", "dlse")
    return dataclasses.replace(
        case,
        problem=dataclasses.replace(case.problem, batch=1, heads=1),
        key_mask=case.key_mask[:1],
        **{name: take_first(getattr(case, name), heads) for name in names},
    )


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_a_hundred_runs_give_the_same_bits(cupy, dtype):
    case = make_case(
        (97, 41), batch=2, heads=2, head_size_qk=64, head_size_v=128, dtype=dtype, masked=True
    )
    arrays = put(case)
    first = get(run(case, arrays))
    results = {name: take_first(array, heads=2) for name, array in first.items()}
    assert_matches_reference(find_first(case), **results)
    for _ in range(99):
        for name, array in get(run(case, arrays)).items():
            assert array.tobytes() == first[name].tobytes(), name


#: CCNet's attention and its backward: functions, what they take, what they give, and how many terms
#: each of that sums.
CHAIN = (
    ("ca_weight", ("q", "k"), {"energy": 64}),
    ("ca_softmax", ("energy",), {"attention": 1}),
    ("ca_map", ("attention", "v"), {"out": 97 + 41}),
    ("ca_map_backward", ("dout", "attention", "v"), {"dattention": 64, "dv": 97 + 41}),
    ("ca_softmax_backward", ("dattention", "attention"), {"denergy": 97 + 41}),
    ("ca_weight_backward", ("denergy", "q", "k"), {"dq": 97 + 41, "dk": 97 + 41}),
)


def call(function, given, **options):
    """Call a function of CCNet's for a tuple of results."""
    results = getattr(crisscross, function)(*given, **options)
    return results if isinstance(results, tuple) else (results,)


def run_chain(inputs):
    arrays = dict(inputs)
    for function, names, made in CHAIN:
        results = call(function, [arrays[name] for name in names])
        arrays |= zip(made, results, strict=True)
    return arrays


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_a_hundred_runs_of_ccnet_give_the_same_bits(cupy, dtype):
    rng = np.random.default_rng(0)
    scales = {"q": 0.3, "k": 0.3, "v": 1, "dout": 1}  # energies of about 1
    drawn = {name: scale * rng.standard_normal((2, 64, 97, 41)) for name, scale in scales.items()}
    inputs = {name: copy_to_gpu(x.astype(numpy_dtype(dtype))) for name, x in drawn.items()}
    first = get(run_chain(inputs))
    for function, names, made in CHAIN:
        given = [first[name][:1].astype(np.float64) for name in names]
        exact = call(function, given, backend="reference")
        for (name, terms), array in zip(made.items(), exact, strict=True):
            assert_close(first[name][:1], array, first[name].dtype.name, terms)
    for _ in range(99):
        for name, array in get(run_chain(inputs)).items():
            assert array.tobytes() == first[name].tobytes(), name


def test_the_current_stream_is_the_one(cupy):
    """Inputs that are written late on a side stream are read later still."""
    spin = cupy.RawKernel(SPIN, "spin")
    stream = cupy.cuda.Stream(non_blocking=True)
    sources = put(CASE)
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


def test_a_call_waits_for_nothing(cupy, pool):
    spin = cupy.RawKernel(SPIN, "spin")
    arrays = put(CASE)
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
        arrays = put(CASE)
    # The current device is another one, and stays so.
    results = run(CASE, arrays)
    assert cupy.cuda.runtime.getDevice() == 0
    assert {array.device.id for array in results.values()} == {1}
    assert_matches_reference(CASE, **get(results))


def test_a_graph_captures_a_call(cupy, pool):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        arrays = put(CASE)
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


def find_peak(pool, function):
    """Call a function; return its results, and the bytes that the pool came to ask CUDA for."""
    pool.free_all_blocks()
    before = pool.total_bytes()
    results = function()
    return results, pool.total_bytes() - before


@pytest.mark.parametrize("channel_axis", [-1, 1])
def test_peak_memory(cupy, pool, channel_axis):
    """Channels-last: out and lse, and nothing else. Channels-first: copies of a group of images."""
    case = make_case(
        (97, 97), batch=8, head_size_qk=64, head_size_v=256, dtype="float16",
        channel_axis=channel_axis,
    )  # fmt: skip
    arrays = {name: copy_to_gpu(getattr(case, name)) for name in "qkv"}
    # Compiled before: code lies in memory too, but not in the pool.
    crisscross.criss_cross_attention(*(array[:1] for array in arrays.values()), **case.options)
    (out, lse), peak = find_peak(
        pool,
        lambda: crisscross.criss_cross_attention(*arrays.values(), **case.options, return_lse=True),
    )
    results = out.nbytes + lse.nbytes
    image = sum(array.nbytes for array in (*arrays.values(), out)) // 8
    cache = cupy.cuda.Device().attributes["L2CacheSize"]
    allowed = results if channel_axis == -1 else results + max(image, cache)
    rounding = 8 * 512  # the pool's, for each array
    assert results <= peak <= allowed + rounding


def test_peak_memory_of_the_backward(cupy, pool):
    """Channels-last: the gradients, and one number for each pixel of a group of images."""
    case = make_case(
        (97, 97), batch=8, head_size_qk=64, head_size_v=256, dtype="float16", channel_axis=-1
    )
    q, k, v, dout = (copy_to_gpu(getattr(case, name)) for name in ("q", "k", "v", "dout"))
    out, lse = crisscross.criss_cross_attention(q, k, v, **case.options, return_lse=True)
    one = [array[:1] for array in (dout, q, k, v, out, lse)]
    crisscross.criss_cross_attention_backward(*one, **case.options)  # compiles
    gradients, peak = find_peak(
        pool,
        lambda: crisscross.criss_cross_attention_backward(dout, q, k, v, out, lse, **case.options),
    )
    images = count_group_images(case.problem, cupy.cuda.Device().attributes["L2CacheSize"], 4)
    needed = sum(array.nbytes for array in gradients) + lse.nbytes // 8 * images
    rounding = 4 * 512  # the pool's, for each array
    assert needed <= peak <= needed + rounding


class Spoken:
    """An array of a library that speaks DLPack and little else."""

    __module__ = "spoken.core"

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, f"spoken.{array.dtype.name}"

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **options):
        return self.array.__dlpack__(stream=stream, **options)


class Faced:
    """An array of a library that has `__cuda_array_interface__` and nothing else."""

    __module__ = "faced.core"

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


@pytest.mark.parametrize("non_blocking", [False, True], ids=["default stream", "side stream"])
@pytest.mark.parametrize("library", [Spoken, Faced])
def test_arrays_of_any_library(cupy, monkeypatch, library, non_blocking):
    package = types.ModuleType(library.__module__.partition(".")[0])
    if library is Spoken:
        package.from_dlpack = lambda array: Spoken(cupy.from_dlpack(array))
    else:
        package.asarray = Faced
    monkeypatch.setitem(sys.modules, package.__name__, package)
    stream = cupy.cuda.Stream(non_blocking=True) if non_blocking else cupy.cuda.Stream(null=True)
    with stream:
        arrays = {name: library(array) for name, array in put(CASE).items()}
        results = run(CASE, arrays)
        assert all(type(result) is library for result in results.values())
        found = get({name: result.array for name, result in results.items()})
    assert_matches_reference(CASE, **found)


def test_torch_tensors_keep_their_library_stream_and_allocator(pool):
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
        before = pool.total_bytes()
        results = run(CASE, arrays)
        assert pool.total_bytes() == before
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
