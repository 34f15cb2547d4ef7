"""What other processes take from the CPUs while something is timed."""

from __future__ import annotations

import os
import time

__all__ = ["Watch", "read_busy_seconds"]


class Watch:
    """Measures from where it is made; the CPU time of this process does not count."""

    def __init__(self) -> None:
        self._start, self._own = time.perf_counter(), time.process_time()
        self._busy = read_busy_seconds()

    def stop(self) -> dict[str, float]:
        """Return the seconds since, and the CPU seconds others took, where the system tells.

        The system counts in ticks of 10 ms: one short watch tells little, the sum of many does.
        """
        elapsed, own = time.perf_counter() - self._start, time.process_time() - self._own
        busy = read_busy_seconds()
        if busy is None or self._busy is None:
            return {"watched": elapsed}
        return {"watched": elapsed, "foreign": busy - self._busy - own}


def read_busy_seconds() -> float | None:
    """Return the seconds that all CPUs together were busy since the start, or None."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = ticks
    except (OSError, ValueError):
        return None
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    return busy / os.sysconf("SC_CLK_TCK")
