"""What blocks cost: the published figures, and counts of what loops and arrays really hold."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest

import crisscross
from crisscross import ArgumentError, ArgumentTypeError, nn
from crisscross.testing import numpy_dtype
from tests.nn.definitions import find_neighbours

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Counted(NamedTuple):
    """A cost beside what it is of: parameters, loops, arrays, and the letters of the formulas."""

    cost: nn.Cost
    parameters: dict[str, np.ndarray]  # as they are drawn
    flops: int
    steps: list[list[np.ndarray]]  # what each reads and writes
    map_bytes: int
    letters: dict[str, object]


def name_letters(spatial, channels, batch, dtype, **others):
    letters = {"S": spatial, "d": len(spatial), "P": math.prod(spatial)}
    return {**letters, "C": channels, "N": batch, "b": BYTES[dtype], **others}


def select(parameters, prefix):
    return [array for name, array in parameters.items() if name.startswith(prefix)]


def count_module(seen, channels, queries):
    """Flops of CCNet's module on an image: each product is multiplied and added, 2."""
    flops = 0
    for keys in seen:  # of each position
        for outputs in (queries, queries, channels):
            flops += 2 * outputs * channels
        for is_key in keys:
            if is_key:
                flops += 2 * queries  # its energy
                flops += 2 * channels  # its share of the values
    return flops


def list_module_steps(parameters, x, q):
    k, v, attended, result = q, x, x, x
    return [
        [x, *parameters, q, k, v],  # projections; gamma is read with them
        [q, k, v, attended],
        [attended, x, result],
    ]


def list_sets(parameters, prefix, recurrence, shared):
    """The parameters that each recurrence reads."""
    if shared:
        return [select(parameters, prefix)] * recurrence
    return [select(parameters, f"{prefix}{number}.") for number in range(recurrence)]


def count_criss_cross(spatial, channels, inner, recurrence, shared, batch, dtype):
    parameters = nn.init_criss_cross_block(
        channels,
        inner=inner,
        recurrence=None if shared else recurrence,
        dtype=dtype,
        spatial_ndim=len(spatial),
    )
    queries = max(channels // 8, 1) if inner is None else inner
    seen = find_neighbours(spatial)
    x, q = (np.zeros((batch, size, *spatial), numpy_dtype(dtype)) for size in (channels, queries))
    flops, steps = 0, []
    for read in list_sets(parameters, "", recurrence, shared):
        flops += batch * count_module(seen, channels, queries)
        steps += list_module_steps(read, x, q)
    cost = nn.count_criss_cross_block(
        spatial,
        channels,
        inner=inner,
        recurrence=recurrence,
        shared=shared,
        batch=batch,
        dtype=dtype,
    )
    letters = name_letters(spatial, channels, batch, dtype, D=queries, R=recurrence)
    return Counted(cost, parameters, flops, steps, batch * seen.sum() * x.itemsize, letters)


def count_position_attention(spatial, channels, inner, batch, dtype):
    options = {"inner": inner, "dtype": dtype}
    parameters = nn.init_position_attention_block(channels, spatial_ndim=len(spatial), **options)
    queries = max(channels // 8, 1) if inner is None else inner
    seen = np.ones((math.prod(spatial),) * 2, bool)
    x, q = (np.zeros((batch, size, *spatial), numpy_dtype(dtype)) for size in (channels, queries))
    return Counted(
        nn.count_position_attention_block(spatial, channels, batch=batch, **options),
        parameters,
        batch * count_module(seen, channels, queries),
        list_module_steps(parameters.values(), x, q),
        batch * seen.size * x.itemsize,
        name_letters(spatial, channels, batch, dtype, D=queries),
    )


def count_non_local(spatial, channels, inner, mode, batch, dtype):
    options = {"inner": inner, "dtype": dtype}
    parameters = nn.init_non_local_block(channels, spatial_ndim=len(spatial), **options)
    rows = max(channels // 2, 1) if inner is None else inner
    positions = math.prod(spatial)
    flops = 0
    for _ in range(batch * positions):
        for _ in ("theta", "phi", "g", "W"):
            flops += 2 * channels * rows
        if mode == "embedded_gaussian":
            for _ in range(positions):
                flops += 2 * rows  # an energy
                flops += 2 * rows  # its share of g
        else:
            for _ in range(rows):
                flops += 2 * rows  # of phi, with each channel of g
                flops += 2 * rows  # of theta, with each column of what came of it
    x, theta = (np.zeros((batch, size, *spatial), numpy_dtype(dtype)) for size in (channels, rows))
    phi, g, attended, projected, result = theta, theta, theta, x, x
    before = select(parameters, ("theta.", "phi.", "g."))
    steps = [
        [x, *before, theta, phi, g],
        [theta, phi, g, attended],
        [attended, *select(parameters, "W."), projected],
        [projected, x, result],
    ]
    return Counted(
        nn.count_non_local_block(spatial, channels, mode=mode, batch=batch, **options),
        parameters,
        flops,
        steps,
        batch * positions * positions * x.itemsize,
        name_letters(spatial, channels, batch, dtype, D=rows),
    )


def count_channel_attention(spatial, channels, batch, dtype):
    parameters = nn.init_channel_attention_block(dtype=dtype)
    flops = 0
    for _ in range(batch * channels):
        for _ in range(channels):
            for _ in range(math.prod(spatial)):
                flops += 2  # of the energy of two channels
                flops += 2  # of the share of one in the other
    x = np.zeros((batch, channels, *spatial), numpy_dtype(dtype))
    attended, result = x, x
    return Counted(
        nn.count_channel_attention_block(spatial, channels, batch=batch, dtype=dtype),
        parameters,
        flops,
        [[x, attended], [attended, x, *parameters.values(), result]],
        np.zeros((batch, channels, channels), x.dtype).nbytes,
        name_letters(spatial, channels, batch, dtype),
    )


def count_head(spatial, channels, classes, inner, outer, recurrence, shared, norm, batch, dtype):
    options = {"classes": classes, "inner": inner, "outer": outer, "norm": norm, "dtype": dtype}
    parameters = nn.init_rcca_head(
        channels,
        recurrence=None if shared else recurrence,
        spatial_ndim=len(spatial),
        **options,
    )
    middle = max(channels // 4, 1) if inner is None else inner
    queries = max(middle // 8, 1)
    seen = find_neighbours(spatial)
    flops = recurrence * count_module(seen, middle, queries)
    for _ in np.ndindex(*spatial):
        for _ in np.ndindex(*[3] * len(spatial)):  # of a kernel, zeros around included
            flops += 2 * channels * middle
            flops += 2 * middle * middle
            flops += 2 * (channels + middle) * outer
        flops += 2 * outer * classes

    def make(size):
        return np.zeros((batch, size, *spatial), numpy_dtype(dtype))

    x, reduced, q, wide, logits = map(make, (channels, middle, queries, outer, classes))
    steps = [[x, *select(parameters, "conva."), reduced]]
    for read in list_sets(parameters, "cca.", recurrence, shared):
        steps += list_module_steps(read, reduced, q)
    steps += [
        [reduced, *select(parameters, "convb."), reduced],
        [x, reduced, *select(parameters, ("bottleneck.0.", "bottleneck.1.")), wide],
        [wide, *select(parameters, "bottleneck.3."), logits],
    ]
    cost = nn.count_rcca_head(
        spatial, channels, recurrence=recurrence, shared=shared, batch=batch, **options
    )
    letters = name_letters(spatial, channels, batch, dtype, D=queries, R=recurrence)
    letters |= {"M": middle, "B": outer, "K": classes}
    map_bytes = batch * seen.sum() * x.itemsize
    return Counted(cost, parameters, batch * flops, steps, map_bytes, letters)


#: How to count, and sizes, channels, ... images.
CASES = [
    (count_criss_cross, (3, 4), 8, None, 1, True, 1),
    (count_criss_cross, (3, 4), 8, 3, 2, True, 1),
    (count_criss_cross, (3, 5), 8, 3, 2, False, 1),
    (count_criss_cross, (2, 5), 3, None, 3, True, 2),  # fewer than 8 channels: queries have one
    (count_criss_cross, (7,), 16, None, 3, False, 3),
    (count_criss_cross, (2, 3, 4), 4, 2, 2, True, 1),
    (count_criss_cross, (1, 1), 8, 1, 1, False, 1),
    (count_criss_cross, (3, 4), 8, None, 0, True, 1),
    (count_criss_cross, (0, 5), 8, None, 2, True, 1),
    (count_criss_cross, (3, 4), 8, None, 2, False, 0),
    (count_position_attention, (3, 4), 8, None, 1),
    (count_position_attention, (3, 5), 3, None, 2),
    (count_position_attention, (7,), 16, 5, 3),
    (count_position_attention, (2, 3, 5), 4, 2, 1),
    (count_position_attention, (0, 5), 8, None, 1),
    *(
        (count_non_local, *sizes[:3], mode, sizes[3])
        for mode in ("embedded_gaussian", "dot_product")
        for sizes in (
            ((3, 5), 9, None, 1),
            ((3, 4), 5, 7, 2),
            ((7,), 1, None, 3),  # of one channel, half is one
            ((2, 3, 5), 4, 3, 1),
            ((0, 5), 4, None, 1),
        )
    ),
    (count_channel_attention, (3, 5), 7, 1),
    (count_channel_attention, (7,), 1, 3),
    (count_channel_attention, (2, 3, 5), 4, 2),
    (count_channel_attention, (0, 5), 4, 2),
    (count_head, (3, 5), 9, 3, None, 5, 2, True, "batch", 1),
    (count_head, (3, 4), 6, 2, 17, 3, 3, False, "batch", 2),  # queries have two channels
    (count_head, (7,), 3, 5, None, 4, 1, True, "group", 3),  # a quarter of three is one
    (count_head, (2, 3, 5), 5, 2, 4, 7, 2, False, None, 1),
    (count_head, (3, 3), 4, 2, 3, 1, 0, True, None, 1),
    (count_head, (0, 5), 4, 2, 3, 1, 2, True, "group", 1),
]
every_case = pytest.mark.parametrize("number", range(len(CASES)))


def count(number, dtype="float32"):
    counter, *arguments = CASES[number]
    return counter(*arguments, dtype)


@pytest.mark.parametrize(("recurrence", "published"), [(1, 8.29), (2, 16.58), (3, 24.88)])
def test_the_papers_figures(recurrence, published):
    """CCNet, ICCV 2019: 512 channels at 97 x 97, in GFLOPs."""
    cost = nn.count_criss_cross_block((97, 97), 512, recurrence=recurrence)
    assert round(cost.published_flops / 1e9, 2) == published


def test_the_papers_figure_of_non_local():
    cost = nn.count_position_attention_block((97, 97), 512)
    assert round(cost.published_flops / 1e9, 2) == 108.16


@every_case
def test_parameters_are_the_numbers_of_the_arrays(number):
    """Running statistics are no parameters to learn."""
    counted = count(number)
    learned = (a.size for name, a in counted.parameters.items() if "running" not in name)
    assert counted.cost.parameters == sum(learned)


@every_case
def test_flops_are_those_of_the_loops(number):
    counted = count(number)
    assert counted.cost.flops == counted.flops


@pytest.mark.parametrize("dtype", BYTES)
@every_case
def test_bytes_are_those_of_the_arrays(number, dtype):
    """Of the map, and of what each step reads and writes."""
    counted = count(number, dtype)
    assert counted.cost.map_bytes == counted.map_bytes
    assert counted.cost.least_bytes == sum(a.nbytes for step in counted.steps for a in step)


def test_the_map_is_ccnets():
    q = np.zeros((2, 4, 5, 7), np.float32)
    weights = crisscross.ca_softmax(crisscross.ca_weight(q, q))
    assert nn.count_criss_cross_block((5, 7), 32, batch=2).map_bytes == weights.nbytes
    assert nn.count_rcca_head((5, 7), 9, classes=2, inner=32, batch=2).map_bytes == weights.nbytes


@pytest.mark.parametrize("dtype", BYTES)
@every_case
def test_the_formulas_are_what_is_computed(number, dtype):
    """Each figure that there is has one, which gives it, of the letters that are explained."""
    counted = count(number, dtype)
    figures = dataclasses.asdict(counted.cost)
    formulas = figures.pop("formulas")
    if CASES[number][0] not in (count_criss_cross, count_position_attention):
        assert figures.pop("published_flops") is None
    assert {name: eval(f, {"sum": sum}, counted.letters) for name, f in formulas.items()} == figures


def test_what_nobody_says_is_as_of_the_initialisers():
    """And of the block: the head's R is 2, its norm that of batches."""
    said = {"batch": 1, "dtype": "float32"}
    once = {"recurrence": 1, "shared": True}
    for spatial in ((3, 5), (7,)):
        assert nn.count_criss_cross_block(spatial, 40) == (
            nn.count_criss_cross_block(spatial, 40, inner=5, **once, **said)
        )
        assert nn.count_position_attention_block(spatial, 40) == (
            nn.count_position_attention_block(spatial, 40, inner=5, **said)
        )
        assert nn.count_non_local_block(spatial, 40) == (
            nn.count_non_local_block(spatial, 40, inner=20, mode="embedded_gaussian", **said)
        )
        assert nn.count_channel_attention_block(spatial, 40) == (
            nn.count_channel_attention_block(spatial, 40, **said)
        )
        widths = {"inner": 512, "outer": 512, "norm": "batch"}
        assert nn.count_rcca_head(spatial, classes=3) == (
            nn.count_rcca_head(
                spatial, 2048, classes=3, recurrence=2, shared=True, **widths, **said
            )
        )


def test_integers_are_those_of_python():
    """NumPy's of 32 bits would overflow."""
    numbers = np.array([97, 512], np.int32)
    assert nn.count_position_attention_block([numbers[0], numbers[0]], numbers[1]) == (
        nn.count_position_attention_block((97, 97), 512)
    )


DTYPE = "dtype: expected one of ('float16', 'bfloat16', 'float32', 'float64'), got "
ERRORS = [
    (nn.count_criss_cross_block, [97, 512], {}, ArgumentTypeError,
     ["spatial: expected a tuple of integers, such as (97, 97), got 97"]),
    (nn.count_criss_cross_block, [(), 512], {}, ArgumentError,
     ["spatial: expected at least one size, got none: ()"]),
    (nn.count_criss_cross_block, [(3, 4.0), 512], {"shared": 1}, ArgumentTypeError,
     ["spatial[1]: expected an integer, got 4.0", "shared: expected True or False, got 1"]),
    (nn.count_criss_cross_block, [(-1, 4, True), 0],
     {"inner": 0, "recurrence": -1, "shared": None, "batch": -2, "dtype": "int8"}, ArgumentError,
     ["spatial[0]: expected at least 0, got -1", "spatial[2]: expected an integer, got True",
      DTYPE + "'int8'", "channels: expected at least 1, got 0",
      "batch: expected at least 0, got -2", "inner: expected at least 1, got 0",
      "recurrence: expected at least 0, got -1", "shared: expected True or False, got None"]),
    (nn.count_position_attention_block, ["97", 8.0], {"inner": "1", "batch": None, "dtype": [4]},
     ArgumentTypeError,
     ["spatial: expected a tuple of integers, such as (97, 97), got '97'", DTYPE + "list [4]",
      "channels: expected an integer, got 8.0", "batch: expected an integer, got None",
      "inner: expected an integer, got '1'"]),
    (nn.count_non_local_block, [(), 8], {"inner": -1, "mode": "gaussian", "dtype": None},
     ArgumentError,
     ["spatial: expected at least one size, got none: ()", DTYPE + "None",
      "inner: expected at least 1, got -1",
      "mode: expected one of ('embedded_gaussian', 'dot_product'), got 'gaussian'"]),
    (nn.count_channel_attention_block, [(3, -4), 2**63], {"batch": 1.5, "dtype": "half"},
     ArgumentError,
     ["spatial[1]: expected at least 0, got -4", DTYPE + "'half'",
      f"channels: expected an integer of 64 bits, got {2**63}",
      "batch: expected an integer, got 1.5"]),
    (nn.count_rcca_head, [(3, 4), None],
     {"classes": 0, "inner": 0, "outer": -1, "recurrence": 2.0, "shared": "no", "norm": "layer"},
     ArgumentError,
     ["channels: expected an integer, got None", "classes: expected at least 1, got 0",
      "inner: expected at least 1, got 0", "outer: expected at least 1, got -1",
      "recurrence: expected an integer, got 2.0", "shared: expected True or False, got 'no'",
      "norm: expected one of ('batch', 'group', None), got 'layer'"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors(number):
    """Everything that does not fit, at once."""
    function, arguments, options, kind, expected = ERRORS[number]
    with pytest.raises(kind) as raised:
        function(*arguments, **options)
    assert list(map(str, raised.value.mismatches)) == expected
    assert raised.value.function == function.__name__
