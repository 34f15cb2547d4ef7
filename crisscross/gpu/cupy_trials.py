"""The device that tiles are tried on, by CuPy: arrays to and fro, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cupy
import numpy as np

from crisscross.bridge import name_dtype, numpy_dtype
from crisscross.dispatch import Held
from crisscross.gpu.cupy_engine import CupyEngine, find_place, open_engine
from crisscross.gpu.tuned import Place
from crisscross.view import View, find_strides


class CupyTrials:
    """A device on a stream of its own, current while it is open.

    Attributes
    ----------
    place
        The device, and what its code is made by.
    engine
        What kernels are launched on.
    """

    def __init__(self, place: Place, engine: CupyEngine, stream: Any) -> None:
        self.place = place
        self.engine = engine
        self._stream = stream

    @property
    def name(self) -> str:
        return self.place.device

    def put(self, array: np.ndarray) -> Held:
        """Copy an array in C order to the device."""
        memory = cupy.asarray(array.reshape(-1).view(np.uint8))
        view = View(
            memory.data.ptr, array.shape, find_strides(array.shape), name_dtype(array.dtype)
        )
        return Held(view, memory)

    def get(self, held: Held) -> np.ndarray:
        """Copy back an array that was put there."""
        dtype = numpy_dtype(held.view.dtype)
        copied: np.ndarray = held.owner.get().view(dtype).reshape(held.view.shape)
        return copied

    def poison(self, held: Held) -> None:
        """Make an array that was put there NaN all over."""
        held.owner.data.memset_async(0xFF, held.owner.nbytes)

    def time(self, row: Callable[[], None]) -> float:
        """Return the seconds that the device takes for what `row` launches.

        It is captured as a graph: kernels of some microseconds are shorter than it takes Python to
        launch them, and the time would be Python's. The graph runs once before, to warm up.
        """
        self._stream.begin_capture()
        try:
            row()
        except BaseException:
            with suppress(Exception):  # that nothing was captured: the row's own error says why
                self._stream.end_capture()
            raise
        graph = self._stream.end_capture()
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        graph.launch(self._stream)
        start.record(self._stream)
        graph.launch(self._stream)
        end.record(self._stream)
        end.synchronize()
        milliseconds: float = cupy.cuda.get_elapsed_time(start, end)
        return milliseconds / 1e3


@contextmanager
def open_trials(index: int) -> Iterator[CupyTrials]:
    """Open a device to try tiles on."""
    with cupy.cuda.Device(index):
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with open_engine(index, stream.ptr, None) as engine:
            yield CupyTrials(find_place(index), engine, stream)
