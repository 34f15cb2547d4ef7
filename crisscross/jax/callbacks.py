"""Backends within what XLA compiles: Python that fills XLA's buffers, on its stream.

XLA knows a callback by its identity, so there is one for each task, as long as the task is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import Buffer, ExecutionContext, buffer_callback

from crisscross import gpu
from crisscross.bridge.capsule import read_view
from crisscross.jax.task import MOST_KEPT, Task
from crisscross.ops.backends import load_backend

#: Buffers by name, inputs and outputs.
Buffers = Mapping[str, Buffer]
Fill = Callable[[Task, ExecutionContext, Buffers], None]


def call_on_cpu(task: Task, *arrays: jax.Array | None) -> tuple[jax.Array, ...]:
    """Let a backend of NumPy arrays fill the results."""
    return call_back(task, arrays, fill_on_cpu)


def call_on_cuda(task: Task, *arrays: jax.Array | None) -> tuple[jax.Array, ...]:
    """Let the CUDA kernels fill the results; nothing waits for the device."""
    return call_back(task, arrays, fill_on_cuda)


def call_back(task: Task, arrays: Sequence[jax.Array | None], fill: Fill) -> tuple[jax.Array, ...]:
    results = list(jax.eval_shape(task.run_form, *arrays))
    # Not to be captured in a graph of commands: scratch is of CuPy's pool, which may hand it out
    # anew before the graph is replayed.
    return tuple(buffer_callback(_find_callback(task, fill), results)(*arrays))


@lru_cache(MOST_KEPT)
def _find_callback(task: Task, fill: Fill) -> Callable[..., None]:
    names = (*task.operation.tensors, *task.operation.outputs)

    def callback(ctx: ExecutionContext, outputs: Sequence[Buffer], *inputs: Buffer | None) -> None:
        given = zip(names, (*inputs, *outputs), strict=True)
        fill(task, ctx, {name: each for name, each in given if each is not None})

    return callback


def fill_on_cpu(task: Task, _: ExecutionContext, buffers: Buffers) -> None:
    views = {name: np.asarray(each) for name, each in buffers.items()}
    for name in task.operation.tensors:
        if name in views:
            views[name].flags.writeable = False  # of the caller, who takes it for immutable
    run(task, load_backend(task.backend or "cpu"), views)


def fill_on_cuda(task: Task, ctx: ExecutionContext, buffers: Buffers) -> None:
    views = {name: read_view(each.__dlpack__()) for name, each in buffers.items()}
    _, index = buffers[task.operation.tensors[0]].__dlpack_device__()
    with gpu.open_device(f"cuda:{index}", ctx.stream, None) as backend:
        run(task, backend, views)


def run(task: Task, backend: Any, views: Mapping[str, Any]) -> None:
    """Let a backend fill the outputs among these views."""
    names = (*task.operation.tensors, *task.operation.outputs)
    fill: Callable[..., None] = getattr(backend, task.operation.method)
    fill(task.problem, **{name: views.get(name) for name in names}, **dict(task.further))
