"""The process of one library: answers the requests that come as JSON lines on its stdin.

``python -m crisscross.bench.worker FILE`` loads the peer file, tells what it has, and serves until
its stdin ends. An answer is one JSON line on stdout; one with "error" says what went wrong.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.load import Watch
from crisscross.bench.memory import MemoryUnknown, measure_extra_memory
from crisscross.bench.peer import Calls, Inputs, NotServed, load_peer
from crisscross.bench.shapes import FORWARD

__all__ = ["main"]

_MATMUL_SIDE = 1536
_LONG_CALL_SECONDS = 0.5
#: After a pause the scheduler may leave the threads of a library on one CPU for some 50 ms.
_WARM_UP_SECONDS = 0.1
#: Threads that wait for work may spin before they sleep; the next process must not compete.
_QUIET_SHARE, _WINDOW_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 0.01, 1.0

Answer = dict[str, Any]


class _Server:
    """Holds the calls of the case at hand."""

    def __init__(self, peer: ModuleType) -> None:
        self.forms = peer.FORMS
        self.release: Callable[[], object] = getattr(peer, "release", lambda: None)
        self.inputs: Inputs | None = None
        self.calls: dict[str, Calls] = {}

    def open(self, folder: str, dtypes: dict[str, str]) -> Answer:
        """Take the arrays of a new case, and let go of those of the last."""
        self.calls.clear()
        self.inputs = Inputs(**read_arrays(Path(folder), dtypes))
        return {}

    def prepare(self, form: str) -> Answer:
        assert self.inputs is not None
        try:
            self.calls[form] = self.forms[form].prepare(self.inputs)
        except NotServed as reason:
            return {"not_served": str(reason)}
        return {}

    def compute(self, form: str, name: str, folder: str) -> Answer:
        """Run a pass once, which also compiles what is compiled, and write its results."""
        results = self._find(form, name)()
        return {"dtypes": write_arrays(Path(folder), self.calls[form].to_numpy(results))}

    def measure_memory(self, form: str, name: str) -> Answer:
        try:
            return {"bytes": measure_extra_memory(self._find(form, name), self.release)}
        except MemoryUnknown as reason:
            return {"unknown": str(reason)}

    def time(self, form: str, name: str, seconds: float) -> Answer:
        watch = Watch()
        measured = _time(self._find(form, name), seconds)
        return {"seconds": measured, **watch.stop()}

    def time_matmul(self, dtype: str, seconds: float) -> Answer:
        """Measure the rate of a square product of NumPy's, in operations a second."""
        a, b, out = np.ones((3, _MATMUL_SIDE, _MATMUL_SIDE), dtype)
        return {"rate": 2 * _MATMUL_SIDE**3 / _time(lambda: np.matmul(a, b, out=out), seconds)}

    def _find(self, form: str, name: str) -> Callable[[], dict[str, Any]]:
        calls = self.calls[form]
        call = calls.forward if name == FORWARD else calls.forward_backward
        assert call is not None
        return call


def _time(call: Callable[[], object], seconds: float) -> float:
    """Return the seconds a call takes: after calls to warm up, as many as fill `seconds`.

    A call so long that it warms itself up counts by itself.
    """
    gc.disable()
    try:
        first, _ = _repeat(call, 0.0)
        if first >= _LONG_CALL_SECONDS:
            return first
        _repeat(call, _WARM_UP_SECONDS - first)
        elapsed, count = _repeat(call, seconds)
        return elapsed / count
    finally:
        gc.enable()


def _repeat(call: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Call at least once, until `seconds` are over; return the seconds it took and how often."""
    start = time.perf_counter()
    count = 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed, count


def _settle() -> None:
    """Wait until the threads of this process sleep."""
    deadline = time.perf_counter() + _LONGEST_WAIT_SECONDS
    while time.perf_counter() < deadline:
        busy, start = time.process_time(), time.perf_counter()
        time.sleep(_WINDOW_SECONDS)
        share = (time.process_time() - busy) / (time.perf_counter() - start)
        if share < _QUIET_SHARE:
            return


def _introduce(peer: ModuleType) -> Answer:
    forms = {
        name: {"function": form.function, "passes": list(form.passes)}
        for name, form in peer.FORMS.items()
    }
    return {"packages": _find_versions(peer.PACKAGES), "forms": forms}


def _find_versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _load(path: Path) -> tuple[ModuleType | None, Answer]:
    try:
        peer = load_peer(path)
        return peer, _introduce(peer)
    except ModuleNotFoundError as error:
        return None, {"error": f"{error.name or 'a package'} is not installed"}
    except Exception as error:  # whatever a peer's file may raise
        return None, {"error": _tell(error)}


def _tell(error: Exception) -> str:
    """One line: the kind of the error and the first line of its message."""
    message = str(error).strip()
    first = message.splitlines()[0] if message else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def main(path: Path) -> None:
    """Serve the peer file until stdin ends."""
    # Whatever the library prints goes to stderr: stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer, introduction = _load(path)
    print(json.dumps(introduction), file=answers, flush=True)
    if peer is None:
        return
    server = _Server(peer)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # of the library: told in the row of its form
            answer = {"error": _tell(error)}
        _settle()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
