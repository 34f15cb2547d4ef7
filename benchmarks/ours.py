"""This library, on NumPy arrays and on CuPy's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import crisscross
from crisscross.bench.peer import Calls, Form, Inputs, NotServed, Yardstick
from crisscross.bench.shapes import CHANNELS_LAST, CPU, CUDA, DEVICES

PACKAGES = ("crisscross-attention", "numpy")

_CPU_MATMUL_SIDE = 1536
#: Large enough that the work of a tile hides the beginning and the end.
_GPU_MATMUL_SIDE = 8192
#: Many times any L2 cache.
_COPIED_BYTES = 2**29


def release() -> None:
    crisscross.clear_workspace()
    if "cupy" in sys.modules:
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


def prepare(inputs: Inputs) -> Calls:
    return _prepare(inputs, inputs.layout)


def prepare_channels_last(inputs: Inputs) -> Calls:
    if inputs.layout == CHANNELS_LAST:
        raise NotServed("channels-last is the layout of this run")
    return _prepare(inputs, CHANNELS_LAST)


def _prepare(inputs: Inputs, layout: str) -> Calls:
    channel_axis = -1 if layout == CHANNELS_LAST else 1
    put, get, wait = (_put, _get, _wait) if inputs.device == CUDA else (_keep, _keep, _keep)
    q, k, v, dout = (
        put(np.ascontiguousarray(np.moveaxis(x, 1, channel_axis)))
        for x in (inputs.q, inputs.k, inputs.v, inputs.dout)
    )

    def forward() -> dict[str, Any]:
        out, lse = crisscross.criss_cross_attention(
            q, k, v, channel_axis=channel_axis, return_lse=True
        )
        return {"out": out, "lse": lse}

    def forward_backward() -> dict[str, Any]:
        results = forward()
        dq, dk, dv = crisscross.criss_cross_attention_backward(
            dout, q, k, v, results["out"], results["lse"], channel_axis=channel_axis
        )
        return {**results, "dq": dq, "dk": dk, "dv": dv}

    def to_numpy(results: dict[str, Any]) -> dict[str, np.ndarray]:
        # lse is (N, heads, H, W) whatever the channel axis.
        return {
            name: get(array) if name == "lse" else np.moveaxis(get(array), channel_axis, 1)
            for name, array in results.items()
        }

    told = crisscross.explain(q, k, v, channel_axis=channel_axis)
    return Calls(forward, forward_backward, to_numpy, wait, told.algorithm)


def _keep(given: Any) -> Any:
    return given


def _put(array: np.ndarray) -> Any:
    import cupy

    # As bytes: bfloat16 is no dtype of NumPy's.
    memory = cupy.asarray(array.reshape(-1).view(np.uint8))
    return cupy.ndarray(array.shape, array.dtype, memory.data)


def _get(array: Any) -> np.ndarray:
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16).get().view(array.dtype)
    return array.get()


def _wait(_results: object) -> None:
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def measure_memory(call: Callable[[], object]) -> int:
    """Follow what CuPy's pool hands out and takes back: everything of ours is from there."""
    import cupy

    class Peak(cupy.cuda.MemoryHook):
        name = "peak"
        held = most = 0

        def malloc_postprocess(self, **about: Any) -> None:
            self.held += about["mem_size"]
            self.most = max(self.most, self.held)

        def free_postprocess(self, **about: Any) -> None:
            self.held -= about["mem_size"]

    with Peak() as peak:
        results = call()
        _wait(results)
    return peak.most


def make_yardsticks(device: str, dtype: str) -> dict[str, Yardstick]:
    if device == CPU:
        side = _CPU_MATMUL_SIDE
        a, b, out = np.ones((3, side, side), "float64" if dtype == "float64" else "float32")
        return {"matmul": Yardstick(lambda: np.matmul(a, b, out=out), 2 * side**3)}
    return _make_gpu_yardsticks(dtype)


def _make_gpu_yardsticks(dtype: str) -> dict[str, Yardstick]:
    import cupy

    side = _GPU_MATMUL_SIDE
    # Tensor cores are as fast in bfloat16, which not every CuPy multiplies.
    dtype = "float16" if dtype == "bfloat16" else dtype
    # Random, as attention's operands are: on ones a GPU needs less power, and is faster.
    block = np.random.default_rng(0).standard_normal((1024, 1024)).astype(dtype)
    a = cupy.tile(cupy.asarray(block), (side // 1024, side // 1024))
    b, out = a.copy(), cupy.empty_like(a)
    source, target = (cupy.zeros(_COPIED_BYTES, np.uint8) for _ in range(2))
    return {
        "matmul": Yardstick(lambda: cupy.matmul(a, b, out=out), 2 * side**3, _wait),
        "copy": Yardstick(
            lambda: target.data.copy_from_device_async(source.data, _COPIED_BYTES),
            2 * _COPIED_BYTES,
            _wait,
        ),
    }


def describe_device() -> dict[str, Any]:
    import cupy

    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "architecture": device.compute_capability,
        "memory_bytes": properties["totalGlobalMem"],
        "cache_bytes": properties["l2CacheSize"],
        "bus_id": device.pci_bus_id,
        "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
        "runtime_cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
    }


#: The first is what all others are compared with.
FORMS = {
    "crisscross": Form(prepare, devices=DEVICES),
    "crisscross, channels-last": Form(prepare_channels_last),
}
