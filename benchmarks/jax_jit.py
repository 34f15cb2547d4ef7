"""JAX: the plain form and its vector-Jacobian product, each jitted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crisscross.bench.peer import Calls, Form, Inputs

PACKAGES = ("jax", "jaxlib")

# Without it float64 arrays become float32; arrays of other dtypes keep theirs.
jax.config.update("jax_enable_x64", True)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    height = q.shape[2]
    column = jnp.einsum("nchw,nciw->nhwi", q, k)
    # In the column, self would be counted a second time.
    column = jnp.where(jnp.eye(height, dtype=bool)[:, None], -jnp.inf, column)
    row = jnp.einsum("nchw,nchj->nhwj", q, k)
    weights = jax.nn.softmax(jnp.concatenate((column, row), axis=-1), axis=-1)
    out = jnp.einsum("nhwi,nciw->nchw", weights[..., :height], v)
    return out + jnp.einsum("nhwj,nchj->nchw", weights[..., height:], v)


def attend_and_differentiate(
    q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array
) -> tuple[jax.Array, ...]:
    out, pull_back = jax.vjp(attend, q, k, v)
    return (out, *pull_back(dout))


def prepare(inputs: Inputs) -> Calls:
    q, k, v, dout = (jnp.array(x) for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    jitted, jitted_backward = jax.jit(attend), jax.jit(attend_and_differentiate)

    def forward() -> dict[str, Any]:
        return {"out": jitted(q, k, v).block_until_ready()}

    def forward_backward() -> dict[str, Any]:
        results = jax.block_until_ready(jitted_backward(q, k, v, dout))
        return dict(zip(("out", "dq", "dk", "dv"), results, strict=True))

    def to_numpy(results: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        return {name: np.asarray(array) for name, array in results.items()}

    return Calls(forward, forward_backward, to_numpy)


FORMS = {"jax.jit": Form(prepare)}
