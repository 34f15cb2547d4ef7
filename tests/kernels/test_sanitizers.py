"""The kernels' tests once more, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.emulator import sanitizers
from tests.kernels.sweep import FULL

#: What to run: in a full sweep all of the sample, else of it what reaches into every corner.
CHOSEN = ["tests/kernels/test_strips.py", "tests/kernels/test_ccnet.py"]
SAMPLE = "(several and not aligned) or float32-ascending"


@pytest.mark.skipif(sanitizers.are_loaded(), reason="this is the run under the sanitizers")
@pytest.mark.parametrize("path", CHOSEN)
def test_under_the_sanitizers(path):
    chosen = [] if FULL else ["-k", SAMPLE]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path, *chosen]
    environment = {**os.environ, **sanitizers.environment(), "KERNEL_SWEEP": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
