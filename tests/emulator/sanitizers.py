"""Run kernels under the address and undefined-behaviour sanitizers.

Their libraries have to be in a process from its beginning: a test starts one of its own.
"""

from __future__ import annotations

import ctypes
import subprocess

# The last is for exceptions, which the first wants to know of.
_LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")


def environment() -> dict[str, str]:
    """Return the variables of a process in which kernels are compiled for the sanitizers."""
    return {
        "LD_PRELOAD": " ".join(map(_find_library, _LIBRARIES)),
        # Python does not free all it allocates; of equal names, each library has its own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "EMULATOR_MODE": "sanitized",
    }


def are_loaded() -> bool:
    """Whether this process was started with them."""
    return hasattr(ctypes.CDLL(None), "__asan_init")


def _find_library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if path == name:
        raise FileNotFoundError(f"{name} does not come with this compiler")
    return path
