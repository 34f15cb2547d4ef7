"""What is to be done at one place of a program: an operation, its problem, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax import Array

from crisscross.jax import forms
from crisscross.ops.operations import OPERATIONS, Operation
from crisscross.problem import AttentionProblem, MapProblem

#: How many tasks are remembered with what was made for them.
MOST_KEPT = 1024
#: Functions of `forms` whose names are not the operations'.
_FORMS: Mapping[str, Callable[..., tuple[Array, ...]]] = {
    "attention_forward": forms.attention,
    "attention_backward": forms.attention_backward,
}


@dataclass(frozen=True)
class Task:
    """A call whose arrays are traced; tasks that are equal share what is compiled for them.

    Attributes
    ----------
    name
        Of the operation.
    problem
        Its sizes and options.
    backend
        The one asked for, or None.
    further
        Options that are no part of the problem.
    forward_mode
        Whether there are derivatives forwards, in place of those backwards.
    """

    name: str
    problem: AttentionProblem | MapProblem
    backend: str | None
    further: tuple[tuple[str, Any], ...] = ()
    forward_mode: bool = False

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.name]

    def run_form(self, *arrays: Array | None) -> tuple[Array, ...]:
        """Return the outputs, by plain JAX."""
        method = self.operation.method
        form = _FORMS.get(method) or getattr(forms, method)
        outputs: tuple[Array, ...] = form(self.problem, *arrays, **dict(self.further))
        return outputs
