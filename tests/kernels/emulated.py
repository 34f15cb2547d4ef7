"""A device of the emulator's: its engine, and an array library that has memory there."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from crisscross.bridge.capsule import numpy_bfloat16
from crisscross.dispatch import Held
from crisscross.kernels.engine import Limits
from crisscross.view import View
from tests.emulator.build import Mode, Source, default_mode
from tests.emulator.launch import Module, Result, Schedule
from tests.emulator.memory import allocate

H100 = Limits(architecture=90, shared_bytes=227 << 10, cache_bytes=50 << 20)
STREAM = 77

#: All memory of the device.
_memories: weakref.WeakSet[EmulatedArray] = weakref.WeakSet()


class EmulatedArray:
    """An array of the library `emulated`, which speaks DLPack and little else."""

    __module__ = "emulated.core"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, f"emulated.{array.dtype.name}"
        self.streams: list[int | None] = []  # those that asked for the memory
        _memories.add(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        self.streams.append(stream)
        return _make_capsule(self)

    @property
    def view(self) -> View:
        return view_of(self.array)


def view_of(array: np.ndarray) -> View:
    """View the memory of a NumPy array."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(array.ctypes.data, array.shape, strides, array.dtype.name)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_CODES = {"bool": 6, "bfloat16": 4, "int32": 0}
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def _make_capsule(owner: EmulatedArray) -> Any:
    view, ndim = owner.view, len(owner.shape)
    sizes = ctypes.c_int64 * ndim
    shape, strides = sizes(*view.shape), sizes(*view.strides)
    # An offset, which every library may use and few do.
    tensor = _Tensor(
        data=view.pointer - 64,
        device=(2, 0),
        ndim=ndim,
        code=_CODES.get(view.dtype, 2),
        bits=8 * owner.array.itemsize,
        lanes=1,
        shape=shape,
        strides=strides,
        byte_offset=64,
    )
    owner.exported = (tensor, shape, strides)  # no deleter is ever called: it lives with its owner
    return _new_capsule(ctypes.addressof(tensor), b"dltensor", None)


@cache
def load(name: str, text: str, options: tuple[str, ...], mode: Mode) -> Module:
    return Module(Source(text, name=name, options=options, mode=mode))


@dataclass
class EmulatorEngine:
    """The device at work.

    It tells what it compiled and launched, with which arguments and results, and the bytes of each
    array that it made.
    """

    limits: Limits = H100
    schedule: Schedule = Schedule.ASCENDING
    seed: int = 0
    stream: int = STREAM
    mode: Mode = field(default_factory=default_mode)
    launches: list[str] = field(default_factory=list)
    arguments: list[np.ndarray] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    compiled: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    results: list[tuple[str, Result]] = field(default_factory=list)

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        assert shared_bytes <= self.limits.shared_bytes
        self.compiled.add((kernel, options))
        return load(f"{kernel}.cu", source, options, self.mode), kernel

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        module, name = kernel
        assert 0 < grid <= self.limits.grid
        self.launches.append(name)
        self.arguments.append(argument[0].copy())
        result = module.launch(
            name,
            (grid,),
            (block,),
            (argument[0],),
            shared_bytes=shared_bytes,
            schedule=self.schedule,
            seed=self.seed + len(self.launches),
            arrays=_find_arrays(argument),
        )
        self.results.append((name, result))

    def make(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, /) -> Held:
        """Make an array that is NaN all over."""
        numpy_dtype = numpy_bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
        memory = allocate(int(np.prod(shape)), numpy_dtype)
        self.made.append(memory.nbytes)
        in_bytes = [stride * memory.itemsize for stride in strides]
        owner = EmulatedArray(np.lib.stride_tricks.as_strided(memory, shape, in_bytes))
        return Held(owner.view, owner)

    def keep(self, owners: Sequence[Any], /) -> None:
        self.kept += owners

    def wait_for(self, stream: int) -> None:
        assert stream != self.stream


def _find_arrays(argument: np.ndarray) -> Mapping[str, np.ndarray]:
    """Find the memory that the pointers of a structure lead to, by the names they have there."""
    found, known = {}, set()
    memories = [each.array for each in _memories if each.array.size]
    bounds = [(*np.lib.array_utils.byte_bounds(array), array) for array in memories]
    for name in argument.dtype.names:
        if "data" not in (argument.dtype[name].base.names or ()):
            continue
        for i, pointer in enumerate(argument[name]["data"].reshape(-1)):
            for low, high, array in bounds:
                if low <= pointer < high and low not in known:
                    known.add(low)
                    found[f"{name}[{i}]" if i else name] = array
    return found
