"""The CUDA backend: not in this version. What stands is the honest answer why it cannot serve."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_CUPY_DISTRIBUTIONS = ("cupy-cuda12x", "cupy-cuda13x", "cupy")


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
        return "CuPy is not installed"
    if len(installed) > 1:
        names = " and ".join(installed)
        return f"{names} are both installed and exclude each other: uninstall one of them"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a broken driver shows as many different errors
        return f"no usable CUDA driver or device ({type(error).__name__}: {error})"
    return None if count else "no CUDA device"


def find_unavailability() -> str | None:
    """Say why the CUDA backend cannot serve."""
    return "this version has no CUDA kernels yet"
