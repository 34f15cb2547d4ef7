"""No kernel has a race, and none costs more than its budget of wavefronts and sectors."""

from __future__ import annotations

import pytest

from crisscross.kernels.catalogue import all_configurations
from crisscross.kernels.tables import DIRECTIONS, TABLES, TERMS
from crisscross.kernels.tiles import FmaTile
from crisscross.problem import COMPUTE_DTYPES
from tests.kernels.sweep import sample
from tests.kernels.traces import (
    count_traffic,
    divide,
    trace_across,
    trace_ccnet,
    trace_layout,
    trace_merging,
    trace_streams,
    trace_strips,
    trace_sums,
)

#: Kernel -> most wavefronts over bytes / 128, most sectors over bytes / 32; counted, and a little.
BUDGETS = {
    "strip_forward": (1.03, 1.04),
    "strip_forward_mma": (1.03, 1.04),
    "strip_forward_mma_stream": (1.03, 1.04),
    "strip_backward_mma": (1.03, 1.09),
    "strip_backward_queries_mma": (1.03, 1.04),
    "strip_backward_keys_mma": (1.03, 1.04),
    "strip_backward_queries": (1.03, 1.04),
    "strip_backward_keys": (1.03, 1.05),
    "copy_features": (1.03, 1.1),
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
STRIPS = [
    (direction, arithmetic, row)
    for direction in DIRECTIONS
    for arithmetic, rows in TABLES[direction].items()
    for row in range(len(rows))
    if arithmetic not in TERMS or not isinstance(rows[row].tile, FmaTile)  # or it is float32's
]


def test_every_kernel_has_a_budget():
    assert set(BUDGETS) == {configuration.kernel for configuration in all_configurations()}


def hold(costs):
    for name, (shared, sectors) in costs.items():
        most_shared, most_sectors = BUDGETS[name.partition(",")[0]]
        assert divide(shared) <= most_shared, name
        assert divide(sectors) <= most_sectors, name


def count_kernels(direction, arithmetic, row):
    kernels = TABLES[direction][arithmetic][row].tile.kernels
    return len([each for each in kernels if direction in each])


@pytest.mark.parametrize(("direction", "arithmetic", "row"), sample(STRIPS, 4, "traces"))
def test_strips(direction, arithmetic, row):
    costs = trace_strips(direction, arithmetic, row)
    assert len(costs) == count_kernels(direction, arithmetic, row)
    hold(costs)


@pytest.mark.parametrize(("direction", "arithmetic", "row"), sample(STRIPS, 4, "merging"))
def test_strips_that_merge(direction, arithmetic, row):
    costs = trace_merging(direction, arithmetic, row)
    assert len(costs) == count_kernels(direction, arithmetic, row)
    hold(costs)


@pytest.mark.parametrize(("direction", "arithmetic", "row"), sample(STRIPS, 4, "ragged tiles"))
def test_strips_of_several_ragged_tiles(direction, arithmetic, row):
    """There is no budget: sizes are odd, and rows lie across sectors."""
    costs = trace_streams(direction, arithmetic, row)
    assert len(costs) == count_kernels(direction, arithmetic, row)


@pytest.mark.parametrize(("row", "kernels"), [(0, 1), (-1, 2)])
def test_sums_over_three_axes(row, kernels):
    assert len(trace_sums(row)) == kernels + 1  # and the copy that rounds them


@pytest.mark.parametrize("dtype", sample(list(COMPUTE_DTYPES), 2, "traces"))
def test_ccnet(dtype):
    costs = trace_ccnet(dtype)
    assert len(costs) == (3 if dtype in ("float16", "bfloat16") else 7)
    hold(costs)


@pytest.mark.parametrize("dtype", sample(list(COMPUTE_DTYPES), 2, "layout"))
def test_layout(dtype):
    hold(trace_layout(dtype))


#: Direction, and whether channels come last -> most bytes over the least: all inputs read once, all
#: outputs written once.
TRAFFIC = {("forward", True): 2.5, ("forward", False): 3.7, ("backward", True): 2.3}
LEAST = {"forward": 2304, "backward": 4608}


@pytest.mark.parametrize("length", sample([97, 129], 1, "traffic"))
@pytest.mark.parametrize(("direction", "channels_last"), list(TRAFFIC))
def test_traffic_of_the_block_of_ccnet(direction, channels_last, length):
    bytes_a_pixel = count_traffic(direction, length, -1 if channels_last else 1)
    assert LEAST[direction] < bytes_a_pixel <= TRAFFIC[direction, channels_last] * LEAST[direction]


@pytest.mark.parametrize(("dtype", "row"), [("bfloat16", 0), ("bfloat16", 2), ("float16", 3)])
def test_results_written_across(dtype, row):
    """Rows end within sectors, which they share with the next."""
    (costs,) = trace_across(dtype, row).values()
    assert divide(costs[0]) <= 1.03 and divide(costs[1]) <= 1.15
