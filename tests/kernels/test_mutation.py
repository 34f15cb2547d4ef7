"""The mutation test itself: it misses no check, sees what is noticed, and tells what is not."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.emulator.build import Mode
from tests.kernels import mutation
from tests.kernels.mutation import Court, Outcome, Trial, list_mutants, read_sources

SOURCES = read_sources()


def strip_comments(text):
    return re.sub(r"//.*", "", text)


@pytest.mark.parametrize(
    ("call", "definitions"),
    [("is_inside(", 1), ("__syncthreads(", 0), ("__syncwarp(", 0)],
)
def test_all_of_the_sources_are_listed(call, definitions):
    listed = [mutant for mutant in list_mutants(SOURCES) if mutant.text.startswith(call)]
    written = sum(strip_comments(text).count(call) for text in SOURCES.values())
    assert len(listed) == len(set(listed)) == written - definitions
    assert listed or call == "__syncwarp("


def test_every_mutant_has_tests_that_decide():
    kernels = {name for name in SOURCES if name.endswith(".cu")}
    assert set(mutation.QUICK) == kernels
    for mutant in list_mutants(SOURCES):
        text = SOURCES[mutant.file]
        changed = mutant.apply(text)
        assert changed != text
        assert changed.count("\n") == text.count("\n")
        assert mutation.find_kernels(SOURCES, mutant.file)


@pytest.mark.parametrize(
    "tests", dict.fromkeys(tests for quick in mutation.QUICK.values() for tests in quick)
)
def test_the_tests_are_there(tests):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests]
    environment = {**os.environ, "KERNEL_SWEEP": "full"}
    done = subprocess.run(
        command, env=environment, cwd=mutation.ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0


CODE = """
__device__ bool is_inside(long long index, long long size) { return index < size; }
struct Tile {
  bool is_there;
  bool rows_there[4], row_is_there[4], column_is_there[4];
  __device__ bool has(int x) const {
    return is_inside(x, 5);  // not is_inside(x, 6), nor __syncthreads();
  }
};
__device__ void cp_async_commit() {
  emulator::cp_async_commit();
}
__device__ void kernel(const bool* is_there) {
  cp_async_commit();
  cp_async_wait<2>();
  __syncwarp(mask);
  row_is_there[1] = is_inside(
      find(x), size);
  fill(memory.row_is_there, memory.column_is_there + 1);
  if (tile.has(x) && column_is_there[at(2)]) __syncthreads();
  const bool is_row = !tile.is_there;
  if (is_row && axis.is_row) x = channel + wide <= size && y < 2;
  for (int i = 0; i < size; i++) x = i < 3 ? 1 : 2;
}
"""


def test_what_is_found():
    found = [(mutant.line, mutant.text, mutant.replacement) for mutant in list_mutants({"a": CODE})]
    assert found == [
        (7, "is_inside(x, 5)", "true"),
        (11, "emulator::cp_async_commit();", ";"),
        (14, "cp_async_commit();", ";"),
        (15, "cp_async_wait<2>();", ";"),
        (16, "__syncwarp(mask);", ";"),
        (17, "is_inside(\n      find(x), size)", "true"),
        (20, "tile.has(x)", "true"),
        (20, "column_is_there[at(2)]", "true"),
        (20, "__syncthreads();", ";"),
        (21, "tile.is_there", "true"),
        (22, "is_row", "true"),
        (22, "channel + wide <= size", "true"),
        (23, "i < 3", "true"),
    ]


def test_who_includes_a_file():
    sources = {
        "a.cuh": "",
        "b.cuh": '#include "a.cuh"',
        "c.cu": '#include "b.cuh"',
        "d.cu": '#include "e.cuh"',
        "f.cu": '#include "a.cuh"',
    }
    assert mutation.find_kernels(sources, "a.cuh") == ["c.cu", "f.cu"]
    assert mutation.find_kernels(sources, "d.cu") == ["d.cu"]


BARRIER = next(
    mutant
    for mutant in list_mutants(SOURCES)
    if mutant.file == "from_port_layout.cu" and mutant.is_barrier
)


@pytest.fixture
def court(monkeypatch):
    """One that asks a few tests only."""
    tests = ("tests/kernels/test_ccnet.py", "-k", "test_operations and from_port_layout-float32")
    monkeypatch.setattr(mutation, "list_trials", lambda *_: [Trial(tests, Mode.PLAIN)])
    return Court(SOURCES)


def test_a_missing_barrier_is_noticed(court):
    trial, outcome = court.find_witness(BARRIER)
    assert trial.mode is Mode.PLAIN
    assert "::test_operations[from_port_layout-float32-" in outcome.test


def test_what_makes_no_difference_survives(court):
    twice = dataclasses.replace(BARRIER, replacement=2 * BARRIER.text)
    assert court.find_witness(twice) is None


def test_without_a_mutant_tests_have_to_pass(monkeypatch):
    monkeypatch.setattr(mutation, "run_trial", lambda *_: Outcome(False, "here", "broken before"))
    with pytest.raises(RuntimeError, match="fails without a mutant: here: broken before"):
        Court(SOURCES).find_witness(BARRIER)


def test_what_came_of_a_trial():
    said = "\nrunning: first\n.\nrunning: second\nE   AssertionError: 3\n"
    read = mutation._read_outcome
    assert read(0, said) == Outcome(True)
    assert read(1, said) == Outcome(False, "second", "AssertionError: 3")
    assert read(-6, "running: one\n") == Outcome(False, "one", "status -6")
    assert read(-signal.SIGXCPU, said) == Outcome(False, "second", "hangs")
    overflow = "running: one\n==1==ERROR: AddressSanitizer: heap-buffer-overflow on address\n"
    assert read(1, overflow) == Outcome(False, "one", "heap-buffer-overflow")
    for status in (2, 3, 4, 5):
        with pytest.raises(RuntimeError, match="did not run"):
            read(status, said)
    with pytest.raises(RuntimeError, match="does not compile"):
        read(1, "E   tests.emulator.build.CompileError: ...")


@pytest.mark.parametrize("survives", [True, False])
def test_the_command(monkeypatch, capsys, survives):
    witness = (Trial(("tests",), Mode.TRACED), Outcome(False, "a test", "a race"))
    monkeypatch.setattr(Court, "find_witness", lambda *_: None if survives else witness)
    assert mutation.main(["from_port_layout.cu", "ports.cuh"]) == survives
    printed = capsys.readouterr().out
    assert f"\n    {'SURVIVED' if survives else 'traced, a test: a race'}\n" in printed
    assert (f"\n  {BARRIER}\n" in printed) == survives
    assert "tiles.cuh" not in printed


def test_the_list(capsys):
    assert mutation.main(["--list", "from_port_layout.cu"]) == 0
    assert str(BARRIER) in capsys.readouterr().out.splitlines()


def test_a_sample_changes_with_the_sources(capsys, monkeypatch):
    def draw():
        mutation.main(["--list", "--sample", "5"])
        return capsys.readouterr().out.splitlines()

    drawn = draw()
    assert len(set(drawn)) == 5 and drawn == draw()
    everything = set(map(str, list_mutants(SOURCES)))
    assert everything >= set(drawn)
    changed = {name: text + "// changed" for name, text in SOURCES.items()}
    monkeypatch.setattr(mutation, "read_sources", lambda: changed)
    assert set(drawn) != set(draw()) <= everything
