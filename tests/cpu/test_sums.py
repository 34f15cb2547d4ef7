"""Weighted values that are added up over all axes before they are divided by the total."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross.cpu import forward, lengths, powers, sums
from crisscross.testing import make_case

#: Too large for the way of small images.
SPATIAL = (24, 180)


def attend(q, k, v, **options):
    return crisscross.criss_cross_attention(q, k, v, backend="cpu", return_lse=True, **options)


def attend_exactly(q, k, v, **options):
    wide = [x.astype(np.float64) for x in (q, k, v)]
    options = {**options, "return_lse": True}
    return crisscross.criss_cross_attention(*wide, backend="reference", **options)


@pytest.fixture
def divided(monkeypatch):
    """Note of each tile whether its sum is divided; of strips, how many."""
    found = []

    def look(self, block, rows, product, share=None, factor=None):
        if factor is not None:
            found.append((int((factor != 1).any(axis=-1).sum()), factor[..., 0].size))
        return add(self, block, rows, product, share, factor)

    add = sums.AxisSum.add
    monkeypatch.setattr(sums.AxisSum, "add", look)
    return found


@pytest.fixture
def tiles(monkeypatch):
    """Note whether tiles of the first axis and the last are gentle; None: some of their strips."""
    found = set()

    def look(*arguments, first):
        gentle = arguments[4]
        some, every = (False, False) if gentle is None else (gentle.any(), gentle.all())
        found.add(("first" if first else "last", None if some != every else bool(every)))
        return take_in(*arguments, first=first)

    take_in = forward.take_in
    monkeypatch.setattr(forward, "take_in", look)
    return found


@pytest.fixture(params=["e", "2"])
def power(request, monkeypatch):
    chosen = {"e": powers.POWER_OF_E, "2": powers.POWER_OF_2}[request.param]
    monkeypatch.setattr(lengths, "choose_power", lambda _: chosen)


@pytest.mark.parametrize(
    ("peak", "channels", "options", "sums_up"),
    [
        (15.9, 8, {}, True),
        (16.1, 8, {}, False),
        (4.0, 68, {}, True),
        (4.0, 69, {}, False),
        (4.0, 60, {"axes": (1,)}, True),
        (4.0, 61, {"axes": (1,)}, False),
        (4.0, 8, {"key_mask": np.ones((1, *SPATIAL), bool)}, False),
    ],
)
def test_what_is_gentle_with_many_keys_is_added_up(divided, peak, channels, options, sums_up):
    case = make_case(SPATIAL, head_size_qk=1, head_size_v=channels)
    q, k = (np.ones_like(x) for x in (case.q, case.k))
    q[0, 0, 3, 4] = peak
    attend(q, k, case.v, **options)
    assert bool(divided) == sums_up
    assert all(number == strips for number, strips in divided)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(
    ("spatial", "options", "mixed"),
    [
        ((24, 180), {}, "first"),
        ((24, 180), {"scale": -0.5}, "first"),
        ((24, 180), {"axes": (1,)}, None),
        ((72, 60), {}, "last"),
        ((72, 60), {"axes": (1, 0)}, "last"),
    ],
)
def test_an_image_is_as_exact_and_the_same_beside_any_other(
    tiles, power, spatial, options, mixed, channel_axis
):
    """With two heads: both gentle, one, none; on one thread, so that both are in some tiles."""
    crisscross.set_num_threads(1)
    sizes = {"batch": 3, "heads": 2, "head_size_qk": 3, "head_size_v": 5}
    case = make_case(spatial, energy_peak=3.0, channel_axis=channel_axis, **sizes)
    q = case.q.copy()
    by_channel = np.moveaxis(q, channel_axis, 1)
    by_channel[1, :3] *= 20
    by_channel[2] *= 20
    options = {**options, "heads": 2, "channel_axis": channel_axis}
    found = attend(q, case.k, case.v, **options)
    assert {("first", True), ("first", False)} <= tiles
    assert mixed is None or (mixed, None) in tiles
    for result, expected in zip(found, attend_exactly(q, case.k, case.v, **options), strict=True):
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)
    for n in range(3):
        alone = attend(*(x[n : n + 1] for x in (q, case.k, case.v)), **options)
        for result, expected in zip(alone, found, strict=True):
            np.testing.assert_array_equal(result[0], expected[n])


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("options", [{}, {"axes": (1,)}])
def test_a_sum_that_is_too_large_is_a_mean_again(divided, options, channel_axis):
    """And nothing else has other bits for it."""
    case = make_case(
        SPATIAL, batch=2, head_size_qk=3, head_size_v=5, energy_peak=12.0, channel_axis=channel_axis
    )
    large = case.v.copy()
    by_channel = np.moveaxis(large, channel_axis, 1)
    # Means of these are finite, their sums are not; and of some neither is.
    by_channel[0, 2] = 3e38 * np.sign(by_channel[0, 2])
    by_channel[1, 4, 3, 7] = np.inf
    options = {**options, "channel_axis": channel_axis}
    usual = attend(case.q, case.k, case.v, **options)[0]
    found, _ = attend(case.q, case.k, large, **options)
    assert divided
    expected, _ = attend_exactly(case.q, case.k, large, **options)
    result, usual, expected = (np.moveaxis(x, channel_axis, 1) for x in (found, usual, expected))
    assert np.isfinite(result[0]).all()
    np.testing.assert_allclose(result[0, 2], expected[0, 2], rtol=2e-5, atol=2e33)
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(result[0, others], usual[0, others])
    finite = np.isfinite(expected[1])
    assert not finite[4, 3].any() and finite[:4].all()
    np.testing.assert_array_equal(np.isfinite(result[1]), finite)
    # Strips with such a value round otherwise.
    apart = finite.copy()
    apart[:, 3], apart[:, :, 7] = False, False
    np.testing.assert_array_equal(result[1][apart], usual[1][apart])
    np.testing.assert_allclose(result[1][finite], expected[1][finite], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("size", [1e-37, 1e-36, 1e-34, 1e-30])
@pytest.mark.parametrize("energy", [-15.9, -6.0, 0.0, 15.9])
def test_small_values_lose_no_more_than_by_means(size, energy):
    """Also where all weights are small: they are not added up as they are."""
    case = make_case(SPATIAL, head_size_qk=1, head_size_v=5)
    q, k = np.full_like(case.q, energy), np.ones_like(case.k)
    v = case.v * np.float32(size)
    exact, _ = attend_exactly(q, k, v)
    errors = [
        np.sqrt(np.mean((attend(q, k, v, key_mask=mask)[0] - exact) ** 2))
        for mask in (None, np.ones((1, *SPATIAL), bool))
    ]
    assert errors[0] <= 4 * errors[1] + 1e-7 * np.sqrt(np.mean(exact**2))


def test_rows_whose_weights_are_small_are_means(divided):
    """Those of the first axis decide, and each row for itself."""
    case = make_case(SPATIAL, head_size_qk=1, head_size_v=5)
    q, k = np.full_like(case.q, -8.0), np.ones_like(case.k)
    attend(q, k, case.v)
    assert divided and not any(number for number, _ in divided)
    usual = attend(np.ones_like(q), k, case.v)[0]
    divided.clear()
    q[0, 0, :, 1:] = 1
    mixed = attend(q, k, case.v)[0]
    assert any(number for number, _ in divided)
    np.testing.assert_array_equal(mixed[..., 1:], usual[..., 1:])


@pytest.mark.parametrize(("name", "times"), [("q", 1), ("v", 2)])
def test_only_values_that_are_not_finite_take_a_second_attempt(monkeypatch, name, times):
    case = make_case(SPATIAL, head_size_qk=3, head_size_v=5, energy_peak=8.0)
    arrays = {each: getattr(case, each).copy() for each in ("q", "k", "v")}
    arrays[name][0, 1, 3, 7] = np.nan
    runs = []

    class Counted(forward._Forward):
        def run(self):
            runs.append(self.judgement.gentle is not None)
            return super().run()

    monkeypatch.setattr(forward, "_Forward", Counted)
    attend(*arrays.values())
    assert runs == [True, False][:times]
