"""NaN and infinity reach only those who can see them; masked positions are never read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import strategies as st

import crisscross
from crisscross.problem import split_heads
from crisscross.testing import attention_cases, attention_problems, make_case
from tests.support.calls import run_axial, run_whole
from tests.support.properties import law

pytestmark = pytest.mark.usefixtures("cpu_path")

POISONS = st.sampled_from((np.nan, np.inf, -np.inf))
MASKED = attention_cases(attention_problems(batches=(1, 2), masked=(True,)))
WHOLE = attention_cases(attention_problems(batches=(1, 2)), energy_peaks=(4.0,))
AXIAL = attention_cases(attention_problems(batches=(1, 2), axial=True), energy_peaks=(4.0,))


def run(case):
    """All results, of one axis where the case leaves self out."""
    return run_whole(case) if case.problem.include_self else run_axial(case)


def poison_positions(case, name, where, value):
    """Copy one array of a case with `value` in all channels where (N, *S) is marked."""
    array = getattr(case, name).copy()
    channels_last = np.moveaxis(array, case.problem.channel_axis, -1)
    channels_last[where] = value
    return array


@law(case=MASKED, poison=POISONS)
def test_masked_keys_are_never_read(case, poison):
    """Bit for bit the same results, and gradients of exactly zero."""
    hidden = ~case.key_mask
    poisoned = {name: poison_positions(case, name, hidden, poison) for name in ("k", "v")}
    # Copies of one layout on either side: another layout may sum in another order.
    copies = {name: getattr(case, name).copy() for name in poisoned}
    clean = run(dataclasses.replace(case, **copies))
    dirty = run(dataclasses.replace(case, **poisoned))
    for name, expected in clean.items():
        np.testing.assert_array_equal(dirty[name], expected, err_msg=name)
    for name in ("dk", "dv"):
        at_hidden = np.moveaxis(dirty[name], case.problem.channel_axis, -1)[hidden]
        assert (at_hidden == 0).all()


@law(case=MASKED, poison=POISONS)
def test_masked_keys_get_no_gradient_even_from_nan(case, poison):
    everywhere = np.ones(case.problem.mask_shape, bool)
    poisoned = {"dout": poison_positions(case, "dout", everywhere, poison)}
    results = run(dataclasses.replace(case, **poisoned))
    for name in ("dk", "dv"):
        at_hidden = np.moveaxis(results[name], case.problem.channel_axis, -1)[~case.key_mask]
        assert (at_hidden == 0).all()


@law(case=MASKED, poison=POISONS)
def test_positions_without_keys_have_no_part(case, poison):
    """out = 0, lse = -inf, dq = 0, and nothing of their q, dout and dlse reaches the others."""
    keyless = np.isneginf(run(case)["lse"]).all(axis=1)
    poisoned = {name: poison_positions(case, name, keyless, poison) for name in ("q", "dout")}
    if case.dlse is not None:
        dlse = case.dlse.copy()
        np.moveaxis(dlse, 1, -1)[keyless] = poison
        poisoned["dlse"] = dlse
    # Copies of one layout on either side: another layout may sum in another order.
    copies = {name: getattr(case, name).copy() for name in poisoned}
    clean = run(dataclasses.replace(case, **copies))
    dirty = run(dataclasses.replace(case, **poisoned))
    for name, expected in clean.items():
        np.testing.assert_array_equal(dirty[name], expected, err_msg=name)
    assert (np.moveaxis(dirty["out"], case.problem.channel_axis, -1)[keyless] == 0).all()
    assert (np.moveaxis(dirty["dq"], case.problem.channel_axis, -1)[keyless] == 0).all()


@law(
    case=WHOLE | AXIAL,
    name=st.sampled_from(("q", "k", "v", "dout")),
    poison=POISONS,
    seed=st.integers(0, 2**16),
)
def test_poison_reaches_no_further_than_in_the_oracle(case, name, poison, seed):
    """Wherever the oracle is finite, so is the backend, and about as large."""
    rng = np.random.default_rng(seed)
    where = tuple(rng.integers(size) for size in case.problem.mask_shape)
    poisoned = dataclasses.replace(case, **{name: poison_positions(case, name, where, poison)})
    clean, dirty = run(case), run(poisoned)
    for key, exact in poisoned.exact.items():
        finite = np.isfinite(exact)
        actual = dirty[key].astype(np.float64)
        assert np.isfinite(actual[finite]).all(), key
        # Positions out of reach keep their value, but for the order of the sums.
        untouched = finite & (exact == case.exact[key])
        before = clean[key].astype(np.float64)
        np.testing.assert_allclose(actual[untouched], before[untouched], 1e-2, 1e-2)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_the_reach_of_one_position(name, poison):
    """q reaches its own position; k and v those on its row and column, and no others."""
    case = make_case((5, 6), batch=2, heads=2, head_size_qk=3, head_size_v=4)
    array = split_heads(getattr(case, name).copy(), 2, 1)
    array[1, 0, 2, 3] = poison
    arrays = {"q": case.q, "k": case.k, "v": case.v}
    arrays[name] = np.moveaxis(array, -1, 2).reshape(getattr(case, name).shape)
    out = split_heads(crisscross.criss_cross_attention(**arrays, heads=2), 2, 1)
    clean = split_heads(crisscross.criss_cross_attention(case.q, case.k, case.v, heads=2), 2, 1)
    reach = np.zeros((2, 2, 5, 6), bool)
    if name == "q":
        reach[1, 0, 2, 3] = True
    else:
        reach[1, 0, 2, :] = reach[1, 0, :, 3] = True
    np.testing.assert_array_equal(out[~reach], clean[~reach])
    # An infinite k may be a key of weight zero; NaN and infinite values always show.
    if name != "k" or np.isnan(poison):
        assert not np.isfinite(out[reach]).any()
    else:
        assert not np.isfinite(out[reach]).all()


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("positive", [True, False])
def test_nan_of_the_oracle_is_nan(name, poison, positive):
    """Of one infinite or NaN vector: where the oracle has NaN so have we, in gradients too."""
    case = make_case((5, 6), head_size_qk=2, head_size_v=3)
    arrays = {key: np.abs(getattr(case, key)) if positive else getattr(case, key) for key in "qk"}
    arrays[name] = arrays[name].copy()
    arrays[name][0, :, 2, 3] = poison
    poisoned = dataclasses.replace(case, **arrays)
    for key, actual in run(poisoned).items():
        exact = poisoned.exact[key]
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact), key)
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(exact), key)


def test_infinite_values_stay_infinite():
    """inf + finite = inf: the strip that leaves self out must not turn it into NaN."""
    q = k = np.zeros((1, 1, 3, 4))
    v = np.zeros((1, 1, 3, 4))
    v[0, 0, 1, 2] = np.inf
    fused = crisscross.criss_cross_attention(q, k, v)
    summed = crisscross.ca_map(crisscross.ca_softmax(crisscross.ca_weight(q, k)), v)
    for out in (fused, summed):
        assert out[0, 0, 1, 2] == np.inf
        assert not np.isnan(out).any()


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3e38), ("float64", 1e308)])
def test_the_mean_of_the_largest_values_is_no_sum(dtype, largest):
    q = np.zeros((1, 2, 3, 4), dtype)
    v = np.full((1, 2, 3, 4), largest, dtype)
    out, lse = crisscross.criss_cross_attention(q, q, v, return_lse=True)
    np.testing.assert_allclose(out, v, rtol=1e-6)
    merged, _ = crisscross.merge_attentions([out] * 3, [lse] * 3)
    np.testing.assert_allclose(merged, v, rtol=1e-6)


def test_merging_at_a_huge_lse(backend):
    outs, lses = [np.full((1, 1, 2), x) for x in (1.0, 3.0)], [np.full((1, 1, 2), 1e30)] * 2
    out, _ = crisscross.merge_attentions(outs, lses, backend=backend)
    np.testing.assert_array_equal(out, np.full((1, 1, 2), 2.0))


def test_a_strip_of_one_without_itself():
    """H = 1: the column holds no key."""
    q = k = v = np.ones((1, 2, 1, 5))
    out, lse = crisscross.axial_attention(q, k, v, axis=0, include_self=False, return_lse=True)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    dout = np.full_like(v, np.nan)
    for gradient in crisscross.axial_attention_backward(
        dout, q, k, v, out, lse, axis=0, include_self=False
    ):
        assert (gradient == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_no_warning_escapes(backend, poison):
    """Warnings are errors here, and NaN is none of ours."""
    x = np.full((1, 2, 3, 4), poison)
    maps = np.full((1, 6, 3, 4), poison)
    crisscross.ca_weight(x, x, backend=backend)
    crisscross.ca_weight_backward(maps, x, x, backend=backend)
    crisscross.ca_softmax(maps, backend=backend)
    crisscross.ca_softmax_backward(maps, maps, backend=backend)
    crisscross.ca_map(maps, x, backend=backend)
    crisscross.ca_map_backward(x, maps, x, backend=backend)
    out, lse = crisscross.criss_cross_attention(x, x, x, return_lse=True, backend=backend)
    crisscross.criss_cross_attention_backward(x, x, x, x, out, lse, backend=backend)
    crisscross.merge_attentions([out, out], [lse, lse], backend=backend)


@pytest.mark.parametrize(("query", "key"), [(1, -np.inf), (-np.inf, 1)])
def test_keys_without_any_weight_are_no_keys(backend, query, key):
    """All energies -inf: out = 0, lse = -inf and zero gradients, whatever v, dout and dlse hold."""
    q, k = np.full((1, 2, 3, 4), float(query)), np.full((1, 2, 3, 4), float(key))
    v = dout = np.full((1, 5, 3, 4), np.nan)
    out, lse = crisscross.criss_cross_attention(q, k, v, return_lse=True, backend=backend)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    dlse = np.full_like(lse, np.nan)
    for gradient in crisscross.criss_cross_attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, backend=backend
    ):
        assert (gradient == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_merging_ignores_what_a_keyless_part_holds(backend, poison):
    outs = [np.ones((1, 2, 3)), np.full((1, 2, 3), poison)]
    lses = [np.zeros((1, 1, 3)), np.full((1, 1, 3), -np.inf)]
    out, lse = crisscross.merge_attentions(outs, lses, backend=backend)
    np.testing.assert_array_equal(out, outs[0])
    np.testing.assert_array_equal(lse, lses[0])


@pytest.mark.parametrize("name", ["v", "dout", "k", "q"])
@pytest.mark.parametrize("position", [0, 9, 22])
def test_the_excluded_self_of_a_long_strip(name, position):
    """In every tile: what is not finite at a position does not reach it through itself."""
    case = make_case((23,), axes=(0,), include_self=False, head_size_v=3)
    array = getattr(case, name).copy()
    array[0, :, position] = np.nan
    poisoned = dataclasses.replace(case, **{name: array})
    for key, actual in run(poisoned).items():
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(poisoned.exact[key]), key)


@pytest.mark.parametrize(
    ("q_size", "k_size", "scale"), [(1e20, 1e-18, 1.0), (1e-23, 1e18, 1e7)], ids=["over", "under"]
)
def test_energies_of_vectors_that_cannot_be_squared(q_size, k_size, scale):
    """|q|^2 overflows or underflows, the energies do not; their exponentials would, unshifted."""
    rng = np.random.default_rng(0)
    case = make_case((6, 7), head_size_v=3, scale=scale)
    q = (rng.choice([-1, 1], case.q.shape) * q_size).astype(np.float32)
    k = (rng.standard_normal(case.k.shape) * k_size).astype(np.float32)
    case = dataclasses.replace(case, q=q, k=k)
    assert np.abs(case.exact["lse"]).max() > 100
    results = run(case)
    for name in ("out", "lse", "dk", "dv"):
        scale = np.abs(case.exact[name]).max()
        np.testing.assert_allclose(results[name], case.exact[name], 1e-3, 1e-3 * scale)
