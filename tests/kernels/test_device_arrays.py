"""Arrays in CUDA memory through the public functions: whose memory, which stream, which errors."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import crisscross
from crisscross.bridge import foreign
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.devices import copy_to_emulator
from tests.kernels.emulated import STREAM, EmulatedArray
from tests.ops.test_errors import TABLE, VALID

CASE = make_case((5, 7), batch=2, heads=2, masked=True)


def to_device(array):
    return copy_to_emulator(array)


def on_device(case):
    names = ("q", "k", "v", "key_mask", "dout")
    return {name: to_device(getattr(case, name)) for name in names}


def call_forward(case, **arrays):
    options = {**case.options, "key_mask": arrays["key_mask"]}
    return crisscross.criss_cross_attention(
        arrays["q"], arrays["k"], arrays["v"], **options, return_lse=True
    )


def test_results_are_the_callers_kind(emulated_device):
    arrays = on_device(CASE)
    out, lse = call_forward(CASE, **arrays)
    assert type(out) is type(lse) is EmulatedArray
    assert_matches_reference(CASE, out=out.array, lse=lse.array)


def test_memory_is_asked_for_once_on_the_stream_at_work(emulated_device):
    arrays = on_device(CASE)
    call_forward(CASE, **arrays)
    for name in ("q", "k", "v", "key_mask"):
        assert arrays[name].streams == [STREAM]
    assert arrays["dout"].streams == []


def test_foreign_memory_is_kept_until_the_work_is_done(emulated_device):
    """A capsule that went with the call would let its library hand the memory out anew."""
    call_forward(CASE, **on_device(CASE))
    kept = emulated_device.engine.kept
    assert [type(owner).__name__ for owner in kept] == ["PyCapsule"] * 4


def test_the_default_stream_has_a_number_of_its_own_in_dlpack(emulated_device):
    emulated_device.engine.stream = 0
    arrays = on_device(CASE)
    call_forward(CASE, **arrays)
    assert arrays["q"].streams == [1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nothing_is_copied_but_to_lay_channels_side_by_side(emulated_device, dtype):
    """Channels-last arrays are read and written where they are."""
    case = make_case((5, 7), dtype=dtype, channel_axis=-1)
    arrays = {name: to_device(getattr(case, name)) for name in "qkv"}
    crisscross.criss_cross_attention(*arrays.values(), **case.options)
    kernel = "strip_forward_mma" if dtype in ("float16", "bfloat16") else "strip_forward"
    assert emulated_device.engine.launches == [kernel] * 2
    first, _ = emulated_device.engine.arguments
    for name, array in arrays.items():
        assert first[name]["data"] == array.array.ctypes.data


@pytest.mark.parametrize("layout", ["permuted", "strided", "offset", "reversed"])
def test_strides_are_passed_along(emulated_device, layout):
    case = make_case((5, 7), heads=2, masked=True, layout=layout)
    out, lse = call_forward(case, **on_device(case))
    assert_matches_reference(case, out=out.array, lse=lse.array)


def test_outputs_follow_the_memory_format_of_their_inputs(emulated_device):
    case = make_case((5, 7), layout="permuted")
    arrays = {name: to_device(getattr(case, name)) for name in "qkv"}
    out = crisscross.criss_cross_attention(*arrays.values(), **case.options)
    assert out.array.strides == case.v.strides == (560, 4, 112, 16)


def test_merging_more_parts_than_one_launch_takes(emulated_device):
    rng = np.random.default_rng(0)
    outs = [rng.standard_normal((2, 6, 3, 5)).astype(np.float16) for _ in range(19)]
    lses = [rng.standard_normal((2, 2, 3, 5)).astype(np.float32) for _ in range(19)]
    exact = crisscross.merge_attentions(
        [x.astype(float) for x in outs], [x.astype(float) for x in lses], backend="reference"
    )
    out, lse = crisscross.merge_attentions(list(map(to_device, outs)), list(map(to_device, lses)))
    assert emulated_device.engine.launches == ["merge"] * 3
    # Rounded once, not at every launch.
    np.testing.assert_allclose(out.array, exact[0], rtol=2.0**-11, atol=1e-6)
    np.testing.assert_allclose(lse.array, exact[1], rtol=1e-6)


def test_a_grid_beyond_the_limit_is_cut(emulated_device, monkeypatch):
    limits = emulated_device.engine.limits
    monkeypatch.setattr(emulated_device.engine, "limits", replace(limits, grid=7))
    out, lse = call_forward(CASE, **on_device(CASE))
    assert_matches_reference(CASE, out=out.array, lse=lse.array)
    assert emulated_device.engine.launches.count("strip_forward") > 2


def test_groups_of_images_no_larger_than_the_cache(emulated_device, monkeypatch):
    limits = emulated_device.engine.limits
    monkeypatch.setattr(emulated_device.engine, "limits", replace(limits, cache_bytes=1))
    out, lse = call_forward(CASE, **on_device(CASE))
    assert_matches_reference(CASE, out=out.array, lse=lse.array)
    assert emulated_device.engine.launches.count("strip_forward") == 2 * 2
    # Scratch is that of one image: q, k, v and out.
    assert sorted(emulated_device.engine.made) == sorted(
        [
            *[array.nbytes // 2 for array in (CASE.q, CASE.k, CASE.v, CASE.v)],
            CASE.v.nbytes,
            lse.array.nbytes,
        ]
    )


def test_more_axes_than_a_kernel_walks(emulated_device):
    """Five outer axes that do not lie behind each other: each index of the slowest is a launch."""
    case = make_case((2, 3, 2, 3), batch=2, heads=2, channel_axis=-1, axes=(1,))
    arrays = [getattr(case, name).swapaxes(3, 4).copy().swapaxes(3, 4) for name in "qkv"]
    out = crisscross.criss_cross_attention(*map(to_device, arrays), **case.options)
    assert_matches_reference(case, out=out.array)
    assert emulated_device.engine.launches == ["strip_forward"] * 2


class Interface:
    """An array that has `__cuda_array_interface__` and nothing else."""

    __module__ = "interfaces.core"

    def __init__(self, array, stream=None, **changes):
        _memory.append(copy_to_emulator(array))
        self.array = _memory[-1].array
        self.changes = {"stream": stream, **changes}

    @property
    def __cuda_array_interface__(self):
        array = self.array
        return {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            **self.changes,
        }


_memory: list[EmulatedArray] = []


@pytest.fixture
def interfaces(emulated_device, monkeypatch):
    package = types.ModuleType("interfaces")
    package.asarray = lambda array: ("taken", array)
    monkeypatch.setitem(sys.modules, "interfaces", package)
    waits = []
    monkeypatch.setattr(
        type(emulated_device.engine), "wait_for", lambda _, stream: waits.append(stream)
    )
    yield waits
    _memory.clear()


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "strided"])
def test_the_cuda_array_interface(emulated_device, interfaces, layout):
    case = make_case((5, 7), layout=layout)
    arrays = [
        Interface(getattr(case, name), stream)
        for name, stream in zip("qkv", (5, None, 9), strict=True)
    ]
    verdict, out = crisscross.criss_cross_attention(*arrays, **case.options)
    assert verdict == "taken"
    assert_matches_reference(case, out=out.array)
    # Work begins when what is under way on the arrays' streams has ended.
    assert interfaces == [5, 9]
    assert emulated_device.engine.kept == arrays


def test_a_masked_cuda_array_is_refused(interfaces):
    masked = Interface(CASE.q, mask=object())
    with pytest.raises(crisscross.BridgeError, match=r"q: expected an array without a mask"):
        crisscross.criss_cross_attention(masked, *(Interface(x) for x in (CASE.k, CASE.v)))


def test_a_library_that_takes_nothing_over_is_named(emulated_device, interfaces, monkeypatch):
    monkeypatch.delattr(sys.modules["interfaces"], "asarray")
    with pytest.raises(crisscross.BridgeError, match=r"takes over CUDA arrays .* got interfaces"):
        crisscross.criss_cross_attention(*(Interface(x) for x in (CASE.q, CASE.k, CASE.v)))
    assert emulated_device.engine.launches == []


def test_an_address_within_an_element_is_refused(interfaces):
    odd = Interface(CASE.q)
    odd.changes["data"] = (odd.array.ctypes.data + 2, False)
    with pytest.raises(crisscross.BridgeError, match=r"q: expected an address and strides that"):
        crisscross.criss_cross_attention(odd, *(Interface(x) for x in (CASE.k, CASE.v)))


def convert(value):
    """Put plain arrays on the device, in lists too."""
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return [convert(item) for item in value]
    plain = type(value) is np.ndarray and value.dtype.isnative and value.dtype != object
    return to_device(value) if plain else value


ROWS = [
    row
    for row in TABLE
    # What NumPy alone has: its masked arrays, byte orders and objects; arrays that are no argument.
    if row[2] is not crisscross.BridgeError
    and not any(
        isinstance(value, np.ndarray)
        and (value.dtype == object or name in ("outs", "axes", "backend"))
        for name, value in row[1].items()
    )
]


@pytest.mark.parametrize(
    ("function", "changes", "error", "lines"),
    ROWS,
    ids=[f"{row[0]}-{'-'.join(row[1])}" for row in ROWS],
)
def test_wrong_input_is_refused_in_the_same_words(emulated_device, function, changes, error, lines):
    arguments = {name: convert(value) for name, value in {**VALID[function], **changes}.items()}
    with pytest.raises(error) as caught:
        getattr(crisscross, function)(**arguments)
    assert [str(mismatch) for mismatch in caught.value.mismatches] == lines.split("\n")
    assert emulated_device.engine.launches == emulated_device.engine.made == []


@pytest.mark.parametrize("function", VALID)
def test_the_valid_call_is_valid(emulated_device, function):
    arguments = {name: convert(value) for name, value in VALID[function].items()}
    assert getattr(crisscross, function)(**arguments) is not None
    assert (function == "explain") == (emulated_device.engine.launches == [])


def test_memory_that_is_not_what_its_owner_said(emulated_device):
    liar = to_device(CASE.q)
    liar.shape = (*CASE.q.shape[:-1], 6)
    others = [to_device(x[..., :6]) for x in (CASE.k, CASE.v)]
    with pytest.raises(crisscross.BridgeError, match=r"q: expected the float32 .* from its memory"):
        crisscross.criss_cross_attention(liar, *others)
    assert emulated_device.engine.launches == []


def test_a_dtype_that_no_backend_has(emulated_device):
    array = to_device(np.zeros((1, 4, 3, 5), np.int32))
    with pytest.raises(BufferError, match=r"a dtype unknown .*\(0, 32, 1\)"):
        foreign.hold(array, 0)


def test_explain_tells_kernels_tiles_and_groups(emulated_device):
    case = make_case((97, 40), batch=3, head_size_qk=64, head_size_v=512)
    text = str(crisscross.explain(*(to_device(getattr(case, name)) for name in "qkv")))
    assert "backend        gpu: the first that serves cuda:0 memory" in text
    assert "strips of 97 along axis 0: forward by 64x112x128 by 256 threads (all keys of" in text
    assert "strips of 40 along axis 1: forward by 64x64x128 by 256 threads" in text
    assert "2 image(s) at a time" in text
    assert "IEEE float32 delivered" in text


def test_explain_tells_of_tensor_cores(emulated_device):
    case = make_case((97, 400), dtype="bfloat16", head_size_qk=64, head_size_v=512)
    text = str(crisscross.explain(*(to_device(getattr(case, name)) for name in "qkv")))
    assert "along axis 0: forward by a strip of up to 104 by 128 threads (tensor cores," in text
    assert "backward by a strip of up to 112 by 128 threads (tensor cores;" in text
    assert "along axis 1: forward by 128x32x128 of 64 by 128 threads (tensor cores;" in text
    assert "backward by 128x32x128 of 64 and 512 by 128 threads (tensor cores;" in text
    assert "IEEE float32 delivered" in text


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_explain_tells_what_precision_is_delivered(emulated_device, precision):
    case = make_case((97, 40), head_size_qk=64, head_size_v=512)
    arrays = [to_device(getattr(case, name)) for name in "qkv"]
    text = str(crisscross.explain(*arrays, precision=precision))
    assert f"{precision} asked for, {precision} delivered" in text
    assert "forward by 64x32x256 of 64 by 128 threads (tensor cores;" in text
    deep = [to_device(np.zeros((1, 65, 5, 7), np.float32)) for _ in range(3)]
    text = str(crisscross.explain(*deep, precision=precision))
    assert f"{precision} asked for, IEEE float32 delivered" in text


def test_a_device_with_less_shared_memory_gets_another_tile(emulated_device, monkeypatch):
    limits = replace(emulated_device.engine.limits, architecture=75, shared_bytes=64 << 10)
    monkeypatch.setattr(emulated_device.engine, "limits", limits)
    arrays = [to_device(np.zeros((1, 4, 130, 2), np.float32)) for _ in range(3)]
    text = str(crisscross.explain(*arrays))
    assert "64x144x128 by 256 threads needs 68048 bytes of shared memory, a block has 65536" in text


def test_no_images_no_launches(emulated_device):
    empty = [to_device(np.zeros((0, 4, 5, 7), np.float32)) for _ in range(3)]
    out, lse = crisscross.criss_cross_attention(*empty, return_lse=True)
    assert out.shape == (0, 4, 5, 7) and lse.shape == (0, 1, 5, 7)
    assert emulated_device.engine.launches == []
