"""Workers: what they are given, and how their end is told."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from crisscross.bench import load, memory
from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.process import Worker, WorkerError, count_usable_cpus
from crisscross.bench.shapes import FORWARD
from crisscross.testing import numpy_dtype

TELLING = """
import os
import numpy as np
from crisscross.bench.peer import Calls, Form

PACKAGES = ("numpy", "no-such-distribution")
print("noise on stdout")


def prepare(inputs):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CRISSCROSS_NUM_THREADS")
    counts = [int(os.environ[name]) for name in names] + [len(os.sched_getaffinity(0))]
    return Calls(lambda: {"out": np.array(counts)}, None, dict)


FORMS = {"telling": Form(prepare)}
"""
FAILING = """
import os
import signal
from crisscross.bench.peer import Form

PACKAGES = ()


def end(inputs):
    os.write(2, b"first words\\nlast words\\n")
    os._exit(3)


FORMS = {
    "raises": Form(lambda inputs: 1 / 0),
    "exits": Form(end),
    "is killed": Form(lambda inputs: os.kill(os.getpid(), signal.SIGKILL)),
    "hangs": Form(lambda inputs: signal.pause()),
}
"""


def open_case(worker: Worker, folder, **options) -> None:
    arrays = dict.fromkeys(("q", "k", "v", "dout"), np.ones((1, 2, 3, 4), np.float32))
    worker.ask("open", folder=str(folder), dtypes=write_arrays(folder, arrays), **options)


def test_every_library_gets_the_same_threads(tmp_path, write_peer, start):
    worker, introduction = start(write_peer(TELLING))
    assert introduction["packages"]["no-such-distribution"] == "unknown"
    open_case(worker, tmp_path)
    worker.ask("prepare", form="telling")
    answer = worker.ask("compute", form="telling", name=FORWARD, folder=str(tmp_path))
    assert read_arrays(tmp_path, answer["dtypes"])["out"].tolist() == [1, 1, 1, 1, 1]


def test_our_own_affinity_is_as_it_was(write_peer, start):
    before = os.sched_getaffinity(0)
    start(write_peer(TELLING))
    assert os.sched_getaffinity(0) == before and count_usable_cpus() == len(before)


@pytest.mark.parametrize(
    ("form", "limit", "message"),
    [
        ("raises", 60, "^ZeroDivisionError: division by zero$"),
        ("exits", 60, "^its process ended with exit code 3: last words$"),
        ("is killed", 60, "^its process ended with signal SIGKILL"),
        ("hangs", 2, "^no answer within 2 s$"),
    ],
)
def test_failures_are_one_line(tmp_path, write_peer, start, form, limit, message):
    worker, _ = start(write_peer(FAILING), limit=limit)
    open_case(worker, tmp_path)
    with pytest.raises(WorkerError, match=message):
        worker.ask("prepare", form=form)
    assert worker.alive == (form == "raises")
    if form == "raises":
        open_case(worker, tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "^no_such_package is not installed$"),
        ("raise ValueError('odd\\nlines')", "^ValueError: odd$"),
        ("FORMS =", "^SyntaxError: "),
        ("import os; os._exit(5)", "^its process ended with exit code 5$"),
        ("FORMS = {}", "^AttributeError: .*'PACKAGES'"),
    ],
)
def test_files_that_cannot_be_loaded(write_peer, start, code, message):
    with pytest.raises(WorkerError, match=message):
        start(write_peer(code))


def test_a_worker_ends_when_it_is_closed(write_peer, start):
    worker, _ = start(write_peer(TELLING))
    assert worker.alive
    worker.close()
    assert not worker.alive
    worker.kill()


def test_arrays_travel_unchanged(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 4))
    dtypes = ("float16", "bfloat16", "float32", "float64")
    arrays = {name: values.astype(numpy_dtype(name)) for name in dtypes}
    arrays["view"] = arrays["bfloat16"].T
    back = read_arrays(tmp_path, write_arrays(tmp_path, arrays))
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and (back[name] == array).all()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by Linux alone")
def test_extra_memory_is_that_of_the_call():
    size = 48 * 2**20

    def hold_and_drop() -> np.ndarray:
        scratch = np.ones(size, np.uint8)
        return scratch[: size // 3].copy()

    released = []
    found = memory.measure_extra_memory(hold_and_drop, lambda: released.append(True))
    assert released and size * 1.2 < found < size * 1.6


def test_others_are_what_is_busy_besides_this_process(monkeypatch):
    moments = {"perf_counter": iter((10.0, 12.0)), "process_time": iter((1.0, 2.5))}
    busy = iter((100.0, 103.25))
    for name, values in moments.items():
        monkeypatch.setattr(load.time, name, lambda values=values: next(values))
    monkeypatch.setattr(load, "read_busy_seconds", lambda: next(busy))
    watch = load.Watch()
    found = watch.stop()
    monkeypatch.undo()
    assert found == {"watched": 2.0, "foreign": 1.75}


def test_busy_seconds_leave_out_what_is_idle(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9000 8000 4 5 6 7 8\ncpu0 1\n")
    monkeypatch.setattr(load, "open", lambda _: stat.open(), raising=False)
    assert load.read_busy_seconds() == 165 / os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu\n")
    assert load.read_busy_seconds() is None


def test_memory_that_is_not_told_is_named(monkeypatch):
    def refuse(path: str, *mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(memory, "open", refuse, raising=False)
    with pytest.raises(memory.MemoryUnknown, match=r"not known here: .*/proc/self/clear_refs"):
        memory.measure_extra_memory(lambda: None, lambda: None)
