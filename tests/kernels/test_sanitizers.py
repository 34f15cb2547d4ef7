"""The kernels' tests once more, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.emulator import sanitizers
from tests.kernels.sweep import FULL

#: What to run: all of it in a full sweep, else what reaches into every corner.
CHOSEN = ["tests/kernels/test_strips.py", "tests/kernels/test_ccnet.py"]
TILES = "float32-64x64 or float16-4-strips or backward-float16-2-strips"
SAMPLE = f"(({TILES}) and (single or several)) or float32-ascending"


@pytest.mark.skipif(sanitizers.are_loaded(), reason="this is the run under the sanitizers")
@pytest.mark.parametrize("path", CHOSEN)
def test_under_the_sanitizers(path):
    chosen = [] if FULL else ["-k", SAMPLE]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path, *chosen]
    # A full sweep takes all of these tests, though not each of them in full.
    environment = {**os.environ, **sanitizers.environment(), "KERNEL_SWEEP": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
