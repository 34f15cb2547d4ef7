"""Calls for which memory, and all views of it, are prepared: the same bits, and no leftovers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import threading
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


def assert_same_bits(actual, expected):
    for name, value in expected.items():
        assert actual[name].tobytes() == value.tobytes(), name


@pytest.fixture
def made(monkeypatch):
    """Note all kits that are made."""
    found = []

    def note(self, *arguments):
        found.append(self)
        make(self, *arguments)

    make = kits._Kit.__init__
    monkeypatch.setattr(kits._Kit, "__init__", note)
    return found


def list_arrays(kit):
    products = itertools.chain(*(side.products.values() for side in kit.sides))
    return [*kit.copies.values(), *kit.energies.values(), *products]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.problem.spatial} {case.problem.dtype}")
def case(request):
    assert plan.make_plan(request.param.problem).prepared
    return request.param


def test_the_bits_are_those_of_any_tiny_image(case, made, monkeypatch):
    prepared = run(case)
    assert len(made) == 2
    monkeypatch.setattr(plan, "KIT_BYTES", 0)
    plan.recall_plan.cache_clear()
    assert_same_bits(run(case), prepared)
    assert len(made) == 2


def test_bits_are_those_of_a_batch_for_which_nothing_is_prepared(made):
    """Also of images whose energies have to be shifted, beside some whose have not."""
    many = make_case((15, 17), batch=40, head_size_qk=4, head_size_v=32)
    q = many.q.copy()
    q[::2] *= 1e4
    batch = crisscross.criss_cross_attention(q, many.k, many.v)
    assert not made
    for n in range(4):
        image = slice(n, n + 1)
        alone = crisscross.criss_cross_attention(q[image], many.k[image], many.v[image])
        assert alone.tobytes() == batch[image].tobytes()
    assert len(made) == 1


def test_the_next_call_has_the_kit_of_the_last(case, made):
    expected = run(case)
    for array in itertools.chain(*map(list_arrays, made)):
        array[...] = np.nan
    assert_same_bits(run(case), expected)
    assert [type(kit) for kit in made] == [kits._ForwardKit, kits._BackwardKit]


def test_a_kit_is_as_large_as_planned(case, made, monkeypatch):
    run(case)
    size = sum(array.nbytes for array in list_arrays(made[-1]))
    for limit, prepared in ((size, True), (size - 1, False)):
        monkeypatch.setattr(plan, "KIT_BYTES", limit)
        assert plan.make_plan(case.problem).prepared is prepared


def test_another_scale_needs_no_other_kit_and_other_axes_do(made):
    case = make_case((6, 7), head_size_v=8)
    results = [
        crisscross.criss_cross_attention(case.q, case.k, case.v, **options)
        for options in ({}, {"scale": 0.5}, {"axes": (1,)})
    ]
    assert len(made) == 2
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(results, 2))


def test_two_at_the_same_have_a_kit_each(made, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    attend = kits._ForwardKit.attend

    def attend_together(self, *arguments):
        both.wait()
        attend(self, *arguments)
        both.wait()

    monkeypatch.setattr(kits._ForwardKit, "attend", attend_together)
    cases = [make_case((9, 8), head_size_v=16, seed=seed) for seed in range(2)]

    def forward(case):
        return crisscross.criss_cross_attention(case.q, case.k, case.v)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(forward, cases * 5))
    assert len(made) == 2
    monkeypatch.setattr(kits._ForwardKit, "attend", attend)
    for case, result in zip(cases * 5, found, strict=True):
        assert result.tobytes() == forward(case).tobytes()
    first, second = map(list_arrays, made)
    assert not any(np.shares_memory(a, b) for a, b in itertools.product(first, second))


def test_outputs_are_no_memory_of_a_kit(case, made):
    results = run(case)
    for array in itertools.chain(*map(list_arrays, made)):
        assert not any(np.shares_memory(array, result) for result in results.values())


def test_few_are_kept():
    shelf = workspace.find_shelf("kind")
    for kit in range(10):
        shelf.put_back(kit)
    assert [shelf.take() for _ in range(3)] == [9, 8, None]
    for kind in range(100):
        workspace.find_shelf(kind).put_back(kind)
    kept = [kind for kind in range(100) if workspace.find_shelf(kind).take() == kind]
    assert len(kept) < 33


def test_clearing(made):
    for expected in (2, 2, 4):
        if expected == 4:
            crisscross.clear_workspace()
        run(CASES[0])
        assert len(made) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such signals")
def test_a_signal_may_interrupt_a_call_and_make_one():
    """Wherever it comes: it must not wait for what the interrupted call holds."""
    program = """
        import signal
        import time
        import crisscross
        from crisscross.testing import make_case

        case = make_case((4, 4))
        counts = {"calls": 0, "signals": 0}
        inside = False

        def attend(name):
            crisscross.criss_cross_attention(case.q, case.k, case.v)
            counts[name] += 1

        def interrupt(*_):
            global inside
            if not inside:
                inside = True
                attend("signals")
                inside = False

        attend("calls")  # NumPy imports what it needs, and must not be interrupted there
        signal.signal(signal.SIGALRM, interrupt)
        end = time.monotonic() + 2
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while time.monotonic() < end:
            attend("calls")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert min(counts.values()) > 100, counts
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
