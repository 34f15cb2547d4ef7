"""How a call is timed: one that is complete when it returns, and one that leaves work on a GPU."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "time_calls", "time_queue"]

Call = Callable[[], Any]
Wait = Callable[[Any], object]

_LONG_CALL_SECONDS = 0.5
#: After a pause the scheduler may leave the threads of a library on one CPU for some 50 ms, and a
#: GPU its clocks low.
_WARM_UP_SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """Seconds of a call among others that are queued behind it.

    Attributes
    ----------
    seconds : float
        Of a call, in a row of many.
    launch : float
        Of one call alone, until it returns: the host's part.
    latency : float
        Of one call alone, until its results are complete.
    """

    seconds: float
    launch: float
    latency: float


def time_calls(call: Call, wait: Wait, seconds: float) -> float:
    """Return the seconds a call takes: after calls to warm up, as many as fill `seconds`.

    Each is waited for. A call so long that it warms itself up counts by itself.
    """
    with _without_garbage_collection():
        first, _ = _repeat(call, wait, 0.0)
        if first >= _LONG_CALL_SECONDS:
            return first
        _repeat(call, wait, _WARM_UP_SECONDS - first)
        elapsed, count = _repeat(call, wait, seconds)
        return elapsed / count


def time_queue(call: Call, wait: Wait, seconds: float) -> Timing:
    """Time a call that may return before its work is done.

    After calls to warm up, one by itself; then as many as fill `seconds`, one behind the other, and
    the last is waited for.
    """
    with _without_garbage_collection():
        wait(call())
        warm_up = _time_one(call, wait)
        _time_row(call, wait, _count(_WARM_UP_SECONDS, warm_up.latency))
        one = _time_one(call, wait)
        count = _count(seconds, one.latency)
        return Timing(_time_row(call, wait, count) / count, one.launch, one.latency)


def _count(seconds: float, latency: float) -> int:
    """Count the calls that take at most `seconds`, and one at least."""
    return max(1, math.floor(seconds / latency))


def _time_one(call: Call, wait: Wait) -> Timing:
    start = time.perf_counter()
    results = call()
    launched = time.perf_counter()
    wait(results)
    latency = time.perf_counter() - start
    return Timing(latency, launched - start, latency)


def _time_row(call: Call, wait: Wait, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        results = call()
    wait(results)
    return time.perf_counter() - start


def _repeat(call: Call, wait: Wait, seconds: float) -> tuple[float, int]:
    """Call at least once, until `seconds` are over; return the seconds it took and how often."""
    start = time.perf_counter()
    count = 0
    while True:
        wait(call())
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed, count


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
