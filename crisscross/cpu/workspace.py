"""Scratch memory that outlives a call: fresh pages cost more than what is computed in them."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np

#: Most bytes kept between calls, beside kits.
KEPT_BYTES = 192 << 20
#: Most kinds of kits that are kept, the last ones used; how many of each; and the bytes of one.
_KINDS, _KITS_OF_KIND = 32, 2
KIT_BYTES = 1 << 20
_ALIGNMENT = 64


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Oldest first.
        self.free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """Return an aligned buffer: the smallest that is large enough, or a fresh one."""
        with self.lock:
            fitting = [
                (buffer.nbytes, number)
                for number, buffer in enumerate(self.free)
                if size <= buffer.nbytes <= 2 * size + 65536
            ]
            if fitting:
                return self.free.pop(min(fitting)[1])
        raw = np.empty(size + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        return raw[start : start + size]

    def put_back(self, buffers: list[np.ndarray]) -> None:
        with self.lock:
            self.free += [buffer for buffer in buffers if buffer.nbytes <= KEPT_BYTES]
            excess = sum(buffer.nbytes for buffer in self.free) - KEPT_BYTES
            while excess > 0:
                excess -= self.free.pop(0).nbytes


_pool = _Pool()


def clear_workspace() -> None:
    """Free the scratch memory that the `cpu` backend keeps between calls, 256 MiB at most.

    Calls at work in other threads are not disturbed.

    Examples
    --------
    >>> import crisscross
    >>> crisscross.clear_workspace()
    """
    with _pool.lock:
        _pool.free.clear()
    find_shelf.cache_clear()


class Shelf:
    """Kits of one kind that nobody uses: scratch and its views, prepared for calls of that kind.

    Without a lock: each step is one of the interpreter's, also where a signal interrupts a call.
    """

    def __init__(self) -> None:
        self._kits: deque[Any] = deque(maxlen=_KITS_OF_KIND)

    def take(self) -> Any:
        """Return a kit, which is the caller's until it is put back, or None."""
        try:
            return self._kits.pop()
        except IndexError:
            return None

    def put_back(self, kit: object) -> None:
        self._kits.append(kit)


@lru_cache(_KINDS)
def find_shelf(_kind: Hashable) -> Shelf:
    """Find the kits of a kind."""
    return Shelf()


class Workspace:
    """Arrays of uninitialised scratch, lent until the `with` block ends."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._named: dict[str, np.ndarray] = {}

    def reuse(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Lend the memory called `name`, again if it was lent before; what it held is lost."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        buffer = self._named.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = _pool.take(size)
            self._buffers.append(buffer)
            self._named[name] = buffer
        return _view(buffer, shape, dtype)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._buffers:
            _pool.put_back(self._buffers)
            self._buffers, self._named = [], {}


def _view(buffer: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    view: np.ndarray = buffer[:size].view(dtype).reshape(shape)
    return view


def _start_afresh() -> None:
    """In a forked child the lock may be held by a thread that is not there."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
