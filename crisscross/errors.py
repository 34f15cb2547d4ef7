"""Errors that name the argument, what was expected and what came.

Every error the library raises on purpose derives from `CrissCrossError` and from the built-in
type a caller would expect (`ValueError`, `TypeError`, `BufferError`, `RuntimeError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "BridgeError",
    "CrissCrossError",
    "Fault",
    "Mismatch",
    "MissingDependencyError",
    "raise_mismatches",
]


class Fault(Enum):
    """What sort of thing is wrong with an argument; decides the type of the error."""

    VALUE = "value"
    TYPE = "type"
    MEMORY = "memory"


@dataclass(frozen=True)
class Mismatch:
    """One way in which one argument does not fit."""

    argument: str
    expected: str
    got: str
    fault: Fault = Fault.VALUE

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {self.got}"


class CrissCrossError(Exception):
    """Base of every error that the library raises on purpose."""


class _MismatchError(CrissCrossError):
    """An error made of mismatches, readable one by one in `mismatches`."""

    def __init__(self, function: str, mismatches: Sequence[Mismatch]) -> None:
        self.function = function
        self.mismatches = tuple(mismatches)
        lines = [str(mismatch) for mismatch in self.mismatches]
        if len(lines) == 1:
            message = f"{function}: {lines[0]}"
        else:
            message = f"{function}: {len(lines)} mismatches\n  " + "\n  ".join(lines)
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[Mismatch, ...]]]:
        # The message is rebuilt from its parts, so that the error survives a process pool.
        return type(self), (self.function, self.mismatches)


class ArgumentError(_MismatchError, ValueError):
    """One or several arguments do not fit; `mismatches` lists them all."""


class ArgumentTypeError(_MismatchError, TypeError):
    """Every mismatch is one of type: a wrong dtype, or not an array at all."""


class BridgeError(_MismatchError, BufferError):
    """An array's memory cannot be shared; the message says what to do."""


class BackendError(CrissCrossError, RuntimeError):
    """A backend asked for by name, or the only one that could serve, cannot; says why."""


class MissingDependencyError(CrissCrossError, ImportError):
    """An optional dependency is missing; the message holds the install line."""


def raise_mismatches(function: str, mismatches: Sequence[Mismatch]) -> None:
    """Raise one error that lists every mismatch, or return if there is none.

    The type follows from the faults: `ArgumentTypeError` if all are of type, `BridgeError` if all
    are about memory, `ArgumentError` otherwise.
    """
    if not mismatches:
        return
    faults = {mismatch.fault for mismatch in mismatches}
    if faults == {Fault.TYPE}:
        raise ArgumentTypeError(function, mismatches)
    if faults == {Fault.MEMORY}:
        raise BridgeError(function, mismatches)
    raise ArgumentError(function, mismatches)
