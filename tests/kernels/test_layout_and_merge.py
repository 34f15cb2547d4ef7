"""Every configuration of the kernels that copy and merge, whatever the order of the threads."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross import reference
from crisscross.kernels.arguments import MOST_PARTS
from crisscross.kernels.layout import configure_copy, copy_features
from crisscross.kernels.merge import configure_merge, merge
from crisscross.problem import COMPUTE_DTYPES, MergeProblem
from crisscross.testing import lay_out, numpy_dtype
from tests.emulator.launch import Schedule
from tests.emulator.memory import place
from tests.kernels.emulated import EmulatedArray, EmulatorEngine

RNG = np.random.default_rng(0)
PAIRS = [
    (wider, dtype)
    for dtype in COMPUTE_DTYPES
    for wider in dict.fromkeys((dtype, COMPUTE_DTYPES[dtype]))
]
#: Channels first and last, with gaps, backwards, one element off.
LAYOUTS = ("contiguous", "permuted", "strided", "reversed", "offset")


def put(array):
    """Copy an array to the device, where a step beyond it is seen."""
    return EmulatedArray(place(array))


def make(shape, dtype, layout="contiguous"):
    """Make an array of NaN in a layout."""
    return put(lay_out(np.full(shape, np.nan, numpy_dtype(dtype)), layout))


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(("source_dtype", "dtype"), PAIRS)
def test_copies_are_exact_or_rounded_once(source_dtype, dtype, schedule):
    engine = EmulatorEngine(schedule=schedule, seed=3)
    for shape in ((2, 37, 3, 33), (1, 1, 1, 1), (1, 70, 65)):
        values = RNG.standard_normal(shape).astype(numpy_dtype(source_dtype))
        for number, layout in enumerate(LAYOUTS):
            source = put(lay_out(values, layout))
            target = make(shape, dtype, LAYOUTS[(number + 2) % len(LAYOUTS)])
            copy_features(engine, source.view.split_heads(1, 1), target.view.split_heads(1, 1))
            np.testing.assert_array_equal(target.array, values.astype(numpy_dtype(dtype)))
    configuration = configure_copy(source_dtype, dtype)
    assert engine.compiled == {(configuration.kernel, configuration.options)}


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(("target_dtype", "dtype"), PAIRS)
def test_merges_are_rounded_once(target_dtype, dtype, schedule):
    """Of few parts, and of more than one launch takes: what they have in common stays wide."""
    engine = EmulatorEngine(schedule=schedule, seed=3)
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
        arrays = [[put(array) for array in some] for some in (outs, lses)]
        out, lse = make(shape, dtype), make(lse_shape, compute)
        views = [[array.view for array in some] for some in arrays]
        merge(engine, problem, outs=views[0], lses=views[1], out=out.view, lse=lse.view)
        ulp = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, np.finfo(compute).eps * 8)
        np.testing.assert_allclose(
            out.array.astype(wide), exact, rtol=ulp, atol=4 * float(np.finfo(compute).eps) * parts
        )
        epsilon = 8 * float(np.finfo(compute).eps)
        np.testing.assert_allclose(lse.array, exact_lse, rtol=epsilon, atol=epsilon)
    targets = [dtype, compute] if many else [dtype]
    assert engine.compiled == {
        (configuration.kernel, configuration.options)
        for configuration in (configure_merge(dtype, target) for target in targets)
    }


def test_memory_behind_the_ends_is_left_alone():
    """A target within a larger array: what surrounds it stays."""
    frame = np.full((2, 41, 5, 39), np.nan, np.float32)
    framed = put(frame)
    inner = EmulatedArray(framed.array[:, 2:-2, 1:-1, 3:-3])
    values = RNG.standard_normal(inner.shape).astype(np.float32)
    source = put(values)
    copy_features(EmulatorEngine(), source.view.split_heads(1, 1), inner.view.split_heads(1, 1))
    np.testing.assert_array_equal(inner.array, values)
    assert np.isnan(framed.array).sum() == frame.size - values.size
