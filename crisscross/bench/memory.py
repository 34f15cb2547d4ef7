"""How much more memory a call holds at its peak than before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

__all__ = ["MemoryUnknown", "measure_extra_memory"]

#: Linux: reset the peak of the resident memory, VmHWM, to what is resident now.
_RESET_PEAK = "5"


class MemoryUnknown(Exception):  # noqa: N818 - it tells of a limit of the system
    """This system does not tell; the message says what it lacks."""


def measure_extra_memory(call: Callable[[], object], release: Callable[[], object]) -> int:
    """Return the bytes that `call` needs at its peak beyond those held before it, outputs included.

    Parameters
    ----------
    call : callable
        Called once. It should have run before, or what it sets up counts too.
    release : callable
        Drops the library's caches.

    Raises
    ------
    MemoryUnknown
        Where /proc does not tell.
    """
    release()
    gc.collect()
    # What was freed but not returned to the system would be used again, unseen.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write(_RESET_PEAK)
        before = _read("VmRSS")
        results = call()
        peak = _read("VmHWM")
    except OSError as error:
        raise MemoryUnknown(f"not known here: {error}") from error
    del results
    return max(0, peak - before)


def _read(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    raise MemoryUnknown(f"not known here: /proc/self/status has no {field}")
