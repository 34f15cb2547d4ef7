"""Arrays of a library that nobody here has heard of: DLPack alone."""

from __future__ import annotations

import sys
import types

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import crisscross
from crisscross.bridge.capsule import Retagged
from crisscross.problem import COMPUTE_DTYPES
from crisscross.testing import LAYOUTS, lay_out, numpy_dtype
from tests.support.properties import law

RNG = np.random.default_rng(0)
Q, K, V = RNG.standard_normal((3, 2, 4, 3, 5))


def address(array) -> int:
    return np.from_dlpack(array).ctypes.data


def test_forward_and_backward_in_the_callers_kind():
    xp = array_api_strict
    q, k, v = (xp.asarray(x) for x in (Q, K, V))
    mask = xp.asarray(RNG.random((2, 3, 5)) < 0.7)
    out, lse = crisscross.criss_cross_attention(q, k, v, key_mask=mask, return_lse=True)
    assert isinstance(out, type(q)) and isinstance(lse, type(q))
    plain = {"key_mask": np.from_dlpack(mask)}
    expected = crisscross.criss_cross_attention(Q, K, V, **plain, return_lse=True)
    np.testing.assert_array_equal(np.from_dlpack(out), expected[0])
    gradients = crisscross.criss_cross_attention_backward(v, q, k, v, out, lse, key_mask=mask)
    plain_gradients = crisscross.criss_cross_attention_backward(V, Q, K, V, *expected, **plain)
    for actual, wanted in zip(gradients, plain_gradients, strict=True):
        assert isinstance(actual, type(q))
        np.testing.assert_array_equal(np.from_dlpack(actual), wanted)


def test_zero_copy_both_ways():
    array = array_api_strict.asarray(Q)
    view = crisscross.from_dlpack(array)
    assert view.ctypes.data == address(array)
    returned = crisscross.to_dlpack(view, array)
    assert isinstance(returned, type(array))
    assert address(returned) == address(array)


class Box:
    """An array that is nothing but its DLPack methods; its package has a `from_dlpack`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, f"boxes.{array.dtype.name}"

    def __dlpack__(self, **options):
        exporter = self.array
        if exporter.dtype.name == "bfloat16":
            exporter = Retagged.of_bfloat16(exporter)
        return exporter.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture
def boxes(monkeypatch):
    """The package `boxes`, which imports by remembering the exporter."""
    package = types.ModuleType("boxes")
    package.from_dlpack = lambda exporter: ("imported", exporter)
    monkeypatch.setitem(sys.modules, "boxes", package)
    monkeypatch.setattr(Box, "__module__", "boxes.core")
    return package


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_a_library_found_by_its_package(boxes, dtype):
    arrays = [x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for x in (Q, K, V)]
    verdict, exporter = crisscross.criss_cross_attention(*(Box(x) for x in arrays))
    assert verdict == "imported"
    expected = crisscross.criss_cross_attention(*arrays)
    if dtype == "bfloat16":
        capsule_reader = Box(np.zeros(1, ml_dtypes.bfloat16))
        capsule_reader.__class__ = type("Reader", (Box,), {"__dlpack__": exporter.__dlpack__})
        out = crisscross.from_dlpack(capsule_reader)
    else:
        out = np.from_dlpack(exporter)
    assert out.dtype == expected.dtype
    np.testing.assert_array_equal(out, expected)


def test_bfloat16_shares_memory(boxes):
    array = Q.astype(ml_dtypes.bfloat16)
    view = crisscross.from_dlpack(Box(array))
    assert view.dtype == array.dtype
    assert view.ctypes.data == array.ctypes.data
    np.testing.assert_array_equal(view, array)


def test_a_library_without_from_dlpack(boxes):
    del boxes.from_dlpack
    with pytest.raises(crisscross.BridgeError, match=r"from_dlpack of its own.*got boxes, which"):
        crisscross.criss_cross_attention(Box(Q), Box(K), Box(V))


def test_a_library_found_by_its_array_namespace(boxes):
    """The array API's own way comes before the package."""
    namespace = types.SimpleNamespace(from_dlpack=lambda exporter: ("by namespace", exporter))

    class Modern(Box):
        def __array_namespace__(self, api_version=None):
            return namespace

    verdict, _ = crisscross.criss_cross_attention(Modern(Q), Modern(K), Modern(V))
    assert verdict == "by namespace"


def test_an_export_that_fails(boxes):
    class Stubborn(Box):
        def __dlpack__(self, **_):
            raise RuntimeError("not today")

    with pytest.raises(crisscross.BridgeError) as caught:
        crisscross.criss_cross_attention(Box(Q), Stubborn(K), Stubborn(V))
    assert [m.argument for m in caught.value.mismatches] == ["k", "v"]
    assert "got RuntimeError: not today" in str(caught.value)


def test_an_export_that_can_only_copy(boxes):
    class Copying(Box):
        def __dlpack__(self, *, copy=None, **_):
            if copy is False:
                raise BufferError("this memory cannot be shared")
            return self.array.copy().__dlpack__()

    with pytest.raises(crisscross.BridgeError, match="this memory cannot be shared"):
        crisscross.from_dlpack(Copying(Q))


def test_an_exporter_of_before_the_copy_option(boxes):
    class Old(Box):
        def __dlpack__(self, stream=None):
            return self.array.__dlpack__()

    assert crisscross.from_dlpack(Old(Q)).ctypes.data == Q.ctypes.data


def test_a_capsule_that_was_consumed(boxes):
    """Its memory may be gone: it must not even be looked into."""

    class OneShot(Box):
        capsule = None

        def __dlpack__(self, **options):
            if self.capsule is None:
                self.capsule = super().__dlpack__()
            return self.capsule

    box = OneShot(Q.astype(ml_dtypes.bfloat16))
    crisscross.from_dlpack(box)
    with pytest.raises(crisscross.BridgeError, match="nobody has consumed, got b'used_dltensor"):
        crisscross.from_dlpack(box)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint16"])
def test_bfloat16_that_is_something_else(boxes, dtype):
    box = Box(Q.astype(dtype))
    box.dtype = "boxes.bfloat16"
    with pytest.raises(crisscross.BridgeError, match=r"expected the DLPack dtype \(4, 16, 1\)"):
        crisscross.from_dlpack(box)


def test_memory_that_is_not_what_its_owner_says(boxes):
    box = Box(Q[:, :, :2])
    box.shape = Q.shape
    with pytest.raises(crisscross.BridgeError, match=r"q: .* \(2, 4, 3, 5\) that the array tells"):
        crisscross.criss_cross_attention(box, Box(K), Box(V))


@pytest.mark.parametrize("size", [None, float("nan")])
def test_a_lazy_array_without_sizes(boxes, size):
    box = Box(Q)
    box.shape = (2, 4, size, 5)
    with pytest.raises(TypeError, match=r"q: expected an array .* got boxes\.core\.Box"):
        crisscross.criss_cross_attention(box, Box(K), Box(V))


def test_a_base_class_of_numpy_does_not_make_a_numpy_array(boxes):
    class Mixed(Box, np.lib.mixins.NDArrayOperatorsMixin):
        pass

    assert crisscross.from_dlpack(Mixed(Q)).ctypes.data == Q.ctypes.data


@pytest.mark.parametrize("written", ["{}", "boxes.{}", "<dtype: '{}'>", "<class 'boxes.{}'>"])
def test_the_ways_to_write_a_dtype(boxes, written):
    box = Box(Q)
    box.dtype = written.format("float64")
    assert crisscross.explain(box, box, box).problem.dtype == "float64"


def test_cpu_memory_for_cupy(monkeypatch):
    """CuPy's own words would be `CPU arrays cannot be directly imported to CuPy`."""
    cupy_array = type("ndarray", (Box,), {})
    monkeypatch.setattr(cupy_array, "__module__", "cupy")
    with pytest.raises(crisscross.BridgeError, match=r"copy it there with cupy\.asarray, got CPU"):
        crisscross.to_dlpack(Q, cupy_array(Q))


def test_a_device_that_fails(boxes):
    class Lost(Box):
        def __dlpack_device__(self):
            raise ValueError("no device")

    class Odd(Box):
        def __dlpack_device__(self):
            return ("cpu", 0)

    for cls in (Lost, Odd):
        with pytest.raises(crisscross.BridgeError, match="q: expected memory that DLPack can"):
            crisscross.criss_cross_attention(cls(Q), Box(K), Box(V))


@pytest.mark.parametrize(
    ("device", "name"), [((2, 3), "cuda:3"), ((13, 0), "cuda:0"), ((8, 1), "DLPack device 8:1")]
)
def test_memory_elsewhere(boxes, device, name):
    class Elsewhere(Box):
        def __dlpack_device__(self):
            return device

    with pytest.raises(crisscross.BackendError, match=f"these are on {name}"):
        crisscross.criss_cross_attention(Elsewhere(Q), Elsewhere(K), Elsewhere(V))
    with pytest.raises(crisscross.BridgeError, match=rf"array\.device: .*got {name}"):
        crisscross.from_dlpack(Elsewhere(Q))


def test_pinned_memory_is_host_memory(boxes):
    class Pinned(Box):
        def __dlpack_device__(self):
            return (3, 0)

    assert crisscross.explain(Pinned(Q), Pinned(K), Pinned(V)).device == "cpu"
    _, exporter = crisscross.criss_cross_attention(Pinned(Q), Pinned(K), Pinned(V))
    expected = crisscross.criss_cross_attention(Q, K, V)
    np.testing.assert_array_equal(np.from_dlpack(exporter), expected)


@law(
    shape=st.lists(st.sampled_from((1, 2, 3, 5)), min_size=2, max_size=4),
    dtype=st.sampled_from(tuple(COMPUTE_DTYPES)),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_memory_there_and_back(shape, dtype, layout):
    """Same address, strides and values; and where a copy is asked for, the values alone."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(numpy_dtype(dtype))
    array = lay_out(values, layout)
    view = crisscross.from_dlpack(array)
    again = crisscross.to_dlpack(view, "numpy")
    for shared in (view, again):
        assert shared.ctypes.data == array.ctypes.data
        assert (shared.strides, shared.dtype) == (array.strides, array.dtype)
    for library in ("numpy", "torch"):
        copied = crisscross.to_dlpack(array, library, copy=True)
        back = crisscross.from_dlpack(copied)
        assert not np.shares_memory(back, array)
        np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("copy", [False, True])
def test_numpy_to_numpy(copy):
    readonly = Q[..., ::-2]
    readonly.flags.writeable = False
    view = crisscross.from_dlpack(readonly, copy=copy)
    np.testing.assert_array_equal(view, readonly)
    assert np.shares_memory(view, readonly) is not copy
    assert view.flags.writeable is copy


def test_subclasses_keep_their_memory(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, Q)
    mapped = np.load(path, mmap_mode="r")
    out = crisscross.criss_cross_attention(mapped, mapped, mapped)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, crisscross.criss_cross_attention(Q, Q, Q))


class Particular(np.ndarray):
    """A subclass that lets nobody compute with it."""

    __array_ufunc__ = None

    def __getitem__(self, place):
        raise AssertionError("taken apart as what it is")


@pytest.mark.parametrize("size", [None, (97, 61)], ids=["small", "large"])
def test_subclasses_have_no_say(size):
    plain = Q if size is None else np.ones((1, 4, *size), np.float32)
    q = plain.view(Particular)
    out, lse = crisscross.criss_cross_attention(q, q, q, return_lse=True)
    gradients = crisscross.criss_cross_attention_backward(q, q, q, q, out.view(Particular), lse)
    assert {type(array) for array in (out, lse, *gradients)} == {np.ndarray}
    np.testing.assert_array_equal(out, crisscross.criss_cross_attention(plain, plain, plain))
