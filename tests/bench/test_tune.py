"""The tuner on devices whose times are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crisscross.bench.shapes import Shape
from crisscross.bench.team import BenchError
from crisscross.bench.trials import MARGIN, Trial, choose, find_disagreement
from crisscross.bench.tune import tune
from crisscross.kernels.candidates import CANDIDATES
from crisscross.kernels.choices import Choice, Choices
from crisscross.kernels.select import list_fitting, select
from crisscross.kernels.tables import TABLES, Strip
from crisscross.testing import make_case
from tests.bench.made_up_device import MadeUpDevice, leave_out_oracle
from tests.kernels.emulated import H100

SHAPE = Shape(64, 8, 97, 97)
STRIP = Strip("bfloat16", 97, 8, 64, True)
FORWARD, BACKWARD = (
    [row.tile for row in list_fitting(direction, STRIP, H100)]
    for direction in ("forward", "backward")
)
OWN, FURTHER = FORWARD[0], CANDIDATES["forward"]["bfloat16"][0].tile


@pytest.fixture(autouse=True)
def _without_oracle(monkeypatch):
    leave_out_oracle(monkeypatch)


def run(device, shapes=(SHAPE,), rounds=3, **options):
    return list(tune(device, shapes, dtype="bfloat16", rounds=rounds, **options))


def test_every_tile_that_fits_is_tried_the_tables_own_first():
    forward, backward = run(MadeUpDevice())
    assert (forward.direction, backward.direction) == ("forward", "backward")
    assert forward.strip == backward.strip == STRIP and forward.shape == SHAPE
    assert [trial.tile for trial in forward.trials] == FORWARD
    assert [trial.tile for trial in backward.trials] == BACKWARD
    assert FURTHER in FORWARD and CANDIDATES["backward"]["bfloat16"][0].tile in BACKWARD
    assert select("forward", STRIP, H100).tile == OWN


@pytest.mark.parametrize(
    ("gain", "is_chosen"), [(0.5, True), (MARGIN + 1e-3, True), (MARGIN - 1e-3, False), (-1, False)]
)
def test_what_is_faster_by_more_than_the_margin_is_chosen(gain, is_chosen):
    forward, backward = run(MadeUpDevice({FURTHER: 1 - gain}))
    assert forward.chosen is not None
    assert forward.chosen.tile == (FURTHER if is_chosen else OWN)
    # Along both axes in one call: two launches.
    expected = Choice(FURTHER, pytest.approx(2 * (1 - gain)), 2.0)
    assert forward.choice == (expected if is_chosen else None)
    assert backward.choice is None and backward.chosen is backward.trials[0]


def test_the_fastest_is_chosen():
    seconds = {FORWARD[1]: 0.8, FURTHER: 0.7, FORWARD[2]: 0.9}
    forward, _ = run(MadeUpDevice(seconds))
    assert forward.choice is not None and forward.choice.tile == FURTHER
    ratios = {trial.tile: trial.ratio for trial in forward.trials}
    assert ratios[FURTHER] == pytest.approx(1 / 0.7) and ratios[OWN] == 1


def test_the_median_of_the_rounds_counts():
    """The first of the times only tells how long a row is to be."""
    forward, _ = run(MadeUpDevice({FURTHER: [1.0, 0.1, 1.0, 1.1]}))
    assert forward.choice is None
    forward, _ = run(MadeUpDevice({FURTHER: [1.0, 9.0, 0.5, 0.6]}))
    assert forward.choice is not None and forward.choice.seconds == pytest.approx(1.2)


def test_rounds_are_interleaved_one_way_and_the_other():
    device = MadeUpDevice()
    run(device, rounds=2)
    order = [tile for (tile, _), *_ in device.rows]
    # In the first round each is timed twice, to find how long a row is to be.
    first = [tile for tile in FORWARD for _ in range(2)]
    assert order[: 3 * len(FORWARD)] == [*first, *reversed(FORWARD)]


def test_sets_of_arrays_come_in_turn_and_rows_are_long():
    device = MadeUpDevice({OWN: 1e-3})
    device.limits = replace(device.limits, cache_bytes=2 * 97 * 97 * 80 * 2)
    run(device, rounds=1)
    short, long = device.rows[:2]
    # A call is two launches on the same arrays, of one of five sets.
    assert [len(short), len(long)] == [2 * 5, 2 * 5]
    assert len({pointer for _, pointer in short}) == 5
    assert [pointer for _, pointer in short[::2]] == [pointer for _, pointer in short[1::2]]
    device = MadeUpDevice({OWN: 1e-5})
    run(device, rounds=1)
    assert len(device.rows[1]) == 2 * 500


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda x: np.where(x > 1.99, 1.5, x), "disagrees with the table's own: out, rms "),
        (lambda x: np.where(x == x.max(), 1.0, x), "disagrees with the table's own: out, rms "),
        (lambda x: 1.1 * x, "disagrees with the table's own: out, rms "),
        (lambda x: np.where(x == x.max(), np.nan, x), "out, rms nan"),
        (lambda x: np.nan * x, "out, rms nan"),
    ],
    ids=[
        "a few are wrong",
        "one is wrong",
        "all are a little wrong",
        "one is NaN",
        "nothing is written",
    ],
)
def test_what_disagrees_gets_no_number(result, words):
    forward, _ = run(MadeUpDevice({FURTHER: 0.1}, {FURTHER: result}))
    (trial,) = [trial for trial in forward.trials if trial.tile == FURTHER]
    assert (trial.seconds, trial.ratio) == (None, None)
    assert trial.reason is not None and words in trial.reason
    assert forward.choice is None


@pytest.mark.parametrize("name", ["dq", "lse"])
def test_every_result_is_compared(name):
    case = make_case((9, 11), head_size_v=8, dtype="bfloat16")
    own = case.baselines[0]
    assert find_disagreement("bfloat16", own, own) is None
    wrong = {**own, name: own[name] * 2}
    assert find_disagreement("bfloat16", wrong, own).startswith(
        f"disagrees with the table's own: {name}, rms "
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_key_that_is_left_out_is_seen_and_roundings_are_not(dtype):
    case = make_case((48, 48), head_size_qk=16, head_size_v=16, dtype=dtype, energy_peak=10.0)
    first, *others = case.baselines
    for other in others:
        assert find_disagreement(dtype, other, first) is None
    mask = np.ones(case.problem.mask_shape, bool)
    mask[:, :, 47] = False  # the last key of each row, for all but itself
    masked = replace(case, problem=replace(case.problem, masked=True), key_mask=mask)
    assert find_disagreement(dtype, masked.baselines[0], first) is not None


def test_what_fails_has_a_reason_in_one_line():
    errors = {FURTHER: RuntimeError("ptxas: no\nregister is left"), FORWARD[1]: MemoryError()}
    forward, _ = run(MadeUpDevice({FURTHER: 0.1}, broken=errors))
    reasons = {trial.tile: trial.reason for trial in forward.trials}
    assert reasons[FURTHER] == "RuntimeError: ptxas: no"
    assert reasons[FORWARD[1]] == "MemoryError: no message"
    assert [tile for tile, reason in reasons.items() if reason] == [FORWARD[1], FURTHER]
    assert forward.choice is None and forward.chosen is not None


@pytest.mark.parametrize(
    "seconds", [float("nan"), 0.0, -1.0, float("inf"), [1.0, 0.1, np.nan, 0.1]]
)
def test_a_time_that_is_none_is_no_number(seconds):
    forward, _ = run(MadeUpDevice({FURTHER: seconds}))
    (trial,) = [trial for trial in forward.trials if trial.tile == FURTHER]
    assert trial.seconds is None and str(trial.reason).startswith("the clock told ")
    assert forward.choice is None


def test_nothing_is_chosen_where_the_tables_own_fails():
    own = BACKWARD[0]
    forward, backward = run(MadeUpDevice({BACKWARD[1]: 0.1}, {own: lambda x: np.inf * x}))
    assert forward.chosen is not None
    assert (backward.chosen, backward.choice) == (None, None)
    first, *others = backward.trials
    assert first.reason == "its results are not all finite"
    nothing = "the table's own failed, and there is nothing to compare with"
    assert {trial.reason for trial in others} == {nothing}
    # In the middle of it, too: there are times, and nothing to hold them against.
    forward, _ = run(MadeUpDevice({OWN: [1.0, 1.0, np.nan]}))
    assert forward.chosen is None and forward.trials[1].seconds == 2.0
    assert forward.trials[1].ratio is None
    with pytest.raises(BenchError, match=r"own tiles do not run: OSError: no such device"):
        run(MadeUpDevice(broken={OWN: OSError("no such device")}))


def test_what_was_measured_before_does_not_count():
    """And no gradients are computed from what it makes."""
    device = MadeUpDevice(broken={FURTHER: OSError("no such device")})
    choices = {("forward", STRIP): Choice(FURTHER, 0.1, 1.0)}
    device.limits = replace(device.limits, measured=Choices(device.name, choices))
    forward, _ = run(device)
    assert forward.trials[0].tile == OWN


def test_strips_are_measured_once():
    shapes = [Shape(64, 8, 97, 33), Shape(64, 8, 33, 20), Shape(64, 8, 20, 20, 2)]
    steps = []
    device = MadeUpDevice()
    findings = run(device, shapes, rounds=2, on_step=lambda *step: steps.append(step))
    found = [(each.direction, each.strip.length, str(each.shape)) for each in findings]
    assert found == [
        (direction, length, shape)
        for length, shape in [(97, "64/8, 97x33"), (33, "64/8, 97x33"), (20, "64/8, 33x20")]
        for direction in ("forward", "backward")
    ]
    # One for the oracle, and one more than the rounds: all are compiled and compared first.
    assert [done for done, *_ in steps] == list(range(3 * (1 + 2 * 3)))
    assert {total for _, total, _ in steps} == {3 * (1 + 2 * 3)}
    assert steps[0][2] == "C/C' = 64/8, 97x33, strips of 97: the table's own beside the oracle"
    assert steps[-1][2] == "C/C' = 64/8, 33x20, strips of 20, backward"


def test_whole_calls_are_timed_with_one_strip_on_trial():
    """Where the other axis has other strips, they are the table's own."""
    device = MadeUpDevice()
    seconds = run(device, [Shape(64, 8, 97, 33)], rounds=1)[0].trials[1].seconds
    short = list_fitting("forward", STRIP._replace(length=33), H100)[0].tile
    first, other = device.rows[0], device.rows[2]
    assert short != OWN
    assert [tile for tile, _ in first[:2]] == [OWN, short]
    assert [tile for tile, _ in other[:2]] == [FORWARD[1], short]
    assert seconds == 2.0
    # And then the other way round.
    later = [row for row in device.rows if row[0][0] == OWN and row[1][0] not in (OWN, short)]
    assert later


def test_findings_come_before_what_fails():
    short = list_fitting("forward", STRIP._replace(length=33), H100)[0].tile
    device = MadeUpDevice(broken={short: MemoryError()})
    shapes = [SHAPE, Shape(64, 8, 33, 33)]
    findings = tune(device, shapes, dtype="bfloat16", rounds=1)
    assert [next(findings).direction, next(findings).direction] == ["forward", "backward"]
    with pytest.raises(BenchError, match="the table's own tiles do not run: MemoryError"):
        next(findings)


def test_candidates_share_outputs_and_what_fails_keeps_no_scratch():
    wrong = {tile: (lambda x: 2 * x) for tile in BACKWARD[1:]}
    device = MadeUpDevice(results=wrong)
    device.limits = replace(device.limits, cache_bytes=2 * 97 * 97 * 80 * 2)
    run(device, [SHAPE, Shape(64, 8, 33, 33)], rounds=1)
    # Of five sets: four inputs, out and lse, then the results, and delta of the backward.
    forward, backward = 5 * (6 + 2), 5 * (6 + 3 + 1)
    number = device.rows.index(next(row for row in device.rows if row[0][0] in BACKWARD))
    assert set(device.peaks[:number]) == {forward}
    assert device.peaks[number] == backward
    # Nothing of a shape is left when the next one comes.
    smaller = min(32, 1 + -(-2 * device.limits.cache_bytes // (33 * 33 * 80 * 2)))
    assert device.peaks[number + 2] == smaller * (6 + 2)


def test_what_is_not_written_is_not_taken_from_the_candidate_before():
    forward, _ = run(MadeUpDevice(results={FURTHER: None}))
    (trial,) = [trial for trial in forward.trials if trial.tile == FURTHER]
    assert "out, rms nan" in str(trial.reason)


def test_the_precision_is_asked_for():
    device = MadeUpDevice()
    findings = list(tune(device, [SHAPE], dtype="float32", precision="tf32", rounds=1))
    assert [found.strip.arithmetic for found in findings] == ["tf32", "tf32"]
    own = TABLES["forward"]["tf32"][0].tile
    assert findings[0].trials[0].tile == own


def test_no_trial_of_one_is_chosen_before_it_is_measured():
    assert choose([Trial(OWN, reason="no")]) is None
    own = Trial(OWN, 1.0, 1.0)
    assert choose([own, Trial(FURTHER, reason="no")]) is own
