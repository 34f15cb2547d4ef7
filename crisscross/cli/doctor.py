"""What is installed here, and which backend would serve which kind of array."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

# Its BLAS must be loaded before threadpoolctl can see it.
import numpy as np
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from crisscross import __version__, get_num_threads
from crisscross.bench.process import count_usable_cpus
from crisscross.errors import ArgumentError, BackendError
from crisscross.gpu import find_cupy, find_device_problem
from crisscross.ops.backends import choose_backend, find_refusal

__all__ = ["report"]

_OPTIONAL = (
    "torch",
    "jax",
    "ml_dtypes",
    "hypothesis",
    "scikit-image",
    "matplotlib",
    "pillow",
    "rich",
)
#: Kind of array, device, and the package without which there are no such arrays.
_KINDS = (
    ("NumPy", "cpu", None),
    ("torch, CPU", "cpu", "torch"),
    ("jax, CPU", "cpu", "jax"),
    ("other DLPack, CPU", "cpu", None),
    ("any, CUDA", "cuda:0", None),
)

_ABSENT = "not installed"

Row = tuple[str, str]


def report() -> str:
    """Return what `crisscross doctor` prints.

    The optional frameworks are looked up, not imported.

    Examples
    --------
    >>> report().startswith("Versions")
    True
    """
    sections = {
        "Versions": _find_versions(),
        "CPU": _describe_cpu(),
        "GPU": [("device", find_device_problem() or "a CUDA device can be used")],
        "Backends": [
            (kind, _name_backend(device) if package is None or _find_version(package) else _ABSENT)
            for kind, device, package in _KINDS
        ],
    }
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    blocks = []
    for title, rows in sections.items():
        lines = [f"  {name:{width}}  {value}" for name, value in rows]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def _find_versions() -> list[Row]:
    rows = [
        ("crisscross", __version__),
        ("Python", f"{platform.python_version()} ({platform.platform()})"),
        ("NumPy", np.__version__),
    ]
    rows += [(name, _find_version(name) or _ABSENT) for name in _OPTIONAL]
    return rows + (list(find_cupy().items()) or [("cupy", _ABSENT)])


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_cpu() -> list[Row]:
    libraries = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    rows = [("usable CPUs", str(count_usable_cpus()))]
    for pool in libraries:
        name = f"{pool['internal_api']} {pool['version'] or '(version unknown)'}"
        rows.append(("BLAS", f"{name}, threads: {pool['num_threads']}"))
    if not libraries:
        rows.append(("BLAS", "none that threadpoolctl knows"))
    return [*rows, ("threads of a call", _count_threads())]


def _count_threads() -> str:
    try:
        return str(get_num_threads())
    except ArgumentError as error:
        return f"none: {error}"


def _name_backend(device: str) -> str:
    """Ask the library itself, so that this cannot drift from what a call would do."""
    try:
        return choose_backend("doctor", device, None, "numpy").backend
    except BackendError:
        return f"none: {find_refusal('gpu', device, 'numpy')}"
