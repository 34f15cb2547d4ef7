"""The engine of production: CuPy compiles, caches and launches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import cupy
import numpy as np

from crisscross.dispatch import Held, Make
from crisscross.errors import BackendError
from crisscross.gpu.cupy_arrays import make_array
from crisscross.gpu.tuned import Place, find_choices
from crisscross.kernels.engine import Limits

MISSING_HEADERS = (
    "CuPy finds no CUDA headers, which 16-bit types need: pip install "
    "'crisscross-attention[cuda12]', or [cuda13], after the CUDA version of the driver"
)
#: Shared memory that a kernel may have without asking.
_SHARED_BYTES_UNASKED = 48 << 10
OPTIONS = ("-std=c++17",)

#: Events, and what may go when they have come to pass.
_kept: deque[tuple[Any, Sequence[Any]]] = deque()
_kept_lock = Lock()


class CupyEngine:
    """A device and stream, current while the engine is open."""

    def __init__(self, index: int, stream: int, make: Make | None) -> None:
        self._index = index
        self.stream = stream
        self._make = make or make_array

    @property
    def limits(self) -> Limits:
        return find_limits(self._index)

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        return _compile(self._index, source, kernel, options, shared_bytes)

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        kernel((grid,), (block,), (argument,), shared_mem=shared_bytes)

    def make(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, /) -> Held:
        return self._make(shape, strides, dtype)

    def keep(self, owners: Sequence[Any]) -> None:
        """Keep these until what has been launched so far is done, as a later call will find."""
        if not owners:
            return
        event = cupy.cuda.Event(disable_timing=True)
        event.record(cupy.cuda.get_current_stream())
        with _kept_lock:
            while _kept and _kept[0][0].done:
                _kept.popleft()
            _kept.append((event, owners))

    def wait_for(self, stream: int) -> None:
        """Let what follows come after what is under way on another stream, by an event."""
        if stream != self.stream:
            event = cupy.cuda.Event(disable_timing=True)
            event.record(_wrap_stream(stream, self._index))
            _wrap_stream(self.stream, self._index).wait_event(event)


@contextmanager
def open_engine(index: int, stream: int | None, make: Make | None) -> Iterator[CupyEngine]:
    """Make a device and stream current, and an engine for them."""
    with cupy.cuda.Device(index):
        if stream is None:
            yield CupyEngine(index, cupy.cuda.get_current_stream().ptr, make)
        else:
            with _wrap_stream(stream, index):
                yield CupyEngine(index, stream, make)


def _wrap_stream(stream: int, index: int) -> Any:
    # The class of before CuPy 14 warns there; its successor is not in CuPy 13.
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_ForeignStream(stream))
    return cupy.cuda.ExternalStream(stream, index)


class _ForeignStream:
    """What `Stream.from_external` takes: an object of the CUDA stream protocol."""

    def __init__(self, stream: int) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream


@cache
def find_limits(index: int) -> Limits:
    """Ask a device what it has, and look up what was measured on it; once in a process."""
    attributes = cupy.cuda.Device(index).attributes
    place = find_place(index)
    return Limits(
        architecture=place.architecture,
        shared_bytes=attributes["MaxSharedMemoryPerBlockOptin"],
        cache_bytes=attributes["L2CacheSize"],
        measured=find_choices(place),
    )


def find_place(index: int) -> Place:
    """Find which device it is, by the name that it has of its maker, and what code is made by."""
    attributes = cupy.cuda.Device(index).attributes
    name: bytes = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    driver = cupy.cuda.runtime.driverGetVersion()
    major, minor = cupy.cuda.nvrtc.getVersion()
    return Place(
        name.decode(),
        10 * attributes["ComputeCapabilityMajor"] + attributes["ComputeCapabilityMinor"],
        driver=f"CUDA {driver // 1000}.{driver % 1000 // 10}",
        nvrtc=f"{major}.{minor}",
    )


@cache
def _compile(
    index: int, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int
) -> Any:
    """Compile for the current device, once each; CuPy keeps the result on disk too."""
    assert index == cupy.cuda.runtime.getDevice()
    compiled = cupy.RawKernel(source, kernel, options=(*OPTIONS, *options))
    try:
        compiled.compile()
    except cupy.cuda.compiler.CompileException as error:
        if "cuda_fp16.h" in str(error) or "cuda_bf16.h" in str(error):
            raise BackendError(MISSING_HEADERS) from error
        raise
    if shared_bytes > _SHARED_BYTES_UNASKED:
        compiled.max_dynamic_shared_size_bytes = shared_bytes
    return compiled
