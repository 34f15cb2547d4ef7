"""What OpenBLAS does beyond products: what NumPy would do, or nothing at all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisscross.cpu import openblas

#: Those of whole vectors, of parts of one, and of both.
SIZES = st.integers(2, 9) | st.integers(10, 150)


@pytest.fixture(autouse=True)
def _ask_anew():
    """Let each test find out about the BLAS of its own."""
    yield
    for function in (openblas.find_architecture, openblas._find_function):
        function.cache_clear()


def pretend(monkeypatch, architecture, configuration=None, others=()):
    libraries = [SimpleNamespace(internal_api=name) for name in others]
    libraries.append(SimpleNamespace(internal_api="openblas", architecture=architecture))
    monkeypatch.setattr(openblas, "find_libraries", lambda: libraries)
    monkeypatch.setattr(openblas.np, "show_config", lambda **_: configuration or {})
    openblas.find_architecture.cache_clear()
    openblas._find_function.cache_clear()


def name_blas(name):
    """What NumPy says of itself."""
    return {"Build Dependencies": {"blas": {"name": name}}}


@pytest.mark.parametrize(
    ("architecture", "configuration", "others", "found", "small"),
    [
        ("SkylakeX", name_blas("scipy-openblas"), ["mkl"], "SkylakeX", True),
        ("Haswell", name_blas("openblas64"), [], "Haswell", False),
        ("SkylakeX", name_blas("mkl-sdl"), ["mkl"], None, False),
        ("SkylakeX", name_blas("blas"), ["blis"], None, False),
        ("SkylakeX", name_blas("blas"), [], "SkylakeX", True),
        ("SkylakeX", {}, ["blis"], None, False),
        ("SkylakeX", {"Build Dependencies": {"blas": {"found": True}}}, [], "SkylakeX", True),
        (None, name_blas("openblas"), [], None, False),
    ],
)
def test_the_cpu_is_known_by_the_blas_of_numpy(
    monkeypatch, architecture, configuration, others, found, small
):
    """Some builds do not say which BLAS they have: then OpenBLAS has to be the only one there."""
    pretend(monkeypatch, architecture, configuration, others)
    assert openblas.find_architecture() == found
    assert openblas.has_small_kernels() == small


def test_a_library_that_cannot_be_opened_is_done_without(monkeypatch):
    pretend(monkeypatch, "SkylakeX")
    openblas.find_libraries()[0].filepath = "/nowhere/libopenblas.so"
    assert openblas.find_architecture() == "SkylakeX"
    assert openblas._find_function("float32") is None


@pytest.mark.parametrize("architecture", ["Nehalem", None])
def test_other_cpus_are_left_to_numpy(monkeypatch, architecture):
    pretend(monkeypatch, architecture)
    source, target = np.ones((4, 3), np.float32), np.zeros((3, 4), np.float32).T
    assert not openblas.transpose(source, target)
    assert (target == 0).all()


def needs_kernels():
    if openblas._find_function("float32") is None:
        pytest.skip("NumPy's BLAS is no OpenBLAS that transposes fast on this CPU")


@settings(deadline=None)
@given(
    sizes=st.tuples(SIZES, SIZES),
    gaps=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dtype=st.sampled_from([np.float32, np.float64]),
    by_rows=st.booleans(),
)
def test_a_transposed_copy_has_the_bits_of_its_source(sizes, gaps, dtype, by_rows):
    """Also those of NaN, infinity, minus zero and the smallest float; gaps stay as they are."""
    needs_kernels()
    rows, columns = sizes
    rng = np.random.default_rng(0)
    special = [np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal, 1.5]
    source = rng.choice(np.array(special, dtype), (rows, columns + gaps[0]))
    source = source[:, :columns]
    memory = np.full((columns, rows + gaps[1]), 7, dtype)
    target = memory[:, :rows].T
    if not by_rows:
        source, target = source.T, target.T
    assert openblas.transpose(source, target)
    assert source.tobytes() == target.tobytes()
    assert (memory[:, rows:] == 7).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.ones((4, 3), np.float16), np.zeros((3, 4), np.float16).T),
        (np.ones((4, 3), np.float32), np.zeros((3, 4), np.float64).T),
        (np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)),
        (np.ones((4, 6), np.float32)[:, ::2], np.zeros((3, 4), np.float32).T),
        (np.ones((4, 3), np.float32)[::-1], np.zeros((3, 4), np.float32).T),
        (np.broadcast_to(np.ones(3, np.float32), (4, 3)), np.zeros((3, 4), np.float32).T),
        (np.ones(49, np.uint8)[1:].view(np.float32).reshape(4, 3), np.zeros((3, 4), np.float32).T),
    ],
    ids=["half", "another dtype", "by rows", "gaps", "backwards", "overlapping", "unaligned"],
)
def test_other_matrices_are_left_alone(source, target):
    needs_kernels()
    assert not openblas.transpose(source, target)
    assert (target == 0).all()
