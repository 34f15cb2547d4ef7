"""The tuner where results are computed: on the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crisscross.bench.shapes import Shape
from crisscross.bench.trial_calls import expect_strips
from crisscross.bench.tune import tune
from crisscross.dispatch import Held
from tests.kernels.devices import copy_to_emulator
from tests.kernels.emulated import H100, EmulatorEngine
from tests.kernels.sweep import FULL

SHAPE = Shape(20, 9, 5, 7)


class EmulatedTrials:
    """The emulator, on which all rows take a second.

    Results of `wrong` shapes are off, whatever the tile.
    """

    name = "the emulator"

    def __init__(self, wrong=()) -> None:
        self.engine = EmulatorEngine(limits=replace(H100, cache_bytes=1))
        self.wrong = wrong

    def put(self, array):
        held = copy_to_emulator(array)
        return Held(held.view, held)

    def get(self, held):
        array = held.owner.array
        return array * 1.01 if array.shape in self.wrong else array.copy()

    def poison(self, held):
        held.owner.array[...] = np.nan

    def time(self, _row):
        return 1.0


#: All sixteen tiles of float16 take a minute to compile.
@pytest.mark.parametrize("dtype", ["float64", *(["float16"] if FULL else [])])
def test_tiles_agree(dtype):
    """With each other, and the table's own with the oracle: what is compared was computed."""
    findings = list(tune(EmulatedTrials(), [SHAPE], dtype=dtype, rounds=1))
    assert [(found.direction, found.strip.length) for found in findings] == [
        (direction, length) for length in (5, 7) for direction in ("forward", "backward")
    ]
    for found in findings:
        assert len(found.trials) >= 3
        assert [trial.reason for trial in found.trials] == [None] * len(found.trials)


@pytest.mark.parametrize(
    ("sizes", "channels", "directions"),
    [((5, 4), 20, {"forward", "backward"}), ((4, 5), 9, {"backward"})],
    ids=["out and dv, by the axis that comes first", "dq and dk, by the one that merges"],
)
def test_the_tables_own_is_held_to_the_oracle(sizes, channels, directions):
    """Though all tiles agree with each other."""
    device = EmulatedTrials({(1, *sizes, channels)})
    findings = list(tune(device, [Shape(20, 9, 5, 5)], dtype="float32", rounds=1))
    for found in findings:
        own, *others = found.trials
        if found.direction not in directions:
            assert own.reason is None
            continue
        assert own.reason.startswith("disagrees with the oracle: ")
        assert own.reason.endswith(f"; on {sizes[0]}x{sizes[1]} positions")
        nothing = "the table's own failed, and there is nothing to compare with"
        assert {trial.reason for trial in others} == {nothing} and found.choice is None


def test_the_oracle_has_few_strips_of_one_image():
    options = {"dtype": "float32", "precision": "tf32", "channel_axis": -1}
    both = expect_strips(Shape(8, 4, 30, 30, 6), 30, options)
    assert [each.case.problem.spatial for each in both] == [(30, 4), (4, 30)]
    assert {each.case.problem.batch for each in both} == {1}
    (first,) = expect_strips(Shape(8, 4, 30, 3), 30, options)
    assert first.case.problem.spatial == (30, 3) and first.case.problem.precision == "tf32"
