"""The kernels' tests once more, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.emulator import sanitizers
from tests.kernels.sweep import FULL

#: What to run: of all tiles in a full sweep, else of a sample, what reaches into every corner.
CHOSEN = ["tests/kernels/test_strips.py", "tests/kernels/test_ccnet.py"]
SAMPLE = "(several and not aligned) or float32-ascending"


@pytest.mark.skipif(sanitizers.are_loaded(), reason="this is the run under the sanitizers")
@pytest.mark.parametrize("path", CHOSEN)
def test_under_the_sanitizers(path):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path]
    sweep = "tiles" if FULL else ""
    environment = {**os.environ, **sanitizers.environment(), "KERNEL_SWEEP": sweep}
    done = subprocess.run(
        [*command, "-k", SAMPLE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
