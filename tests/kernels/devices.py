"""Devices that tests of kernels run on: the emulator and, under the mark `gpu`, a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.lib.array_utils import byte_bounds

from crisscross import gpu
from crisscross.dispatch import Held
from crisscross.kernels import attention
from crisscross.kernels.engine import Engine
from crisscross.kernels.select import Selection
from crisscross.kernels.tables import TERMS, Direction, find_dtype
from crisscross.kernels.tiles import Tile
from crisscross.testing import AttentionCase, make_case, numpy_dtype
from crisscross.view import View, find_strides
from tests.emulator.launch import Schedule
from tests.emulator.memory import allocate, place
from tests.kernels.emulated import EmulatedArray, EmulatorEngine

#: Each array on a GPU in an allocation of its own, where `compute-sanitizer` sees a step beyond it.
EXACT = {"": False, "exact": True}[os.environ.get("KERNEL_MEMORY", "")]
#: What NumPy and CuPy align memory to, at the least; arrays that are off it stay off it.
_ALIGNMENT = 16
#: A schedule of the emulator's, and its seed.
Order = tuple[Schedule, int]

# Tests replace what is in the room `gpu`.
open_gpu = gpu.open_device


class Bench(Protocol):
    """A device, and arrays on it, which are gone when it is closed.

    Attributes
    ----------
    orders
        The orders of the threads that results are to be the same in.
    """

    orders: tuple[Order | None, ...]

    def put(self, array: np.ndarray) -> View:
        """Copy an array to memory of its extent, strides and all."""

    def make(self, shape: tuple[int, ...], dtype: str) -> View:
        """Make an array that is NaN all over."""

    def get(self, view: View) -> np.ndarray:
        """Copy an array back."""

    def open(self, order: Order | None = None) -> Any:
        """Open the device, as a context, for an engine."""


class EmulatedBench:
    """The emulator."""

    orders: tuple[Order | None, ...] = (
        (Schedule.ASCENDING, 0),
        (Schedule.DESCENDING, 0),
        *((s, seed) for seed in (1, 2) for s in (Schedule.SHUFFLED, Schedule.SHUFFLED_BY_WARP)),
    )

    def __init__(
        self,
        order: Order = (Schedule.ASCENDING, 0),
        engine: Callable[..., EmulatorEngine] = EmulatorEngine,
    ) -> None:
        self._order, self._engine = order, engine
        self._arrays: dict[View, EmulatedArray] = {}

    def put(self, array: np.ndarray) -> View:
        return self._keep(copy_to_emulator(array))

    def make(self, shape: tuple[int, ...], dtype: str) -> View:
        return self._keep(EmulatedArray(allocate(shape, numpy_dtype(dtype))))

    def _keep(self, array: EmulatedArray) -> View:
        self._arrays[array.view] = array
        return array.view

    def get(self, view: View) -> np.ndarray:
        return self._arrays[view].array.copy()

    @contextmanager
    def open(self, order: Order | None = None) -> Iterator[EmulatorEngine]:
        schedule, seed = order or self._order
        yield self._engine(schedule=schedule, seed=seed)
        self._arrays.clear()


class GpuBench:
    """The first GPU, or the reason why there is none."""

    orders: tuple[Order | None, ...] = (None,)

    def __init__(self) -> None:
        require_gpu()
        self._arrays: dict[View, Any] = {}

    def put(self, array: np.ndarray) -> View:
        return self._keep(copy_to_gpu(array))

    def make(self, shape: tuple[int, ...], dtype: str) -> View:
        return self._keep(make_poisoned(shape, find_strides(shape), dtype).owner)

    def _keep(self, array: Any) -> View:
        from crisscross.gpu import cupy_arrays

        view = cupy_arrays.hold(array, 0).view
        self._arrays[view] = array
        return view

    def get(self, view: View) -> np.ndarray:
        return copy_from_gpu(self._arrays[view])

    @contextmanager
    def open(self, _order: Order | None = None) -> Iterator[Engine]:
        with open_gpu("cuda:0", None, make_poisoned) as backend:
            yield backend.engine
        self._arrays.clear()


def make_arithmetic_case(
    spatial: tuple[int, ...], arithmetic: str, **options: Any
) -> AttentionCase:
    """Make a case that asks for an arithmetic of the tables."""
    precision = arithmetic if arithmetic in TERMS else "ieee"
    return make_case(spatial, dtype=find_dtype(arithmetic), precision=precision, **options)


def run_forward(bench: Bench, engine: Engine, case: AttentionCase) -> dict[str, View | None]:
    """Run the forward on views of a case's arrays; return all of them by name."""
    problem = case.problem
    given = {name: getattr(case, name) for name in ("q", "k", "v", "key_mask")}
    views = {name: None if x is None else bench.put(x) for name, x in given.items()}
    views["out"] = bench.make(case.v.shape, problem.dtype)
    views["lse"] = bench.make(problem.lse_shape, problem.compute_dtype)
    attention.attention_forward(engine, problem, **views)
    return views


def run_attention(bench: Bench, engine: Engine, case: AttentionCase) -> dict[str, View | None]:
    """Run forward and backward on views of a case's arrays; return all of them by name."""
    views = run_forward(bench, engine, case)
    for name in ("dout", "dlse"):
        array = getattr(case, name)
        views[name] = None if array is None else bench.put(array)
    for name, like in {"dq": case.q, "dk": case.k, "dv": case.v}.items():
        views[name] = bench.make(like.shape, case.problem.dtype)
    attention.attention_backward(engine, case.problem, **views)
    return views


@contextmanager
def select_tile(direction: Direction, tile: Tile) -> Iterator[None]:
    """Select a tile for all strips in one direction, and the other's as ever."""
    kept = attention.select

    def select(other: Direction, *problem: Any, **options: Any) -> Selection:
        if other == direction:
            return Selection(tile, "asked for by a test")
        return kept(other, *problem, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "select", select)
        yield


#: Either of them, for tests that are given a `bench`.
GPU = pytest.param(GpuBench, id="gpu", marks=pytest.mark.gpu)
BENCHES = [pytest.param(EmulatedBench, id="emulator"), GPU]


def copy_to_emulator(array: np.ndarray) -> EmulatedArray:
    """Copy an array to memory of its extent, strides, alignment and all."""
    low, _ = byte_bounds(array)
    return EmulatedArray(place(array, offset=low % _ALIGNMENT))


def require_gpu() -> Any:
    """Return CuPy, or skip the test and say why there is no GPU."""
    problem = gpu.find_device_problem()
    if problem is not None:
        pytest.skip(problem)
    import cupy

    if EXACT:
        cupy.cuda.set_allocator(None)
    return cupy


def copy_to_gpu(array: np.ndarray) -> Any:
    """Copy an array to memory of its extent, strides, alignment and all; NaN lies in between."""
    import cupy

    if array.size == 0:
        return cupy.ndarray(array.shape, array.dtype)
    low, high = byte_bounds(array)
    offset = low % _ALIGNMENT
    filled = np.full(offset + high - low, 0xFF, np.uint8)
    first = offset + array.ctypes.data - low
    np.ndarray(array.shape, array.dtype, filled, first, array.strides)[...] = array
    memory = cupy.asarray(filled)
    return cupy.ndarray(array.shape, array.dtype, memory.data + first, array.strides)


def copy_from_gpu(array: Any) -> np.ndarray:
    """Copy an array back byte by byte, strides and all."""
    import cupy

    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(min(step, 0) for step in steps)
    extent = before + sum(max(step, 0) for step in steps) + array.dtype.itemsize
    memory = cupy.ndarray((extent,), np.uint8, array.data - before).get()
    return np.ndarray(array.shape, array.dtype, memory, before, array.strides)


def make_poisoned(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Held:
    """Make an array as CuPy does, but NaN all over: what an earlier run left there would pass."""
    from crisscross.gpu import cupy_arrays

    held = cupy_arrays.make_array(shape, strides, dtype)
    if held.owner.size:
        held.owner.data.memset_async(0xFF, held.owner.nbytes)
    return held
