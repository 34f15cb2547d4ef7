"""Runs on a GPU: with a GPU that is not one, as far as that goes, and with a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

import crisscross.bench.case
import crisscross.bench.run
from crisscross.bench import environment
from crisscross.bench.gate import expect
from crisscross.bench.process import Worker
from crisscross.bench.records import Gpu, Report
from crisscross.bench.run import run_bench
from crisscross.bench.settings import DEFAULT_PEERS, Settings
from crisscross.bench.shapes import (
    CHANNELS_LAST,
    CUDA,
    FORWARD,
    LAYOUTS,
    PASSES,
    Shape,
    count_sets,
    find_floor,
)
from crisscross.bench.team import BenchError
from tests.bench.test_process import open_case
from tests.kernels.devices import require_gpu

SHAPES = (Shape(6, 3, 5, 7, 2), Shape(4, 2, 6, 3))
CACHE_BYTES = 3000
#: What stands in for CuPy in our own file: NumPy, and made-up rates.
PRETENCE = f"""

def _keep_it(array):
    return array


_put = _get = _keep_it


def _wait(results):
    pass


def measure_memory(call):
    call()
    return 12345


def make_yardsticks(device, dtype):
    assert (device, dtype) == ("cuda", "float32")
    return {{
        "matmul": Yardstick(lambda: None, 1e3),
        "copy": Yardstick(lambda: None, 1e3),
    }}


def describe_device():
    return {{
        "name": "a GPU",
        "architecture": "90",
        "memory_bytes": 1,
        "cache_bytes": {CACHE_BYTES},
        "bus_id": "0000:01:00.0",
        "driver_cuda": 13010,
        "runtime_cuda": 12090,
        "cupy": "14",
    }}
"""


@pytest.fixture
def pretended(peers, monkeypatch):
    """A folder of peers whose own file pretends, on a machine that seems to have a GPU."""
    ours = peers / "ours.py"
    text, forms, rest = ours.read_text().partition("#: The first is what")
    ours.write_text(text + PRETENCE + forms + rest)
    monkeypatch.setattr(crisscross.bench.run, "find_unavailability", lambda _device: None)
    monkeypatch.setattr(crisscross.bench.run, "ask_nvidia_smi", lambda bus_id: {"asked": bus_id})
    return peers


def run(folder, **changes) -> Report:
    settings = {"shapes": SHAPES, "rounds": 2, "peers": folder, "device": CUDA}
    return run_bench(Settings(**{**settings, "layout": CHANNELS_LAST, **changes}))


def test_a_run_on_a_gpu_is_recorded(pretended, write_peer):
    write_peer()  # for the CPU alone
    report = run(pretended)
    assert report.device == CUDA and report.layout == CHANNELS_LAST
    assert report.environment.gpu == Gpu(
        name="a GPU",
        architecture="90",
        memory_bytes=1,
        cache_bytes=CACHE_BYTES,
        bus_id="0000:01:00.0",
        driver_cuda=13010,
        runtime_cuda=12090,
        cupy="14",
        state={"asked": "0000:01:00.0"},
    )
    for case in report.cases:
        assert [row.form for row in case.rows] == ["crisscross"]
        assert case.sets == count_sets(case.shape, "float32", CACHE_BYTES) > 1
        assert case.matmul_rate > 0 and case.copy_rate > 0 and case.floor_reason is None
        for name in PASSES:
            found = case.rows[0].passes[name]
            assert found.reason is None and len(found.seconds) == 2
            assert 0 < found.launch <= found.latency
            assert found.extra_bytes == 12345
            floor = find_floor(case.shape, name, "float32", case.matmul_rate, case.copy_rate)
            assert case.floors[name] == floor
            assert found.over_floor == pytest.approx(found.time.median / floor)
    assert Report.from_json(report.to_json()) == report


def test_a_floor_that_cannot_be_measured_is_named(pretended):
    ours = pretended / "ours.py"
    ours.write_text(ours.read_text().replace("lambda: None, 1e3", "lambda: 1 / 0, 1e3"))
    (case,) = run(pretended, shapes=SHAPES[:1], rounds=1).cases
    assert case.floor_reason == "ZeroDivisionError: division by zero" and case.floors == {}
    found = case.rows[0].passes[FORWARD]
    assert found.time is not None and found.over_floor is None


def test_our_file_must_know_the_device(pretended):
    ours = pretended / "ours.py"
    ours.write_text(ours.read_text().replace("devices=DEVICES", "devices=(CPU,)"))
    with pytest.raises(BenchError, match=r"ours\.py: it has no form for cuda"):
        run(pretended)


#: With H = W = 1 every position sees itself alone: out = v.
ALONE = Shape(3, 2, 1, 1)
#: A fault that stays with its process, as those of a GPU do.
STICKY = """
from crisscross.bench.peer import Calls, Form

PACKAGES = ()
faults = []
first = iter(("compute",))


def fail(when):
    if when == WHEN:
        faults.append(when)
        raise RuntimeError("an illegal address")


def prepare_failing(inputs):
    def failing():
        fail(next(first, "time"))
        return {"out": inputs.v}

    return Calls(failing, None, dict)


def prepare_next(inputs):
    def next_one():
        assert faults == []
        return {"out": inputs.v}

    return Calls(next_one, None, dict)


def measure_memory(call):
    if call.__name__ == "failing":
        fail("measure_memory")
    assert faults == []
    return 5


FORMS = {
    "fails": Form(prepare_failing, passes=("forward",), devices=("cuda",)),
    "next": Form(prepare_next, passes=("forward",), devices=("cuda",)),
}
"""


def test_one_process_at_a_time_compiles(pretended, write_peer, monkeypatch):
    """Two files have two threads where they are checked side by side."""
    write_peer(STICKY.replace("WHEN", repr("never")))
    asking, submitted, ask = set(), threading.Event(), Worker.ask

    def note(worker, do, **request):
        if do in ("open", "prepare", "compute"):
            asking.add(threading.get_ident())
            # Or one thread might be done before there is work for the next.
            assert submitted.wait(60)
        return ask(worker, do, **request)

    def submit(*given):
        submitted.set()
        return expect(*given)

    monkeypatch.setattr(Worker, "ask", note)
    monkeypatch.setattr(crisscross.bench.case, "expect", submit)
    monkeypatch.setattr(crisscross.bench.case, "count_usable_cpus", lambda: 2)
    (case,) = run(pretended, shapes=(ALONE,), rounds=1).cases
    assert [row.passes[FORWARD].reason for row in case.rows] == [None] * 3
    assert len(asking - {threading.get_ident()}) == 1


@pytest.mark.parametrize("when", ["compute", "measure_memory", "time"])
def test_what_fails_on_a_gpu_does_not_fail_what_comes_next(pretended, write_peer, when):
    write_peer(STICKY.replace("WHEN", repr(when)))
    report = run(pretended, shapes=(ALONE, ALONE))
    for case in report.cases:
        _, failing, following = (row.passes[FORWARD] for row in case.rows)
        assert failing.reason == "RuntimeError: an illegal address"
        assert following.reason is None and following.extra_bytes == 5
        assert len(following.seconds) == 2


#: Of our own file: the yardsticks leave the process with a fault.
STICKY_YARDSTICKS = """
import dataclasses

faults = []
prepare_healthy = FORMS["crisscross"].prepare


def make_yardsticks(device, dtype):
    faults.append(device)
    with open(__file__ + ".tries", "a") as tries:
        tries.write(".")
    raise RuntimeError("an illegal address")


def prepare(inputs):
    calls = prepare_healthy(inputs)

    def forward():
        assert faults == []
        return calls.forward()

    return dataclasses.replace(calls, forward=forward)


FORMS["crisscross"] = Form(prepare, devices=DEVICES)
"""


def test_yardsticks_that_fail_do_not_fail_ours(pretended):
    ours = pretended / "ours.py"
    ours.write_text(ours.read_text() + STICKY_YARDSTICKS)
    for case in run(pretended).cases:
        assert case.floor_reason == "RuntimeError: an illegal address"
        (row,) = case.rows
        assert all(len(found.seconds) == 2 for found in row.passes.values()), row
    # Once for each shape: each try costs a process.
    assert (pretended / "ours.py.tries").read_text() == ".."


#: Right in its first process, which ends while it is timed, and wrong in the next.
CHANGING = """
from pathlib import Path
from crisscross.bench.peer import Calls, Form

PACKAGES = ()
been_here = Path(__file__).with_suffix(".been-here")
new = been_here.exists()
been_here.touch()
first = iter(("compute",))


def prepare_failing(inputs):
    def fail():
        if next(first, None) is None:
            raise RuntimeError("an illegal address")
        return {"out": inputs.v}

    return Calls(fail, None, dict)


def prepare_changing(inputs):
    return Calls(lambda: {"out": inputs.v * (2 if new else 1)}, None, dict)


def measure_memory(call):
    return 5


FORMS = {
    "fails": Form(prepare_failing, passes=("forward",), devices=("cuda",)),
    "changes": Form(prepare_changing, passes=("forward",), devices=("cuda",)),
}
"""


def test_a_new_process_is_held_to_the_oracle_too(pretended, write_peer):
    write_peer(CHANGING)
    (case,) = run(pretended, shapes=(ALONE,)).cases
    _, _, changing = (row.passes[FORWARD] for row in case.rows)
    assert changing.reason.startswith("disagrees with the oracle") and changing.time is None


TURNS = """
from crisscross.bench.peer import Calls, Form

PACKAGES = ()
turns = []
numbers = iter(range(100))


def prepare(inputs):
    number = next(numbers)

    def forward():
        turns.append(number)
        return {"out": inputs.v}

    return Calls(forward, None, dict)


def measure_memory(call):
    # No memory: how many sets the calls had, in turn.
    assert turns == [number % 3 for number in range(len(turns))]
    return len(set(turns))


FORMS = {"takes turns": Form(prepare, devices=("cuda",))}
"""


def test_sets_of_inputs_take_turns(tmp_path, write_peer, start):
    worker, _ = start(write_peer(TURNS))
    open_case(worker, tmp_path, device=CUDA, sets=3)
    worker.ask("prepare", form="takes turns")
    worker.ask("time", form="takes turns", name=FORWARD, seconds=1e-4)
    answer = worker.ask("measure_memory", form="takes turns", name=FORWARD)
    assert answer == {"bytes": 3}


def test_memory_that_a_library_does_not_tell_is_named(tmp_path, write_peer, start):
    worker, _ = start(write_peer(TURNS.replace("def measure_memory", "def nothing")))
    open_case(worker, tmp_path, device=CUDA)
    worker.ask("prepare", form="takes turns")
    answer = worker.ask("measure_memory", form="takes turns", name=FORWARD)
    assert answer == {"unknown": "takes turns: this library does not tell the peak of a call"}


@pytest.mark.parametrize(
    ("prints", "state"),
    [
        ("echo '580.1, 1980 MHz, 1980 MHz, 2619 MHz, 410.5 W, 700.0 W, 51'", "1980 MHz"),
        ("echo 'Field \"clocks.sm\" is not a valid field to query.'", None),
        ("echo broken, of, course; exit 9", None),
    ],
)
def test_the_state_is_what_nvidia_smi_tells(tmp_path, monkeypatch, prints, state):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ $1 = --id=0:1 ] || exit 1\n{prints}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = environment.ask_nvidia_smi("0:1")
    assert found.get("clocks.sm") == state and len(found) in (0, 7)


def test_without_nvidia_smi_there_is_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.ask_nvidia_smi("0:1") == {}


#: What each library says itself of the GPU; without one it raises.
LIBRARIES = {
    "ours": "",
    "torch": "import torch; torch.zeros(1, device='cuda')",
    "jax": "import jax; jax.devices('cuda')",
}


def require_library(name: str) -> None:
    """Skip where a library does not use the GPU; asked in a process of its own, for it keeps it."""
    done = subprocess.run([sys.executable, "-c", LIBRARIES[name]], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{name} uses no GPU here: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_whole_run_on_a_gpu(library, dtype, layout):
    require_gpu()
    require_library(library)
    shape = Shape(128, 16, 33, 29, 2)
    report = run(
        DEFAULT_PEERS, shapes=(shape,), dtype=dtype, layout=layout, rounds=1, only=(library,)
    )
    assert Report.from_json(report.to_json()) == report
    assert not any(name.startswith(library) for name in report.missing), report.missing
    (case,) = report.cases
    assert case.floor_reason is None
    assert case.sets == count_sets(shape, dtype, report.environment.gpu.cache_bytes)
    # Of a GPU as old as the oldest that is served, and as new as any.
    assert 1e11 < case.copy_rate < 1e14 and 1e12 < case.matmul_rate < 1e17
    ours, *others = case.rows
    assert bool(others) == (library != "ours")
    for row in case.rows:
        for found in row.passes.values():
            # A kernel that does not take a dtype says so.
            if row is ours or not (found.reason or "").startswith("this kernel "):
                assert found.reason is None, (row.form, found.reason)
                assert found.time.median > 0 and 0 < found.launch <= found.latency
    results = 2 * 33 * 29 * 128 * (2 if dtype == "bfloat16" else 4)
    assert ours.passes[FORWARD].extra_bytes >= results
    assert ours.algorithm is not None and "axis 0" in ours.algorithm
