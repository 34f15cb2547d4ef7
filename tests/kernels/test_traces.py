"""No kernel has a race, and none costs more than its budget of wavefronts and sectors."""

from __future__ import annotations

import pytest

from crisscross.kernels.catalogue import all_configurations
from crisscross.kernels.select import TABLE
from crisscross.problem import COMPUTE_DTYPES
from tests.kernels.sweep import sample
from tests.kernels.traces import (
    divide,
    trace_ccnet,
    trace_layout,
    trace_streams,
    trace_strips,
    trace_sums,
)

#: Kernel -> most wavefronts over bytes / 128, most sectors over bytes / 32; counted, and a little.
BUDGETS = {
    "strip_forward": (1.03, 1.04),
    "strip_backward_queries": (1.03, 1.04),
    "strip_backward_keys": (1.03, 1.05),
    # Of 16 bits each, 32 elements side by side are half of what shared memory delivers at once, and
    # rows that end within a sector share it with the next.
    "copy_features": (1.25, 1.26),
    "merge": (1.01, 1.28),
    # Straight from global memory: what neighbours read again comes from the first cache.
    "ca_weight": (1.0, 2.22),
    "ca_map": (1.0, 1.83),
    "ca_map_transposed_rows": (1.0, 1.40),
    "ca_softmax": (1.01, 1.23),
    "ca_softmax_backward": (1.01, 1.23),
    "to_port_layout": (1.01, 1.15),
    "from_port_layout": (1.01, 1.15),
}
STRIPS = [(dtype, row) for dtype, rows in TABLE.items() for row in range(len(rows))]


def test_every_kernel_has_a_budget():
    assert set(BUDGETS) == {configuration.kernel for configuration in all_configurations()}


def hold(costs):
    for name, (shared, sectors) in costs.items():
        most_shared, most_sectors = BUDGETS[name.partition(",")[0]]
        assert divide(shared) <= most_shared, name
        assert divide(sectors) <= most_sectors, name


@pytest.mark.parametrize(("dtype", "row"), sample(STRIPS, 4, "traces"))
def test_strips(dtype, row):
    costs = trace_strips(dtype, row)
    assert len(costs) == 3
    hold(costs)


@pytest.mark.parametrize(("dtype", "row"), sample(STRIPS, 4, "ragged tiles"))
def test_strips_of_several_ragged_tiles(dtype, row):
    """There is no budget: sizes are odd, and rows lie across sectors."""
    assert len(trace_streams(dtype, row)) == 3


def test_sums_over_three_axes():
    assert len(trace_sums()) == 4


@pytest.mark.parametrize("dtype", sample(list(COMPUTE_DTYPES), 2, "traces"))
def test_ccnet(dtype):
    costs = trace_ccnet(dtype)
    assert len(costs) == (3 if dtype in ("float16", "bfloat16") else 7)
    hold(costs)


@pytest.mark.parametrize("dtype", sample(list(COMPUTE_DTYPES), 2, "layout"))
def test_layout(dtype):
    hold(trace_layout(dtype))
