"""Calls on a device to try tiles on: on which arrays, by which tiles, and the table's own held
to the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from crisscross.bench.gate import Expectation, expect, judge
from crisscross.bench.shapes import Shape
from crisscross.bench.team import BenchError
from crisscross.dispatch import Held
from crisscross.kernels.attention import attention_backward, attention_forward
from crisscross.kernels.engine import Engine, Limits
from crisscross.kernels.tables import Direction
from crisscross.testing import AttentionCase, make_case

__all__ = [
    "RESULTS",
    "Arrays",
    "Call",
    "TrialDevice",
    "expect_strips",
    "hold_to_oracle",
    "make_outputs",
    "make_sets",
    "make_trial_case",
    "tell",
]

Arrays = dict[str, Held]
RESULTS: Mapping[Direction, tuple[str, ...]] = {
    "forward": ("out", "lse"),
    "backward": ("dq", "dk", "dv"),
}
_INPUTS = ("q", "k", "v", "dout")
#: The oracle goes position by position: it is shown so many strips, of any length.
_FEW_STRIPS = 4


class TrialDevice(Protocol):
    """A device to try tiles on: an engine, arrays to and fro, and a clock."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> Engine: ...

    def put(self, array: np.ndarray, /) -> Held:
        """Copy an array in C order to the device."""

    def get(self, held: Held, /) -> np.ndarray:
        """Copy back an array that was put there."""

    def poison(self, held: Held, /) -> None:
        """Make an array that was put there NaN all over."""

    def time(self, row: Callable[[], None], /) -> float:
        """Return the seconds that the device takes for what `row` launches."""


class Call:
    """An engine with limits of its own, that keeps what is launched, to do it again."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.limits = limits
        self._engine = engine
        self._scratch: list[Held] = []
        self._launches: list[tuple[Any, int, int, np.ndarray, int]] = []

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        return self._engine.compile(source, kernel, options, shared_bytes)

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        self._engine.launch(kernel, grid, block, argument, shared_bytes)
        self._launches.append((kernel, grid, block, argument, shared_bytes))

    def make(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, /) -> Held:
        held = self._engine.make(shape, strides, dtype)
        self._scratch.append(held)
        return held

    def run(self, case: AttentionCase, direction: Direction, arrays: Arrays) -> None:
        """Run the kernels of a direction on a case's arrays, which are to outlive the call."""
        views: dict[str, Any] = {name: held.view for name, held in arrays.items()}
        if direction == "backward":
            attention_backward(self, case.problem, **views, dlse=None, key_mask=None)
        else:
            del views["dout"]
            attention_forward(self, case.problem, **views, key_mask=None)

    def replay(self) -> None:
        for launch in self._launches:
            self._engine.launch(*launch)


def make_trial_case(shape: Shape, options: Mapping[str, Any]) -> AttentionCase:
    """Draw the arrays of a shape; `options` are those of `make_case`."""
    return make_case(
        (shape.height, shape.width),
        batch=shape.batch,
        head_size_qk=shape.key_channels,
        head_size_v=shape.channels,
        with_dlse=False,
        **options,
    )


def make_sets(device: TrialDevice, case: AttentionCase, number: int) -> list[Arrays]:
    """Put a number of copies of the inputs on a device, with out and lse of the table's own."""
    sets = []
    for _ in range(number):
        arrays = {name: device.put(getattr(case, name)) for name in _INPUTS}
        arrays |= make_outputs(device, case, "forward")
        _call_own(device).run(case, "forward", arrays)
        sets.append(arrays)
    return sets


def make_outputs(device: TrialDevice, case: AttentionCase, direction: Direction) -> Arrays:
    """Put results that are NaN all over: what a tile leaves out shows."""
    problem = case.problem
    likes = {"out": case.v, "dq": case.q, "dk": case.k, "dv": case.v}
    likes["lse"] = np.empty(problem.lse_shape, problem.compute_dtype)
    return {name: device.put(np.full_like(likes[name], np.nan)) for name in RESULTS[direction]}


def expect_strips(shape: Shape, length: int, options: Mapping[str, Any]) -> list[Expectation]:
    """Compute what a few strips of that length must give, along each axis that has such strips.

    One axis comes first and the other merges with it: their kernels are not quite the same.
    """
    sizes = (shape.height, shape.width)
    found = []
    for axis in (axis for axis in (0, 1) if sizes[axis] == length):
        few = [min(size, _FEW_STRIPS) for size in sizes]
        few[axis] = length
        cut = replace(shape, height=few[0], width=few[1], batch=1)
        found.append(expect(make_trial_case(cut, options), cut))
    return found


def hold_to_oracle(
    device: TrialDevice, expectations: Sequence[Expectation], direction: Direction
) -> None:
    """Hold results of the table's own to what they must be.

    Raises
    ------
    BenchError
        If they disagree.
    """
    for expectation in expectations:
        case = expectation.case
        (arrays,) = make_sets(device, case, 1)
        if direction == "backward":
            arrays |= make_outputs(device, case, direction)
            _call_own(device).run(case, direction, arrays)
        results = {name: device.get(arrays[name]) for name in RESULTS[direction]}
        reason = judge(expectation, results, set(results), ours=True).reason
        if reason is not None:
            sizes = "x".join(map(str, case.problem.spatial))
            raise BenchError(f"{reason}; on {sizes} positions")


def _call_own(device: TrialDevice) -> Call:
    """Make a call by the tiles of the table, whatever was measured before."""
    return Call(device.engine, replace(device.engine.limits, measured=None))


def tell(error: Exception) -> str:
    """One line: the first of the message, with the kind of an error that is not of ours."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return message if isinstance(error, BenchError) else f"{type(error).__name__}: {message}"
