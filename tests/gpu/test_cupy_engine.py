"""How the engine of production speaks to CuPy, told by stand-ins for the parts that need a GPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections import deque

import cupy
import numpy as np
import pytest

from crisscross import gpu
from crisscross.dispatch import Held, ObstacleError
from crisscross.errors import BackendError
from crisscross.gpu import cupy_arrays, cupy_engine
from crisscross.kernels.engine import Limits
from crisscross.view import View


class Device(contextlib.AbstractContextManager):
    """`cupy.cuda.Device`: which one is current."""

    current = 0
    attributes = {  # noqa: RUF012 - as CuPy has it
        "ComputeCapabilityMajor": 8,
        "ComputeCapabilityMinor": 6,
        "MaxSharedMemoryPerBlockOptin": 101376,
        "L2CacheSize": 6 << 20,
    }

    def __init__(self, index=None):
        self.id = Device.current if index is None else index

    def __enter__(self):
        self.before, Device.current = Device.current, self.id
        return self

    def __exit__(self, *_):
        Device.current = self.before


class Stream(contextlib.AbstractContextManager):
    """A stream, current while it is entered."""

    current = 0
    log: list = []  # noqa: RUF012 - shared by all

    def __init__(self, ptr):
        self.ptr = ptr

    @classmethod
    def from_external(cls, foreign):
        return cls(foreign.__cuda_stream__()[1])

    def __enter__(self):
        self.before, Stream.current = Stream.current, self.ptr
        return self

    def __exit__(self, *_):
        Stream.current = self.before

    def wait_event(self, _event):
        self.log.append(("wait", self.ptr))


class Event:
    """An event, `done` when the test says so."""

    made: list = []  # noqa: RUF012 - shared by all

    def __init__(self, disable_timing):
        assert disable_timing
        self.done = False
        self.made.append(self)

    def record(self, stream):
        Stream.log.append(("record", stream.ptr))


class OldStream:
    """CuPy 13's class has no `from_external`."""


class RawKernel:
    made: list = []  # noqa: RUF012 - shared by all

    def __init__(self, code, name, options):
        self.code, self.name, self.options = code, name, options
        self.launches = []
        self.max_dynamic_shared_size_bytes = None
        self.made.append(self)

    def compile(self):
        self.device = Device.current

    def __call__(self, grid, block, args, *, shared_mem):
        self.launches.append((grid, block, args, shared_mem, Device.current, Stream.current))


@pytest.fixture(params=["CuPy 14", "CuPy 13"])
def stand_ins(request, monkeypatch):
    monkeypatch.setattr(cupy, "RawKernel", RawKernel)
    monkeypatch.setattr(cupy.cuda, "Device", Device)
    monkeypatch.setattr(cupy.cuda, "Stream", Stream if request.param == "CuPy 14" else OldStream)
    monkeypatch.setattr(cupy.cuda, "ExternalStream", lambda ptr, _index: Stream(ptr))
    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy_engine, "_kept", deque())
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: Stream(100 + Device.current))
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: Device.current)
    monkeypatch.setattr(
        cupy.cuda.runtime, "getDeviceProperties", lambda index: {"name": b"Device %d" % index}
    )
    Device.current = Stream.current = 0
    Stream.log.clear()
    RawKernel.made.clear()
    Event.made.clear()
    cupy_engine.find_limits.cache_clear()
    cupy_engine._compile.cache_clear()
    yield
    cupy_engine.find_limits.cache_clear()
    cupy_engine._compile.cache_clear()


ARGUMENT = np.zeros(1, [("x", "i8")])


def test_a_kernel_is_compiled_once_for_each_device(stand_ins):
    for index in (0, 1, 0):
        with cupy_engine.open_engine(index, None, None) as engine:
            for shared_bytes in (1000, 1000, 60000):
                engine.compile("code", "name", ("-DX=1",), shared_bytes)
    kernels = RawKernel.made
    assert [kernel.device for kernel in kernels] == [0, 0, 1, 1]
    assert all(kernel.options == ("-std=c++17", "-DX=1") for kernel in kernels)
    # More than 48 KiB has to be asked for, and is asked for before the launch.
    assert [kernel.max_dynamic_shared_size_bytes for kernel in kernels] == [None, 60000] * 2


def test_launches_are_on_the_device_and_the_stream(stand_ins):
    with cupy_engine.open_engine(1, 7, None) as engine:
        kernel = engine.compile("code", "name", (), 0)
        engine.launch(kernel, 12, 64, ARGUMENT, 500)
        assert engine.stream == 7
    (launch,) = kernel.launches
    grid, block, (argument,), shared, device, stream = launch
    assert (grid, block, shared, device, stream) == ((12,), (64,), 500, 1, 7)
    # An array, which CuPy passes by value: its bytes from the first on.
    assert type(argument) is np.ndarray and argument is ARGUMENT
    assert (Device.current, Stream.current) == (0, 0)


def test_cupys_current_stream_of_the_device_is_the_default(stand_ins):
    with cupy_engine.open_engine(1, None, None) as engine:
        assert engine.stream == 101


def test_waiting_for_another_stream_is_an_event(stand_ins):
    with cupy_engine.open_engine(0, 7, None) as engine:
        engine.wait_for(7)
        assert Stream.log == []
        engine.wait_for(9)
    assert Stream.log == [("record", 9), ("wait", 7)]


def test_what_is_foreign_is_kept_until_the_work_is_done(stand_ins):
    def count():
        gc.collect()
        return sum(reference() is not None for reference in references)

    owners = [{i} for i in range(3)]  # anything that a weak reference can be made to
    references = [weakref.ref(owner) for owner in owners]
    with cupy_engine.open_engine(0, None, None) as engine:
        for _ in range(3):
            engine.keep([owners.pop(0)])
        engine.keep([])
        assert (count(), len(Event.made)) == (3, 3)
        Event.made[0].done = Event.made[2].done = True
        # In their order: the second is not done.
        engine.keep([{3}])
        assert count() == 2
        Event.made[1].done = True
        engine.keep([{4}])
        assert count() == 0


def test_missing_headers_are_one_sentence(stand_ins, monkeypatch):
    def fail(_self):
        raise cupy.cuda.compiler.CompileException(
            'cannot open source file "cuda_fp16.h"', "", "", (), "nvrtc"
        )

    monkeypatch.setattr(RawKernel, "compile", fail)
    with (
        cupy_engine.open_engine(0, None, None) as engine,
        pytest.raises(BackendError, match=r"no CUDA headers.*pip install 'crisscross"),
    ):
        engine.compile("code", "name", (), 0)


def test_limits_are_the_devices(stand_ins):
    assert cupy_engine.find_limits(0) == Limits(86, 101376, 6 << 20)
    assert gpu.find_architecture("cuda:0") == 86


def test_arrays_are_made_by_whom_the_caller_says(stand_ins):
    made = Held(View(64, (2,), (1,), "float32"), "owner")
    with cupy_engine.open_engine(0, None, lambda *_: made) as engine:
        assert engine.make((2,), (1,), "float32") is made


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_cupys_arrays_have_the_strides_asked_for(monkeypatch, dtype):
    asked = []

    def alloc(nbytes):
        asked.append(nbytes)
        memory = cupy.cuda.UnownedMemory(0, nbytes, None, 0)
        return cupy.cuda.MemoryPointer(memory, 0)

    monkeypatch.setattr(cupy.cuda, "alloc", alloc)
    view, array = cupy_arrays.make_array((2, 3, 4), (12, 1, 3), dtype)[:2]
    assert view == View(0, (2, 3, 4), (12, 1, 3), dtype)
    assert asked == [24 * array.dtype.itemsize]
    assert (array.shape, array.dtype.name) == ((2, 3, 4), dtype)
    assert cupy_arrays.hold(array, 0).view == view
    assert cupy_arrays.take(array, None) is array


def test_the_device_opens_the_engine(stand_ins):
    with gpu.open_device("cuda:1", 7, None) as backend:
        assert backend.engine.stream == 7
        assert Device.current == 1


@pytest.mark.parametrize(("address", "strides"), [(4098, (4,)), (4096, (6,))])
def test_elements_that_are_not_whole_are_refused(address, strides):
    memory = cupy.cuda.UnownedMemory(address, 64, None, 0)
    array = cupy.ndarray((2,), np.float32, cupy.cuda.MemoryPointer(memory, 0), strides)
    with pytest.raises(ObstacleError, match="multiples of the element's 4 bytes"):
        cupy_arrays.hold(array, 0)
