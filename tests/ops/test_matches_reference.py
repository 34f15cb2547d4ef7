"""Every operation of the NumPy backend within the tolerance of the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st

import crisscross
from crisscross.cpu import plan, strips
from crisscross.problem import COMPUTE_DTYPES
from crisscross.testing import (
    LAYOUTS,
    assert_matches_reference,
    attention_cases,
    attention_problems,
    lay_out,
    make_case,
    numpy_dtype,
)
from tests.support.calls import run_axial, run_whole
from tests.support.closeness import assert_close
from tests.support.properties import law

pytestmark = pytest.mark.usefixtures("cpu_path")


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@law(data=st.data())
def test_criss_cross(dtype, data):
    case = data.draw(attention_cases(attention_problems(dtypes=(dtype,))))
    assert_matches_reference(case, **run_whole(case))


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@law(data=st.data())
def test_axial(dtype, data):
    case = data.draw(attention_cases(attention_problems(dtypes=(dtype,), axial=True)))
    assert_matches_reference(case, **run_axial(case))


@law(attention_cases(attention_problems(batches=(1, 2), masked=(False,))))
def test_the_reference_backend(case):
    """The oracle behind the public API, rounding to the dtype, within its own tolerance."""
    assert_matches_reference(case, **run_whole(case, "reference"))


@law(attention_cases(attention_problems(dtypes=("float16",), batches=(1,)), energy_peaks=(100.0,)))
def test_energies_beyond_float16(case):
    """<q, k> overflows float16 where the scale is small; the energies do not."""
    results = run_whole(case)
    assert np.isfinite(results["out"]).all()
    assert_matches_reference(case, **results)


def test_that_products_beyond_float16_were_drawn():
    case = make_case((5, 7), dtype="float16", scale=1e-3, energy_peak=100.0, head_size_qk=1)
    products = np.einsum("ncyx,nczw->yxzw", case.q.astype(float), case.k.astype(float))
    assert np.abs(products).max() > float(np.finfo(np.float16).max)
    assert_matches_reference(case, **run_whole(case))


SIZES = st.tuples(st.sampled_from((1, 2, 0)), *[st.sampled_from((1, 2, 3, 5, 7))] * 3)
MAP_CASES = {
    "size": SIZES,
    "seed": st.integers(0, 2**16),
    "dtype": st.sampled_from(tuple(COMPUTE_DTYPES)),
    "layout": st.sampled_from(LAYOUTS),
}


def draw_map_arrays(size, seed, dtype, layout):
    n, _, h, w = size
    rng = np.random.default_rng(seed)
    compute = COMPUTE_DTYPES[dtype]
    features = [
        lay_out(rng.standard_normal(size).astype(numpy_dtype(dtype)), layout) for _ in range(2)
    ]
    maps = [
        lay_out(rng.standard_normal((n, h + w - 1, h, w)).astype(compute), layout) for _ in range(2)
    ]
    return features, maps, compute


@law(**MAP_CASES)
def test_ca_weight(size, seed, dtype, layout):
    (q, k), (denergy, _), compute = draw_map_arrays(size, seed, dtype, layout)
    q64, k64, denergy64 = (x.astype(np.float64) for x in (q, k, denergy))
    channels, keys = size[1], sum(size[2:])
    exact = crisscross.ca_weight(q64, k64, backend="reference")
    assert_close(crisscross.ca_weight(q, k), exact, compute, channels)
    exact = crisscross.ca_weight_backward(denergy64, q64, k64, backend="reference")
    for actual, expected in zip(crisscross.ca_weight_backward(denergy, q, k), exact, strict=True):
        assert_close(actual, expected, dtype, keys)


@law(**MAP_CASES)
def test_ca_map(size, seed, dtype, layout):
    (v, dout), (attention, _), compute = draw_map_arrays(size, seed, dtype, layout)
    v64, dout64, attention64 = (x.astype(np.float64) for x in (v, dout, attention))
    channels, keys = size[1], sum(size[2:])
    exact = crisscross.ca_map(attention64, v64, backend="reference")
    assert_close(crisscross.ca_map(attention, v), exact, dtype, keys)
    dattention, dv = crisscross.ca_map_backward(dout, attention, v)
    exact = crisscross.ca_map_backward(dout64, attention64, v64, backend="reference")
    assert_close(dattention, exact[0], compute, channels)
    assert_close(dv, exact[1], dtype, keys)


@law(**{**MAP_CASES, "dtype": st.sampled_from(("float32", "float64"))})
def test_ca_softmax(size, seed, dtype, layout):
    _, (energy, dattention), _ = draw_map_arrays(size, seed, dtype, layout)
    energy64, dattention64 = energy.astype(np.float64), dattention.astype(np.float64)
    attention = crisscross.ca_softmax(energy)
    exact = crisscross.ca_softmax(energy64, backend="reference")
    assert_close(attention, exact, dtype, 1)
    denergy = crisscross.ca_softmax_backward(dattention, attention)
    expected = crisscross.ca_softmax_backward(
        dattention64, attention.astype(np.float64), backend="reference"
    )
    assert_close(denergy, expected, dtype, sum(size[2:]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ca_softmax_of_large_energies(backend, dtype):
    """Energies whose exponentials no dtype holds: only their differences count."""
    energy = np.random.default_rng(0).normal(0, 3, (1, 6, 3, 4)).astype(dtype)
    shift = np.asarray([1e4, -1e4, 3e3], dtype)[:, None]
    shifted = energy + shift
    exact = crisscross.ca_softmax((shifted - shift).astype(np.float64), backend="reference")
    assert_close(crisscross.ca_softmax(shifted, backend=backend), exact, dtype, 1)


@law(**{**MAP_CASES, "dtype": st.sampled_from(("float32", "float64"))})
def test_port_layout(size, seed, dtype, layout):
    """A permutation with a placeholder: exact."""
    _, (weights, _), _ = draw_map_arrays(size, seed, dtype, layout)
    ported = crisscross.to_port_layout(weights, self_value=-math.inf)
    expected = crisscross.to_port_layout(weights, self_value=-math.inf, backend="reference")
    np.testing.assert_array_equal(ported, expected)
    np.testing.assert_array_equal(crisscross.from_port_layout(ported), weights)
    restored = crisscross.from_port_layout(ported, backend="reference")
    np.testing.assert_array_equal(restored, weights)


@law(
    case=attention_cases(attention_problems(batches=(1, 2))),
    parts=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_merge(case, parts, seed):
    """Any parts at all, some of them without a key."""
    rng = np.random.default_rng(seed)
    problem = case.problem
    lses = [
        np.where(
            rng.random(problem.lse_shape) < 0.2, -np.inf, rng.normal(0, 3, problem.lse_shape)
        ).astype(problem.compute_dtype)
        for _ in range(parts)
    ]
    outs = [(case.v * (i + 1)).astype(case.v.dtype) for i in range(parts)]
    out, lse = crisscross.merge_attentions(outs, lses, channel_axis=problem.channel_axis)
    exact_out, exact_lse = crisscross.merge_attentions(
        [x.astype(np.float64) for x in outs],
        [x.astype(np.float64) for x in lses],
        channel_axis=problem.channel_axis,
        backend="reference",
    )
    assert_close(out, exact_out, problem.dtype, 4 * parts)
    finite = np.isfinite(exact_lse)
    np.testing.assert_array_equal(np.isneginf(lse), ~finite)
    assert_close(lse[finite], exact_lse[finite], problem.compute_dtype, 4)


@pytest.mark.parametrize(
    "case",
    [
        make_case((97, 97), head_size_qk=8, head_size_v=16),
        make_case((13, 29), batch=2, heads=2, head_size_qk=25, head_size_v=7, dtype="float16"),
        make_case((5, 6, 7), head_size_qk=3, head_size_v=10, dtype="bfloat16", masked=True),
        make_case((1, 1), head_size_qk=1, head_size_v=1, dtype="float64"),
        make_case((300,), batch=2, head_size_qk=4, head_size_v=5, channel_axis=-1),
    ],
    ids=["square", "heads", "video", "single", "strip"],
)
def test_larger_sizes(case):
    assert_matches_reference(case, **run_whole(case))


@pytest.mark.parametrize("spatial", [(0,), (0, 5), (5, 0), (3, 0, 2), (0, 0)])
def test_nothing_at_all(spatial, backend):
    """An image without positions has a result without elements."""
    case = make_case(spatial, batch=2, heads=2, masked=True, dtype="float16")
    for name, result in run_whole(case, backend).items():
        assert result.shape == case.exact[name].shape
        assert result.size == 0


def test_strips_longer_than_a_tile(monkeypatch):
    """Energies cut along the queries too: many tiles, the last one ragged."""
    monkeypatch.setattr(plan, "SMALL_IMAGE_FLOPS", 0)
    monkeypatch.setattr(strips, "TILE_BYTES", 4 * 23 * 3)
    monkeypatch.setattr(strips, "LEAST_ROWS", 3)
    for include_self in (True, False):
        case = make_case(
            (23, 7), heads=2, axes=(0,), include_self=include_self, masked=True, head_size_v=5
        )
        tasks = strips.cut_tasks((1, 2, 7, 23), 4, 1, head_size=5, share_rows=False)
        assert [len(task.rows) for task in tasks] == [8] * 14
        assert_matches_reference(case, **run_axial(case))
    # The values of a strip cut into rows serve several tiles, whichever axis has them.
    for spatial in ((23, 7), (7, 23)):
        for masked in (True, False):
            case = make_case(spatial, heads=2, masked=masked, head_size_v=5)
            assert_matches_reference(case, **run_whole(case))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 128), ("float64", 64), ("float16", 256)])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_vectors_of_a_multiple_of_512_bytes(cpu_path, dtype, size, channel_axis):
    """Scratch has room behind them, which is no part of any."""
    case = make_case(
        (3, 4), head_size_qk=size, head_size_v=size, dtype=dtype, channel_axis=channel_axis
    )
    assert_matches_reference(case, **run_whole(case))


def test_many_large_energies_of_one_size():
    """Each of them has an exp in float32, their sum without a shift has not."""
    q = k = np.full((1, 1, 8192), 80**0.5, np.float32)
    v = np.linspace(-1, 1, 8192, dtype=np.float32).reshape(q.shape)
    out, lse = crisscross.criss_cross_attention(q, k, v + 1, return_lse=True)
    np.testing.assert_allclose(out, 1, rtol=1e-5)
    np.testing.assert_allclose(lse, 80 + np.log(8192), rtol=1e-6)
