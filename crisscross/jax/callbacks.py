"""Backends within what XLA compiles: Python that fills XLA's buffers, on its stream.

XLA knows a callback by its identity, so there is one for each task, kept as long as the process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental.buffer_callback import Buffer, ExecutionContext, buffer_callback

from crisscross import gpu
from crisscross.bridge.capsule import read_view
from crisscross.jax.task import Task
from crisscross.ops.backends import Backend, load_backend
from crisscross.view import View, find_strides

Arrays = Sequence[jax.Array | None]
#: From the memory of XLA by name to nothing: it fills the outputs.
Fill = Callable[["Call", ExecutionContext, Mapping[str, Buffer | None]], None]


@dataclasses.dataclass(frozen=True)
class Call:
    """A task with the number of axes of each of its arrays; `vmap` puts more in front."""

    task: Task
    ranks: tuple[tuple[str, int], ...]

    def fold(self, views: Mapping[str, Any], reshape: Callable[[Any, Any], Any]) -> dict[str, Any]:
        """Make more images of what is mapped over: backends know nothing but them."""
        folded = {}
        for name, rank in self.ranks:
            shape = views[name].shape
            images = math.prod(shape[: len(shape) - rank + 1])
            folded[name] = reshape(views[name], (images, *shape[len(shape) - rank + 1 :]))
        return folded

    def run(self, backend: Backend, views: Mapping[str, Any]) -> None:
        operation = self.task.operation
        first = views[operation.tensors[0]]
        problem = dataclasses.replace(self.task.problem, batch=first.shape[0])
        given = {name: views.get(name) for name in (*operation.tensors, *operation.outputs)}
        fill: Callable[..., None] = getattr(backend, operation.method)
        fill(problem, **given, **dict(self.task.further))


def call_on_cpu(task: Task, *arrays: jax.Array | None) -> tuple[jax.Array, ...]:
    """Let a backend of NumPy arrays fill the results."""
    return _call(task, arrays, _fill_on_cpu)


def call_on_cuda(task: Task, *arrays: jax.Array | None) -> tuple[jax.Array, ...]:
    """Let the CUDA kernels fill the results; nothing waits for the device."""
    return _call(task, arrays, _fill_on_cuda)


def _call(task: Task, arrays: Arrays, fill: Fill) -> tuple[jax.Array, ...]:
    results = jax.eval_shape(task.run_form, *arrays)
    operation = task.operation
    given = zip((*operation.tensors, *operation.outputs), (*arrays, *results), strict=True)
    call = Call(task, tuple((name, x.ndim) for name, x in given if x is not None))
    # Not to be captured in a graph of commands: scratch is of CuPy's pool, which may hand it out
    # anew before the graph is replayed.
    run = buffer_callback(_find_callback(call, fill), list(results), vmap_method="broadcast_all")
    return tuple(run(*arrays))


@cache
def _find_callback(call: Call, fill: Fill) -> Callable[..., None]:
    operation = call.task.operation

    def callback(ctx: ExecutionContext, outputs: Sequence[Buffer], *inputs: Buffer | None) -> None:
        names = (*operation.tensors, *operation.outputs)
        fill(call, ctx, dict(zip(names, (*inputs, *outputs), strict=True)))

    return callback


def _fill_on_cpu(call: Call, _: ExecutionContext, buffers: Mapping[str, Buffer | None]) -> None:
    views = {name: np.asarray(each) for name, each in buffers.items() if each is not None}
    views = call.fold(views, np.reshape)
    for name in call.task.operation.tensors:
        if name in views:
            views[name].flags.writeable = False  # of the caller, who takes it for immutable
    call.run(load_backend(call.task.backend or "cpu"), views)


def _fill_on_cuda(call: Call, ctx: ExecutionContext, buffers: Mapping[str, Buffer | None]) -> None:
    held = {name: each for name, each in buffers.items() if each is not None}
    views = {name: read_view(each.__dlpack__()) for name, each in held.items()}
    _, index = held[call.task.operation.tensors[0]].__dlpack_device__()
    with gpu.open_device(f"cuda:{index}", ctx.stream, None) as backend:
        call.run(backend, call.fold(views, _reshape))


def _reshape(view: View, shape: tuple[int, ...]) -> View:
    """Reshape what is in C order, as all memory of XLA is."""
    return View(view.pointer, shape, find_strides(shape), view.dtype)
