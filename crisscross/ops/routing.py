"""Calls that the room of an array library takes over: it differentiates, maps and traces them.

Such a room has a module `calls` with two functions: ``call(function, args, given)`` makes a call,
and ``find_way(arrays, problem, backend)`` tells how it would make one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

from crisscross.dispatch import find_calls
from crisscross.ops.backends import Choice

P = ParamSpec("P")
T = TypeVar("T")


class Way(NamedTuple):
    """How a call is made.

    Attributes
    ----------
    words
        For `explain`.
    device, choice
        Where, and by which backend, if the arrays do not tell.
    """

    words: str
    device: str | None = None
    choice: Choice | None = None


def differentiable(function: Callable[P, T]) -> Callable[P, T]:
    """Let the library of the arrays make the call; `__wrapped__` is for plain arrays alone."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        calls = find_calls((*args, *options.values()))
        if calls is None:
            return function(*args, **options)
        result: T = calls.call(function, args, options)
        return result

    return call
