"""The device that tiles are tried on: what CuPy is asked for, told by stand-ins, and a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import cupy as installed
import numpy as np
import pytest

from crisscross import gpu
from crisscross.bench.shapes import Shape
from crisscross.bench.tune import tune
from crisscross.dispatch import Held
from crisscross.gpu.cupy_trials import CupyTrials
from crisscross.gpu.tuned import Place
from crisscross.testing import numpy_dtype
from crisscross.view import View

PLACE = Place("a GPU", 90, "CUDA 13.0", "12.9")


class Stream:
    def __init__(self):
        self.log = []
        self.is_invalidated = False

    def begin_capture(self):
        self.log.append("begin")

    def end_capture(self):
        self.log.append("end")
        if self.is_invalidated:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return SimpleNamespace(launch=lambda stream: stream.log.append("graph"))


class Event:
    def record(self, stream):
        self.log = stream.log
        self.log.append("event")

    def synchronize(self):
        self.log.append("wait")


def test_the_clock_times_a_graph_that_has_run_before(monkeypatch):
    monkeypatch.setattr(installed.cuda, "Event", Event)
    monkeypatch.setattr(installed.cuda, "get_elapsed_time", lambda _start, _end: 2.5)
    stream = Stream()
    trials = CupyTrials(PLACE, None, stream)
    assert trials.time(lambda: stream.log.append("row")) == 0.0025
    expected = ["begin", "row", "end", "graph", "event", "graph", "event", "wait"]
    assert stream.log == expected


def test_a_row_that_fails_leaves_no_stream_in_capture():
    """And its own error is the one that is told."""
    stream = Stream()

    def row():
        stream.is_invalidated = True
        raise RuntimeError("cudaErrorInvalidConfiguration")

    with pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
        CupyTrials(PLACE, None, stream).time(row)
    assert stream.log == ["begin", "end"]


def test_a_capture_of_nothing_is_no_time():
    stream = Stream()
    stream.is_invalidated = True
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        CupyTrials(PLACE, None, stream).time(lambda: None)


class Memory:
    """Memory of CuPy's, and the array in it."""

    def __init__(self, nbytes):
        self.bytes, self.nbytes, self.data = np.zeros(nbytes, np.uint8), nbytes, self

    def memset_async(self, value, nbytes):
        self.bytes[:nbytes] = value


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_poison_is_nan_all_over(dtype):
    memory = Memory(24)
    CupyTrials(PLACE, None, None).poison(Held(View(0, (3,), (1,), dtype), memory))
    assert np.isnan(memory.bytes.view(numpy_dtype(dtype)).astype(float)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_arrays_come_back_as_they_went(cupy, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(numpy_dtype(dtype))
    with gpu.open_trials("cuda:0") as device:
        held = device.put(array)
        assert held.view.strides == (12, 4, 1) and held.view.dtype == dtype
        np.testing.assert_array_equal(device.get(held), array)
        device.poison(held)
        assert np.isnan(device.get(held).astype(float)).all()


@pytest.mark.gpu
def test_tiles_are_tried_on_the_device(cupy):
    """All of them agree with the table's own, that with the oracle, and have a time."""
    with gpu.open_trials("cuda:0") as device:
        shapes = [Shape(64, 16, 33, 97, 2)]
        findings = list(tune(device, shapes, dtype="bfloat16", rounds=3))
        assert device.name
    assert len(findings) == 4
    for found in findings:
        assert len(found.trials) > 2
        for trial in found.trials:
            assert trial.reason is None and trial.seconds > 0, trial
