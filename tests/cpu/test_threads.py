"""Threads: as many as asked for, never a bit of difference, and BLAS left as it was."""

from __future__ import annotations

import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import crisscross
from crisscross.cpu import plan, products, small, threads, weights
from crisscross.testing import make_case
from tests.support.calls import run_axial, run_whole

#: Small and large, each with something of its own; large enough for blocks and several threads.
CASES = [
    make_case((5, 7), batch=3, heads=2, masked=True),
    make_case((16, 16), head_size_qk=4, head_size_v=32),
    make_case((40, 33), batch=2, head_size_qk=8, head_size_v=64),
    make_case((97, 61), head_size_qk=16, head_size_v=48, channel_axis=-1),
    make_case((64, 64), batch=2, head_size_qk=8, head_size_v=64, dtype="float16"),
    make_case((7, 31, 29), head_size_qk=8, head_size_v=24, masked=True),
    make_case((2100,), head_size_qk=8, head_size_v=9, energy_peak=90.0),
    make_case((33, 64), heads=4, head_size_qk=25, head_size_v=25, dtype="float64"),
    make_case((65, 60), batch=3, heads=2, head_size_qk=8, head_size_v=144),
    make_case((97, 41), head_size_qk=8, head_size_v=130, masked=True),
    make_case((8, 31, 29), head_size_qk=8, head_size_v=128),
    make_case((256, 97), head_size_qk=8, head_size_v=16),
]

MAPS = make_case((97, 61), batch=3, head_size_qk=16, head_size_v=48)
CASES.append(MAPS)


def run(case):
    if case is MAPS:
        return run_maps(case)
    return run_axial(case) if len(case.problem.axes) == 1 else run_whole(case)


def run_maps(case):
    """CCNet's operators one after the other."""
    energy = crisscross.ca_weight(case.q, case.k)
    attention = crisscross.ca_softmax(energy)
    out = crisscross.ca_map(attention, case.v)
    dattention, dv = crisscross.ca_map_backward(case.dout, attention, case.v)
    denergy = crisscross.ca_softmax_backward(dattention, attention)
    dq, dk = crisscross.ca_weight_backward(denergy, case.q, case.k)
    return {"energy": energy, "out": out, "dv": dv, "dq": dq, "dk": dk}


def count_blas_threads() -> list[int]:
    return threads._list_blas_threads()


def assert_same_bits(actual, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_that_the_cases_go_all_ways():
    ways = []
    for case in CASES:
        found = plan.make_plan(case.problem)
        by_channels = found.medium and case.problem.channel_axis == 1
        ways += ["small" if found.small else "medium" if by_channels else "large"]
    assert all(ways.count(way) >= 3 for way in ("small", "medium", "large"))


def test_the_way_of_an_image_is_its_own():
    """Whatever else is in the batch: another way may take sums in another order."""
    for spatial in ((16, 16), (64, 64), (97, 97)):
        plans = [
            plan.make_plan(make_case(spatial, batch=batch, head_size_v=8).problem)
            for batch in (1, 2, 9)
        ]
        assert len({(found.small, found.medium) for found in plans}) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_interleaved_in_memory(dtype):
    """How many images one thread has at a time depends on the number of threads."""
    case = make_case((32, 32), batch=2, head_size_qk=32, head_size_v=64, dtype=dtype)
    moved = {
        name: getattr(case, name).transpose(2, 3, 1, 0).copy().transpose(3, 2, 0, 1)
        for name in ("q", "k", "v", "dout")
    }
    case = dataclasses.replace(case, **moved)
    crisscross.set_num_threads(1)
    expected = run(case)
    crisscross.set_num_threads(2)
    assert_same_bits(run(case), expected)


@pytest.mark.parametrize(
    ("most_flops", "most_bytes"), [(1e8, 0), (0, 1 << 23), (0, 0)], ids=["small", "medium", "large"]
)
def test_an_image_is_not_judged_by_its_neighbours(monkeypatch, most_flops, most_bytes):
    """Whether energies may do without a shift is asked of an image, whoever is beside it."""
    monkeypatch.setattr(plan, "SMALL_IMAGE_FLOPS", most_flops)
    monkeypatch.setattr(plan, "MEDIUM_IMAGE_BYTES", most_bytes)
    monkeypatch.setattr(plan, "MEDIUM_HEAD_SIZE", 1)
    monkeypatch.setattr(small, "TINY_BYTES", 0)
    monkeypatch.setattr(weights, "_FEWEST_KEYS", 8)
    crisscross.set_num_threads(1)
    case = make_case((8, 8), batch=2, head_size_v=16)
    q = case.q.copy()
    q[1] *= 1e4
    both = crisscross.criss_cross_attention(q, case.k, case.v)
    alone = crisscross.criss_cross_attention(q[:1], case.k[:1], case.v[:1])
    np.testing.assert_array_equal(both[:1], alone)


@pytest.mark.parametrize("spatial", [(16, 16), (61, 63), (62, 61), (64, 64)])
def test_the_threads_of_blas_do_not_change_a_bit_of_calls_that_leave_it_alone(spatial):
    case = make_case(spatial, head_size_qk=4, head_size_v=8)
    assert plan.make_plan(case.problem).alone
    results = []
    for number in (1, 2):
        with threadpool_limits(number):
            results.append(run(case))
    assert_same_bits(results[1], results[0])
    many = [np.concatenate([x] * 16) for x in (case.q, case.k, case.v)]
    np.testing.assert_array_equal(crisscross.criss_cross_attention(*many)[:1], results[0]["out"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.problem.spatial))
def test_the_number_of_threads_does_not_change_a_bit(case):
    results = []
    for number in (1, 2, 3, 7):
        crisscross.set_num_threads(number)
        results.append(run(case))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize(("hides", "threads_"), [(True, 16), (False, 1)])
def test_a_strip_without_keys_does_not_change_a_bit_of_others(monkeypatch, hides, threads_):
    """It is cleared in a copy, with other strides, and so are all strips beside it.

    Products in pieces are made to differ from whole ones by more than a few bits now and then.
    """

    def multiply_otherwise(weights, values, result, most):
        np.matmul(weights, values, out=result)
        result *= np.float32(1.5)

    monkeypatch.setattr(products, "has_small_kernels", lambda: True)
    monkeypatch.setattr(products, "_multiply_pieces", multiply_otherwise)
    case = make_case((256, 16), head_size_qk=64, head_size_v=64, channel_axis=-1)
    results = []
    for hides_now, threads_now in ((True, 1), (hides, threads_)):
        mask = np.ones((1, 256, 16), bool)
        mask[..., 0] = not hides_now
        crisscross.set_num_threads(threads_now)
        options = {"axes": (0,), "channel_axis": -1, "key_mask": mask}
        inputs = case.q, case.k, case.v
        out, lse = crisscross.criss_cross_attention(*inputs, return_lse=True, **options)
        grads = crisscross.criss_cross_attention_backward(case.dout, *inputs, out, lse, **options)
        results.append([x[:, :, 1:] for x in (out, *grads)])
    crisscross.set_num_threads(None)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_concurrent_callers_get_the_bits_they_would_get_alone():
    before = count_blas_threads()
    expected = [run(case) for case in CASES]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for step in range(2 * len(CASES)):
            index = (number + step) % len(CASES)
            assert_same_bits(run(CASES[index]), expected[index])

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, number) for number in range(8)]:
            future.result()
    assert count_blas_threads() == before
    # And what is left serves the next caller as before.
    assert_same_bits(run(CASES[3]), expected[3])


def test_blas_is_held_to_one_thread_as_long_as_anybody_is_at_work():
    before = count_blas_threads()
    crisscross.set_num_threads(3)
    with threads.hold_blas() as first:
        assert first == 3
        with threads.hold_blas() as second:
            assert second == 3
            assert set(count_blas_threads()) == {1}
        assert set(count_blas_threads()) == {1}
    assert count_blas_threads() == before


def test_any_thread_can_hold_blas():
    """Also when another one, which still is there, was the first to set it."""
    before = count_blas_threads()
    with threadpool_limits(limits=max(before), user_api="blas"):
        pass
    found = []

    def hold() -> None:
        with threads.hold_blas():
            found.append(count_blas_threads())
        found.append(count_blas_threads())

    holder = threading.Thread(target=hold)
    holder.start()
    holder.join()
    assert found == [[1] * len(before), before]


def test_the_default_is_what_blas_is_set_to():
    with threadpool_limits(limits=1, user_api="blas"):
        assert crisscross.get_num_threads() == 1
        with threads.hold_blas() as number:
            assert number == 1


def test_an_error_in_a_task_reaches_the_caller_and_leaves_nothing_behind():
    before = count_blas_threads()
    crisscross.set_num_threads(4)
    done = []

    def work(tasks):
        for task in tasks:
            if task == 5:
                raise ZeroDivisionError("task 5")
            done.append(task)

    with pytest.raises(ZeroDivisionError, match="task 5"), threads.hold_blas() as number:
        threads.run_tasks(work, list(range(1000)), number)
    assert len(done) < 1000
    assert count_blas_threads() == before


def test_every_task_is_run_once_also_when_the_helpers_are_kept_waiting(monkeypatch):
    """A pool with a single thread that is busy: the caller does it all and does not wait."""
    monkeypatch.setattr(threads._state, "executor", ThreadPoolExecutor(1))
    busy, done = threading.Event(), []
    threads._state.executor.submit(busy.wait)

    def work(tasks):
        done.extend(tasks)

    threads.run_tasks(work, list(range(10)), 4)
    busy.set()
    assert sorted(done) == list(range(10))


class _Interrupted(ThreadPoolExecutor):
    """A pool whose second task meets the user's Ctrl-C."""

    submitted = 0

    def submit(self, *args):
        future = super().submit(*args)
        self.submitted += 1
        if self.submitted == 2:
            raise KeyboardInterrupt
        return future


def test_nobody_is_at_work_after_an_interrupt(monkeypatch):
    """Whoever has begun writes to memory that goes back to the pool then."""
    monkeypatch.setattr(threads._state, "executor", _Interrupted(4))
    begun, ended, go_on = [], [], threading.Event()

    def work(tasks):
        for task in tasks:
            begun.append(task)
            go_on.wait(0.05)
            ended.append(task)

    with pytest.raises(KeyboardInterrupt):
        threads.run_tasks(work, list(range(50)), 4)
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 50
    before = len(begun)
    threads._state.executor.shutdown(wait=True)
    assert len(begun) == before


def test_a_thread_that_cannot_be_started_is_done_without(monkeypatch):
    """What was queued for it must not run when the call is over."""
    pool = ThreadPoolExecutor(2)
    busy = threading.Event()
    pool.submit(busy.wait)
    monkeypatch.setattr(threads._state, "executor", pool)
    done = []

    def work(tasks):
        done.extend(tasks)

    with monkeypatch.context() as patch:

        def refuse(thread):
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        threads.run_tasks(work, list(range(6)), 2)
    assert sorted(done) == list(range(6))
    busy.set()
    pool.shutdown(wait=True)
    assert sorted(done) == list(range(6))


def test_a_wrong_environment_variable_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT_VARIABLE, "many")
    with pytest.raises(crisscross.ArgumentError), threads.hold_blas():
        pass
    monkeypatch.delenv(threads.ENVIRONMENT_VARIABLE)
    with threadpool_limits(limits=1, user_api="blas"):
        assert crisscross.get_num_threads() == 1


def test_set_and_get():
    crisscross.set_num_threads(5)
    assert crisscross.get_num_threads() == 5
    crisscross.set_num_threads(np.int64(2))
    assert crisscross.get_num_threads() == 2
    crisscross.set_num_threads(None)
    assert crisscross.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("threads_", "error", "message"),
    [
        (0, ValueError, "set_num_threads: threads: expected at least 1, got 0"),
        (-3, ValueError, "set_num_threads: threads: expected at least 1, got -3"),
        (
            2.0,
            TypeError,
            "set_num_threads: threads: expected an int of at least 1, or None, got 2.0",
        ),
        (True, TypeError, "expected an int of at least 1, or None, got True"),
        ("2", TypeError, "expected an int of at least 1, or None, got '2'"),
    ],
)
def test_wrong_numbers(threads_, error, message):
    with pytest.raises(error) as caught:
        crisscross.set_num_threads(threads_)
    assert message in str(caught.value)
    assert isinstance(caught.value, crisscross.CrissCrossError)


EXPECTED = "environment: CRISSCROSS_NUM_THREADS: expected a whole number of at least 1, got "
ENVIRONMENT = """
import crisscross
try:
    print(crisscross.get_num_threads())
except crisscross.ArgumentError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("3", "3"),
        ("", "2"),
        ("many", EXPECTED + "'many'"),
        ("0", EXPECTED + "'0'"),
    ],
)
def test_the_environment_variable(run_python, text, printed):
    assert (
        run_python(ENVIRONMENT, CRISSCROSS_NUM_THREADS=text, OPENBLAS_NUM_THREADS="2").strip()
        == printed
    )


FORK = """
import os, threading, warnings
import numpy as np
import crisscross
from crisscross.cpu import threads, workspace

# A fork among threads is what this is about.
warnings.simplefilter("ignore", DeprecationWarning)
crisscross.set_num_threads(2)
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, 1, 8, 97, 97), dtype=np.float32)
v = rng.standard_normal((1, 64, 97, 97), dtype=np.float32)
expected = crisscross.criss_cross_attention(q, k, v)
before = threads._list_blas_threads()

inside, leave = threading.Event(), threading.Event()

def hold():
    # A thread that is in the middle of a call, with both locks, while the process forks.
    with threads.hold_blas(), threads._state.lock, workspace._pool.lock:
        inside.set()
        leave.wait()

holder = threading.Thread(target=hold)
holder.start()
inside.wait()
child = os.fork()
if child == 0:
    try:
        same = np.array_equal(crisscross.criss_cross_attention(q, k, v), expected)
        os._exit(0 if same and threads._list_blas_threads() == before else 1)
    except BaseException as error:
        print(error)
        os._exit(2)
_, status = os.waitpid(child, 0)
leave.set()
holder.join()
assert threads._list_blas_threads() == before
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_while_a_thread_of_its_parent_is_at_work(run_python):
    assert run_python(FORK).strip() == "0"


SPAWN = """
import multiprocessing
import numpy as np
import crisscross

def attend(seed):
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 1, 8, 61, 47), dtype=np.float32)
    return crisscross.criss_cross_attention(q, k, v)

if __name__ == "__main__":
    crisscross.set_num_threads(2)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(attend, range(3))
    print(all(np.array_equal(x, attend(seed)) for seed, x in enumerate(found)))
"""


def test_spawned_children_compute_the_same(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "spawned.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "True", done.stderr
