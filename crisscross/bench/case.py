"""One shape: every form held to the oracle, then timed in shuffled rounds."""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

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
from crisscross.bench.shapes import FORWARD, Shape, count_sets, find_floor
from crisscross.bench.team import Team
from crisscross.testing import AttentionCase

__all__ = ["Case"]

#: A measurement repeats its call until this much time has passed.
_FILL_SECONDS = 0.06


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

    def refuse(self, reason: str) -> None:
        for draft in self.passes.values():
            draft.reason = draft.reason or reason


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
        self.rates: dict[str, list[float]] = {}
        self.floor_reason: str | None = None
        self.watched, self.foreign = 0.0, 0.0

    def run(self) -> CaseRecord:
        """Check and measure; what fails has its reason in the record."""
        with tempfile.TemporaryDirectory(prefix="crisscross-") as name:
            folder = Path(name)
            self.step(f"{self.shape}: holding all forms to the oracle")
            case = make_arrays(self.shape, self.settings.dtype, self.settings.seed)
            source = self._check(case, folder)
        for entry in self.entries:
            self.step(f"{self.shape}: memory of {entry.form}")
            self._measure_memory(entry)
        for name in self.entries[0].passes:
            self._time(name)
        return self._record(source)

    def _check(self, case: AttentionCase, folder: Path) -> str:
        """Compile, compute and judge, all side by side: nothing is timed yet."""
        given = {name: getattr(case, name) for name in ("q", "k", "v", "dout")}
        dtypes = write_arrays(folder, given)
        expecting: Future[Expectation] = Future()
        with ThreadPoolExecutor(count_usable_cpus()) as pool:
            try:
                checking = [
                    pool.submit(self._check_file, path, folder, dtypes, expecting)
                    for path in self.team.forms
                ]
                expecting.set_result(expect(case, self.shape))
                for future in checking:
                    future.result()
            except BaseException:
                # Or the pool would wait for answers that nobody needs.
                expecting.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
                self.team.kill()
                raise
        return expecting.result().source

    def _check_file(
        self, path: Path, folder: Path, dtypes: dict[str, str], expecting: Future[Expectation]
    ) -> None:
        entries = [entry for entry in self.entries if entry.path == path]
        try:
            self.team.revive(path)
            self.team.workers[path].ask(
                "open",
                folder=str(folder),
                dtypes=dtypes,
                device=self.settings.device,
                layout=self.settings.layout,
                sets=self.sets,
            )
        except WorkerError as error:
            for entry in entries:
                entry.refuse(str(error))
            return
        for entry in entries:
            self._check_form(entry, folder, expecting)

    def _check_form(self, entry: _Entry, folder: Path, expecting: Future[Expectation]) -> None:
        worker = self.team.workers[entry.path]
        try:
            answer = worker.ask("prepare", form=entry.form)
        except WorkerError as error:
            answer = {"not_served": str(error)}
        if "not_served" in answer:
            entry.refuse(answer["not_served"])
            return
        for name, draft in entry.passes.items():
            place = Path(tempfile.mkdtemp(dir=folder))
            try:
                answer = worker.ask("compute", form=entry.form, name=name, folder=str(place))
            except WorkerError as error:
                draft.reason = str(error)
                continue
            results = read_arrays(place, answer["dtypes"])
            verdict = self._judge(entry, name, results, expecting.result())
            draft.errors = {
                output: error if math.isfinite(error) else None
                for output, error in verdict.errors.items()
            }
            draft.reason = verdict.reason

    def _judge(
        self, entry: _Entry, name: str, results: dict[str, np.ndarray], expectation: Expectation
    ) -> Verdict:
        if entry.function == DENSE:
            return judge_dense(expectation, results, self.settings.seed)
        names = {"out"} if name == FORWARD else {"out", "dq", "dk", "dv"}
        names |= {"lse"} if entry.ours else set()
        return judge(expectation, results, names, ours=entry.ours)

    def _measure_memory(self, entry: _Entry) -> None:
        worker = self.team.workers[entry.path]
        for name, draft in entry.passes.items():
            if draft.reason is not None:
                continue
            try:
                found = worker.ask("measure_memory", form=entry.form, name=name)
            except WorkerError as error:
                draft.reason = str(error)
                continue
            draft.extra_bytes = found.get("bytes")
            draft.memory_reason = found.get("unknown")

    def _time(self, name: str) -> None:
        order = random.Random(f"{self.settings.seed} {self.shape} {name}")
        for number in range(self.settings.rounds):
            self.step(f"{self.shape}: {name}, round {number + 1} of {self.settings.rounds}")
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
        try:
            answer = self.team.workers[entry.path].ask(
                "time", form=entry.form, name=name, seconds=_FILL_SECONDS
            )
        except WorkerError as error:
            draft.reason = str(error)
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
        settings = self.settings
        try:
            rates = self.team.workers[self.team.home].ask(
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

    def _record(self, source: str) -> CaseRecord:
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
            )
            for entry in self.entries
        )
        available = self.watched * (os.cpu_count() or 1)
        share = max(0.0, self.foreign / available) if available else None
        return CaseRecord(
            shape=self.shape,
            oracle=source,
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
