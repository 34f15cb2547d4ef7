"""What a measurement depends on, besides the code."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

import numpy as np

__all__ = ["ask_nvidia_smi", "describe_blas", "find_commit", "name_cpu", "tell_date"]

_GPU_STATE = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


def name_cpu() -> str:
    """Name the CPU's model."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_blas() -> str:
    """Name the BLAS that NumPy was built with."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def tell_date() -> str:
    """Return date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def find_commit() -> tuple[str | None, bool]:
    """Return the commit of the code that is measured, if it is a clone, and whether it is dirty."""
    root = Path(__file__).parents[2]
    # A repository further up, as a virtual environment may lie in, is not ours.
    if not (root / ".git").exists():
        return None, False
    commit = _ask_git(root, "rev-parse", "HEAD")
    return commit, bool(_ask_git(root, "status", "--porcelain"))


def _ask_git(root: Path, *command: str) -> str | None:
    return _ask("git", "-C", str(root), *command)


def ask_nvidia_smi(bus_id: str) -> dict[str, str]:
    """Ask the driver's own tool for driver, clocks and power; nothing where it is not installed."""
    query = f"--query-gpu={','.join(_GPU_STATE)}"
    told = _ask("nvidia-smi", f"--id={bus_id}", query, "--format=csv,noheader")
    values = [] if told is None else [value.strip() for value in told.split(",")]
    # A driver that does not know a name tells so in words, in place of the values.
    return dict(zip(_GPU_STATE, values, strict=True)) if len(values) == len(_GPU_STATE) else {}


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
