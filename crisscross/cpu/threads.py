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
from concurrent.futures import ThreadPoolExecutor
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
    if not text:
        return max(blas_threads, default=os.cpu_count() or 1)
    if not text.strip().isdecimal() or int(text) < 1:
        mismatch = Mismatch(ENVIRONMENT_VARIABLE, "a whole number of at least 1", repr(text))
        raise ArgumentError("environment", [mismatch])
    return int(text)


def find_libraries() -> list[Any]:
    """Find the BLAS libraries in the process; the first call takes milliseconds."""
    if _state.libraries is None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        _state.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return _state.libraries


def _list_blas_threads() -> list[int]:
    return [library.get_num_threads() for library in find_libraries()]


@contextmanager
def hold_blas() -> Iterator[int]:
    """Hold BLAS to one thread; yield how many threads the caller may use instead."""
    threads = _enter()
    try:
        yield threads
    finally:
        _leave()


def _enter() -> int:
    with _state.lock:
        before = _state.before or _list_blas_threads()
        threads = _count_threads(before)
        _state.callers += 1
        if _state.callers == 1:
            _state.before = before
            _set_blas_threads([1] * len(before))
    return threads


def _leave() -> None:
    with _state.lock:
        if _state.callers == 1:
            _set_blas_threads(_state.before)
            _state.before = []
        _state.callers -= 1


def _set_blas_threads(numbers: list[int]) -> None:
    for library, number in zip(find_libraries(), numbers, strict=True):
        # From 3.7 on threadpoolctl lets only the first thread that ever set an OpenBLAS set it
        # again, and silently ignores the others. Here the callers of all threads are counted.
        set_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
        set_threads(number)


class _Queue(Generic[Task]):
    """Tasks that several threads take from, and how many threads are at them."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._open = True
        self._workers = 0
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        with self._changed:
            return next(self._tasks)

    def join(self) -> bool:
        """Count in a thread, unless the queue is closed."""
        with self._changed:
            self._workers += self._open
            return self._open

    def leave(self, error: BaseException | None) -> None:
        """Count out a thread; after an error there are no more tasks."""
        with self._changed:
            self._workers -= 1
            if error is not None:
                self.error = self.error or error
                self._tasks = iter(())
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody join any more, and wait for those who have.

        Interrupted, it still waits: they write to memory of the caller's.
        """
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with self._changed:
                    self._open = False
                    self._tasks = iter(())
                    self._changed.wait_for(lambda: self._workers == 0)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def run_tasks(work: Callable[[Iterator[Task]], None], tasks: list[Task], threads: int) -> None:
    """Let up to `threads` threads, the caller among them, run `work` on shares of the tasks.

    `work` takes tasks from an iterator until there are none. The first exception ends the others
    after the task they are at, and is raised here. However this ends, no thread is at work then.
    """
    queue = _Queue(tasks)

    def help_out() -> None:
        # One that other callers kept waiting until all was done finds the queue closed.
        if not queue.join():
            return
        error: BaseException | None = None
        try:
            # NumPy's error state belongs to each thread.
            with np.errstate(all="ignore"):
                work(iter(queue))
        except BaseException as caught:
            error = caught
        finally:
            queue.leave(error)

    try:
        for _ in range(min(threads, len(tasks)) - 1):
            try:
                _find_executor().submit(help_out)
            except RuntimeError:
                # No more threads can be started, or none while the interpreter shuts down: those
                # that there are do the work.
                break
        work(iter(queue))
    finally:
        queue.close()
    if queue.error is not None:
        raise queue.error


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
    if parent.before:
        _set_blas_threads(parent.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
