"""Tasks that JAX differentiates: backwards by the explicit gradients, or forwards.

Gradients are tasks themselves, with derivatives of their own, which are those of plain JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
from jax import Array

from crisscross.jax.platforms import stage
from crisscross.jax.task import MOST_KEPT, Task

Outputs = tuple[Array, ...]


@lru_cache(MOST_KEPT)
def differentiate(task: Task) -> Callable[..., Outputs]:
    """Return the task as a function of its arrays, of which those that are optional may be None."""
    return _make_forward_mode(task) if task.forward_mode else _make_reverse_mode(task)


def _make_reverse_mode(task: Task) -> Callable[..., Outputs]:
    operation = task.operation
    run = jax.custom_vjp(stage(task))

    def keep(*arrays: Array | None) -> tuple[Outputs, Any]:
        outputs = run(*arrays)
        return outputs, (arrays, outputs)

    def pull(kept: Any, doutputs: Outputs) -> tuple[Array | None, ...]:
        arrays, outputs = kept
        named = dict(zip(operation.tensors, arrays, strict=True))
        if operation.gradients is None:
            found = _pull_form(task, named, doutputs)
        else:
            named |= zip(operation.outputs, outputs, strict=True)
            named |= {f"d{name}": x for name, x in zip(operation.outputs, doutputs, strict=True)}
            backward = dataclasses.replace(task, name=operation.gradients)
            gradients = differentiate(backward)(*map(named.get, backward.operation.tensors))
            found = dict(zip(operation.wrt, gradients, strict=True))
        return tuple(found.get(name) for name in operation.tensors)

    run.defvjp(keep, pull)
    return run


def _pull_form(task: Task, named: dict[str, Array | None], doutputs: Outputs) -> dict[str, Array]:
    """Return the gradients of plain JAX."""
    active = {name: named[name] for name in task.operation.wrt if named[name] is not None}

    def run(active: dict[str, Array]) -> Outputs:
        return task.run_form(*({**named, **active}[name] for name in task.operation.tensors))

    _, pull = jax.vjp(run, active)
    found: dict[str, Array] = pull(doutputs)[0]
    return found


def _make_forward_mode(task: Task) -> Callable[..., Outputs]:
    run = jax.custom_jvp(stage(task))

    @run.defjvp
    def push(primals: Any, tangents: Any) -> tuple[Outputs, Outputs]:
        _, doutputs = jax.jvp(task.run_form, primals, tangents)
        return run(*primals), doutputs

    return run
