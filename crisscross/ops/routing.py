"""Calls that the room of an array library takes over: it differentiates, maps and traces them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from crisscross.dispatch import find_caller

P = ParamSpec("P")
T = TypeVar("T")


def differentiable(function: Callable[P, T]) -> Callable[P, T]:
    """Let the library of the arrays make the call; `__wrapped__` is for plain arrays alone."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        caller = find_caller((*args, *options.values()))
        if caller is None:
            return function(*args, **options)
        result: T = caller(function, args, options)
        return result

    return call
