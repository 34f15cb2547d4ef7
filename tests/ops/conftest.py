"""All ways of the `cpu` backend: whole images, prepared, tiny and small; channels; and blocks."""

from __future__ import annotations

import pytest

import crisscross
from crisscross.cpu import (
    backward,
    copies,
    lengths,
    medium,
    plan,
    products,
    small,
    strips,
    weights,
)

#: Room behind every vector, some rows, and between all channels, as large ones need it.
ROOMY = [
    (copies, "_CHUNK_IN", 96),
    (copies, "_CHUNK_OUT", 96),
    (copies, "_POSITIONS_OUT", 2),
    (copies, "_CLASH_BYTES", 4),
    (copies, "_CLASH_OF_ROWS", 32),
    (copies, "_MOST_ROWS", 1),
    (copies, "_LINE_BYTES", 16),
]
#: Products in pieces, whatever the CPU.
PIECES = [
    (products, "has_small_kernels", lambda: True),
    (products, "_SMALL_PRODUCT", 24),
    (products, "_PIECES", ((2, None), (None, 3), (2, 3), (1, 3))),
]
#: Arrays that BLAS transposes, of any size, where it can.
TRANSPOSED = [(copies, "_LEAST_TRANSPOSED", 1), (copies, "_LEAST_CLASHING", 1)]
#: Limits so low that the small problems of the tests have many blocks, tiles, chunks and ranges.
BLOCKS = [
    (plan, "SMALL_IMAGE_FLOPS", 0),
    (plan, "MEDIUM_IMAGE_BYTES", 0),
    (plan, "TILE_BYTES", 256),
    (strips, "TILE_BYTES", 256),
    (strips, "BLOCK_BYTES", 512),
    (strips, "LEAST_ROWS", 2),
    *ROOMY,
    *PIECES,
    (weights, "_FEWEST_KEYS", 3),
    (lengths, "_KEYS_OF_CHANNEL", 0),
    (lengths, "_KEYS_OF_SUM", 0),
    (lengths, "_CHUNK_BYTES", 96),
    (backward, "_KEYS_OF_RANGE", 3),
    (backward, "_DELTA_BYTES", 96),
]
LIMITS = {
    "prepared": [],
    "tiny": [(plan, "KIT_BYTES", 0)],
    "small": [
        (small, "TINY_BYTES", 0),
        *ROOMY,
        (weights, "_FEWEST_KEYS", 3),
    ],
    "blocks": BLOCKS,
    "medium": [
        *BLOCKS,
        (plan, "MEDIUM_IMAGE_BYTES", 1 << 30),
        (plan, "MEDIUM_HEAD_SIZE", 1),
        (medium, "_GROUP_BYTES", 512),
        (medium, "_CHANNELS", 2),
        *TRANSPOSED,
    ],
    # One image after the other, each among all threads; its queries as they are, and no sums.
    "groups": [
        *BLOCKS,
        *TRANSPOSED,
        (plan, "GROUP_BYTES", 1),
        (lengths, "_KEYS_OF_CHANNEL", 1 << 30),
        (lengths, "_KEYS_OF_SUM", 1 << 30),
    ],
}


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    """Name both backends of the CPU; where kernels are tested, the fixture names theirs."""
    return request.param


@pytest.fixture(params=list(LIMITS))
def cpu_path(request, monkeypatch):
    """Compute the small problems of the tests in one of the ways, whatever their size."""
    for module, name, value in LIMITS[request.param]:
        monkeypatch.setattr(module, name, value)
    if request.param not in ("prepared", "tiny"):
        crisscross.set_num_threads(3 if request.param == "groups" else 2)
    yield
    crisscross.set_num_threads(None)
