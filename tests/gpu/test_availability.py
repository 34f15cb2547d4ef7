"""Why there is no CUDA backend here: one honest sentence for each reason."""

from __future__ import annotations

import sys
import types

import pytest

from crisscross import gpu


def install(monkeypatch, found, count=None, nvrtc=None):
    monkeypatch.setattr(gpu, "find_cupy", lambda: found)

    def get_device_count():
        if isinstance(count, Exception):
            raise count
        return count

    def get_version():
        if nvrtc is not None:
            raise nvrtc
        return 12, 9

    runtime = types.SimpleNamespace(getDeviceCount=get_device_count)
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=get_version)
    )
    monkeypatch.setattr(gpu, "_fit", set())
    monkeypatch.setitem(sys.modules, "cupy", cupy)


ONE = {"cupy-cuda12x": "14.0"}


@pytest.mark.parametrize(
    ("found", "count", "reason"),
    [
        (
            {},
            1,
            "CuPy is not installed: pip install 'crisscross-attention[cuda12]', or [cuda13], after "
            "the CUDA version of the driver",
        ),
        (
            {**ONE, "cupy-cuda13x": "14.0"},
            1,
            "cupy-cuda12x and cupy-cuda13x are installed together and exclude each other: "
            "uninstall all of them, then install one",
        ),
        (
            ONE,
            RuntimeError("driver too old"),
            "no usable CUDA driver or device (RuntimeError: driver too old)",
        ),
        (ONE, 0, "no CUDA device"),
        (ONE, 2, None),
    ],
    ids=["no cupy", "two cupys", "no driver", "no device", "a device"],
)
def test_the_reason(monkeypatch, found, count, reason):
    install(monkeypatch, found, count)
    monkeypatch.setattr(gpu, "find_architecture", lambda _device: 75)
    assert gpu.find_device_problem() == reason
    assert gpu.find_unavailability("cuda:0") == reason


def test_a_device_that_is_too_old(monkeypatch):
    install(monkeypatch, ONE, 2)
    monkeypatch.setattr(gpu, "find_architecture", {"cuda:1": 61}.get)
    expected = "cuda:1 has compute capability 6.1, 7.5 is the least"
    assert gpu.find_unavailability("cuda:1") == expected


def test_a_cupy_without_a_compiler(monkeypatch):
    install(monkeypatch, ONE, 1, RuntimeError("failed to load libnvrtc.so.12"))
    assert gpu.find_unavailability("cuda:0") == (
        "CuPy finds no NVRTC (RuntimeError: failed to load libnvrtc.so.12): pip install "
        "'crisscross-attention[cuda12]', or [cuda13], after the CUDA version of the driver, or, "
        "for CuPy 13, install the CUDA toolkit"
    )


def test_a_fit_device_is_looked_at_once(monkeypatch):
    install(monkeypatch, ONE, 1)
    looked = []
    monkeypatch.setattr(gpu, "find_architecture", lambda device: looked.append(device) or 90)
    for device in ("cuda:0", "cuda:0", "cuda:1", "cuda:0"):
        assert gpu.find_unavailability(device) is None
    assert looked == ["cuda:0", "cuda:1"]


def test_a_cupy_that_does_not_import(monkeypatch):
    monkeypatch.setattr(gpu, "find_cupy", lambda: ONE)
    monkeypatch.setitem(sys.modules, "cupy", None)
    expected = "cupy-cuda12x is installed and does not import (ModuleNotFoundError: "
    assert gpu.find_device_problem().startswith(expected)


def test_distributions_are_found_without_importing_them(monkeypatch):
    def version(name):
        if name == "cupy-cuda13x":
            return "14.1"
        raise gpu.PackageNotFoundError

    monkeypatch.setattr(gpu, "version", version)
    assert gpu.find_cupy() == {"cupy-cuda13x": "14.1"}
