"""One shape: every form held to the oracle, then timed in shuffled rounds."""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.gate import (
    Expectation,
    Verdict,
    expect,
    judge,
    judge_dense,
    make_arrays,
)
from crisscross.bench.peer import DENSE
from crisscross.bench.process import WorkerError, count_usable_cpus
from crisscross.bench.ratios import pair, summarise
from crisscross.bench.records import CaseRecord, Gpu, PassRecord, Row
from crisscross.bench.settings import Settings
from crisscross.bench.shapes import CUDA, FORWARD, Shape, count_sets, find_floor
from crisscross.bench.team import Team
from crisscross.testing import AttentionCase

__all__ = ["Case"]

#: A measurement repeats its call until this much time has passed.
_FILL_SECONDS = 0.06


class _RefusalError(WorkerError):
    """The worker has answered, and yet a pass gets no number; the message says why."""


@dataclass
class _Draft:
    """What is known so far of one pass of one form."""

    reason: str | None = None
    errors: dict[str, float | None] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    launches: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    memory_reason: str | None = None


@dataclass
class _Entry:
    """One form on the shape at hand."""

    path: Path
    form: str
    function: str
    ours: bool
    passes: dict[str, _Draft]
    algorithm: str | None = None


class Case:
    """All forms on one shape.

    Parameters
    ----------
    settings : Settings
    team : Team
        Gathered.
    shape : Shape
    step : callable
        Told what comes next.
    gpu : Gpu or None
        Where the run is on one.
    """

    def __init__(
        self,
        settings: Settings,
        team: Team,
        shape: Shape,
        step: Callable[[str], None],
        gpu: Gpu | None,
    ) -> None:
        self.settings, self.team, self.shape, self.step = settings, team, shape, step
        self.entries = [
            _Entry(
                path,
                name,
                form["function"],
                path == team.home,
                {each: _Draft() for each in form["passes"]},
            )
            for path, forms in team.forms.items()
            for name, form in forms.items()
        ]
        # Ours first, in the table too.
        self.entries.sort(key=lambda entry: not entry.ours)
        self.sets = count_sets(shape, settings.dtype, gpu.cache_bytes) if gpu else 1
        self.expecting: Future[Expectation] = Future()
        self.folder, self.dtypes = Path(), dict[str, str]()
        # What the process of a file holds: its forms, and the passes of each that were judged.
        self.ready: dict[Path, dict[str, set[str]]] = {}
        self.rates: dict[str, list[float]] = {}
        self.floor_reason: str | None = None
        self.watched, self.foreign = 0.0, 0.0

    def run(self) -> CaseRecord:
        """Check and measure; what fails has its reason in the record."""
        self.step(f"{self.shape}: holding all forms to the oracle")
        with tempfile.TemporaryDirectory(prefix="crisscross-") as name:
            self.folder = Path(name)
            case = make_arrays(self.shape, self.settings.dtype, self.settings.seed)
            given = {name: getattr(case, name) for name in ("q", "k", "v", "dout")}
            self.dtypes = write_arrays(self.folder, given)
            self._check(case)
            for entry in self.entries:
                self.step(f"{self.shape}: memory of {entry.form}")
                self._measure_memory(entry)
            for number in range(self.settings.processes):
                if number > 0:
                    self._begin_anew()
                for name in self.entries[0].passes:
                    self._time(name, number)
        return self._record()

    def _check(self, case: AttentionCase) -> None:
        """Compile, compute and judge: side by side, for nothing is timed yet.

        On a GPU one process at a time: compilers choose there by timing. What the results are to be
        is computed meanwhile, on the CPU.
        """
        with self._check_files():
            self.expecting.set_result(expect(case, self.shape))

    def _begin_anew(self) -> None:
        """Start every library again, and hold it to the oracle again.

        How fast one is depends on where in memory a process has happened to put things.
        """
        self.step(f"{self.shape}: starting the libraries again")
        for path in self.team.forms:
            self.team.workers[path].close()
        with self._check_files():
            pass

    @contextmanager
    def _check_files(self) -> Iterator[None]:
        """Have all files checked, while something else goes on."""
        side_by_side = 1 if self.settings.device == CUDA else count_usable_cpus()
        with ThreadPoolExecutor(side_by_side) as pool:
            try:
                checking = [pool.submit(self._check_file, path) for path in self.team.forms]
                yield
                for future in checking:
                    future.result()
            except BaseException:
                # Or the pool would wait for answers that nobody needs.
                self.expecting.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                self.team.kill()
                raise

    def _check_file(self, path: Path) -> None:
        for entry in self.entries:
            for name, draft in entry.passes.items():
                if entry.path == path and draft.reason is None:
                    try:
                        self._make_ready(entry, name)
                    except WorkerError as error:
                        draft.reason = str(error)

    def _make_ready(self, entry: _Entry, name: str) -> None:
        """Have a pass prepared and judged by the process that is to run it, which may be a new one.

        Raises
        ------
        WorkerError
            If the pass gets no number; says why.
        """
        path, form = entry.path, entry.form
        self._revive(path)
        if path not in self.ready:
            self._open(path)
        forms = self.ready[path]
        if form not in forms:
            answer = self._ask(path, "prepare", form=form)
            if "not_served" in answer:
                raise _RefusalError(answer["not_served"])
            entry.algorithm = answer.get("algorithm")
            forms[form] = set()
        if name not in forms[form]:
            self._judge(entry, name)
            forms[form].add(name)

    def _revive(self, path: Path) -> None:
        """Start a process again that has ended; the new one holds nothing."""
        if not self.team.workers[path].alive:
            self.ready.pop(path, None)
            self.team.restart(path)

    def _open(self, path: Path) -> None:
        self._ask(
            path,
            "open",
            folder=str(self.folder),
            dtypes=self.dtypes,
            device=self.settings.device,
            layout=self.settings.layout,
            sets=self.sets,
        )
        self.ready[path] = {}

    def _ask(self, path: Path, do: str, **request: Any) -> dict[str, Any]:
        """Ask a worker; on a GPU it is ended if that fails.

        A fault of a GPU stays with the process, and whatever it does next fails too.
        """
        worker = self.team.workers[path]
        try:
            return worker.ask(do, **request)
        except WorkerError:
            if self.settings.device == CUDA:
                worker.kill()
            raise

    def _judge(self, entry: _Entry, name: str) -> None:
        """Compute a pass, which also compiles it, and hold it to the oracle."""
        # Results may be gigabytes: they are gone as soon as they have been read.
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            answer = self._ask(entry.path, "compute", form=entry.form, name=name, folder=place)
            results = read_arrays(Path(place), answer["dtypes"])
        verdict = self._compare(entry, name, results, self.expecting.result())
        errors = entry.passes[name].errors
        for output, error in verdict.errors.items():
            # The largest of all processes; of what is not finite there is no number.
            largest = errors.get(output, 0.0)
            if largest is None or not math.isfinite(error):
                errors[output] = None
            else:
                errors[output] = max(largest, error)
        if verdict.reason is not None:
            raise _RefusalError(verdict.reason)

    def _compare(
        self, entry: _Entry, name: str, results: dict[str, np.ndarray], expectation: Expectation
    ) -> Verdict:
        if entry.function == DENSE:
            return judge_dense(expectation, results, self.settings.seed)
        names = {"out"} if name == FORWARD else {"out", "dq", "dk", "dv"}
        names |= {"lse"} if entry.ours else set()
        return judge(expectation, results, names, ours=entry.ours)

    def _measure(self, entry: _Entry, name: str, do: str, **request: Any) -> dict[str, Any] | None:
        """Ask for something of a pass; None if it fails, and the draft has the reason."""
        try:
            self._make_ready(entry, name)
            return self._ask(entry.path, do, form=entry.form, name=name, **request)
        except WorkerError as error:
            entry.passes[name].reason = str(error)
            return None

    def _measure_memory(self, entry: _Entry) -> None:
        for name, draft in entry.passes.items():
            if draft.reason is not None:
                continue
            found = self._measure(entry, name, "measure_memory")
            if found is not None:
                draft.extra_bytes = found.get("bytes")
                draft.memory_reason = found.get("unknown")

    def _time(self, name: str, process: int) -> None:
        """Time the rounds of a pass that the process of this number is to run."""
        order = random.Random(f"{self.settings.seed} {self.shape} {name} {process}")
        rounds, processes = self.settings.rounds, self.settings.processes
        share = range(process * rounds // processes, (process + 1) * rounds // processes)
        for number in share:
            self.step(f"{self.shape}: {name}, round {number + 1} of {rounds}")
            turns: list[_Entry | None] = [*self._find_admitted(name), None]
            order.shuffle(turns)
            for entry in turns:
                if entry is None:
                    self._time_yardsticks()
                else:
                    self._time_entry(entry, name)

    def _find_admitted(self, name: str) -> Iterator[_Entry]:
        for entry in self.entries:
            if name in entry.passes and entry.passes[name].reason is None:
                yield entry

    def _time_entry(self, entry: _Entry, name: str) -> None:
        draft = entry.passes[name]
        answer = self._measure(entry, name, "time", seconds=_FILL_SECONDS)
        if answer is None:
            return
        draft.seconds.append(answer["seconds"])
        if "latency" in answer:
            draft.launches.append(answer["launch"])
            draft.latencies.append(answer["latency"])
        if "foreign" in answer:
            self.watched += answer["watched"]
            self.foreign += answer["foreign"]

    def _time_yardsticks(self) -> None:
        """The floor is what a matmul and, on a GPU, a copy do in this run."""
        if self.floor_reason is not None:
            return
        settings, home = self.settings, self.team.home
        try:
            self._revive(home)
            rates = self._ask(
                home,
                "time_yardsticks",
                device=settings.device,
                dtype=settings.dtype,
                seconds=_FILL_SECONDS,
            )
        except WorkerError as error:
            self.floor_reason = str(error)
            return
        for name, rate in rates.items():
            self.rates.setdefault(name, []).append(rate)

    def _record(self) -> CaseRecord:
        rates = {name: summarise(found).median for name, found in self.rates.items()}
        matmul_rate, copy_rate = rates.get("matmul"), rates.get("copy")
        floors = {}
        if matmul_rate is not None:
            floors = {
                name: find_floor(self.shape, name, self.settings.dtype, matmul_rate, copy_rate)
                for name in self.entries[0].passes
            }
        reference = self.entries[0]
        rows = tuple(
            Row(
                entry.form,
                entry.function,
                {
                    name: self._record_pass(draft, reference.passes[name], floors.get(name))
                    for name, draft in entry.passes.items()
                },
                entry.algorithm,
            )
            for entry in self.entries
        )
        available = self.watched * (os.cpu_count() or 1)
        share = max(0.0, self.foreign / available) if available else None
        return CaseRecord(
            shape=self.shape,
            oracle=self.expecting.result().source,
            matmul_rate=matmul_rate,
            copy_rate=copy_rate,
            floors=floors,
            floor_reason=None if floors else self.floor_reason,
            sets=self.sets,
            foreign_share=share,
            rows=rows,
        )

    def _record_pass(self, draft: _Draft, reference: _Draft, floor: float | None) -> PassRecord:
        kept = PassRecord(draft.reason, draft.errors)
        if draft.reason is not None:
            return kept
        time = summarise(draft.seconds)
        comparable = draft is not reference and reference.reason is None
        return PassRecord(
            errors=draft.errors,
            seconds=tuple(draft.seconds),
            time=time,
            ratio=pair(draft.seconds, reference.seconds) if comparable else None,
            over_floor=time.median / floor if floor else None,
            launch=summarise(draft.launches).median if draft.launches else None,
            latency=summarise(draft.latencies).median if draft.latencies else None,
            extra_bytes=draft.extra_bytes,
            memory_reason=draft.memory_reason,
        )
