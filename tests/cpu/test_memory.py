"""No attention map: what a call allocates does not grow with the number of keys."""

from __future__ import annotations

import tracemalloc

import pytest

import crisscross
from crisscross.cpu.strips import ENERGY_BYTES
from crisscross.testing import make_case


def measure_peak(call) -> int:
    """Bytes allocated at the highest point of a call; NumPy reports its memory to tracemalloc."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("spatial", "keys"), [((160, 160), 319), ((2500,), 2500)], ids=["cross", "one long strip"]
)
def test_peak_memory(spatial, keys):
    case = make_case(spatial, head_size_qk=2, head_size_v=2)
    positions = case.q.size // 2
    attention_map = positions * keys * 4
    out, lse = crisscross.criss_cross_attention(case.q, case.k, case.v, return_lse=True)
    forward = measure_peak(lambda: crisscross.criss_cross_attention(case.q, case.k, case.v))
    backward = measure_peak(
        lambda: crisscross.criss_cross_attention_backward(
            case.dout, case.q, case.k, case.v, out, lse
        )
    )
    arrays = 10 * case.q.nbytes
    # A tile's energies, their gradients, and what NumPy makes of them on the way.
    assert forward < arrays + 4 * ENERGY_BYTES < attention_map
    assert backward < arrays + 8 * ENERGY_BYTES < attention_map
