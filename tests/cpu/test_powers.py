"""Powers of 2 in place of those of e, and queries that are scaled for them."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross.cpu import forward, lengths, medium, plan, powers
from crisscross.testing import make_case


def report(target):
    """What NumPy says of its loops."""
    return lambda **_: {"exp2": {"ff": {"current": target, "available": "ignored"}}}


@pytest.mark.parametrize(
    ("dtype", "platform", "loops", "expected"),
    [
        (np.float32, "linux", report("X86_V4"), powers.POWER_OF_2),
        (np.float32, "linux", report("AVX512_SKX"), powers.POWER_OF_2),
        (np.float32, "linux", report("baseline(X86_V2)"), powers.POWER_OF_E),
        (np.float32, "linux", report("X86_V3"), powers.POWER_OF_E),
        (np.float32, "linux", lambda **_: {}, powers.POWER_OF_E),
        (np.float32, "win32", report("X86_V4"), powers.POWER_OF_E),
        (np.float32, "darwin", report("X86_V4"), powers.POWER_OF_E),
        (np.float64, "linux", report("X86_V4"), powers.POWER_OF_E),
    ],
)
def test_the_base_is_2_where_numpy_is_fast_at_it(monkeypatch, dtype, platform, loops, expected):
    monkeypatch.setattr(powers, "opt_func_info", loops)
    monkeypatch.setattr(powers.sys, "platform", platform)
    assert powers.choose_power.__wrapped__(np.dtype(dtype)) is expected


def test_numpy_tells_of_its_loops_as_it_is_asked():
    """Of one signature, with a target for this CPU."""
    found = powers.opt_func_info(func_name="^exp$", signature="^float32$")
    ((signature, loop),) = found["exp"].items()
    assert signature == "ff"
    assert isinstance(loop["current"], str)


@pytest.fixture(params=["e", "2"])
def power(request, monkeypatch):
    """Take powers of either base, whatever the CPU; see that exponents are small."""
    chosen = {"e": powers.POWER_OF_E, "2": powers.POWER_OF_2}[request.param]

    def compute(exponents, out=None):
        finite = np.abs(exponents[np.isfinite(exponents)])
        assert finite.max(initial=0) <= 64 * chosen.unit * (1 + 1e-5)
        seen.append(exponents.size)
        return chosen.compute(exponents, out=out)

    seen = []
    watched = powers.Power(compute, chosen.unit)
    monkeypatch.setattr(lengths, "choose_power", lambda _: watched)
    return seen


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("scale", [1.0, 0.37, -2.0])
@pytest.mark.parametrize("way", ["strips", "medium"])
def test_an_image_is_as_exact_and_the_same_beside_any_other(
    monkeypatch, power, way, scale, channel_axis
):
    """With two heads: both tame, one, none; queries of the caller stay as they are."""
    monkeypatch.setattr(plan, "MEDIUM_HEAD_SIZE", 8 if way == "medium" else 9)
    spatial = (24, 130)
    sizes = {"batch": 3, "heads": 2, "head_size_qk": 4, "head_size_v": 8}
    case = make_case(spatial, **sizes, scale=scale, channel_axis=channel_axis)
    kept = case.q.copy()
    q = np.moveaxis(kept, channel_axis, 1)
    q[1, :4] *= 30
    q[2] *= 30
    given = kept.copy()
    options = {**case.options, "return_lse": True}
    found = crisscross.criss_cross_attention(given, case.k, case.v, backend="cpu", **options)
    np.testing.assert_array_equal(given, kept)
    # The first image, and one head of the second.
    assert sum(power) == 3 * np.prod(spatial) * sum(spatial)
    wide = [x.astype(np.float64) for x in (kept, case.k, case.v)]
    oracle = crisscross.criss_cross_attention(*wide, backend="reference", **options)
    for result, expected in zip(found, oracle, strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    for n in range(3):
        image = [x[n : n + 1] for x in (given, case.k, case.v)]
        alone = crisscross.criss_cross_attention(*image, backend="cpu", **options)
        for result, expected in zip(alone, found, strict=True):
            np.testing.assert_array_equal(result[0], expected[n])


@pytest.mark.parametrize(
    ("q", "k", "scale", "scaled"),
    [
        (1.0, 1.0, 1.0, True),
        (1e15, 1e-15, 1.0, True),
        (1e-15, 1e15, 1.0, True),
        (1e9, 1e-18, 1e9, True),
        (1e15, 1e-30, 1e15, False),
        (1e-31, 1.0, 1e31, False),
        (1.0, 1.0, 0.0, False),
        (1e16, 1e16, 1e-32, False),
        (1.0, 30.0, 1.0, False),
    ],
)
def test_nothing_is_scaled_that_would_come_near_the_largest_float(power, q, k, scale, scaled):
    """Or the smallest; and however it is done, it is as exact."""
    case = make_case((24, 180), head_size_qk=4, head_size_v=8)
    arrays = [case.q * np.float32(q), case.k * np.float32(k), case.v]
    options = {"scale": scale, "return_lse": True}
    found = crisscross.criss_cross_attention(*arrays, backend="cpu", **options)
    assert bool(power) == scaled
    wide = [x.astype(np.float64) for x in arrays]
    oracle = crisscross.criss_cross_attention(*wide, backend="reference", **options)
    for result, expected in zip(found, oracle, strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, -2.0, 1e10])
def test_what_is_finite_stays_so_beside_what_is_not(power, scale):
    """Such a vector has no length that would tell how far it may be scaled."""
    case = make_case((24, 180), head_size_qk=2, head_size_v=8)
    q, k = case.q / np.float32(scale), np.abs(case.k) + np.float32(0.1)
    q[0, :, 3, 7] = [-np.copysign(np.inf, scale), 3e38]
    q[0, :, 5, 9] = [np.copysign(np.inf, scale), -3e38]
    options = {"scale": scale, "return_lse": True}
    out, lse = crisscross.criss_cross_attention(q, k, case.v, backend="cpu", **options)
    assert power
    wide = [x.astype(np.float64) for x in (q, k, case.v)]
    with np.errstate(all="ignore"):
        expected = crisscross.criss_cross_attention(*wide, backend="reference", **options)
    assert np.isneginf(lse[0, 0, 3, 7]) and (out[0, :, 3, 7] == 0).all()
    np.testing.assert_allclose(out, expected[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("head_size", "options", "scaled"),
    [(47, {}, True), (48, {}, False), (37, {"axes": (1,)}, True), (38, {"axes": (1,)}, False)],
)
def test_queries_are_scaled_where_energies_are_more(power, head_size, options, scaled):
    case = make_case((40, 150), head_size_qk=head_size, head_size_v=64, scale=0.1, batch=4)
    crisscross.criss_cross_attention(case.q, case.k, case.v, scale=0.1, backend="cpu", **options)
    assert bool(power) == scaled


def test_both_ways_with_blocks_look_here():
    assert forward.convert_and_judge is medium.convert_and_judge is lengths.convert_and_judge
