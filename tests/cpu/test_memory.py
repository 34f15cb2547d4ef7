"""No attention map: what a call allocates does not grow with the number of keys."""

from __future__ import annotations

import tracemalloc

import pytest

import crisscross
from crisscross.cpu import copies
from crisscross.cpu.strips import BLOCK_BYTES, LEAST_ROWS, TILE_BYTES
from crisscross.testing import make_case


def measure_peak(call) -> int:
    """Bytes allocated at the highest point of a call; NumPy reports its memory to tracemalloc."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_peaks(case) -> tuple[int, int]:
    """Of the forward and of the backward, each with no scratch at hand."""
    out, lse = crisscross.criss_cross_attention(case.q, case.k, case.v, return_lse=True)

    def forward():
        crisscross.clear_workspace()
        crisscross.criss_cross_attention(case.q, case.k, case.v)

    def backward():
        crisscross.clear_workspace()
        crisscross.criss_cross_attention_backward(case.dout, case.q, case.k, case.v, out, lse)

    return measure_peak(forward), measure_peak(backward)


@pytest.mark.parametrize(
    ("spatial", "keys"), [((160, 160), 319), ((2500,), 2500)], ids=["cross", "one long strip"]
)
def test_peak_memory(spatial, keys):
    crisscross.set_num_threads(2)
    case = make_case(spatial, head_size_qk=2, head_size_v=2)
    attention_map = case.q.size // 2 * keys * 4
    arrays = 16 * case.q.nbytes
    # For each of two threads the energies of a tile and, backward, their gradients.
    tile = max(TILE_BYTES, LEAST_ROWS * keys * 4)
    forward, backward = measure_peaks(case)
    assert forward < arrays + 3 * tile < attention_map
    assert backward < arrays + 5 * tile < attention_map


def test_results_are_put_together_where_copies_were():
    """Channels first: beside the results one copy of each input, and none of the results."""
    crisscross.set_num_threads(1)
    case = make_case((120, 128), head_size_qk=8, head_size_v=96)
    q, v = case.q.nbytes, case.v.nbytes
    scratch = 2 * TILE_BYTES + BLOCK_BYTES + copies._CHUNK_IN
    forward, backward = measure_peaks(case)
    assert forward < 2 * q + 2 * v + scratch + v // 2
    assert backward < 4 * q + 3 * v + scratch + BLOCK_BYTES + v // 2
