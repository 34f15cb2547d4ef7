"""Calls of public functions on JAX arrays: traced ones become tasks of what XLA compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from crisscross.errors import BackendError
from crisscross.jax import forms
from crisscross.jax.derivatives import differentiate
from crisscross.jax.platforms import list_served, tell_preference
from crisscross.jax.task import Task
from crisscross.jax.varying import vary_alike
from crisscross.ops.arguments import bind, bind_merge, check, refuse
from crisscross.ops.backends import Choice
from crisscross.ops.merge import check_merge
from crisscross.ops.operations import OPERATIONS
from crisscross.ops.routing import Way
from crisscross.problem import AttentionProblem


def call(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Call a public function of that kind; `function` itself knows plain arrays alone."""
    if function.__name__ == "merge_attentions":
        return _merge(function, args, given)
    return call_operation(function, args, given)


def call_operation(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    given: Mapping[str, Any],
    forward_mode: bool = False,
) -> Any:
    """Call a function that is one of `OPERATIONS`."""
    operation = OPERATIONS[function.__name__]
    values = bind(operation, args, given, jax.Array)
    if values is None:
        return refuse(function, args, given)
    arrays = [values[name] for name in operation.tensors]
    if not (forward_mode or _needs_xla(arrays, values["backend"])):
        return function(**values)
    problem = check(operation, values)
    further = tuple((name, values[name]) for name in ("self_value",) if name in values)
    task = Task(operation.name, problem, values["backend"], further, forward_mode)
    results = differentiate(task)(*vary_alike(arrays))
    if len(results) == 1 or ("lse" in operation.outputs and not values["return_lse"]):
        return results[0]
    return results


def _is_traced(arrays: Iterable[Any]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in arrays)


def _needs_xla(arrays: Iterable[Any], backend: str | None) -> bool:
    """Say whether arrays are traced, or where no backend of our own is, or XLA was asked for."""
    given = [x for x in arrays if x is not None]
    if backend == "xla" or _is_traced(given):
        return True
    devices = [x.devices() for x in given if not x.is_deleted()]
    if any(len(each) > 1 for each in devices):
        return False  # which is refused
    known = {device for each in devices for device in each}
    # Of several CPU devices NumPy knows nothing: results would be on the first.
    if any(device.platform == "cpu" and device.id != 0 for device in known):
        return True
    return backend is None and not {device.platform for device in known} <= {"cpu", "cuda", "gpu"}


def find_way(arrays: Sequence[Any], problem: AttentionProblem, backend: str | None) -> Way:
    """Say how `criss_cross_attention` would be called with these arrays."""
    if not _is_traced(arrays):
        if not _needs_xla(arrays, backend):
            return Way("directly: arrays with memory, outside of jit, grad and vmap")
        return Way("by XLA, which compiles it")
    task = Task("criss_cross_attention", problem, backend)
    served = list_served(task)
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" else platform
    told = ", ".join(f"{name} on {where}" for where, name in served.items())
    others = "XLA elsewhere" if backend in (None, "xla") else "nothing elsewhere"
    words = f"traced; when it is compiled, by platform: {', '.join(filter(None, (told, others)))}"
    device = {"cpu": "cpu", "cuda": "cuda:0"}.get(platform, f"{platform}:0")
    chosen = served.get(platform, "xla" if backend in (None, "xla") else None)
    if chosen is None:
        return Way(words, device)
    reason = f"serves {platform}, the default platform of JAX"
    if platform == "cpu" and backend is None:
        reason += f"; {tell_preference(task)}"
    return Way(words, device, Choice(chosen, reason, ()))


def _merge(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Merge in plain JAX what is traced: it is arithmetic, which XLA puts together with others."""
    bound = bind_merge(args, given, jax.Array)
    if bound is None:
        return refuse(function, args, given)
    values, parts = bound
    if not _needs_xla(parts, values["backend"]):
        return function(**values)
    _, problem = check_merge(**values, shares=False)
    if values["backend"] not in (None, "xla"):
        raise BackendError(
            f"merge_attentions: backend={values['backend']!r} serves arrays with memory, and these "
            "are traced; backend=None and 'xla' serve them, by arithmetic of JAX"
        )
    return forms.merge_outputs(problem, values["outs"], values["lses"])
