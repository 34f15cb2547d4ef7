"""Every configuration of the kernels that copy and merge, whatever the order of the threads."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from crisscross import reference
from crisscross.kernels.arguments import MOST_PARTS
from crisscross.kernels.layout import configure_copy, copy_features
from crisscross.kernels.merge import configure_merge, merge
from crisscross.problem import COMPUTE_DTYPES, MergeProblem
from crisscross.testing import lay_out, numpy_dtype
from tests.emulator.launch import Schedule
from tests.kernels.devices import GPU, EmulatedBench
from tests.kernels.emulated import EmulatorEngine

RNG = np.random.default_rng(0)
PAIRS = [
    (wider, dtype)
    for dtype in COMPUTE_DTYPES
    for wider in dict.fromkeys((dtype, COMPUTE_DTYPES[dtype]))
]
#: Channels first and last, with gaps, backwards, one element off.
LAYOUTS = ("contiguous", "permuted", "strided", "reversed", "offset")

BENCHES = [
    *(pytest.param(partial(EmulatedBench, (each, 3)), id=each.name.lower()) for each in Schedule),
    GPU,
]
on_each = pytest.mark.parametrize("bench", BENCHES, indirect=True)


def make(bench, shape, dtype, layout):
    """Make an array of NaN in a layout."""
    return bench.put(lay_out(np.full(shape, np.nan, numpy_dtype(dtype)), layout))


def assert_compiled(engine, configurations):
    """Hold what was compiled to what tests are about; a device does not tell."""
    if isinstance(engine, EmulatorEngine):
        assert engine.compiled == {(each.kernel, each.options) for each in configurations}


@on_each
@pytest.mark.parametrize(("source_dtype", "dtype"), PAIRS)
def test_copies_are_exact_or_rounded_once(bench, source_dtype, dtype):
    with bench.open() as engine:
        for shape in ((2, 37, 3, 33), (1, 1, 1, 1), (1, 70, 65)):
            values = RNG.standard_normal(shape).astype(numpy_dtype(source_dtype))
            for number, layout in enumerate(LAYOUTS):
                source = bench.put(lay_out(values, layout))
                target = make(bench, shape, dtype, LAYOUTS[(number + 2) % len(LAYOUTS)])
                copy_features(engine, source.split_heads(1, 1), target.split_heads(1, 1))
                copied = bench.get(target)
                np.testing.assert_array_equal(copied, values.astype(numpy_dtype(dtype)))
        assert_compiled(engine, [configure_copy(source_dtype, dtype)])


@on_each
@pytest.mark.parametrize(("target_dtype", "dtype"), PAIRS)
def test_merges_are_rounded_once(bench, target_dtype, dtype):
    """Of few parts, and of more than one launch takes: what they have in common stays wide."""
    compute = COMPUTE_DTYPES[dtype]
    many = target_dtype == compute
    parts = 2 * MOST_PARTS + 1 if many else 3
    for channel_axis, shape in ((1, (2, 6, 3, 37)), (-1, (1, 2, 5, 70))):
        heads = 2
        spatial = shape[2:] if channel_axis == 1 else shape[1:-1]
        lse_shape = (shape[0], heads, *spatial)
        problem = MergeProblem(parts, heads, channel_axis, dtype, shape, lse_shape)
        outs = [RNG.standard_normal(shape).astype(numpy_dtype(dtype)) for _ in range(parts)]
        lses = [RNG.normal(0, 3, lse_shape).astype(compute) for _ in range(parts)]
        # Parts without a key, which may hold anything; and a position that has none at all.
        for i in (0, parts - 1):
            lses[i][..., i % 3 :: 4] = -np.inf
        for lse in lses:
            lse[0, 0, ..., 0] = -np.inf
        for out, lse in zip(outs, lses, strict=True):
            split = out.reshape(shape) if channel_axis == -1 else np.moveaxis(out, 1, -1)
            size = split.shape[-1] // heads
            for head in range(heads):
                split[..., head * size : (head + 1) * size][np.isneginf(lse[:, head])] = np.nan
        wide = np.longdouble if dtype == "float64" else np.float64
        exact, exact_lse = np.empty(shape, wide), np.empty(lse_shape, wide)
        reference.merge(problem, outs=outs, lses=lses, out=exact, lse=exact_lse)
        with bench.open() as engine:
            given = [[bench.put(array) for array in arrays] for arrays in (outs, lses)]
            views = bench.make(shape, dtype), bench.make(lse_shape, compute)
            merge(engine, problem, outs=given[0], lses=given[1], out=views[0], lse=views[1])
            out, lse = map(bench.get, views)
            targets = [dtype, compute] if many else [dtype]
            assert_compiled(engine, [configure_merge(dtype, target) for target in targets])
        ulp = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, np.finfo(compute).eps * 8)
        epsilon = float(np.finfo(compute).eps)
        np.testing.assert_allclose(out.astype(wide), exact, rtol=ulp, atol=4 * epsilon * parts)
        np.testing.assert_allclose(lse, exact_lse, rtol=8 * epsilon, atol=8 * epsilon)


def test_memory_behind_the_ends_is_left_alone(bench):
    """A target within a larger array: what surrounds it stays."""
    shape = (2, 41, 5, 39)
    values = RNG.standard_normal((2, 37, 3, 33)).astype(np.float32)
    with bench.open() as engine:
        framed, source = bench.make(shape, "float32"), bench.put(values)
        inner = framed.narrow(1, 2, 37).narrow(2, 1, 3).narrow(3, 3, 33)
        copy_features(engine, source.split_heads(1, 1), inner.split_heads(1, 1))
        frame = bench.get(framed)
    np.testing.assert_array_equal(frame[:, 2:-2, 1:-1, 3:-3], values)
    assert np.isnan(frame).sum() == frame.size - values.size
