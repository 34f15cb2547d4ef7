"""Who computes a task: decided when XLA compiles, for the platform that it compiles for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from crisscross.errors import BackendError
from crisscross.jax.callbacks import call_on_cpu, call_on_cuda
from crisscross.jax.task import Task
from crisscross.jax.varying import vary_alike, vary_like
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


def stage(task: Task, *arrays: Array | None) -> tuple[Array, ...]:
    """Return the outputs of a task; what is traced of it is settled when it is compiled."""
    outputs: tuple[Array, ...] = _stage(task, *vary_alike(arrays))
    return outputs


@partial(jax.jit, static_argnums=0)
def _stage(task: Task, *arrays: Array | None) -> tuple[Array, ...]:
    served = list_served(task)
    if not served or any(x is not None and x.size == 0 for x in arrays):
        return task.run_form(*arrays)  # nothing is to be launched for nothing

    def close(backend: str) -> Run:
        run = _CALLS[backend][1]
        return lambda *arrays: vary_like(run(task, *arrays), arrays)

    runs = {platform: close(backend) for platform, backend in served.items()}
    default = task.run_form if task.backend is None else partial(_refuse, task)
    outputs: tuple[Array, ...] = lax.platform_dependent(*arrays, default=default, **runs)
    return outputs


def prefers_numpy(task: Task) -> bool:
    """Say whether a task on a CPU is so large that NumPy's path is worth a call of Python."""
    problem = task.problem
    if not isinstance(problem, AttentionProblem):
        return False
    keys = sum(problem.spatial[axis] for axis in problem.axes)
    channels = problem.heads * (problem.head_size_qk + problem.head_size_v)
    return bool(problem.batch * math.prod(problem.spatial) * keys * channels >= _LEAST_FOR_NUMPY)


# A primitive that refuses to be lowered, for earlier the platform is not known


_refuse_p = Primitive("crisscross_refuse")
_refuse_p.multiple_results = True


def _refuse(task: Task, *arrays: Array | None) -> tuple[Array, ...]:
    results = jax.eval_shape(task.run_form, *arrays)
    given = [x for x in arrays if x is not None]
    like = tuple((x.shape, x.dtype) for x in results)
    return vary_like(_bind_refused(given, task, like), arrays)


def _bind_refused(arrays: Sequence[Array], task: Task, like: Any) -> tuple[Array, ...]:
    return tuple(_refuse_p.bind(*arrays, task=task, like=like))  # type: ignore[no-untyped-call]


def _describe_refused(*_: Any, like: Any, **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(*each) for each in like]


def _batch_refused(
    arrays: Sequence[Array], axes: Sequence[Any], *, task: Task, like: Any
) -> tuple[tuple[Array, ...], list[int]]:
    (size,) = {x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None}
    like = tuple(((size, *shape), dtype) for shape, dtype in like)
    return _bind_refused(arrays, task, like), [0] * len(like)


def _lower_refused(context: Any, *_: Any, task: Task, **__: Any) -> Any:
    (served,) = list_served(task)
    platforms = ", ".join(context.module_context.platforms)
    raise BackendError(
        f"{task.name}: backend={task.backend!r} serves the platform {served!r}, and this is "
        f"compiled for {platforms}; backend=None serves all, by XLA where there is no better way"
    )


_refuse_p.def_abstract_eval(_describe_refused)  # type: ignore[no-untyped-call]
batching.primitive_batchers[_refuse_p] = _batch_refused
mlir.register_lowering(_refuse_p, _lower_refused)
