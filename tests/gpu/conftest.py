"""A GPU, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels.devices import EXACT, make_poisoned, require_gpu


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy, its memory pool empty; what it makes for kernels to write is NaN all over."""
    cupy = require_gpu()
    from crisscross.gpu import cupy_engine

    monkeypatch.setattr(cupy_engine, "make_array", make_poisoned)
    cupy.get_default_memory_pool().free_all_blocks()
    return cupy


@pytest.fixture
def pool(cupy: Any) -> Any:
    """CuPy's memory pool, for tests of it and of what needs memory without asking CUDA."""
    if EXACT:
        pytest.skip("KERNEL_MEMORY is exact: there is no pool")
    return cupy.get_default_memory_pool()
