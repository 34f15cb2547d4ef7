"""The tuner: the tiles for a strip side by side on a device, each behind a check of its results.

What is tried are the rows of `list_fitting`: the table's own choice first. A row of launches is
timed without what Python does in between; sets of arrays come in turn, so that none is still in the
L2 cache, as in `crisscross bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Protocol

import numpy as np

from crisscross.bench.ratios import pair, summarise
from crisscross.bench.run import OnStep
from crisscross.bench.shapes import Shape, count_sets
from crisscross.bench.team import BenchError
from crisscross.bench.trials import Finding, Trial, find_disagreement
from crisscross.dispatch import Held
from crisscross.kernels.attention import attention_backward, attention_forward
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.engine import Engine, Limits
from crisscross.kernels.select import find_strip, list_fitting
from crisscross.kernels.tables import DIRECTIONS, Direction
from crisscross.kernels.tiles import Tile
from crisscross.testing import AttentionCase, make_case

__all__ = ["TrialDevice", "tune"]

#: A row of launches is as long as this, about, or it is one of each set of arrays.
_ROW_SECONDS = 0.01
_MOST_CALLS = 1000
_INPUTS = ("q", "k", "v", "dout")
_RESULTS: Mapping[Direction, tuple[str, ...]] = {
    "forward": ("out", "lse"),
    "backward": ("dq", "dk", "dv"),
}
_Arrays = dict[str, Held]


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

    def time(self, row: Callable[[], None], /) -> float:
        """Return the seconds that the device takes for what `row` launches."""


class _Recorder:
    """An engine with limits of its own, that keeps what is launched, to do it again."""

    def __init__(self, engine: Engine, limits: Limits, held: list[Held]) -> None:
        self.limits = limits
        self._engine = engine
        self._held = held
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
        self._held.append(held)
        return held

    def replay(self) -> None:
        for launch in self._launches:
            self._engine.launch(*launch)


@dataclass
class _Candidate:
    """A tile under trial: its calls, one for each set of arrays, and the times so far."""

    tile: Tile
    calls: list[_Recorder] = field(default_factory=list)
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
            self.reason = _tell(error)

    def conclude(self, own: _Candidate) -> Trial:
        if self.reason is not None:
            return Trial(self.tile, reason=self.reason)
        ratio = None if own.reason is not None else pair(own.seconds, self.seconds).median
        return Trial(self.tile, summarise(self.seconds).median, ratio)


class _Task:
    """The tiles for the strips along some axes of a case, in one direction."""

    def __init__(
        self,
        device: TrialDevice,
        case: AttentionCase,
        sets: Sequence[_Arrays],
        direction: Direction,
    ) -> None:
        self.device, self.case, self.sets, self.direction = device, case, sets, direction
        self.strip = find_strip(case.problem, case.problem.axes[0])
        rows = list_fitting(direction, self.strip, device.engine.limits)
        self.candidates = [_Candidate(row.tile) for row in rows]
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
        if candidate is not self.candidates[0] and not self.expected:
            raise BenchError("the table's own failed, and there is nothing to compare with")
        results = self._compute(candidate)
        if not self.expected:
            if not all(np.isfinite(x.astype(np.float64)).all() for x in results.values()):
                raise BenchError("its results are not all finite")
            self.expected = results
        candidate.reason = find_disagreement(self.strip.arithmetic, results, self.expected)

    def _compute(self, candidate: _Candidate) -> dict[str, np.ndarray]:
        """Run a tile on each set of arrays; return the results of the first."""
        choice = Choice(candidate.tile, 0.0, 0.0)
        measured = Choices(self.device.name, {(self.direction, self.strip): choice})
        limits = replace(self.device.engine.limits, measured=measured)
        results: dict[str, np.ndarray] = {}
        for arrays in self.sets:
            outputs = _make_outputs(self.device, self.case, self.direction)
            call = _Recorder(self.device.engine, limits, list(outputs.values()))
            _run(call, self.case, self.direction, {**arrays, **outputs})
            candidate.calls.append(call)
            results = results or {name: self.device.get(held) for name, held in outputs.items()}
        return results

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
) -> list[Finding]:
    """Try the tiles for all strips of some shapes, in both directions.

    Axes whose strips are alike are measured together, as one call; strips that a shape before had,
    not again.

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

    Raises
    ------
    BenchError
        If the table's own tiles do not run.
    """
    options: dict[str, Any] = {"dtype": dtype, "precision": precision}
    options |= {"channel_axis": channel_axis, "with_dlse": False}
    planned: dict[tuple[int, ...], tuple[Shape, tuple[int, ...]]] = {}
    for shape in shapes:
        sizes = (shape.height, shape.width)
        for length in sizes:
            axes = tuple(axis for axis in (0, 1) if sizes[axis] == length)
            strip = (length, shape.key_channels, shape.channels)
            planned.setdefault(strip, (shape, axes))
    steps, total = count(), len(planned) * len(DIRECTIONS) * (1 + rounds)

    def step(text: str) -> None:
        on_step(next(steps), total, text)

    findings = []
    for shape, axes in planned.values():
        text = f"C/C' = {shape}, along {' and '.join(map(str, axes))}"
        case = _make_case(shape, axes, options)
        sets = _make_sets(device, case, count_sets(shape, dtype, device.engine.limits.cache_bytes))
        for direction in DIRECTIONS:
            task = _Task(device, case, sets, direction)
            trials = task.run(rounds, partial(step, f"{text}, {direction}"))
            findings.append(Finding(shape, direction, task.strip, trials))
    return findings


def _make_case(shape: Shape, axes: tuple[int, ...], options: Mapping[str, Any]) -> AttentionCase:
    return make_case(
        (shape.height, shape.width),
        batch=shape.batch,
        head_size_qk=shape.key_channels,
        head_size_v=shape.channels,
        axes=axes,
        **options,
    )


def _make_sets(device: TrialDevice, case: AttentionCase, number: int) -> list[_Arrays]:
    """Put a number of copies of the inputs on a device, with out and lse of the table's own."""
    sets = []
    limits = replace(device.engine.limits, measured=None)  # whatever was measured before
    try:
        for _ in range(number):
            arrays = {name: device.put(getattr(case, name)) for name in _INPUTS}
            arrays |= _make_outputs(device, case, "forward")
            _run(_Recorder(device.engine, limits, []), case, "forward", arrays)
            sets.append(arrays)
    except Exception as error:  # of a compiler, a launch, or memory
        raise BenchError(f"the table's own tiles do not run: {_tell(error)}") from error
    return sets


def _make_outputs(device: TrialDevice, case: AttentionCase, direction: Direction) -> _Arrays:
    """Put results that are NaN all over: what a tile leaves out shows."""
    problem = case.problem
    likes = {"out": case.v, "dq": case.q, "dk": case.k, "dv": case.v}
    likes["lse"] = np.empty(problem.lse_shape, problem.compute_dtype)
    return {name: device.put(np.full_like(likes[name], np.nan)) for name in _RESULTS[direction]}


def _run(engine: Engine, case: AttentionCase, direction: Direction, arrays: _Arrays) -> None:
    views: dict[str, Any] = {name: held.view for name, held in arrays.items()}
    if direction == "backward":
        attention_backward(engine, case.problem, **views, dlse=None, key_mask=None)
    else:
        del views["dout"]
        attention_forward(engine, case.problem, **views, key_mask=None)


def _tell(error: Exception) -> str:
    """One line: the first of the message, with the kind of an error that is not of ours."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return message if isinstance(error, BenchError) else f"{type(error).__name__}: {message}"
