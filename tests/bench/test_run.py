"""Whole runs with planted peers: what fails has its reason and no number."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile

import numpy as np
import pytest

import crisscross
import crisscross.bench.case
from crisscross.bench.gate import judge
from crisscross.bench.process import WorkerError
from crisscross.bench.ratios import Spread
from crisscross.bench.records import PassRecord, Report, Row
from crisscross.bench.run import run_bench
from crisscross.bench.settings import DEFAULT_PEERS, Settings
from crisscross.bench.shapes import FORWARD, PASSES, Shape
from crisscross.bench.team import BenchError, Team
from tests.bench.conftest import BENCHMARKS, HIDE, PEER

OURS, CHANNELS_LAST = "crisscross", "crisscross, channels-last"
SHAPES = (Shape(6, 3, 5, 7, 2), Shape(4, 2, 6, 3))


def run(peers, **changes) -> Report:
    return run_bench(Settings(**{"shapes": SHAPES[:1], "rounds": 1, "peers": peers, **changes}))


def find_row(report: Report, form: str, case: int = 0) -> Row:
    (row,) = [row for row in report.cases[case].rows if row.form == form]
    return row


def assert_refused(found: PassRecord, reason: str) -> None:
    assert found.reason is not None and found.reason.startswith(reason), found.reason
    assert found == PassRecord(reason=found.reason, errors=found.errors)


def test_a_peer_that_agrees_is_timed(peers, write_peer):
    write_peer()
    report = run(peers, shapes=SHAPES, rounds=2, seed=3)
    assert [case.shape for case in report.cases] == list(SHAPES)
    for case in range(2):
        found = find_row(report, "planted", case).passes[FORWARD]
        assert found.reason is None and len(found.seconds) == 2
        assert found.errors["out"] < 1e-6
        ours = find_row(report, OURS, case).passes
        assert list(ours) == list(PASSES)
        assert set(ours[FORWARD].errors) == {"out", "lse"}
        for record in (found, *ours.values()):
            assert 0 < record.time.low <= record.time.median <= record.time.high
            assert record.over_floor > 0
            assert (record.extra_bytes is None) != (record.memory_reason is None)
        ratios = [a / b for a, b in zip(found.seconds, ours[FORWARD].seconds, strict=True)]
        assert min(ratios) <= found.ratio.median <= max(ratios)
        assert ours[FORWARD].ratio is None
        assert find_row(report, CHANNELS_LAST, case).passes[FORWARD].ratio is not None
    assert report.ours == OURS and report.missing == {}
    assert {"numpy", "crisscross-attention"} <= set(report.environment.packages)


def test_a_peer_that_counts_self_twice_gets_no_number(peers, write_peer):
    write_peer(hide="pass")
    found = find_row(run(peers), "planted").passes[FORWARD]
    assert_refused(found, "disagrees with the oracle: out, rms error ")
    assert found.errors["out"] > 1e-3


def test_a_peer_that_returns_nan_gets_no_number(peers, write_peer):
    write_peer(spoil="out[0, 1, 2, 3] = np.nan")
    report = run(peers)
    found = find_row(report, "planted").passes[FORWARD]
    assert_refused(found, "disagrees with the oracle: out, rms error nan")
    assert found.errors == {"out": None}
    assert find_row(report, OURS).passes[FORWARD].time is not None


def test_our_own_errors_have_no_number_and_no_ratios(peers, write_peer):
    write_peer()
    ours = peers / "ours.py"
    spoiled = ours.read_text().replace('return {"out": out,', 'return {"out": out * 1.001,')
    assert spoiled != ours.read_text()
    ours.write_text(spoiled)
    report = run(peers)
    assert_refused(find_row(report, OURS).passes[FORWARD], "disagrees with the oracle: out: FAILS")
    found = find_row(report, "planted").passes[FORWARD]
    assert found.time is not None and found.ratio is None


def test_how_ours_computes_is_recorded(peers, write_peer):
    write_peer()
    report = run(peers)
    q, v = np.ones((2, 3, 5, 7), np.float32), np.ones((2, 6, 5, 7), np.float32)
    assert find_row(report, OURS).algorithm == crisscross.explain(q, q, v).algorithm
    assert find_row(report, "planted").algorithm is None


def test_a_missing_package_is_named(peers, write_peer):
    write_peer("import no_such_package")
    report = run(peers)
    assert report.missing == {"planted.py": "no_such_package is not installed"}
    assert find_row(report, OURS).passes[FORWARD].time is not None


CRASHING = """
import os
from crisscross.bench.peer import Calls, Form

PACKAGES = ()


def prepare(inputs):
    return Calls(lambda: {"out": inputs.v}, None, dict)


FORMS = {
    "crashes": Form(lambda inputs: os._exit(7), passes=("forward",)),
    "comes next": Form(prepare, passes=("forward",)),
}
"""


def test_a_crash_is_named_and_what_comes_next_has_a_new_worker(peers, write_peer):
    write_peer(CRASHING)
    report = run(peers, shapes=SHAPES)
    for case in range(2):
        found = find_row(report, "crashes", case).passes[FORWARD]
        assert_refused(found, "its process ended with exit code 7")
        found = find_row(report, "comes next", case).passes[FORWARD]
        assert_refused(found, "disagrees with the oracle: out")
    assert find_row(report, OURS).passes[FORWARD].time is not None


FADING = """
import os
from crisscross.bench.peer import Calls, Form

PACKAGES = ()
calls = iter((1, 2))


def prepare(inputs):
    def forward():
        if next(calls, None) is None:
            raise RuntimeError("tired\\nof it")
        return {"out": inputs.v}

    return Calls(forward, None, dict)


FORMS = {"fades": Form(prepare, passes=("forward",))}
"""


def test_what_fails_while_it_is_timed_has_no_number(peers, write_peer):
    write_peer(FADING)
    # With H = W = 1 every position sees itself alone: out = v.
    found = find_row(run(peers, shapes=(Shape(3, 2, 1, 1),)), "fades").passes[FORWARD]
    assert_refused(found, "RuntimeError: tired")


#: Right, and what each of its processes is, and does, is in a list.
LISTED = PEER.replace(
    'PACKAGES = ("numpy",)',
    """
import os

PACKAGES = ("numpy",)


def note(what):
    with open({listing!r}, "a") as listing:
        listing.write(f"{{os.getpid()}} {{what}}\\n")


note("loaded")
""",
).replace("    def forward():", "    def forward():\n        note('computed')")


def list_processes(listing):
    """The processes in the order in which they began, each with what it did first."""
    begun = {}
    for line in listing.read_text().splitlines():
        process, did = line.split()
        begun.setdefault(process, did)
    return begun


def test_processes_of_a_library_share_the_rounds_of_a_shape(peers, write_peer, tmp_path):
    listing = tmp_path / "listing"
    code = LISTED.format(hide=HIDE, spoil="pass", listing=str(listing))
    write_peer(code)
    report = run(peers, shapes=SHAPES, rounds=5, processes=3)
    assert report.processes == 3
    # The last one goes on to the next shape.
    assert [*list_processes(listing).values()] == ["loaded"] * 5
    for case in range(2):
        for form in ("planted", OURS, CHANNELS_LAST):
            for found in find_row(report, form, case).passes.values():
                assert found.reason is None and len(found.seconds) == 5


def test_every_process_is_held_to_the_oracle(peers, write_peer, tmp_path):
    """A peer that is wrong in its second process has no number, and is not asked a third time."""
    listing = tmp_path / "listing"
    listing.touch()
    spoil = f"out[0] += len({{line.split()[0] for line in open({str(listing)!r})}}) - 1"
    code = LISTED.format(hide=HIDE, spoil=spoil, listing=str(listing))
    write_peer(code)
    report = run(peers, rounds=6, processes=3)
    found = find_row(report, "planted").passes[FORWARD]
    assert_refused(found, "disagrees with the oracle: out, rms error ")
    first, second, *others = list_processes(listing)
    done = [line.split()[0] for line in listing.read_text().splitlines()]
    assert done.count(first) > 2 and done.count(second) == 2
    assert all(done.count(process) == 1 for process in others)
    assert len(find_row(report, OURS).passes[FORWARD].seconds) == 6


def test_what_a_form_is_not_for_is_named(peers, write_peer):
    write_peer(
        """
        from crisscross.bench.peer import Form, NotServed

        PACKAGES = ()


        def prepare(inputs):
            raise NotServed("squares only")


        FORMS = {"square": Form(prepare)}
        """
    )
    for found in find_row(run(peers), "square").passes.values():
        assert_refused(found, "squares only")


def test_only_what_is_asked_for_is_measured(peers, write_peer):
    write_peer()
    report = run(peers, only=("PLANT",))
    assert [row.form for row in report.cases[0].rows] == [OURS, "planted"]
    report = run(peers, only=("channels-LAST",))
    assert [row.form for row in report.cases[0].rows] == [OURS, CHANNELS_LAST]
    with pytest.raises(BenchError, match="'nobody' in its name; there are 'ours', 'crisscross'"):
        run(peers, only=("nobody",))


def test_our_file_must_be_there_and_load(peers, tmp_path):
    with pytest.raises(BenchError, match=r"there is no ours\.py in .*: run from a clone"):
        run(tmp_path)
    (peers / "ours.py").write_text("import no_such_package")
    with pytest.raises(BenchError, match=r"ours\.py: no_such_package is not installed"):
        run(peers)


def list_children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_an_interrupt_ends_all_workers(peers, write_peer):
    write_peer()
    before = list_children()

    def interrupt(done: int, total: int, text: str) -> None:
        if "memory of planted" in text:
            assert len(list_children() - before) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(Settings(shapes=SHAPES, rounds=1, peers=peers), interrupt)
    assert list_children() <= before


def test_an_interrupt_of_the_oracle_ends_all_workers(peers, write_peer, monkeypatch):
    write_peer("""
        import time
        from crisscross.bench.peer import Form

        PACKAGES = ()
        FORMS = {"endless": Form(lambda inputs: time.sleep(600))}
    """)
    before = list_children()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crisscross.bench.case, "expect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(peers)
    assert list_children() <= before


def test_what_was_killed_is_not_started_again(peers):
    with Team(peers, 1) as team:
        team.gather((), "cpu")
        team.kill()
        with pytest.raises(WorkerError, match="the run was interrupted"):
            team.restart(team.home)
        assert not team.workers[team.home].alive


def test_results_are_gone_when_they_have_been_read(peers, tmp_path, monkeypatch):
    seen = []

    def look(*given, **options):
        seen.append([path.name for path in tmp_path.rglob("*.npy")])
        return judge(*given, **options)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(crisscross.bench.case, "judge", look)
    assert find_row(run(peers), OURS).passes[FORWARD].reason is None
    # Of a form that was not judged yet there is nothing; the inputs stay.
    assert [sorted(names) for names in seen] == [["dout.npy", "k.npy", "q.npy", "v.npy"]] * 4


@pytest.mark.parametrize(("rounds", "processes"), [(1, 1), (3, 2)])
def test_progress_counts_every_step(peers, write_peer, rounds, processes):
    write_peer(hide="pass")
    steps = []
    run_bench(
        Settings(shapes=SHAPES, rounds=rounds, processes=processes, peers=peers),
        lambda done, total, _: steps.append((done, total)),
    )
    total = 2 * (processes + 3 + 2 * rounds)
    assert steps == [(0, 1), *((done, total) for done in range(total))]


def test_the_report_round_trips(peers, write_peer):
    write_peer(spoil="out[0, 0, 0, 0] = np.nan")
    report = run(peers, dtype="float64", command="crisscross bench")
    text = report.to_json()
    assert Report.from_json(text) == report
    plain = json.loads(text)
    assert plain["cases"][0]["shape"]["channels"] == 6
    assert plain["dtype"] == "float64" and plain["environment"]["threads"] == 1
    record = dataclasses.replace(report.cases[0].rows[0].passes[FORWARD], ratio=Spread(1, 2, 3))
    assert record.ratio.median == 2


def test_the_default_folder_is_that_of_the_clone():
    assert DEFAULT_PEERS == BENCHMARKS
