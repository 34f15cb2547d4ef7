"""JAX: the plain form and its vector-Jacobian product, each jitted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

# Or it takes most of a GPU's memory when it starts, and leaves the other libraries too little.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from crisscross.bench.peer import Calls, Form, Inputs, NotServed
from crisscross.bench.shapes import CHANNELS_FIRST, CHANNELS_LAST, CUDA, DEVICES

PACKAGES = ("jax", "jaxlib")

# Without it float64 arrays become float32; arrays of other dtypes keep theirs.
jax.config.update("jax_enable_x64", True)

#: The function, and its results with its gradients.
Compiled = tuple[Callable[..., jax.Array], Callable[..., tuple[jax.Array, ...]]]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    height = q.shape[2]
    column = jnp.einsum("nchw,nciw->nhwi", q, k)
    # In the column, self would be counted a second time.
    column = jnp.where(jnp.eye(height, dtype=bool)[:, None], -jnp.inf, column)
    row = jnp.einsum("nchw,nchj->nhwj", q, k)
    weights = jax.nn.softmax(jnp.concatenate((column, row), axis=-1), axis=-1)
    out = jnp.einsum("nhwi,nciw->nchw", weights[..., :height], v)
    return out + jnp.einsum("nhwj,nchj->nchw", weights[..., height:], v)


def attend_channels_last(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Arrays have no strides here: XLA finds out that nothing need be moved."""
    return jnp.moveaxis(attend(*(jnp.moveaxis(x, -1, 1) for x in (q, k, v))), 1, -1)


def differentiate(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def run(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(function, q, k, v)
        return (out, *pull_back(dout))

    return run


def compile_both(function: Callable[..., jax.Array]) -> Compiled:
    return jax.jit(function), jax.jit(differentiate(function))


COMPILED = {
    CHANNELS_FIRST: compile_both(attend),
    CHANNELS_LAST: compile_both(attend_channels_last),
}


def find_device(name: str) -> jax.Device:
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:
        raise NotServed(f"JAX {jax.__version__} finds no device of this kind: {error}") from error


def prepare(inputs: Inputs, compiled: Mapping[str, Compiled] = COMPILED) -> Calls:
    device = find_device(inputs.device)
    if inputs.device == CUDA:
        # By default a GPU multiplies float32 in TF32.
        jax.config.update("jax_default_matmul_precision", "highest")
    channel_axis = -1 if inputs.layout == CHANNELS_LAST else 1
    q, k, v, dout = (
        jax.device_put(np.ascontiguousarray(np.moveaxis(x, 1, channel_axis)), device)
        for x in (inputs.q, inputs.k, inputs.v, inputs.dout)
    )
    run, run_backward = compiled[inputs.layout]

    def forward() -> dict[str, Any]:
        return {"out": run(q, k, v)}

    def forward_backward() -> dict[str, Any]:
        results = run_backward(q, k, v, dout)
        return dict(zip(("out", "dq", "dk", "dv"), results, strict=True))

    def to_numpy(results: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        return {
            name: np.moveaxis(np.asarray(array), channel_axis, 1) for name, array in results.items()
        }

    return Calls(forward, forward_backward, to_numpy, jax.block_until_ready)


FORMS = {"jax.jit": Form(prepare, devices=DEVICES)}
