"""How many threads work on a call, and how NumPy's BLAS is held to one meanwhile.

Strips are spread over a pool of Python threads, each of which calls BLAS for its own strips. A BLAS
that started threads of its own under each of them would be several times slower, so it is held to
one thread while any call is at work. That setting belongs to the whole process: it is made when
the first of several concurrent callers comes, and undone when the last one leaves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from crisscross.errors import ArgumentError, ArgumentTypeError, Mismatch

#: Environment variable with the number of threads, where `set_num_threads` was not called.
ENVIRONMENT_VARIABLE = "CRISSCROSS_NUM_THREADS"

#: Threads of the pool, started as they are needed; more helpers than these wait in line.
_MOST_HELPERS = 64

Task = TypeVar("Task")


class _State:
    """What the process holds; a forked child starts afresh."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requested: int | None = None
        self.libraries: list[Any] | None = None
        self.callers = 0
        #: Threads of each BLAS before it was held to one; empty while it is not.
        self.before: list[int] = []
        self.executor: ThreadPoolExecutor | None = None


_state = _State()


def set_num_threads(threads: int | None) -> None:
    """Set how many threads the `cpu` backend uses from the next call on.

    Parameters
    ----------
    threads : int or None
        At least 1. None returns to the default: the environment variable
        ``CRISSCROSS_NUM_THREADS`` or, without it, as many threads as NumPy's BLAS is set to.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For anything else.

    Notes
    -----
    The number of threads never changes a bit of a result.

    Examples
    --------
    >>> import crisscross
    >>> crisscross.set_num_threads(1)
    >>> crisscross.get_num_threads()
    1
    >>> crisscross.set_num_threads(None)
    """
    if threads is not None:
        got = repr(threads)
        if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
            mismatch = Mismatch("threads", "an int of at least 1, or None", got)
            raise ArgumentTypeError("set_num_threads", [mismatch])
        if threads < 1:
            raise ArgumentError("set_num_threads", [Mismatch("threads", "at least 1", got)])
    with _state.lock:
        _state.requested = None if threads is None else int(threads)


def get_num_threads() -> int:
    """Return how many threads the next call of the `cpu` backend uses.

    Returns
    -------
    int
        As set by `set_num_threads`, by ``CRISSCROSS_NUM_THREADS``, or by NumPy's BLAS.

    Raises
    ------
    ArgumentError
        If ``CRISSCROSS_NUM_THREADS`` is not a whole number of at least 1.

    Examples
    --------
    >>> import crisscross
    >>> crisscross.get_num_threads() >= 1
    True
    """
    with _state.lock:
        return _count_threads(_state.before or _list_blas_threads())


def _count_threads(blas_threads: list[int]) -> int:
    if _state.requested is not None:
        return _state.requested
    text = os.environ.get(ENVIRONMENT_VARIABLE)
    if text is None:
        return max(blas_threads, default=os.cpu_count() or 1)
    if not text.strip().isdecimal() or int(text) < 1:
        mismatch = Mismatch(ENVIRONMENT_VARIABLE, "a whole number of at least 1", repr(text))
        raise ArgumentError("environment", [mismatch])
    return int(text)


def _find_libraries() -> list[Any]:
    """Find the BLAS libraries in the process; the first call takes milliseconds."""
    if _state.libraries is None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        _state.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return _state.libraries


def _list_blas_threads() -> list[int]:
    return [library.get_num_threads() for library in _find_libraries()]


@contextmanager
def hold_blas() -> Iterator[int]:
    """Hold BLAS to one thread; yield how many threads the caller may use instead."""
    with _state.lock:
        if _state.callers == 0:
            _state.before = _list_blas_threads()
        threads = _count_threads(_state.before)
        if _state.callers == 0:
            _set_blas_threads([1] * len(_state.before))
        _state.callers += 1
    try:
        yield threads
    finally:
        with _state.lock:
            _state.callers -= 1
            if _state.callers == 0:
                _set_blas_threads(_state.before)
                _state.before = []


def _set_blas_threads(numbers: list[int]) -> None:
    for library, number in zip(_find_libraries(), numbers, strict=True):
        # From 3.7 on threadpoolctl lets only the first thread that ever set an OpenBLAS set it
        # again, and silently ignores the others. Here the callers of all threads are counted.
        set_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
        set_threads(number)


class _Queue(Generic[Task]):
    """Tasks that several threads take from."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        with self._lock:
            return next(self._tasks)

    def close(self) -> None:
        with self._lock:
            self._tasks = iter(())


def run_tasks(work: Callable[[Iterator[Task]], None], tasks: list[Task], threads: int) -> None:
    """Let up to `threads` threads, the caller among them, run `work` on shares of the tasks.

    `work` takes tasks from an iterator until there are none. The first exception ends the others
    after the task they are at, and is raised here.
    """
    queue = _Queue(tasks)

    def run() -> None:
        # NumPy's error state belongs to each thread.
        with np.errstate(all="ignore"):
            try:
                work(iter(queue))
            except BaseException:
                queue.close()
                raise

    helpers: list[Future[None]] = []
    try:
        for _ in range(min(threads, len(tasks)) - 1):
            helpers.append(_find_executor().submit(run))
    except RuntimeError:
        # No thread can be started while the interpreter shuts down: the caller works alone.
        pass
    try:
        run()
    finally:
        # A helper that other callers kept waiting has nothing left to do.
        started = [helper for helper in helpers if not helper.cancel()]
        wait(started)
    for helper in started:
        helper.result()


def _find_executor() -> ThreadPoolExecutor:
    with _state.lock:
        if _state.executor is None:
            _state.executor = ThreadPoolExecutor(_MOST_HELPERS, thread_name_prefix="crisscross")
        return _state.executor


def _start_afresh() -> None:
    """In a forked child: no thread but this one lives, and whoever held BLAS is not among them."""
    global _state
    parent, _state = _state, _State()
    _state.requested, _state.libraries = parent.requested, parent.libraries
    if parent.callers > 0:
        _set_blas_threads(parent.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
