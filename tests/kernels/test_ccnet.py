"""The kernels of CCNet's operators, executed in the emulator, against the oracle."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from crisscross import reference
from crisscross.kernels import ccnet
from crisscross.problem import COMPUTE_DTYPES, MapProblem
from crisscross.testing import LAYOUTS, lay_out, numpy_dtype
from tests.emulator.launch import Schedule
from tests.emulator.memory import place
from tests.kernels.emulated import H100, EmulatedArray, EmulatorEngine
from tests.support.closeness import assert_close

SCHEDULES = {
    "ascending": (Schedule.ASCENDING, 0),
    "descending": (Schedule.DESCENDING, 0),
    "shuffled": (Schedule.SHUFFLED, 1),
    "shuffled-by-warp": (Schedule.SHUFFLED_BY_WARP, 2),
}
#: N, C, H, W: tiles of every sort full and ragged, images of one row, one column and one pixel.
SIZES = (
    (2, 9, 5, 7),
    (1, 1, 1, 1),
    (1, 3, 1, 13),
    (3, 8, 11, 1),
    (1, 17, 3, 37),
    (1, 2, 35, 2),
)


@dataclass(frozen=True)
class Operation:
    """A function of `ccnet`: what its inputs and outputs are, and how many terms each output sums.

    Arrays are "features", "map" (in the dtype that is computed in) or "ported".
    """

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    terms: dict[str, str]
    options: dict[str, float] = field(default_factory=dict)

    @property
    def dtypes(self):
        kinds = {*self.inputs.values(), *self.outputs.values()}
        return tuple(COMPUTE_DTYPES) if "features" in kinds else ("float32", "float64")

    def __str__(self):
        return self.name


OPERATIONS = (
    Operation(
        "ca_weight", {"q": "features", "k": "features"}, {"energy": "map"}, {"energy": "channels"}
    ),
    Operation(
        "ca_weight_backward",
        {"denergy": "map", "q": "features", "k": "features"},
        {"dq": "features", "dk": "features"},
        {"dq": "keys", "dk": "keys"},
    ),
    Operation("ca_softmax", {"energy": "map"}, {"attention": "map"}, {"attention": "one"}),
    Operation(
        "ca_softmax_backward",
        {"dattention": "map", "attention": "map"},
        {"denergy": "map"},
        {"denergy": "keys"},
    ),
    Operation(
        "ca_map", {"attention": "map", "v": "features"}, {"out": "features"}, {"out": "keys"}
    ),
    Operation(
        "ca_map_backward",
        {"dout": "features", "attention": "map", "v": "features"},
        {"dattention": "map", "dv": "features"},
        {"dattention": "channels", "dv": "keys"},
    ),
    Operation(
        "to_port_layout",
        {"weights": "map"},
        {"ported": "ported"},
        {"ported": "none"},
        {"self_value": -math.inf},
    ),
    Operation("from_port_layout", {"ported": "ported"}, {"weights": "map"}, {"weights": "none"}),
)
CASES = [
    pytest.param(operation, dtype, id=f"{operation}-{dtype}")
    for operation in OPERATIONS
    for dtype in operation.dtypes
]
IN_FLOAT32 = [pytest.param(operation, id=str(operation)) for operation in OPERATIONS]


def describe(kind, size, dtype):
    """Shape and dtype of an array."""
    n, _, h, w = size
    if kind == "features":
        return size, numpy_dtype(dtype)
    shape = (n, h + w - 1, h, w) if kind == "map" else (n, h, w, h + w)
    return shape, np.dtype(COMPUTE_DTYPES[dtype])


@cache
def draw(operation_name, size, dtype):
    (operation,) = [each for each in OPERATIONS if each.name == operation_name]
    rng = np.random.default_rng(sum(size))
    drawn = {}
    for name, kind in operation.inputs.items():
        shape, array_dtype = describe(kind, size, dtype)
        drawn[name] = rng.standard_normal(shape).astype(array_dtype)
    return drawn


def make_problem(size, dtype):
    n, _, h, w = size
    return MapProblem(n, h, w, dtype)


def find_exact(operation, size, inputs):
    """The oracle's outputs for inputs as they are, in float64."""
    outputs = {
        name: np.empty(describe(kind, size, "float64")[0])
        for name, kind in operation.outputs.items()
    }
    function = getattr(reference, operation.name)
    widened = {name: x.astype(np.float64) for name, x in inputs.items()}
    function(make_problem(size, "float64"), **widened, **operation.options, **outputs)
    return outputs


@cache
def find_exact_of_drawn(operation_name, size, dtype):
    (operation,) = [each for each in OPERATIONS if each.name == operation_name]
    return find_exact(operation, size, draw(operation_name, size, dtype))


def make_frame(shape, dtype, layout):
    """Make memory full of NaN, and an array in it that touches no end of any axis."""
    frame = lay_out(np.full([size + 2 for size in shape], np.nan, dtype), layout)
    return frame, frame[(slice(1, -1),) * len(shape)]


def run(operation, size, dtype, inputs, *, turn=0, engine=None):
    """Run in the emulator, each array in another layout, which change with `turn`.

    What is not the outputs' own memory has to stay as it is.
    """
    arrays = (*operation.inputs, *operation.outputs)
    layouts = {name: LAYOUTS[(turn + i) % len(LAYOUTS)] for i, name in enumerate(arrays)}
    placed = {name: EmulatedArray(place(lay_out(x, layouts[name]))) for name, x in inputs.items()}
    frames, outputs = {}, {}
    for name, kind in operation.outputs.items():
        frames[name], inside = make_frame(*describe(kind, size, dtype), layouts[name])
        outputs[name] = EmulatedArray(inside)
    getattr(ccnet, operation.name)(
        engine or EmulatorEngine(),
        make_problem(size, dtype),
        **{name: x.view for name, x in {**placed, **outputs}.items()},
        **operation.options,
    )
    results = {name: x.array.copy() for name, x in outputs.items()}
    for name, frame in frames.items():
        outputs[name].array[...] = np.nan
        assert np.isnan(frame).all(), f"{name}: written beyond its ends"
        if layouts[name] == "strided":
            assert np.isnan(frame.base).all(), f"{name}: written between its elements"
    for name, x in placed.items():
        np.testing.assert_array_equal(x.array, inputs[name], err_msg=f"{name} was written to")
    return results


def count_terms(kind, size):
    return {"channels": size[1], "keys": sum(size[2:]), "one": 1}[kind]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("operation", "dtype"), CASES)
def test_operations(operation, dtype, schedule):
    """At each size in other layouts, and at the first one in all of them."""
    first = list(SCHEDULES).index(schedule)
    cases = [(size, first + i) for i, size in enumerate(SIZES)]
    cases += [(SIZES[0], turn) for turn in range(len(LAYOUTS))]
    for size, turn in cases:
        order, seed = SCHEDULES[schedule]
        inputs = draw(operation.name, size, dtype)
        engine = EmulatorEngine(schedule=order, seed=seed)
        results = run(operation, size, dtype, inputs, turn=turn, engine=engine)
        exact = find_exact_of_drawn(operation.name, size, dtype)
        for name, actual in results.items():
            terms = operation.terms[name]
            if terms == "none":
                np.testing.assert_array_equal(actual, exact[name])
            else:
                # In the dtype of the array itself, maps in the one that is computed in.
                assert_close(actual, exact[name], actual.dtype.name, count_terms(terms, size))


@pytest.mark.parametrize(("operation", "dtype"), CASES)
def test_every_schedule_gives_the_same_bits(operation, dtype):
    size = (2, 9, 5, 7)
    inputs = draw(operation.name, size, dtype)
    first, *others = [
        run(operation, size, dtype, inputs, engine=EmulatorEngine(schedule=order, seed=seed))
        for order, seed in SCHEDULES.values()
    ]
    for other in others:
        for name, expected in first.items():
            assert other[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("operation", IN_FLOAT32)
def test_more_blocks_than_a_launch_may_have(operation):
    size = (2, 17, 5, 37)
    inputs = draw(operation.name, size, "float32")
    whole, parts = EmulatorEngine(), EmulatorEngine(dataclasses.replace(H100, grid=1))
    expected = run(operation, size, "float32", inputs, engine=whole)
    actual = run(operation, size, "float32", inputs, engine=parts)
    assert len(parts.launches) > len(whole.launches)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize(("operation", "dtype"), CASES)
def test_no_images(operation, dtype):
    """Nothing to write: nothing is launched."""
    size = (0, 3, 4, 5)
    engine = EmulatorEngine()
    results = run(operation, size, dtype, draw(operation.name, size, dtype), engine=engine)
    assert engine.launches == []
    assert all(x.size == 0 for x in results.values())


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(2, 9, 6, 7), (1, 3, 5, 1), (1, 3, 1, 5)])
@pytest.mark.parametrize("operation", IN_FLOAT32)
def test_poison_reaches_whom_it_reaches_in_the_oracle(operation, size, poison):
    """Everybody else keeps their bits: a key is left out, not weighed with zero."""
    clean_inputs = draw(operation.name, size, "float32")
    clean = run(operation, size, "float32", clean_inputs)
    for poisoned in clean_inputs:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            inputs = {name: x.copy() for name, x in clean_inputs.items()}
            array = inputs[poisoned]
            n, _, y, x = (rng.integers(extent) for extent in array.shape)
            if operation.inputs[poisoned] == "features":
                array[n, :, y, x] = poison
            else:
                array[n, rng.integers(array.shape[1]), y, x] = poison
            exact = find_exact(operation, size, inputs)
            for name, actual in run(operation, size, "float32", inputs).items():
                np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact[name]), name)
                before = find_exact_of_drawn(operation.name, size, "float32")[name]
                untouched = exact[name] == before
                np.testing.assert_array_equal(actual[untouched], clean[name][untouched], name)
                infinite = np.isinf(exact[name])
                np.testing.assert_array_equal(actual[infinite], exact[name][infinite], name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_energies_without_a_number(dtype):
    """What the oracle makes of -inf, of nothing else than -inf, of inf and of NaN."""
    (operation,) = [each for each in OPERATIONS if each.name == "ca_softmax"]
    size = (1, 1, 4, 9)
    energy = np.random.default_rng(0).standard_normal((1, 12, 4, 9)).astype(dtype)
    energy[0, ::2, 0] = -np.inf
    energy[0, :, 1, :3] = -np.inf
    energy[0, 5, 2] = np.inf
    energy[0, 11, 3] = np.nan
    exact = find_exact(operation, size, {"energy": energy})["attention"]
    actual = run(operation, size, dtype, {"energy": energy})["attention"]
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=0)
    assert (actual[0, ::2, 0] == 0).all()
    assert np.isnan(actual[0, :, 1, :3]).all() and np.isfinite(actual[0, :, 1, 3:]).all()
    assert np.isnan(actual[0, :, 2:]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_large_energies(dtype):
    """Energies whose exponentials no dtype holds: only their differences count."""
    (operation,) = [each for each in OPERATIONS if each.name == "ca_softmax"]
    size = (1, 1, 3, 4)
    energy = np.random.default_rng(0).normal(0, 3, (1, 6, 3, 4)).astype(dtype)
    shift = np.asarray([1e4, -1e4, 3e3], dtype)[:, None]
    shifted = energy + shift
    exact = find_exact(operation, size, {"energy": shifted - shift})["attention"]
    actual = run(operation, size, dtype, {"energy": shifted})["attention"]
    assert_close(actual, exact, dtype, 1)


def test_that_the_listed_configurations_are_those_that_run():
    compiled = set()

    class Recorder(EmulatorEngine):
        def compile(self, source, kernel, options, shared_bytes):
            compiled.add((kernel, options))
            return super().compile(source, kernel, options, shared_bytes)

    for operation in OPERATIONS:
        for dtype in operation.dtypes:
            inputs = draw(operation.name, (1, 1, 1, 1), dtype)
            run(operation, (1, 1, 1, 1), dtype, inputs, engine=Recorder())
    listed = [(each.kernel, each.options) for each in ccnet.list_configurations()]
    assert len(listed) == len(set(listed))
    assert compiled == set(listed)
