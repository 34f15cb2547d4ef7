"""Elements more than 2^31 apart, and more than 2^31 strips.

Memory is reserved, and touched where the elements are; images lie in the same place, all of them.
"""

from __future__ import annotations

import dataclasses
import math
import mmap

import numpy as np
import pytest

from crisscross import reference
from crisscross.kernels import attention, ccnet
from crisscross.kernels.geometry import find_strips
from crisscross.kernels.launch import _fill, compile_kernel
from crisscross.kernels.merge import merge
from crisscross.kernels.select import Selection, configure_forward
from crisscross.kernels.tables import TABLES
from crisscross.kernels.tiles import (
    FmaTile,
    MmaBackwardStreamTile,
    MmaBackwardTile,
    MmaForwardTile,
    MmaStreamTile,
)
from crisscross.problem import MapProblem, MergeProblem
from crisscross.testing import assert_matches_reference, make_case
from crisscross.view import View
from tests.kernels.devices import make_arithmetic_case
from tests.kernels.emulated import EmulatorEngine, view_of

FAR = 2**31 + 24
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on


STREAMS = (MmaStreamTile, MmaBackwardStreamTile)
SMALLEST = {
    "float16": FmaTile(32, 32, 64, 32, 16, 8, 8),
    "float64": FmaTile(32, 32, 64, 16, 16, 8, 8),
}


def spread(array, axis):
    """Copy an array to where the indices of one axis lie more than 2^31 elements apart."""
    strides = [stride // 8 * array.itemsize for stride in np.empty(array.shape, "f8").strides]
    if array.shape[axis] > 1:
        strides[axis] = FAR * array.itemsize
    extent = sum((n - 1) * stride for n, stride in zip(array.shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, extent + array.itemsize, flags=flags)
    far = np.ndarray(array.shape, array.dtype, memory, strides=strides)
    far[...] = array
    return far


def empty(shape, dtype):
    return np.full(shape, np.nan, dtype)


def hold_far_to_reference(case, axis, lse_axis, mask_axis):
    """Run a case whose arrays are spread along an axis, forward and backward."""
    problem = case.problem
    arrays = {name: spread(getattr(case, name), axis) for name in ("q", "k", "v", "dout")}
    arrays["dlse"] = spread(case.dlse, lse_axis)
    arrays["key_mask"] = spread(case.key_mask, mask_axis)
    for name, like in {"out": case.v, "dq": case.q, "dk": case.k, "dv": case.v}.items():
        arrays[name] = spread(empty(like.shape, like.dtype), axis)
    arrays["lse"] = spread(empty(problem.lse_shape, problem.compute_dtype), lse_axis)
    views = {name: view_of(array) for name, array in arrays.items()}
    names = ("q", "k", "v", "key_mask", "out", "lse")
    attention.attention_forward(EmulatorEngine(), problem, **{name: views[name] for name in names})
    attention.attention_backward(EmulatorEngine(), problem, **views)
    results = {name: arrays[name].copy() for name in ("out", "lse", "dq", "dk", "dv")}
    assert_matches_reference(case, **results)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("axis", range(4), ids=["batch", "channel", "row", "column"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_attention(monkeypatch, dtype, axis, packs):
    if not packs:  # only the kernels that are for any device walk from channel to channel
        monkeypatch.setattr(attention, "is_direct", lambda *_: True)
        monkeypatch.setattr(attention, "select", lambda *_, **__: Selection(SMALLEST[dtype], ""))
    case = make_case((2, 3), batch=2, heads=2, head_size_v=3, masked=True, dtype=dtype)
    hold_far_to_reference(case, axis, axis, {0: 0, 2: 1, 3: 2}.get(axis, 0))


@pytest.mark.parametrize("axis", range(3), ids=["batch", "row", "column"])
@pytest.mark.parametrize("head_size", [8, 7], ids=["aligned", "ragged"])
@pytest.mark.parametrize(
    ("arithmetic", "sort"),
    [("float16", (MmaForwardTile, MmaBackwardTile)), ("float16", STREAMS), ("tf32", STREAMS)],
)
def test_attention_on_tensor_cores(monkeypatch, arithmetic, sort, head_size, axis):
    """Channels lie side by side, and arrays are read where they are."""

    def find_tile(direction, *_):
        tiles = (row.tile for row in TABLES[direction][arithmetic])
        return Selection(next(tile for tile in tiles if isinstance(tile, sort)), "")

    monkeypatch.setattr(attention, "select", find_tile)
    sizes = {"batch": 2, "heads": 2, "head_size_qk": 8, "head_size_v": head_size, "masked": True}
    case = make_arithmetic_case((2, 3), arithmetic, channel_axis=-1, **sizes)
    hold_far_to_reference(case, axis, axis + 1 if axis else 0, axis)


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channel", "row", "column"])
def test_merge(axis):
    rng = np.random.default_rng(0)
    outs = [rng.standard_normal((2, 4, 2, 3)) for _ in range(10)]
    lses = [rng.standard_normal((2, 2, 2, 3)) for _ in range(10)]
    exact, exact_lse = np.empty(outs[0].shape), np.empty(lses[0].shape)
    problem = MergeProblem(10, 2, 1, "float64", exact.shape, exact_lse.shape)
    reference.merge(problem, outs=outs, lses=lses, out=exact, lse=exact_lse)
    far = [[spread(array, axis) for array in arrays] for arrays in (outs, lses)]
    out, lse = spread(empty(exact.shape, "f8"), axis), spread(empty(exact_lse.shape, "f8"), axis)
    merge(
        EmulatorEngine(),
        problem,
        outs=[view_of(array) for array in far[0]],
        lses=[view_of(array) for array in far[1]],
        out=view_of(out),
        lse=view_of(lse),
    )
    np.testing.assert_allclose(out, exact, rtol=1e-12)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-12)


FEATURES, MAP, PORTED = (2, 2, 2, 3), (2, 4, 2, 3), (2, 2, 3, 5)
OPERATIONS = {
    "ca_weight": ({"q": FEATURES, "k": FEATURES}, {"energy": MAP}),
    "ca_weight_backward": (
        {"denergy": MAP, "q": FEATURES, "k": FEATURES},
        {"dq": FEATURES, "dk": FEATURES},
    ),
    "ca_softmax": ({"energy": MAP}, {"attention": MAP}),
    "ca_softmax_backward": ({"dattention": MAP, "attention": MAP}, {"denergy": MAP}),
    "ca_map": ({"attention": MAP, "v": FEATURES}, {"out": FEATURES}),
    "ca_map_backward": (
        {"dout": FEATURES, "attention": MAP, "v": FEATURES},
        {"dattention": MAP, "dv": FEATURES},
    ),
    "to_port_layout": ({"weights": MAP}, {"ported": PORTED}),
    "from_port_layout": ({"ported": PORTED}, {"weights": MAP}),
}


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("name", OPERATIONS)
def test_ccnet(name, axis):
    given, made = OPERATIONS[name]
    rng = np.random.default_rng(0)
    inputs = {key: rng.standard_normal(shape) for key, shape in given.items()}
    exact = {key: np.empty(shape) for key, shape in made.items()}
    options = {"self_value": -1.0} if name == "to_port_layout" else {}
    problem = MapProblem(2, 2, 3, "float64")
    getattr(reference, name)(problem, **inputs, **exact, **options)
    far = {key: spread(array, axis) for key, array in inputs.items()}
    outputs = {key: spread(empty(shape, "f8"), axis) for key, shape in made.items()}
    views = {key: view_of(array) for key, array in {**far, **outputs}.items()}
    getattr(ccnet, name)(EmulatorEngine(), problem, **views, **options)
    for key, array in outputs.items():
        np.testing.assert_allclose(array, exact[key], rtol=1e-12, atol=1e-12)


def test_that_elements_are_far_apart():
    far = spread(np.zeros((2, 3), np.float16), 0)
    assert far.strides[0] // far.itemsize > 2**31
    assert math.prod(far.shape) == 6


def repeat(view, count):
    """View an array of one image as one of many, all in the same place."""
    return View(view.pointer, (count, *view.shape[1:]), (0, *view.strides[1:]), view.dtype)


@pytest.mark.parametrize(("dtype", "row"), [("float32", 0), ("float16", 1)])
@pytest.mark.parametrize("number", [2**31 - 1, 2**31 + 2, 2**32 + 3, 2**40 + 1])
def test_numbers_of_strips(bench, number, dtype, row):
    """A block of an image far behind: of the heads and columns, it is in the right place."""
    case = make_case((40, 3), heads=2, axes=(0,), channel_axis=-1, dtype=dtype)
    problem, tile = case.problem, TABLES["forward"][dtype][row].tile
    configuration = configure_forward(dtype, tile, is_aligned=False)
    strips_of_image = 2 * 3
    images = number // strips_of_image + 8
    with bench.open() as engine:
        given = {name: bench.put(getattr(case, name)) for name in "qkv"}
        made = {"out": (problem.v_shape, dtype), "lse": (problem.lse_shape, "float32")}
        whole, part = ({name: bench.make(*each) for name, each in made.items()} for _ in range(2))
        attention.attention_forward(engine, problem, **given, key_mask=None, **whole)
        arrays = {
            (name, 0): repeat(view if name == "lse" else view.split_heads(2, -1), images)
            for name, view in {**given, **part}.items()
        }
        (strips,) = find_strips(0, arrays)
        assert strips.count > number + tile.strips
        tiles = -(-strips.length // tile.rows)
        assert tiles * tile.strips > 1
        scalars = {"scale": problem.scale, "head_size_qk": 4, "head_size_v": 4}
        scalars |= {"include_self": True}
        argument = _fill(configuration.kernel, strips, number, tiles, scalars)
        kernel = compile_kernel(engine, configuration)
        engine.launch(kernel, tiles, tile.threads, argument, configuration.shared_bytes)
        results = {name: bench.get(view) for name, view in whole.items()}
        found = {name: bench.get(view) for name, view in part.items()}
    assert_matches_reference(case, **results)
    expected = {name: np.full_like(x, np.nan) for name, x in results.items()}
    for i in range(tile.strips):
        head, column = divmod((number + i) % strips_of_image, 3)
        for name, strip in {
            "out": np.s_[:, :, column, 4 * head : 4 * head + 4],
            "lse": np.s_[:, head, :, column],
        }.items():
            expected[name][strip] = results[name][strip]
    for name, array in expected.items():
        np.testing.assert_allclose(
            found[name].astype(float), array.astype(float), rtol=1e-5, atol=1e-6
        )


class LastBlock:
    """An engine that takes all blocks for one launch, and runs but the last one of the rows."""

    def __init__(self, engine):
        self.compile = engine.compile
        self.limits = dataclasses.replace(engine.limits, grid=2**62)
        self.first = []
        self._engine = engine

    def launch(self, kernel, grid, block, argument, shared_bytes):
        if argument["axis"]["is_row"][0]:
            argument["axis"]["first"] += grid - 1
            self.first += argument["axis"]["first"].tolist()
            self._engine.launch(kernel, 1, block, argument, shared_bytes)


def test_numbers_of_blocks(bench):
    """The last block has but one row, of one pixel: the last image's last."""
    images = 2**38 + 43
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((1, 5, 3, 1)).astype(np.float32) for _ in range(2))
    exact = np.empty((1, 3, 3, 1))
    wide = {"q": q.astype(float), "k": k.astype(float)}
    reference.ca_weight(MapProblem(1, 3, 1, "float64"), **wide, energy=exact)
    exact[0, 0, :2] = exact[0, 1:] = np.nan
    with bench.open() as engine:
        last = LastBlock(engine)
        views = {name: repeat(bench.put(x), images) for name, x in {"q": q, "k": k}.items()}
        energy = bench.make(exact.shape, "float32")
        problem = MapProblem(images, 3, 1, "float32")
        ccnet.ca_weight(last, problem, **views, energy=repeat(energy, images))
        found = bench.get(energy)
    assert last.first == [3 * 2**31 + 1]
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
