"""The device that tiles are tried on: what CuPy is asked for, told by stand-ins, and a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import cupy as installed
import numpy as np
import pytest

from crisscross import gpu
from crisscross.bench.shapes import Shape
from crisscross.bench.tune import tune
from crisscross.gpu.cupy_trials import CupyTrials
from crisscross.testing import numpy_dtype


class Stream:
    def __init__(self):
        self.log = []

    def begin_capture(self):
        self.log.append("begin")

    def end_capture(self):
        self.log.append("end")
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
    trials = CupyTrials("a GPU", None, stream)
    assert trials.time(lambda: stream.log.append("row")) == 0.0025
    expected = ["begin", "row", "end", "graph", "event", "graph", "event", "wait"]
    assert stream.log == expected


def test_a_row_that_fails_leaves_no_stream_in_capture():
    stream = Stream()
    with pytest.raises(ZeroDivisionError):
        CupyTrials("a GPU", None, stream).time(lambda: 1 // 0)
    assert stream.log == ["begin", "end"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_arrays_come_back_as_they_went(cupy, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(numpy_dtype(dtype))
    with gpu.open_trials("cuda:0") as device:
        held = device.put(array)
        assert held.view.strides == (12, 4, 1) and held.view.dtype == dtype
        np.testing.assert_array_equal(device.get(held), array)


@pytest.mark.gpu
def test_tiles_are_tried_on_the_device(cupy):
    """All of them agree with the table's own, and have a time."""
    with gpu.open_trials("cuda:0") as device:
        findings = tune(device, [Shape(64, 16, 33, 97, 2)], dtype="bfloat16", rounds=3)
        assert device.name
    assert len(findings) == 4
    for found in findings:
        assert len(found.trials) > 2
        for trial in found.trials:
            assert trial.reason is None and trial.seconds > 0, trial
