"""The process of one library: answers the requests that come as JSON lines on its stdin.

``python -m crisscross.bench.worker FILE`` loads the peer file, tells what it has, and serves until
its stdin ends. An answer is one JSON line on stdout; one with "error" says what went wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from crisscross.bench.clock import time_calls, time_queue
from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.load import Watch
from crisscross.bench.memory import MemoryUnknown, measure_extra_memory
from crisscross.bench.peer import Calls, Inputs, NotServed, Yardstick, load_peer
from crisscross.bench.shapes import CHANNELS_FIRST, CPU, FORWARD

__all__ = ["main"]

#: Threads that wait for work may spin before they sleep; the next process must not compete.
_QUIET_SHARE, _WINDOW_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 0.01, 1.0

Answer = dict[str, Any]


class _Server:
    """Holds the calls of the case at hand."""

    def __init__(self, peer: ModuleType) -> None:
        self.peer = peer
        self.release: Callable[[], object] = getattr(peer, "release", lambda: None)
        self.inputs: Inputs | None = None
        self.sets = 1
        self.calls: dict[str, list[Calls]] = {}

    def open(
        self,
        folder: str,
        dtypes: dict[str, str],
        device: str = CPU,
        layout: str = CHANNELS_FIRST,
        sets: int = 1,
    ) -> Answer:
        """Take the arrays of a new case, and let go of those of the last."""
        self.calls.clear()
        self.release()
        arrays = read_arrays(Path(folder), dtypes)
        self.inputs = Inputs(**arrays, device=device, layout=layout)
        self.sets = sets
        return {}

    def prepare(self, form: str) -> Answer:
        """Convert the arrays, once for every set of them."""
        assert self.inputs is not None
        prepare = self.peer.FORMS[form].prepare
        try:
            self.calls[form] = [prepare(self.inputs) for _ in range(self.sets)]
        except NotServed as reason:
            return {"not_served": str(reason)}
        algorithm = self.calls[form][0].algorithm
        return {} if algorithm is None else {"algorithm": algorithm}

    def compute(self, form: str, name: str, folder: str) -> Answer:
        """Run a pass once, which also compiles what is compiled, and write its results."""
        calls = self.calls[form][0]
        results = _find(calls, name)()
        calls.wait(results)
        return {"dtypes": write_arrays(Path(folder), calls.to_numpy(results))}

    def measure_memory(self, form: str, name: str) -> Answer:
        assert self.inputs is not None
        calls = self.calls[form][0]
        call = _find(calls, name)
        try:
            if self.inputs.device == CPU:
                return {"bytes": measure_extra_memory(_complete(call, calls.wait), self.release)}
            if not hasattr(self.peer, "measure_memory"):
                raise MemoryUnknown(f"{form}: this library does not tell the peak of a call")
            self.release()
            return {"bytes": self.peer.measure_memory(call)}
        except MemoryUnknown as reason:
            return {"unknown": str(reason)}

    def time(self, form: str, name: str, seconds: float) -> Answer:
        assert self.inputs is not None
        wait = self.calls[form][0].wait
        turns = itertools.cycle([_find(calls, name) for calls in self.calls[form]])
        watch = Watch()
        if self.inputs.device == CPU:
            answer: Answer = {"seconds": time_calls(next(turns), wait, seconds)}
        else:
            answer = asdict(time_queue(lambda: next(turns)(), wait, seconds))
        return {**answer, **watch.stop()}

    def time_yardsticks(self, device: str, dtype: str, seconds: float) -> Answer:
        """Measure what the floor is made of, in operations and in bytes a second."""
        yardsticks: dict[str, Yardstick] = self.peer.make_yardsticks(device, dtype)
        rates = {}
        for name, yardstick in yardsticks.items():
            if device == CPU:
                measured = time_calls(yardstick.call, yardstick.wait, seconds)
            else:
                measured = time_queue(yardstick.call, yardstick.wait, seconds).seconds
            rates[name] = yardstick.amount / measured
        return rates

    def describe_device(self) -> Answer:
        described: Answer = self.peer.describe_device()
        return described


def _find(calls: Calls, name: str) -> Callable[[], dict[str, Any]]:
    call = calls.forward if name == FORWARD else calls.forward_backward
    assert call is not None
    return call


def _complete(
    call: Callable[[], dict[str, Any]], wait: Callable[[dict[str, Any]], object]
) -> Callable[[], object]:
    def run() -> object:
        results = call()
        wait(results)
        return results

    return run


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
        name: {
            "function": form.function,
            "passes": list(form.passes),
            "devices": list(form.devices),
        }
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
