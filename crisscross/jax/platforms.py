"""Who computes a task: decided when XLA compiles, for the platform that it compiles for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir

from crisscross.errors import BackendError
from crisscross.jax.callbacks import call_on_cpu, call_on_cuda
from crisscross.jax.task import MOST_KEPT, Task
from crisscross.jax.varying import vary_like
from crisscross.problem import AttentionProblem

Run = Callable[..., tuple[Array, ...]]
#: Backend -> the platform that it serves, and how it is called there.
_CALLS: Mapping[str, tuple[str, Run]] = {
    "gpu": ("cuda", call_on_cuda),
    "cpu": ("cpu", call_on_cpu),
    "reference": ("cpu", call_on_cpu),
}
#: Multiplications from which on NumPy's path, called from XLA, is faster than what XLA compiles
#: for a CPU; measured on two CPUs with AVX-512.
_LEAST_FOR_NUMPY = 1 << 26


def list_served(task: Task) -> dict[str, str]:
    """Return the platforms that backends of our own serve, each with the backend."""
    if task.backend is not None:
        return {} if task.backend == "xla" else {_CALLS[task.backend][0]: task.backend}
    served = {"cuda": "gpu"}
    if prefers_numpy(task):
        served["cpu"] = "cpu"
    return served


def prefers_numpy(task: Task) -> bool:
    """Say whether a task on a CPU is so large that NumPy's path is worth a call of Python."""
    problem = task.problem
    if not isinstance(problem, AttentionProblem):
        return False
    keys = sum(problem.spatial[axis] for axis in problem.axes)
    channels = problem.heads * (problem.head_size_qk + problem.head_size_v)
    return bool(problem.batch * math.prod(problem.spatial) * keys * channels >= _LEAST_FOR_NUMPY)


def tell_preference(task: Task) -> str:
    """Say why a task on a CPU goes where it does."""
    bound = f"2^{_LEAST_FOR_NUMPY.bit_length() - 1} multiplications"
    return f"faster there from {bound} on" if prefers_numpy(task) else f"faster there below {bound}"


@lru_cache(MOST_KEPT)
def stage(task: Task) -> Run:
    """Return the task as a function of its arrays, which makes more images of what is mapped over.

    Whatever is mapped, all outputs are: JAX sums gradients of what is shared over all samples, also
    those of an output that would not depend on them.
    """
    run = custom_vmap(partial(_stage, task))

    @run.def_vmap
    def fold(size: int, mapped: Sequence[bool], *arrays: Array | None) -> Any:
        def put_in_front(x: Array | None, is_mapped: bool | None) -> Array | None:
            if x is None:
                return None
            whole = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return whole.reshape(size * whole.shape[1], *whole.shape[2:])

        images = task.problem.batch
        problem = dataclasses.replace(task.problem, batch=size * images)
        folded = map(put_in_front, arrays, mapped)
        outputs = stage(dataclasses.replace(task, problem=problem))(*folded)
        unfolded = tuple(x.reshape(size, images, *x.shape[1:]) for x in outputs)
        return unfolded, (True,) * len(unfolded)

    return run


@partial(jax.jit, static_argnums=0)
def _stage(task: Task, *arrays: Array | None) -> tuple[Array, ...]:
    served = list_served(task)
    if not served or any(_is_zero(n) for x in arrays if x is not None for n in x.shape):
        return task.run_form(*arrays)  # nothing is to be launched for nothing

    def close(backend: str) -> Run:
        call = _CALLS[backend][1]
        return lambda *arrays: vary_like(call(task, *arrays), arrays)

    runs = {platform: close(backend) for platform, backend in served.items()}
    default = task.run_form if task.backend is None else partial(_refuse, task)
    outputs: tuple[Array, ...] = lax.platform_dependent(*arrays, default=default, **runs)
    return outputs


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0  # a symbol stands for no such size


def _refuse(task: Task, *arrays: Array | None) -> tuple[Array, ...]:
    results = jax.eval_shape(task.run_form, *arrays)
    given = [x for x in arrays if x is not None]
    like = tuple((x.shape, x.dtype) for x in results)
    refused = _refuse_p.bind(*given, task=task, like=like)  # type: ignore[no-untyped-call]
    return vary_like(tuple(refused), arrays)


def _raise_unserved(task: Task, platforms: str) -> Any:
    (served,) = list_served(task)
    raise BackendError(
        f"{task.name}: backend={task.backend!r} serves the platform {served!r}, and this is "
        f"compiled for {platforms}; backend=None serves all, by XLA where there is no better way"
    )


def _describe_refused(*_: Any, like: Any, **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(*each) for each in like]


def _run_refused(*_: Any, task: Task, **__: Any) -> Any:
    _raise_unserved(task, jax.default_backend())


def _lower_refused(context: Any, *_: Any, task: Task, **__: Any) -> Any:
    _raise_unserved(task, ", ".join(context.module_context.platforms))


#: Refuses to be lowered, for earlier the platform is not known; or to be run, where nothing is.
_refuse_p = Primitive("crisscross_refuse")
_refuse_p.multiple_results = True
_refuse_p.def_impl(_run_refused)  # type: ignore[no-untyped-call]
_refuse_p.def_abstract_eval(_describe_refused)  # type: ignore[no-untyped-call]
mlir.register_lowering(_refuse_p, _lower_refused)
