"""The engine of production: CuPy compiles, caches and launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cupy
import numpy as np

from crisscross.dispatch import Held, Make
from crisscross.gpu.cupy_arrays import make_array
from crisscross.kernels.engine import Limits

#: Shared memory that a kernel may have without asking.
_SHARED_BYTES_UNASKED = 48 << 10
OPTIONS = ("-std=c++17",)


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

    def wait_for(self, stream: int) -> None:
        """Let what follows come after what is under way on another stream, by an event."""
        if stream != self.stream:
            event = _wrap_stream(stream, self._index).record(cupy.cuda.Event(disable_timing=True))
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
    """Ask a device what it has."""
    attributes = cupy.cuda.Device(index).attributes
    return Limits(
        architecture=10 * attributes["ComputeCapabilityMajor"]
        + attributes["ComputeCapabilityMinor"],
        shared_bytes=attributes["MaxSharedMemoryPerBlockOptin"],
        cache_bytes=attributes["L2CacheSize"],
    )


@cache
def _compile(
    index: int, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int
) -> Any:
    """Compile for the current device, once each; CuPy keeps the result on disk too."""
    assert index == cupy.cuda.runtime.getDevice()
    compiled = cupy.RawKernel(source, kernel, options=(*OPTIONS, *options))
    compiled.compile()
    if shared_bytes > _SHARED_BYTES_UNASKED:
        compiled.max_dynamic_shared_size_bytes = shared_bytes
    return compiled
