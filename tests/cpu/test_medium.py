"""Images of medium size: whose they are, how their channels are cut, and what is kept of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import crisscross
from crisscross.cpu import forward, medium, plan
from crisscross.testing import make_case


@pytest.mark.parametrize(
    ("positions", "channels", "widths"),
    [
        (97 * 97, 512, {32}),
        (65 * 65, 256, {64}),
        (48 * 48, 1024, {128}),
        (97 * 97, 64, {16}),
        (97 * 97, 65, {16, 1}),
        (65 * 65, 24, {16, 8}),
        (300 * 300, 512, {16}),
        (97 * 97, 1, {1}),
    ],
)
def test_groups_are_lines_of_a_cache_and_at_least_four(positions, channels, widths):
    groups = medium.cut_channels(4 * positions, channels)
    assert np.concatenate([np.arange(channels)[group] for group in groups]).tolist() == [
        *range(channels)
    ]
    assert {group.stop - group.start for group in groups} == widths


@pytest.fixture
def taken(monkeypatch):
    """Count the images that go by channels."""
    images = []

    def look(*arguments):
        images.append(arguments[-1].shape[0])
        attend_medium(*arguments)

    attend_medium = forward.attend_medium
    monkeypatch.setattr(forward, "attend_medium", look)
    return images


@pytest.mark.parametrize(
    ("spatial", "channel_axis", "goes"),
    [((97, 97), 1, True), ((97, 97), -1, False), ((128, 97), 1, False), ((32, 32), 1, False)],
    ids=["medium", "channels innermost", "large", "small"],
)
def test_images_of_medium_size_go_by_channels(taken, spatial, channel_axis, goes):
    case = make_case(spatial, head_size_qk=4, head_size_v=32, channel_axis=channel_axis)
    crisscross.criss_cross_attention(case.q, case.k, case.v, channel_axis=channel_axis)
    assert taken == [1] * goes


def test_it_is_the_memory_that_tells_where_the_channels_are(taken):
    """PyTorch's channels-last format has the channels second, and yet innermost."""
    case = make_case((97, 97), head_size_qk=4, head_size_v=32)
    q, k, v = (
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        for x in (case.q, case.k, case.v)
    )
    crisscross.criss_cross_attention(q, k, v)
    assert taken == []


@pytest.mark.parametrize("batch", [1, 5])
def test_no_more_than_the_weights_of_an_image_are_kept(batch):
    """And, for each thread, some channels; but no copy of the values."""
    case = make_case((97, 97), batch=batch, head_size_qk=2, head_size_v=256)
    crisscross.set_num_threads(1)
    crisscross.clear_workspace()
    tracemalloc.start()
    crisscross.criss_cross_attention(case.q, case.k, case.v)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    crisscross.clear_workspace()
    crisscross.set_num_threads(None)
    kept = plan.make_plan(case.problem).energy_bytes
    assert kept <= plan.MEDIUM_IMAGE_BYTES
    extra = peak - case.v.nbytes
    assert kept < extra < kept + 4 * medium._GROUP_BYTES + case.q.nbytes * 3
