"""The tuner: the tiles for a strip side by side on a device, each behind a check of its results.

What is tried are the rows of `list_fitting`: the table's own choice first. It is held to the
oracle, and the others to it. Compared and timed are whole calls, along both axes; other strips than
those on trial have the table's own. A row of launches is timed without what Python does in between;
sets of arrays come in turn, so that none is still in the L2 cache, as in `crisscross bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from crisscross.bench.gate import Expectation
from crisscross.bench.ratios import pair, summarise
from crisscross.bench.run import OnStep
from crisscross.bench.shapes import Shape, count_sets
from crisscross.bench.team import BenchError
from crisscross.bench.trial_calls import (
    Arrays,
    Call,
    TrialDevice,
    expect_strips,
    hold_to_oracle,
    make_outputs,
    make_sets,
    make_trial_case,
    tell,
)
from crisscross.bench.trials import Finding, Trial, find_disagreement
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.select import find_strip, list_fitting
from crisscross.kernels.tables import DIRECTIONS, Direction, Strip
from crisscross.kernels.tiles import Tile
from crisscross.testing import AttentionCase

__all__ = ["tune"]

#: A row of launches is as long as this, about, or it is one of each set of arrays.
_ROW_SECONDS = 0.01
_MOST_CALLS = 1000


@dataclass
class _Candidate:
    """A tile under trial: its calls, one for each set of arrays, and the times so far."""

    tile: Tile
    calls: list[Call] = field(default_factory=list)
    count: int = 0
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None

    def attempt(self, trial: Callable[[_Candidate], None]) -> None:
        """Do one part of a trial, if all before went well; whatever goes wrong is the reason."""
        if self.reason is not None:
            return
        try:
            trial(self)
        except Exception as error:  # of a compiler, a launch, or memory
            self.reason = tell(error)
            self.calls.clear()  # with their scratch

    def conclude(self, own: _Candidate) -> Trial:
        if self.reason is not None:
            return Trial(self.tile, reason=self.reason)
        ratio = None if own.reason is not None else pair(own.seconds, self.seconds).median
        return Trial(self.tile, summarise(self.seconds).median, ratio)


class _Task:
    """The tiles for some strips of a case, in one direction."""

    def __init__(
        self,
        device: TrialDevice,
        case: AttentionCase,
        sets: Sequence[Arrays],
        direction: Direction,
        strip: Strip,
        expectations: Sequence[Expectation],
    ) -> None:
        self.device, self.case, self.sets = device, case, sets
        self.direction, self.strip, self.expectations = direction, strip, expectations
        rows = list_fitting(direction, strip, device.engine.limits)
        self.candidates = [_Candidate(row.tile) for row in rows]
        self.outputs: list[Arrays] = []
        self.expected: dict[str, np.ndarray] = {}

    def run(self, rounds: int, step: Callable[[], None]) -> tuple[Trial, ...]:
        step()
        for candidate in self.candidates:
            candidate.attempt(self._check)
        for number in range(rounds):
            step()
            # One way and the other: none always follows the same one.
            for candidate in self.candidates[:: -1 if number % 2 else 1]:
                candidate.attempt(self._time)
        return tuple(candidate.conclude(self.candidates[0]) for candidate in self.candidates)

    def _check(self, candidate: _Candidate) -> None:
        """Run a tile once, which also compiles it, and compare it with the table's own."""
        if candidate is self.candidates[0]:
            hold_to_oracle(self.device, self.expectations, self.direction)
            self.outputs = [make_outputs(self.device, self.case, self.direction) for _ in self.sets]
        elif not self.expected:
            raise BenchError("the table's own failed, and there is nothing to compare with")
        results = self._compute(candidate)
        if not self.expected:
            if not all(np.isfinite(x.astype(np.float64)).all() for x in results.values()):
                raise BenchError("its results are not all finite")
            self.expected = results
        disagreement = find_disagreement(self.strip.arithmetic, results, self.expected)
        if disagreement is not None:
            raise BenchError(disagreement)

    def _compute(self, candidate: _Candidate) -> dict[str, np.ndarray]:
        """Run a tile on each set of arrays; return the results of the first."""
        choice = Choice(candidate.tile, 0.0, 0.0)
        measured = Choices(self.device.name, {(self.direction, self.strip): choice})
        limits = replace(self.device.engine.limits, measured=measured)
        for arrays, outputs in zip(self.sets, self.outputs, strict=True):
            for held in outputs.values():
                self.device.poison(held)  # the candidate before has written there
            call = Call(self.device.engine, limits)
            call.run(self.case, self.direction, {**arrays, **outputs})
            candidate.calls.append(call)
        return {name: self.device.get(held) for name, held in self.outputs[0].items()}

    def _time(self, candidate: _Candidate) -> None:
        if not candidate.count:
            candidate.count = len(self.sets)
            most = min(_MOST_CALLS, math.ceil(_ROW_SECONDS / self._time_row(candidate)))
            candidate.count = max(len(self.sets), most)
        candidate.seconds.append(self._time_row(candidate))

    def _time_row(self, candidate: _Candidate) -> float:
        """Time a row of calls; return the seconds of one."""

        def row() -> None:
            for i in range(candidate.count):
                candidate.calls[i % len(candidate.calls)].replay()

        found = self.device.time(row) / candidate.count
        if not (math.isfinite(found) and found > 0):
            raise BenchError(f"the clock told {found} seconds")
        return found


def tune(
    device: TrialDevice,
    shapes: Sequence[Shape],
    *,
    dtype: str,
    precision: str = "ieee",
    channel_axis: int = -1,
    rounds: int = 9,
    on_step: OnStep = lambda *_: None,
) -> Iterator[Finding]:
    """Try the tiles for all strips of some shapes, in both directions.

    Strips that a shape before had are not tried again.

    Parameters
    ----------
    device : TrialDevice
    shapes : sequence of Shape
    dtype, precision : str
        Of the arrays, and the least that a call must deliver.
    channel_axis : {-1, 1}
    rounds : int
        Measurements of each tile.
    on_step : callable, optional
        Told of the progress.

    Yields
    ------
    Finding
        As soon as it is made, for what comes after may fail.

    Raises
    ------
    BenchError
        If the table's own tiles do not run.
    """
    options = {"dtype": dtype, "precision": precision, "channel_axis": channel_axis}
    planned: dict[tuple[int, ...], Shape] = {}
    for shape in shapes:
        for length in (shape.height, shape.width):
            planned.setdefault((length, shape.key_channels, shape.channels), shape)
    steps, total = count(), len(planned) * (1 + len(DIRECTIONS) * (1 + rounds))

    def step(text: str) -> None:
        on_step(next(steps), total, text)

    for shape in dict.fromkeys(planned.values()):
        lengths = [length for (length, *_), first in planned.items() if first == shape]
        yield from _tune_shape(device, shape, lengths, options, rounds, step)


def _tune_shape(
    device: TrialDevice,
    shape: Shape,
    lengths: Sequence[int],
    options: Mapping[str, Any],
    rounds: int,
    step: Callable[[str], None],
) -> Iterator[Finding]:
    """Try the tiles for the strips of some lengths; all arrays are gone when it is done."""
    case = make_trial_case(shape, options)
    number = count_sets(shape, case.problem.dtype, device.engine.limits.cache_bytes)
    try:
        sets = make_sets(device, case, number)
    except Exception as error:  # of a compiler, a launch, or memory
        raise BenchError(f"the table's own tiles do not run: {tell(error)}") from error
    for length in lengths:
        strip = find_strip(case.problem, case.problem.spatial.index(length))
        text = f"C/C' = {shape}, strips of {length}"
        step(f"{text}: the table's own beside the oracle")
        expectations = expect_strips(shape, length, options)
        for direction in DIRECTIONS:
            task = _Task(device, case, sets, direction, strip, expectations)
            trials = task.run(rounds, partial(step, f"{text}, {direction}"))
            yield Finding(shape, direction, strip, trials)
