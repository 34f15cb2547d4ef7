"""Both ways of the `cpu` backend: small images as a whole, and blocks of strips among threads."""

from __future__ import annotations

import pytest

import crisscross
from crisscross.cpu import backward, copies, forward, plan, strips

#: Limits so low that the small problems of the tests have many blocks, tiles, chunks and ranges.
TINY = [
    (plan, "SMALL_IMAGE_FLOPS", 0),
    (plan, "TILE_BYTES", 256),
    (strips, "TILE_BYTES", 256),
    (strips, "BLOCK_BYTES", 512),
    (strips, "LEAST_ROWS", 2),
    (copies, "CHUNK_BYTES", 96),
    (forward, "_FEWEST_KEYS", 3),
    (backward, "_KEYS_OF_RANGE", 3),
    (backward, "_DELTA_BYTES", 96),
]


@pytest.fixture(params=["small", "blocks", "groups"])
def cpu_path(request, monkeypatch):
    """Compute small problems as a whole, as they come, or all in blocks, whatever their size."""
    if request.param == "small":
        yield
        return
    for module, name, value in TINY:
        monkeypatch.setattr(module, name, value)
    if request.param == "groups":
        # One image after the other, each among all threads.
        monkeypatch.setattr(plan, "GROUP_BYTES", 1)
    crisscross.set_num_threads(3 if request.param == "groups" else 2)
    yield
    crisscross.set_num_threads(None)
