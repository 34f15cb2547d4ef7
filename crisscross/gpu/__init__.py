"""The CUDA backend: kernels on the caller's device and stream, on plain memory.

It is called as the other backends are, with `View`s in place of arrays; `open_device` gives the
device to call it on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from crisscross.dispatch import Make
from crisscross.gpu.backend import GpuBackend
from crisscross.gpu.plan import describe_plan, name_precision

if TYPE_CHECKING:
    from crisscross.gpu.cupy_trials import CupyTrials

__all__ = [
    "GpuBackend",
    "describe_plan",
    "find_cupy",
    "find_device_problem",
    "find_unavailability",
    "name_precision",
    "open_device",
    "open_trials",
]

_CUPY_DISTRIBUTIONS = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
_LEAST_ARCHITECTURE = 75  # the least that kernels are compiled for in the tests
_INSTALL = (
    "pip install 'crisscross-attention[cuda12]', or [cuda13], after the CUDA version of the driver"
)
#: Devices that have been found fit: looking takes longer than the kernels.
_fit: set[str] = set()


def find_cupy() -> dict[str, str]:
    """Return the installed CuPy distributions with their versions, without importing them."""
    found = {}
    for name in _CUPY_DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_device_problem() -> str | None:
    """Say in one sentence why no CUDA device can be used, or None if one can."""
    installed = find_cupy()
    if not installed:
        return f"CuPy is not installed: {_INSTALL}"
    if len(installed) > 1:
        # They own the same files: what is left after uninstalling one of them does not import.
        names = " and ".join(installed)
        return (
            f"{names} are installed together and exclude each other: uninstall all of them, then "
            "install one"
        )
    try:
        import cupy
    except Exception as error:  # whatever is wrong with an installation
        (name,) = installed
        return f"{name} is installed and does not import ({type(error).__name__}: {error})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a broken driver shows as many different errors
        return f"no usable CUDA driver or device ({type(error).__name__}: {error})"
    if not count:
        return "no CUDA device"
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # likewise a library that is not found
        return (
            f"CuPy finds no NVRTC ({type(error).__name__}: {error}): {_INSTALL}, or, for CuPy 13, "
            "install the CUDA toolkit"
        )
    return None


def find_unavailability(device: str) -> str | None:
    """Say in one sentence why arrays on `device` cannot be served, or None if they can."""
    if device in _fit:
        return None
    problem = find_device_problem()
    if problem is not None:
        return problem
    architecture = find_architecture(device)
    if architecture < _LEAST_ARCHITECTURE:
        least = _LEAST_ARCHITECTURE / 10
        return f"{device} has compute capability {architecture / 10}, {least} is the least"
    _fit.add(device)
    return None


def find_architecture(device: str) -> int:
    """Return the compute capability of a device, 90 for 9.0."""
    from crisscross.gpu.cupy_engine import find_limits

    return find_limits(find_index(device)).architecture


def find_index(device: str) -> int:
    """Return the number of a device named "cuda:0"."""
    return int(device.removeprefix("cuda:"))


@contextmanager
def open_device(device: str, stream: int | None, make: Make | None) -> Iterator[GpuBackend]:
    """Work on a device and stream until the block is left; nothing waits for the device.

    Parameters
    ----------
    device
        "cuda:0", for instance.
    stream
        A CUDA stream; None for CuPy's current one of the device.
    make
        What makes arrays, scratch included; None for CuPy.
    """
    from crisscross.gpu.cupy_engine import open_engine

    with open_engine(find_index(device), stream, make) as engine:
        yield GpuBackend(engine)


@contextmanager
def open_trials(device: str) -> Iterator[CupyTrials]:
    """Open a device to try tiles on, until the block is left."""
    from crisscross.gpu import cupy_trials

    with cupy_trials.open_trials(find_index(device)) as opened:
        yield opened
