"""What blocks cost: the published figures, and counts of what loops and arrays really hold."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import crisscross
from crisscross import nn
from tests.nn.definitions import find_neighbours

#: Sizes, channels, channels of queries, recurrences and images.
SIZES = [
    ((3, 4), 8, None, 1, 1),
    ((3, 4), 8, 3, 2, 1),
    ((2, 5), 3, None, 3, 2),  # fewer than 8 channels: queries have one
    ((7,), 16, None, 2, 3),
    ((2, 3, 4), 4, 2, 2, 1),
    ((1, 1), 8, 1, 1, 1),
]
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def count_both(spatial, channels, inner, recurrence, batch, dtype="float32"):
    """(cost, R, which keys) of both blocks; the one that attends to all has no recurrences."""
    options = {"inner": inner, "batch": batch, "dtype": dtype}
    crossed = nn.count_criss_cross_block(spatial, channels, recurrence=recurrence, **options)
    whole = nn.count_position_attention_block(spatial, channels, **options)
    seen = find_neighbours(spatial)
    return [(crossed, recurrence, seen), (whole, 1, np.ones_like(seen))]


@pytest.mark.parametrize(("recurrence", "published"), [(1, 8.29), (2, 16.58), (3, 24.88)])
def test_the_papers_figures(recurrence, published):
    """CCNet, ICCV 2019: 512 channels at 97 x 97, in GFLOPs."""
    cost = nn.count_criss_cross_block((97, 97), 512, recurrence=recurrence)
    assert round(cost.published_flops / 1e9, 2) == published


def test_the_papers_figure_of_non_local():
    cost = nn.count_position_attention_block((97, 97), 512)
    assert round(cost.published_flops / 1e9, 2) == 108.16


@pytest.mark.parametrize(("spatial", "channels", "inner", "recurrence", "batch"), SIZES)
def test_parameters_are_the_numbers_of_the_arrays(spatial, channels, inner, recurrence, batch):
    made = (
        nn.init_criss_cross_block(channels, inner=inner, spatial_ndim=len(spatial)),
        nn.init_position_attention_block(channels, inner=inner, spatial_ndim=len(spatial)),
    )
    costs = count_both(spatial, channels, inner, recurrence, batch)
    for parameters, (cost, _, _) in zip(made, costs, strict=True):
        assert cost.parameters == sum(array.size for array in parameters.values())


@pytest.mark.parametrize(("spatial", "channels", "inner", "recurrence", "batch"), SIZES)
def test_flops_are_those_of_the_loops(spatial, channels, inner, recurrence, batch):
    """Each product is multiplied and added: 2."""
    queries = nn.init_criss_cross_block(channels, inner=inner)["query_conv.bias"].size
    for cost, steps, seen in count_both(spatial, channels, inner, recurrence, batch):
        flops = 0
        for _ in range(steps * batch):
            for keys in seen:  # of each position
                for outputs in (queries, queries, channels):
                    flops += 2 * outputs * channels
                for is_key in keys:
                    if is_key:
                        flops += 2 * queries  # its energy
                        flops += 2 * channels  # its share of the values
        assert cost.flops == flops


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spatial", "channels", "inner", "recurrence", "batch"), SIZES)
def test_bytes_are_those_of_the_arrays(spatial, channels, inner, recurrence, batch, dtype):
    """Of the map, and of what each step reads and writes."""
    parameters = nn.init_criss_cross_block(channels, inner=inner, dtype=dtype)
    queries = parameters["query_conv.bias"].size
    x, q = (np.zeros((batch, size, *spatial), dtype) for size in (channels, queries))
    k, v, attended, result = q, x, x, x
    steps = (
        [x, *parameters.values(), q, k, v],  # projections; gamma is read with them
        [q, k, v, attended],
        [attended, x, result],
    )
    moved = sum(array.nbytes for step in steps for array in step)
    for cost, recurrences, seen in count_both(spatial, channels, inner, recurrence, batch, dtype):
        assert cost.map_bytes == batch * seen.sum() * x.itemsize
        assert cost.least_bytes == recurrences * moved


def test_the_map_is_ccnets():
    q = np.zeros((2, 4, 5, 7), np.float32)
    weights = crisscross.ca_softmax(crisscross.ca_weight(q, q))
    assert nn.count_criss_cross_block((5, 7), 32, batch=2).map_bytes == weights.nbytes


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("spatial", "channels", "inner", "recurrence", "batch"), SIZES)
def test_the_formulas_are_what_is_computed(spatial, channels, inner, recurrence, batch, dtype):
    """Each figure has one, which gives it."""
    for cost, steps, _ in count_both(spatial, channels, inner, recurrence, batch, dtype):
        named = {"N": batch, "S": spatial, "d": len(spatial), "P": math.prod(spatial)}
        named |= {"C": channels, "R": steps, "b": BYTES[dtype]}
        named["D"] = max(channels // 8, 1) if inner is None else inner
        figures = dataclasses.asdict(cost)
        formulas = figures.pop("formulas")
        assert {name: eval(formula, {"sum": sum}, named) for name, formula in formulas.items()} == (
            figures
        )
