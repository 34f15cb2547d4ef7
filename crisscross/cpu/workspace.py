"""Scratch memory that outlives a call: fresh pages cost more than what is computed in them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np

#: Most bytes kept between calls: of buffers, and of kits.
KEPT_BYTES, KEPT_KIT_BYTES = 240 << 20, 16 << 20
_ALIGNMENT = 64


class Kit(Protocol):
    """Scratch and its views, prepared for one kind of call."""

    kind: Hashable
    nbytes: int


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Oldest first.
        self.free: list[np.ndarray] = []
        #: By what they are made for.
        self.kits: dict[Hashable, list[Any]] = {}
        self.kit_bytes = 0

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

    def take_kit(self, kind: Hashable) -> Any:
        """Return a kit of that kind, or None."""
        with self.lock:
            kits = self.kits.get(kind)
            if not kits:
                return None
            kit = kits.pop()
            self.kit_bytes -= kit.nbytes
            return kit

    def put_back_kit(self, kit: Kit) -> None:
        with self.lock:
            if self.kit_bytes + kit.nbytes > KEPT_KIT_BYTES:
                self.drop_kits()
            self.kits.setdefault(kit.kind, []).append(kit)
            self.kit_bytes += kit.nbytes

    def drop_kits(self) -> None:
        """Drop all, for which the lock is held: to find the oldest would cost every call."""
        self.kits.clear()
        self.kit_bytes = 0

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
        _pool.drop_kits()


def take_kit(kind: Hashable) -> Any:
    """Return a kit of that kind that was kept, or None; it is the caller's until it is kept."""
    return _pool.take_kit(kind)


def keep_kit(kit: Kit) -> None:
    """Keep a kit for the next call of its kind."""
    _pool.put_back_kit(kit)


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
