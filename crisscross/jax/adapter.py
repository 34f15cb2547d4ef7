"""JAX arrays as read-only NumPy arrays, and fresh NumPy memory as JAX arrays, without a copy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crisscross.bridge.capsule import Retagged, import_bfloat16, import_shared
from crisscross.bridge.foreign import export, find_stream, hold
from crisscross.bridge.memory import ALIGNMENT
from crisscross.dispatch import Description, Obstacle, ObstacleError
from crisscross.problem import ArraySpec

__all__ = ["describe", "find_maker", "find_stream", "from_numpy", "hold", "take", "to_numpy"]


def describe(array: Any) -> Description | None:
    if not isinstance(array, jax.Array):
        return None
    spec = ArraySpec(tuple(array.shape), str(array.dtype))
    is_number = not jnp.issubdtype(array.dtype, jax.dtypes.extended)  # as keys are not
    if is_number and array.dtype != jax.dtypes.canonicalize_dtype(array.dtype):
        # Made while it was switched on; JAX would go on with half of it.
        expected = "float32, or jax.config.update('jax_enable_x64', True)"
        got = f"{array.dtype} while 64-bit dtypes are switched off"
        return Description(spec, None, Obstacle(expected, got))
    # A tracer passes for an array in every way until its memory is asked for: look here first.
    if isinstance(array, jax.core.Tracer):
        obstacle = Obstacle(
            "an array with memory, outside of jit, grad and vmap",
            f"a tracer, {array.aval}",
            in_sharing=True,
        )
        if any(part is not None for part in jax.typeof(array).sharding.spec):
            obstacle = Obstacle(
                "an array whose axes are not sharded by name; use jax.shard_map, or a mesh of "
                "jax.sharding.AxisType.Auto",
                f"a tracer, {array.aval}",
            )
        return Description(spec, None, obstacle, is_traced=True)
    if array.is_deleted():
        return Description(
            spec,
            None,
            Obstacle("a live array; keep a copy before donating or deleting it", "a deleted array"),
        )
    devices = sorted(array.devices(), key=lambda device: device.id)
    if len(devices) != 1:
        expected = (
            "an array on one device; call within jax.jit or jax.shard_map, or gather it with "
            "jax.device_put(x, jax.devices()[0])"
        )
        got = f"an array sharded over {len(devices)} devices"
        return Description(spec, None, Obstacle(expected, got, in_sharing=True))
    (device,) = devices
    if device.platform == "cpu":
        # NumPy knows one; what is on another of JAX's is to stay there.
        return Description(spec, "cpu" if device.id == 0 else f"cpu:{device.id}")
    if device.platform in ("gpu", "cuda"):
        # Its `id` is one among all processes; CUDA knows this one's.
        return Description(spec, f"cuda:{device.local_hardware_id}")
    return Description(spec, f"{device.platform}:{device.id}")


def to_numpy(array: jax.Array) -> np.ndarray:
    # By DLPack: numpy.asarray copies where the layout is not row-major.
    view = import_bfloat16(array) if array.dtype == jnp.bfloat16 else import_shared(array)
    # JAX arrays are immutable, whether or not the capsule says so.
    view.flags.writeable = False
    return view


def from_numpy(array: np.ndarray, _like: Any) -> jax.Array:
    if array.dtype != jax.dtypes.canonicalize_dtype(array.dtype):
        raise ObstacleError(
            "a dtype that JAX keeps; call jax.config.update('jax_enable_x64', True)",
            f"{array.dtype.name} while 64-bit dtypes are switched off",
        )
    if not array.flags.writeable:
        raise ObstacleError("memory that may be exported, or copy=True", "read-only memory")
    if not _is_compact(array):
        raise ObstacleError("compact memory, or copy=True", f"strides {array.strides}")
    if array.size and array.ctypes.data % ALIGNMENT:
        raise ObstacleError(
            f"memory aligned to {ALIGNMENT} bytes, or copy=True", f"address {array.ctypes.data:#x}"
        )
    if array.dtype.name == "bfloat16":
        return jnp.from_dlpack(Retagged.of_bfloat16(array))
    return jnp.from_dlpack(array)


def take(owner: Any, _like: Any) -> jax.Array:
    return jnp.from_dlpack(export(owner))


def find_maker(_like: Any) -> None:
    """Return None: JAX takes over arrays that CuPy made."""


def _is_compact(array: np.ndarray) -> bool:
    """Tell whether the elements fill one block of memory, in any order of the axes."""
    if array.size == 0:
        return True
    expected = array.itemsize
    for stride, size in sorted(zip(array.strides, array.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
