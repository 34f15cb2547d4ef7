"""Our side of a worker: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Worker", "WorkerError", "count_usable_cpus", "find_unsettled"]

#: Compiling takes long; more than this is no answer at all.
_LONGEST_ANSWER_SECONDS = 600.0
_GRACE_SECONDS = 2.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CRISSCROSS_NUM_THREADS",
)


class WorkerError(Exception):
    """A request failed, or the worker is gone; the message is one line."""


def count_usable_cpus() -> int:
    """Count the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_unsettled(threads: int) -> str | None:
    """Say what cannot be given `threads` threads here."""
    if hasattr(os, "sched_setaffinity") or threads == count_usable_cpus():
        return None
    return "XLA runs on all CPUs: this system has no affinity to bind it with"


class Worker:
    """A process that serves one peer file.

    Parameters
    ----------
    path : Path
        The peer file.
    threads : int
        How many threads its library gets.
    limit : float
        Seconds that an answer may take.

    Notes
    -----
    It loads its file while we go on: `receive` its introduction, packages and forms, before the
    first `ask`.
    """

    def __init__(self, path: Path, threads: int, *, limit: float = _LONGEST_ANSWER_SECONDS) -> None:
        self._limit = limit
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - see kill
        with _on_cpus(threads):
            # A session of its own: Ctrl-C reaches us alone, and its children end with it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "crisscross.bench.worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=_make_environment(threads),
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises
        ------
        WorkerError
            If the worker failed, died, or did not answer in time; if its file cannot be loaded.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer tells why
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """Wait for what the worker says next.

        Raises
        ------
        WorkerError
            As for `ask`.
        """
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._signal()

        timer = threading.Timer(self._limit, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            self._process.wait()  # it has been killed: `alive` is to know
            raise WorkerError(f"no answer within {self._limit:g} s")
        if not line:
            raise WorkerError(self._explain_end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _explain_end(self) -> str:
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        last = f": {lines[-1].strip()}" if lines else ""
        return f"its process ended with {how}{last}"

    def close(self) -> None:
        """Let the worker end by itself, or end it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # once more does no harm
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and its children now."""
        if self._errors.closed:
            return
        self._signal()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _signal(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(self._process.pid, signal.SIGKILL)


def _make_environment(threads: int) -> dict[str, str]:
    # The worker must measure this very package, even where another one is installed.
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    counts = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {**os.environ, **counts, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def _on_cpus(count: int) -> Iterator[None]:
    """Bind processes started here to `count` CPUs: XLA makes a thread for every CPU it may use."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)
