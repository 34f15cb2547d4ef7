"""Where tests of JAX run: on the CPU, and the same bodies on a GPU, if they are asked for."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from crisscross.jax import callbacks
from crisscross.view import View


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    try:
        found = jax.devices(request.param)[0]
    except RuntimeError:
        pytest.skip(f"JAX sees no {request.param} device")  # the mark asks for one
    with jax.default_device(found):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_results(monkeypatch):
    """Let backends find XLA's memory full of NaN, and what is given to them read-only."""
    run = callbacks.run

    def poison(task, backend, views):
        for name, view in views.items():
            if isinstance(view, View):  # an emulator's
                continue
            if name in task.operation.outputs:
                view[...] = np.nan
            else:
                assert not view.flags.writeable
        run(task, backend, views)

    monkeypatch.setattr(callbacks, "run", poison)
