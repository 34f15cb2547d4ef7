"""Images of medium size: whose they are, how their channels are cut, and what is kept of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import crisscross
from crisscross.cpu import forward, medium, plan
from crisscross.testing import make_case


@pytest.mark.parametrize(
    ("positions", "channels", "heads", "widths"),
    [
        (97 * 97, 512, 1, {32}),
        (65 * 65, 256, 1, {64}),
        (65 * 65, 256, 2, {64}),
        (48 * 48, 1024, 1, {128}),
        (97 * 97, 128, 1, {32}),
        (65 * 65, 128, 1, {32}),
        (65 * 65, 128, 4, {64}),
        (97 * 97, 129, 1, {32, 1}),
        (1 << 15, 512, 1, {16}),
        (97 * 97, 1, 1, {1}),
    ],
)
def test_groups_are_lines_of_a_cache_and_for_some_threads(positions, channels, heads, widths):
    groups = medium.cut_channels(4 * positions, channels, heads)
    every = np.concatenate([np.arange(channels)[group] for group in groups])
    assert every.tolist() == [*range(channels)]
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
    ("spatial", "channels", "options", "goes"),
    [
        ((97, 97), 128, {}, True),
        ((97, 97), 128, {"channel_axis": -1}, False),
        ((128, 97), 128, {}, False),
        ((32, 32), 128, {}, False),
        ((97, 97), 127, {}, False),
        ((97, 97), 254, {"heads": 2}, False),
        ((181, 182), 128, {"axes": (0,)}, False),
        ((32, 32, 32), 128, {"axes": (0,)}, True),
        ((33, 32, 32), 128, {"axes": (0,)}, False),
    ],
    ids=[
        "medium",
        "channels innermost",
        "large",
        "small",
        "few channels",
        "few channels of a head",
        "large, one axis",
        "medium, one axis",
        "many positions",
    ],
)
def test_images_of_medium_size_go_by_channels(taken, spatial, channels, options, goes):
    heads = options.get("heads", 1)
    sizes = {"head_size_qk": 4, "head_size_v": channels // heads}
    case = make_case(spatial, **sizes, **options)
    crisscross.criss_cross_attention(case.q, case.k, case.v, **case.options)
    assert taken == [1] * goes


def test_it_is_the_memory_that_tells_where_the_channels_are(taken):
    """PyTorch's channels-last format has the channels second, and yet innermost."""
    case = make_case((97, 97), head_size_qk=4, head_size_v=128)
    q, k, v = (
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        for x in (case.q, case.k, case.v)
    )
    crisscross.criss_cross_attention(q, k, v)
    assert taken == []


@pytest.mark.parametrize(
    ("spatial", "axes", "batch", "threads"),
    [
        ((97, 97), (0, 1), 1, 1),
        ((97, 97), (0, 1), 5, 1),
        ((97, 97), (0, 1), 3, 3),
        ((32, 32, 32), (0,), 1, 4),
    ],
)
def test_scratch_is_bounded(taken, spatial, axes, batch, threads):
    """The weights of an image for each that is at work, some channels for each thread."""
    case = make_case(spatial, batch=batch, head_size_qk=2, head_size_v=256, axes=axes)
    crisscross.set_num_threads(threads)
    crisscross.clear_workspace()
    tracemalloc.start()
    crisscross.criss_cross_attention(case.q, case.k, case.v, axes=axes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    crisscross.clear_workspace()
    crisscross.set_num_threads(None)
    assert taken
    kept = plan.make_plan(case.problem).energy_bytes
    assert kept <= plan.MEDIUM_IMAGE_BYTES
    extra = peak - case.v.nbytes
    at_work = min(batch, threads)
    # Values, their mean and a part of it, and what the transposition may need.
    channels = 4 * max(medium._GROUP_BYTES, case.v[0, :16].nbytes)
    assert kept < extra < at_work * kept + threads * channels + 4 * case.q.nbytes
