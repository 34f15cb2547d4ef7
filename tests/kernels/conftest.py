"""The devices that kernel tests run on: the emulator, and a GPU under the mark `gpu`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import crisscross.ops.call
from crisscross import gpu
from crisscross.bridge import native
from crisscross.dispatch import Held
from crisscross.ops.backends import Choice, choose_backend
from tests.emulator.launch import Schedule
from tests.kernels.devices import (
    BENCHES,
    Bench,
    copy_from_gpu,
    copy_to_emulator,
    copy_to_gpu,
    make_poisoned,
    open_gpu,
    require_gpu,
)
from tests.kernels.emulated import EmulatedArray, EmulatorEngine
from tests.kernels.sweep import FULL
from tests.support.properties import FEWEST_A_LAW, counted_as

#: Of each law, which has four times as many on the CPU path.
EXAMPLES_OF_A_SAMPLE = 25


class EmulatedDevice:
    """The emulator in place of a GPU."""

    def __init__(self) -> None:
        self.engine = EmulatorEngine(schedule=Schedule.SHUFFLED, seed=1)

    @contextmanager
    def open(self, _device: str, stream: int | None, make: Any) -> Iterator[gpu.GpuBackend]:
        assert stream is None and make is None
        yield gpu.GpuBackend(self.engine)

    @staticmethod
    def hold(array: np.ndarray, _stream: int) -> Held:
        copy = copy_to_emulator(array)
        return Held(copy.view, copy)

    @staticmethod
    def take(owner: EmulatedArray, _like: Any) -> np.ndarray:
        return owner.array


class CupyDevice:
    """The first GPU."""

    @staticmethod
    def open(_device: str, stream: int | None, make: Any) -> Any:
        assert stream is None and make is None
        return open_gpu("cuda:0", None, make_poisoned)

    @staticmethod
    def hold(array: np.ndarray, stream: int) -> Held:
        from crisscross.gpu import cupy_arrays

        return cupy_arrays.hold(copy_to_gpu(array), stream)

    @staticmethod
    def take(owner: Any, _like: Any) -> np.ndarray:
        return copy_from_gpu(owner)


def _choose(function: str, _device: str, backend: str | None, library: str) -> Choice:
    """Choose the kernels for every array, unless another backend is asked for."""
    if backend is None:
        return Choice("gpu", "", ())
    return choose_backend(function, "cpu", backend, library)


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmulatedDevice | CupyDevice]:
    """Let the kernels serve NumPy arrays, which are copied to a device and back."""
    if request.param == "gpu":
        require_gpu()
    found = EmulatedDevice() if request.param == "emulator" else CupyDevice()
    monkeypatch.setattr(crisscross.ops.call, "recall_choice", _choose)
    monkeypatch.setattr(native, "find_stream", lambda _array: None, raising=False)
    monkeypatch.setattr(native, "find_maker", lambda _like: None, raising=False)
    monkeypatch.setattr(native, "hold", found.hold, raising=False)
    monkeypatch.setattr(native, "take", found.take, raising=False)
    monkeypatch.setattr(gpu, "open_device", found.open)
    with counted_as(f"on the {request.param}", FEWEST_A_LAW if FULL else EXAMPLES_OF_A_SAMPLE):
        yield found


@pytest.fixture(params=BENCHES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """Give tests a device whose kernels they launch themselves."""
    made: Bench = request.param()
    return made


@pytest.fixture
def emulated_device(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """Stand the emulator in for CUDA devices, and for its arrays a library."""
    found = EmulatedDevice()
    package = types.ModuleType("emulated")
    package.from_dlpack = lambda array: array
    monkeypatch.setitem(sys.modules, "emulated", package)
    monkeypatch.setattr(gpu, "open_device", found.open)
    monkeypatch.setattr(gpu, "find_unavailability", lambda _device: None)
    return found
