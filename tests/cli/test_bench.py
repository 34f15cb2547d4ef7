"""`crisscross bench`: its arguments, its tables, its files."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import crisscross.bench.run
import crisscross.cli.bench
from crisscross.bench.ratios import Spread
from crisscross.bench.records import CaseRecord, Environment, Gpu, PassRecord, Report, Row
from crisscross.bench.settings import DEFAULT_PEERS, Settings
from crisscross.bench.shapes import (
    FORWARD,
    FORWARD_BACKWARD,
    GPU_SHAPES,
    QUICK_GPU_SHAPES,
    QUICK_SHAPES,
    SHAPES,
    Shape,
)
from crisscross.cli import main
from crisscross.cli.bench_tables import HEADINGS, describe_run, list_cells, write_markdown

ENVIRONMENT = Environment(
    command="crisscross bench --quick",
    date="2026-01-02T03:04:05+00:00",
    commit="0123456789abcdef",
    dirty=True,
    python="3.11.7",
    system="Linux",
    cpu="a CPU",
    usable_cpus=4,
    threads=2,
    blas="openblas 1",
    packages={"numpy": "2.4"},
    unsettled=None,
)
OURS = Row(
    "crisscross",
    "criss-cross",
    {
        FORWARD: PassRecord(
            errors={"out": 1e-7, "lse": 2e-7},
            seconds=(0.01, 0.0125, 0.02),
            time=Spread(0.01, 0.0125, 0.02),
            over_floor=2.04,
            extra_bytes=3 * 2**20,
        ),
        FORWARD_BACKWARD: PassRecord(
            errors={"out": 1e-7, "dq": 4e-7},
            seconds=(0.1,),
            time=Spread(0.1, 0.1, 0.1),
            over_floor=3,
            extra_bytes=2**19,
        ),
    },
)
DENSE = Row(
    "dense | all",
    "dense",
    {FORWARD: PassRecord(seconds=(1.5,), time=Spread(1, 1.5, 2), ratio=Spread(10, 12, 15))},
)
WRONG = Row(
    "wrong",
    "criss-cross",
    {
        FORWARD: PassRecord("disagrees with the oracle: out", {"out": 0.25}),
        FORWARD_BACKWARD: PassRecord("disagrees with the oracle: dq", {"out": 0.25, "dq": None}),
    },
)
CASE = CaseRecord(
    shape=Shape(8, 2, 5, 7),
    oracle="the oracle",
    matmul_rate=1e11,
    copy_rate=None,
    floors={FORWARD: 0.006, FORWARD_BACKWARD: 0.03},
    floor_reason=None,
    sets=1,
    foreign_share=0.25,
    rows=(OURS, DENSE, WRONG),
)
REPORT = Report(
    environment=ENVIRONMENT,
    dtype="float32",
    device="cpu",
    layout="channels-first",
    seed=0,
    rounds=3,
    processes=2,
    peer_ulps=16,
    ours="crisscross",
    cases=(CASE,),
    missing={"jax_jit.py": "jax is not installed"},
)
GPU = Gpu(
    name="a GPU",
    architecture="90",
    memory_bytes=2**37,
    cache_bytes=50 * 2**20,
    bus_id="0000:01:00.0",
    driver_cuda=13010,
    runtime_cuda=12090,
    cupy="14.2.0",
    state={"driver_version": "580.1", "clocks.sm": "1980 MHz"},
)
GPU_REPORT = dataclasses.replace(
    REPORT,
    environment=dataclasses.replace(ENVIRONMENT, gpu=GPU),
    dtype="bfloat16",
    device="cuda",
    layout="channels-last",
    cases=(
        dataclasses.replace(
            CASE,
            matmul_rate=7.5e14,
            copy_rate=4.2e12,
            floors={FORWARD: 4.13e-5, FORWARD_BACKWARD: 1.24e-4},
            sets=3,
            rows=(
                dataclasses.replace(
                    OURS,
                    passes={
                        FORWARD: dataclasses.replace(
                            OURS.passes[FORWARD], launch=0.0120, latency=0.014
                        ),
                        FORWARD_BACKWARD: dataclasses.replace(
                            OURS.passes[FORWARD_BACKWARD], launch=0.02, latency=0.11
                        ),
                    },
                ),
            ),
        ),
    ),
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The folder of the default outputs."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def asked(written, monkeypatch) -> list[Settings]:
    """Measure nothing; the settings that would have been used."""
    settings: list[Settings] = []

    def note(given: Settings, on_step: object) -> Report:
        settings.append(given)
        return REPORT

    monkeypatch.setattr(crisscross.cli.bench, "run_bench", note)
    return settings


def test_the_cells():
    assert list_cells(OURS, "crisscross") == [
        "crisscross",
        *("12.5 ms", "1", "2.0"),
        *("100 ms", "1", "3.0"),
        *("3.0 / 0.5", "4.0e-07 (dq)"),
    ]
    assert list_cells(DENSE, "crisscross") == [
        "dense | all",
        *("1500 ms", "12.00 (10.00 to 15.00)", "-"),
        *("-", "-", "-"),
        *("- / -", "-"),
    ]
    assert list_cells(WRONG, "crisscross") == ["wrong", *["-"] * 6, "- / -", "2.5e-01 (out)"]


def test_the_markdown():
    lines = write_markdown(REPORT).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert {line.replace("\\|", "").count("|") for line in table} == {len(HEADINGS) + 1}
    text = "\n".join(lines)
    assert "**C/C' = 8/2, 5x7, float32**" in text
    assert "- wrong, forward: disagrees with the oracle: out" in text
    assert "- dense | all: another function" in text
    assert "Not measured: jax_jit.py: jax is not installed" in text
    assert "commit 0123456789ab with changes" in text
    assert "- the machine was not quiet: other processes took 25% of the CPUs" in text


@pytest.mark.parametrize("share", [None, 0.0, 0.049])
def test_a_quiet_machine_is_not_mentioned(share):
    case = dataclasses.replace(REPORT.cases[0], foreign_share=share)
    assert "quiet" not in write_markdown(dataclasses.replace(REPORT, cases=(case,)))


def test_a_run_on_a_gpu_tells_what_it_depends_on():
    text = write_markdown(GPU_REPORT)
    assert "**C/C' = 8/2, 5x7, bfloat16, channels-last, cuda**" in text
    assert "a GPU, sm_90; CUDA 12.9 (the driver's: 13.1), CuPy 14.2.0, driver_version 580.1" in text
    assert "- floor: forward 0.0413 ms, forward + backward 0.124 ms: the least bytes at" in text
    assert "at 4.2 TB/s" in text and "at 750 TFLOP/s" in text and "in turn: 3" in text
    # Of 12.5 ms the host needs 12: the other pass, of 100 and 20, is not named.
    waits = [line for line in text.splitlines() if "the GPU waits" in line]
    assert waits == [
        "- crisscross, forward: the host needs 12 ms to launch a call; the GPU waits for it"
    ]
    assert Report.from_json(GPU_REPORT.to_json()) == GPU_REPORT


def test_how_ours_computes_is_told_once():
    rows = [dataclasses.replace(OURS, form=form, algorithm="in strips") for form in ("a", "b")]
    case = dataclasses.replace(CASE, rows=(*rows, DENSE))
    report = dataclasses.replace(REPORT, cases=(case,))
    lines = [line for line in write_markdown(report).splitlines() if "in strips" in line]
    assert lines == ["- a and b: in strips"]
    assert Report.from_json(report.to_json()) == report


def test_a_floor_that_is_not_known_is_named():
    case = dataclasses.replace(CASE, matmul_rate=None, floors={}, floor_reason="no cuBLAS")
    text = write_markdown(dataclasses.replace(REPORT, cases=(case,)))
    assert "- floor: not measured: no cuBLAS" in text
    assert "floor:" not in "\n".join(describe_run(REPORT)) + write_markdown(REPORT)


def test_the_terminal_tells_all(asked, capsys):
    assert main(["bench"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        "12.5 ms",
        "12.00 (10.00 to 15.00)",
        "jax is not installed",
        "a CPU; 2 of 4",
        "in 2 processes",
    ):
        assert words in out
    assert "wrong, forward + backward: disagrees with the oracle: dq" in out


def test_the_defaults(asked, written):
    assert main(["bench"]) == 0
    (settings,) = asked
    assert settings.shapes == SHAPES and settings.dtype == "float32" and settings.rounds == 9
    assert settings.processes == 3
    assert settings.device == "cpu" and settings.layout == "channels-first"
    assert settings.peers == DEFAULT_PEERS and settings.only == ()
    assert settings.threads == crisscross.cli.bench.count_usable_cpus()
    assert sorted(path.name for path in written.iterdir()) == [
        "crisscross-bench.json",
        "crisscross-bench.png",
    ]


def test_the_defaults_on_a_gpu(asked):
    assert main(["bench", "--device", "cuda"]) == 0
    assert main(["bench", "--device", "cuda", "--quick"]) == 0
    options = ["--shape", "8/2,5x7", "--dtype", "float32", "--layout", "channels-first"]
    assert main(["bench", "--device", "cuda", *options]) == 0
    plain, quick, chosen = asked
    assert [settings.processes for settings in asked] == [1, 1, 1]
    assert plain.shapes == GPU_SHAPES and quick.shapes == QUICK_GPU_SHAPES
    assert plain.device == "cuda" and plain.dtype == "bfloat16" and plain.layout == "channels-last"
    assert chosen.shapes == (Shape(8, 2, 5, 7),)
    assert chosen.device == "cuda" and chosen.dtype == "float32"
    assert chosen.layout == "channels-first"


def test_without_a_gpu_it_is_one_sentence_and_no_file(written, capsys, monkeypatch):
    monkeypatch.setattr(crisscross.bench.run, "find_unavailability", lambda device: f"no {device}")
    monkeypatch.setattr(crisscross.bench.run, "Team", None)
    assert main(["bench", "--device", "cuda"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and list(written.iterdir()) == []
    assert err == "crisscross bench: there is no GPU to measure on: no cuda:0\n"


def test_the_options(asked, written):
    options = ["--shape", "8/2,5x7", "--shape", "9/3,4x6,2", "--dtype", "bfloat16", "--rounds", "3"]
    options += ["--layout", "channels-last", "--processes", "2"]
    options += ["--threads", "1", "--only", "torch", "--only", "jax", "--peers", "elsewhere"]
    options += ["--seed", "5", "--json", "a.json", "--plot", "b.png", "--markdown", "c.md"]
    assert main(["bench", *options]) == 0
    (settings,) = asked
    assert settings == Settings(
        shapes=(Shape(8, 2, 5, 7), Shape(9, 3, 4, 6, 2)),
        dtype="bfloat16",
        layout="channels-last",
        rounds=3,
        processes=2,
        threads=1,
        peers=DEFAULT_PEERS.__class__("elsewhere"),
        only=("torch", "jax"),
        seed=5,
        command=settings.command,
    )
    assert settings.command.startswith("crisscross bench --shape 8/2,5x7 ")
    assert sorted(path.name for path in written.iterdir()) == ["a.json", "b.png", "c.md"]
    assert Report.from_json((written / "a.json").read_text()) == REPORT
    assert (written / "c.md").read_text() == write_markdown(REPORT)


def test_quick(asked):
    assert main(["bench", "--quick"]) == 0
    assert main(["bench", "--quick", "--rounds", "2"]) == 0
    assert [settings.shapes for settings in asked] == [QUICK_SHAPES, QUICK_SHAPES]
    assert [settings.rounds for settings in asked] == [5, 2]
    assert [settings.processes for settings in asked] == [1, 1]


def test_no_process_is_without_a_round(asked):
    assert main(["bench", "--rounds", "2"]) == 0
    assert main(["bench", "--rounds", "2", "--processes", "5"]) == 0
    assert main(["bench", "--quick", "--processes", "4"]) == 0
    assert [settings.processes for settings in asked] == [2, 2, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shape", "64,5x7"], "argument --shape: expected C/C',HxW"),
        (["--shape", "64/8,0x7"], "argument --shape: expected C/C',HxW"),
        (["--quick", "--shape", "64/8,5x7"], "not allowed with argument --quick"),
        (["--dtype", "int8"], "argument --dtype"),
        (["--device", "tpu"], "argument --device"),
        (["--layout", "NHWC"], "argument --layout"),
        (["--rounds", "0"], "argument --rounds: expected a whole number from 1"),
        (["--processes", "0"], "argument --processes: expected a whole number from 1"),
        (["--threads", "0"], "argument --threads: expected a whole number from 1"),
        (["--threads", "4000"], "argument --threads: expected at most"),
        (["--seed", "-1"], "argument --seed"),
        (["--peers", "nowhere"], "there is no ours.py in nowhere: run from a clone"),
        (["--json", "a.txt"], "cannot write a.txt: expected a name that ends in .json"),
        (["--plot", "a.jpg"], "cannot write a.jpg: expected a name that ends in .png"),
        (["--markdown", "a.txt"], "cannot write a.txt: expected a name that ends in .md"),
        (["--json", "missing/a.json"], "cannot write missing/a.json: there is no folder"),
        (["--fast"], "unknown arguments: --fast"),
        (["extra"], "unknown arguments: extra"),
    ],
)
def test_wrong_usage_is_one_line_and_no_file(written, capsys, options, words):
    assert main(["bench", *options]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("crisscross bench: ") and words in err
    assert list(written.iterdir()) == []


def test_an_interrupt_is_one_line_and_no_file(written, monkeypatch, capsys):
    def interrupt(*_: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(crisscross.cli.bench, "run_bench", interrupt)
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == "crisscross bench: interrupted\n"
    assert list(written.iterdir()) == []


def test_packages_that_are_missing_are_one_line(run_python):
    code = """
import sys
sys.modules["rich"] = None
from crisscross.cli import main
print(main(["bench"]))
"""
    assert run_python(code) == "1\n"


def test_a_run_from_end_to_end(written, tmp_path, capsys):
    peers = tmp_path / "peers"
    peers.mkdir()
    for name in ("ours.py", "torch_eager.py"):
        shutil.copy(DEFAULT_PEERS / name, peers)
    options = ["--peers", str(peers), "--rounds", "2", "--markdown", "tables.md"]
    options += ["--shape", "6/3,5x7,2"]
    assert main(["bench", *options]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "torch einsum" in out and "disagrees" not in out
    report = Report.from_json((written / "crisscross-bench.json").read_text())
    assert len(report.cases) == 1 and report.environment.command.startswith("crisscross bench")
    for case in report.cases:
        assert len(case.rows) == 4
        for row in case.rows:
            assert all(found.reason is None and found.time for found in row.passes.values())
    with Image.open(written / "crisscross-bench.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert (written / "tables.md").read_text() == write_markdown(report)


@pytest.mark.parametrize("rows", [(OURS,), (OURS, WRONG)])
def test_a_picture_without_ratios_is_drawn(asked, written, monkeypatch, rows):
    case = dataclasses.replace(REPORT.cases[0], rows=rows)
    report = dataclasses.replace(REPORT, cases=(case,))
    monkeypatch.setattr(crisscross.cli.bench, "run_bench", lambda *_: report)
    assert main(["bench"]) == 0
    assert json.loads((written / "crisscross-bench.json").read_text())["rounds"] == 3
    with Image.open(written / "crisscross-bench.png") as image:
        assert image.size[0] > 500
