"""Launch compiled kernels on NumPy arrays, which are passed where they lie."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tests.emulator import sanitizers
from tests.emulator.build import Mode, Source, build
from tests.emulator.symbols import Symbols
from tests.emulator.trace import Trace, name_places, read_trace

_STACK_BYTES = {Mode.PLAIN: 64 << 10, Mode.TRACED: 128 << 10, Mode.SANITIZED: 256 << 10}
_ALL_BLOCKS = range(2**63)

# A library is loaded once in a process, and has room for one launch.
_LOCK = Lock()
#: The library that launched last, and has the stacks of its threads still.
_last: ctypes.CDLL | None = None


class Schedule(IntEnum):
    """The order in which threads that can run do run; the shuffled ones follow a seed."""

    ASCENDING = 0
    DESCENDING = 1
    SHUFFLED = 2
    SHUFFLED_BY_WARP = 3


class LaunchError(Exception):
    """What went wrong in the kernel, where, in which block and thread."""


class _Request(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_bytes", ctypes.c_uint64),
        ("stack_bytes", ctypes.c_uint64),
        ("first_block", ctypes.c_uint64),
        ("last_block", ctypes.c_uint64),
        ("first_counted", ctypes.c_uint64),
        ("last_counted", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("schedule", ctypes.c_uint32),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("collectives", ctypes.c_uint64),
        ("error", ctypes.c_char * 2048),
    )


class _Variable(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    )


@dataclass(frozen=True)
class Result:
    """What a launch did: blocks run, switches of fibers, arrivals at barriers and collectives.

    `trace` is None unless the kernel was compiled to be traced.
    """

    blocks: int
    switches: int
    barriers: int
    collectives: int
    trace: Trace | None


class Module:
    """The kernels of a source, compiled and loaded.

    Attributes
    ----------
    shared
        Bytes of each static shared-memory variable, by its name in C++.
    """

    def __init__(self, source: Source) -> None:
        if source.mode is Mode.SANITIZED and not sanitizers.are_loaded():
            raise RuntimeError("sanitized kernels need a process of sanitizers.environment()")
        self._source = source
        self._path = build(source)
        self._library = ctypes.CDLL(str(self._path))
        symbols = Symbols(self._path)
        anchor = ctypes.cast(self._library.emulator_set_shared, ctypes.c_void_p).value
        assert anchor is not None
        self._base = anchor - symbols.find("emulator_set_shared").address
        shared = symbols.list_shared()
        names = _demangle([symbol.name for symbol in shared])
        self.shared = {name: symbol.size for name, symbol in zip(names, shared, strict=True)}
        self._shared = _make_variables(
            (self._base + symbol.address, symbol.size, name)
            for name, symbol in zip(names, shared, strict=True)
        )

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
        schedule: Schedule = Schedule.ASCENDING,
        seed: int = 0,
        arrays: Mapping[str, np.ndarray] | None = None,
        blocks: range = _ALL_BLOCKS,
        counted: range = _ALL_BLOCKS,
    ) -> Result:
        """Run a kernel.

        Parameters
        ----------
        arguments
            Arrays are passed as pointers to where they lie, whatever their strides; structures of
            no dimension by value; scalars with CuPy's sizes: an `int` has 64 bits, a `float` too.
        arrays
            Names of memory that a traced kernel is watched in. Arrays among the arguments are
            "argument 0" and so on unless they are named here.
        blocks
            The blocks to run, by their numbers, x fastest.
        counted
            The blocks whose accesses a traced kernel counts; races are looked for in all.

        Raises
        ------
        LaunchError
            If an argument has not the size that the kernel expects, or the kernel fails.
        """
        assert blocks.step == counted.step == 1
        values = self._pack(kernel, arguments)
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        named = _name_arrays(arguments, arrays or {})
        request = _Request(
            grid=_three(grid),
            block=_three(block),
            dynamic_bytes=shared_bytes,
            stack_bytes=_STACK_BYTES[self._source.mode],
            first_block=blocks.start,
            last_block=blocks.stop,
            first_counted=counted.start,
            last_counted=counted.stop,
            seed=seed,
            schedule=schedule,
        )
        report = _Report()
        run = getattr(self._library, f"emulator_launch_{kernel}")
        with _LOCK:
            self._take_over()
            self._library.emulator_set_shared(self._shared, len(self._shared))
            self._library.emulator_set_arrays(named, len(named))
            failed = run(ctypes.byref(request), pointers, ctypes.byref(report))
            trace = None
            if self._source.mode is Mode.TRACED and not failed:
                trace = read_trace(self._library, self._path, self._base)
        if failed:
            error = name_places(report.error.decode(errors="replace"), self._path, self._base)
            raise LaunchError(f"{kernel} ({self._source.name}), {error}")
        return Result(report.blocks, report.switches, report.barriers, report.collectives, trace)

    def _take_over(self) -> None:
        """Let the library that launched before release its stacks."""
        global _last
        if _last is not None and _last is not self._library:
            _last.emulator_release_stacks()
        _last = self._library

    def _pack(self, kernel: str, arguments: Sequence[Any]) -> list[Any]:
        """Turn arguments into the bytes that the kernel's parameters take."""
        sizes = (ctypes.c_uint32 * 64)()
        try:
            count = getattr(self._library, f"emulator_sizes_{kernel}")(sizes)
        except AttributeError:
            found = ", ".join(self._source.kernels)
            raise LaunchError(f"{self._source.name} has no kernel {kernel}: {found}") from None
        if count != len(arguments):
            raise LaunchError(f"{kernel} takes {count} arguments, got {len(arguments)}")
        values = []
        for number, argument in enumerate(arguments):
            if _is_pointer(argument):
                value = np.asarray(np.uint64(argument.ctypes.data))
            else:
                value = np.asarray(argument)  # as CuPy does: int is int64, float is float64
            if value.nbytes != sizes[number]:
                raise LaunchError(
                    f"{kernel}: argument {number} has {value.nbytes} bytes, "
                    f"the kernel takes {sizes[number]}"
                )
            values.append(ctypes.create_string_buffer(value.tobytes(), value.nbytes))
        return values


def _is_pointer(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and not (argument.ndim == 0 and argument.dtype.names)


def _name_arrays(arguments: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> Any:
    named = dict(arrays)
    known = {byte_bounds(array) for array in named.values()}
    for number, argument in enumerate(arguments):
        if _is_pointer(argument) and argument.size and byte_bounds(argument) not in known:
            named[f"argument {number}"] = argument
    bounds = [(name, byte_bounds(array)) for name, array in named.items() if array.size]
    return _make_variables((low, high - low, name) for name, (low, high) in bounds)


def _three(sizes: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * 3)(*(*sizes, 1, 1)[:3])


def _make_variables(found: Iterable[tuple[int, int, str]]) -> Any:
    variables = [_Variable(address, size, name.encode()) for address, size, name in found]
    return (_Variable * len(variables))(*variables)


def _demangle(names: list[str]) -> list[str]:
    if not names:
        return []
    result = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    full = [line.replace("(anonymous namespace)::", "") for line in result.stdout.splitlines()]
    # Without the parameters of their functions, unless these alone tell them apart.
    short = [re.sub(r"\([^()]*\)(?=::)", "", name) for name in full]
    return short if len(set(short)) == len(short) else full
