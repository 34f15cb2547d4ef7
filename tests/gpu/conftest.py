"""A GPU, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from crisscross import gpu


@pytest.fixture
def cupy() -> Any:
    """CuPy, its memory pool empty."""
    problem = gpu.find_device_problem()
    if problem is not None:
        pytest.skip(problem)
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    return cupy
