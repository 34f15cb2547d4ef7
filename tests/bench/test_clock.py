"""Clocks, on a device that exists in the test alone: it knows to the nanosecond what it does."""

from __future__ import annotations

import pytest

from crisscross.bench import clock


class Device:
    """The host needs `launch` for a call; then the device needs `work`, one call after another."""

    def __init__(self, launch: float, work: float) -> None:
        self.launch, self.work = launch, work
        self.now = self.idle_from = 0.0
        self.calls = 0

    def call(self) -> None:
        self.calls += 1
        self.now += self.launch
        self.idle_from = max(self.now, self.idle_from) + self.work

    def wait(self, _results: None) -> None:
        self.now = max(self.now, self.idle_from)


@pytest.fixture
def make_device(monkeypatch):
    def make(launch: float, work: float) -> Device:
        device = Device(launch, work)
        monkeypatch.setattr(clock.time, "perf_counter", lambda: device.now)
        return device

    return make


@pytest.mark.parametrize(
    ("launch", "work", "seconds"),
    [
        (1e-4, 1e-3, 1e-3),  # the device is what one waits for
        (1e-3, 1e-4, 1e-3),  # the host
        (1e-5, 2.0, 2.0),  # one call, longer than the time to fill
    ],
)
def test_calls_in_a_row_are_timed_to_the_end(make_device, launch, work, seconds):
    device = make_device(launch, work)
    found = clock.time_queue(device.call, device.wait, 0.06)
    assert found.seconds == pytest.approx(seconds, rel=0.01)
    assert found.launch == pytest.approx(launch) and found.latency == pytest.approx(launch + work)
    # Nothing is left for whoever comes next.
    assert device.now == device.idle_from


def test_a_row_is_as_long_as_asked_for(make_device):
    device = make_device(1e-5, 1e-3 - 1e-5)
    clock.time_queue(device.call, device.wait, 0.06)
    # One to begin with, one to see how long it takes, 0.1 s to warm up, one by itself, 0.06 s.
    assert device.calls == pytest.approx(1 + 1 + 100 + 1 + 60, abs=2)


def test_calls_one_by_one_are_each_waited_for(make_device):
    device = make_device(1e-3, 2e-3)
    found = clock.time_calls(device.call, device.wait, 0.06)
    assert found == pytest.approx(3e-3)
