"""Calls for which memory, and all views of it, are prepared: the same bits, and no leftovers."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import crisscross
from crisscross.cpu import kits, plan, workspace
from crisscross.testing import make_case
from tests.support.calls import run_axial, run_whole

CASES = [
    make_case((16, 16), head_size_qk=4, head_size_v=32),
    make_case((7, 9), batch=3, heads=2, head_size_qk=5, head_size_v=11, channel_axis=-1, scale=0.3),
    make_case((5, 13), batch=2, masked=True, energy_peak=90.0),
    make_case((3, 4, 5), head_size_v=6, dtype="float64"),
    make_case((6, 11), batch=2, dtype="float16", masked=True),
    make_case((5, 8), head_size_v=3, axes=(1,), include_self=False),
]


def run(case):
    return run_axial(case) if len(case.problem.axes) == 1 else run_whole(case)


def list_kits():
    return list(itertools.chain(*workspace._pool.kits.values()))


def list_arrays(kit):
    products = itertools.chain(*(side.products.values() for side in kit.sides))
    return [*kit.copies.values(), *kit.energies.values(), *products]


def assert_same_bits(actual, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.fixture(params=CASES, ids=lambda case: f"{case.problem.spatial} {case.problem.dtype}")
def case(request):
    assert plan.make_plan(request.param.problem).prepared
    return request.param


def test_the_bits_are_those_of_any_tiny_image(case, monkeypatch):
    prepared = run(case)
    monkeypatch.setattr(plan, "PREPARED_BYTES", 0)
    plan.make_plan.cache_clear()
    assert not plan.make_plan(case.problem).prepared
    assert_same_bits(run(case), prepared)


def test_bits_are_those_of_a_batch_for_which_nothing_is_prepared():
    """Also of images whose energies have to be shifted, beside some whose have not."""
    many = make_case((15, 17), batch=40, head_size_qk=4, head_size_v=32)
    assert not plan.make_plan(many.problem).prepared
    q = many.q.copy()
    q[::2] *= 1e4
    batch = crisscross.criss_cross_attention(q, many.k, many.v)
    for n in range(4):
        image = slice(n, n + 1)
        alone = crisscross.criss_cross_attention(q[image], many.k[image], many.v[image])
        np.testing.assert_array_equal(alone, batch[image])
    assert len(list_kits()) == 1


def test_the_next_call_has_the_kit_of_the_last(case):
    expected = run(case)
    forward, backward = list_kits()
    assert (type(forward), type(backward)) == (kits._ForwardKit, kits._BackwardKit)
    assert workspace._pool.kit_bytes == forward.nbytes + backward.nbytes
    for kit in (forward, backward):
        arrays = list_arrays(kit)
        assert kit.nbytes == sum(array.nbytes for array in arrays)
        for array in arrays:
            array[...] = np.nan
    assert_same_bits(run(case), expected)
    assert list_kits() == [forward, backward]
    assert workspace._pool.kit_bytes == forward.nbytes + backward.nbytes


def test_another_problem_of_the_same_shape_has_another_kit():
    case = make_case((6, 7), head_size_v=8)
    whole = crisscross.criss_cross_attention(case.q, case.k, case.v)
    scaled = crisscross.criss_cross_attention(case.q, case.k, case.v, scale=0.5)
    rows = crisscross.criss_cross_attention(case.q, case.k, case.v, axes=(1,))
    assert len(list_kits()) == 3
    assert not np.array_equal(whole, scaled) and not np.array_equal(whole, rows)


def test_threads_at_the_same_problem_have_a_kit_each():
    case = CASES[0]
    expected = run(case)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: run(case), range(200)):
            assert_same_bits(result, expected)
    found = list_kits()
    arrays = list(itertools.chain(*map(list_arrays, found)))
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
    assert workspace._pool.kit_bytes == sum(kit.nbytes for kit in found)


def test_outputs_are_no_memory_of_a_kit(case):
    results = run(case)
    for array in itertools.chain(*map(list_arrays, list_kits())):
        assert not any(np.shares_memory(array, result) for result in results.values())


def test_kits_are_dropped_before_there_are_too_many(monkeypatch):
    monkeypatch.setattr(workspace, "KEPT_KIT_BYTES", 150_000)
    counts = []
    for length in range(4, 16):
        run(make_case((length, 9), head_size_v=8))
        kept = sum(kit.nbytes for kit in list_kits())
        assert workspace._pool.kit_bytes == kept <= 150_000
        counts.append(len(list_kits()))
    assert counts[:2] == [2, 4]
    assert counts != sorted(counts)


def test_clearing():
    run(CASES[0])
    assert list_kits()
    crisscross.clear_workspace()
    assert not list_kits()
    assert workspace._pool.kit_bytes == 0
