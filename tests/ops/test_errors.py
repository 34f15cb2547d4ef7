"""Every argument broken one way at a time, and the message that names it."""

from __future__ import annotations

import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import crisscross
from crisscross import errors

Q = np.zeros((2, 8, 5, 7), np.float32)
V = np.zeros((2, 16, 5, 7), np.float32)
LSE = np.zeros((2, 2, 5, 7), np.float32)
MAP = np.zeros((2, 11, 5, 7), np.float32)
MASK = np.ones((2, 5, 7), bool)
HALF = Q.astype(np.float16)

FORWARD = {"q": Q, "k": Q, "v": V, "heads": 2}
BACKWARD = {**FORWARD, "dout": V, "out": V, "lse": LSE}

#: A call of each function that is right in every argument.
VALID = {
    "criss_cross_attention": {**FORWARD, "key_mask": MASK},
    "criss_cross_attention_backward": {**BACKWARD, "key_mask": MASK, "dlse": LSE},
    "axial_attention": {**FORWARD, "axis": 0, "key_mask": MASK},
    "axial_attention_backward": {**BACKWARD, "axis": 0, "key_mask": MASK, "dlse": LSE},
    "explain": {**FORWARD, "key_mask": MASK},
    "merge_attentions": {"outs": [V, V], "lses": [LSE, LSE]},
    "ca_weight": {"q": Q, "k": Q},
    "ca_weight_backward": {"denergy": MAP, "q": Q, "k": Q},
    "ca_softmax": {"energy": MAP},
    "ca_softmax_backward": {"dattention": MAP, "attention": MAP},
    "ca_map": {"attention": MAP, "v": V},
    "ca_map_backward": {"dout": V, "attention": MAP, "v": V},
    "to_port_layout": {"weights": MAP},
    "from_port_layout": {"ported": np.zeros((2, 5, 7, 12), np.float32)},
}

ANY_ARRAY = "an array of NumPy, CuPy, PyTorch, JAX or any library that speaks DLPack"
FLOATS = "one of float16, bfloat16, float32, float64"
BACKENDS = "None or one of ('gpu', 'cpu', 'xla', 'reference')"
PRECISIONS = "None or one of ('ieee', 'tf32', 'tf32x3')"

VALUE, TYPE, MEMORY = errors.ArgumentError, errors.ArgumentTypeError, errors.BridgeError

#: Function, what is changed, the error, and "argument: expected ..., got ..." line by line.
TABLE = [
    # q, k and v
    ("criss_cross_attention", {"q": [1.0]}, TYPE, f"q: expected {ANY_ARRAY}, got list"),
    ("criss_cross_attention", {"k": None}, TYPE, f"k: expected {ANY_ARRAY}, got NoneType"),
    ("criss_cross_attention", {"v": np.float32(1)}, TYPE,
     f"v: expected {ANY_ARRAY}, got numpy.float32"),
    ("criss_cross_attention", {"q": Q[0, 0], "key_mask": None}, VALUE,
     "q.shape: expected at least 3 axes, (N, C, *S), got 2 axes: (5, 7)"),
    ("criss_cross_attention", {"v": V[0, 0]}, VALUE,
     "v.shape: expected at least 3 axes, (N, C, *S), got 2 axes: (5, 7)"),
    ("criss_cross_attention", {"k": Q[:, :, :4]}, VALUE,
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 4, 7)"),
    ("criss_cross_attention", {"k": Q[:, :4]}, VALUE,
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 4, 5, 7)"),
    ("criss_cross_attention", {"v": V[:1]}, VALUE,
     "v.shape: expected (2, channels, 5, 7) like q but for the channels, got (1, 16, 5, 7)"),
    ("criss_cross_attention", {"v": V[..., 0]}, VALUE,
     "v.shape: expected (2, channels, 5, 7) like q but for the channels, got (2, 16, 5)"),
    ("criss_cross_attention", {"q": Q.astype(int), "k": Q.astype(int)}, TYPE,
     f"q.dtype: expected {FLOATS}, got int64\nk.dtype: expected {FLOATS}, got int64"),
    ("criss_cross_attention", {"q": Q.astype(complex)}, TYPE,
     f"q.dtype: expected {FLOATS}, got complex128"),
    ("criss_cross_attention", {"k": HALF}, TYPE,
     "k.dtype: expected float32 like q, got float16"),
    ("criss_cross_attention", {"v": V.astype(ml_dtypes.bfloat16)}, TYPE,
     "v.dtype: expected float32 like q, got bfloat16"),
    ("criss_cross_attention", {"q": Q.astype(">f4")}, MEMORY,
     "q: expected native byte order; pass x.astype(x.dtype.newbyteorder('=')), "
     "got big-endian float32"),
    ("criss_cross_attention", {"v": np.ma.masked_array(V)}, MEMORY,
     "v: expected a plain array; pass x.filled(0) and, for keys, key_mask=~mask, "
     "got a masked array"),
    ("criss_cross_attention", {"q": Q.astype(object)}, VALUE,
     "q: expected a plain numeric dtype, got dtype object\n"
     f"q.dtype: expected {FLOATS}, got object"),
    # options
    ("criss_cross_attention", {"heads": 3}, VALUE,
     "q.shape[1]: expected a positive multiple of heads = 3, got 8\n"
     "v.shape[1]: expected a positive multiple of heads = 3, got 16"),
    ("criss_cross_attention", {"heads": 16}, VALUE,
     "q.shape[1]: expected a positive multiple of heads = 16, got 8"),
    ("criss_cross_attention", {"heads": 2, "channel_axis": -1}, VALUE,
     "v.shape: expected (2, 8, 5, channels) like q but for the channels, got (2, 16, 5, 7)\n"
     "q.shape[-1]: expected a positive multiple of heads = 2, got 7\n"
     "v.shape[-1]: expected a positive multiple of heads = 2, got 7\n"
     "key_mask.shape: expected (2, 8, 5) (N, *S), got (2, 5, 7)"),
    ("criss_cross_attention", {"q": Q[:, :0], "k": Q[:, :0], "heads": 1}, VALUE,
     "q.shape[1]: expected a positive multiple of heads = 1, got 0"),
    ("criss_cross_attention", {"heads": 0}, VALUE, "heads: expected at least 1, got 0"),
    ("criss_cross_attention", {"heads": 2.0}, TYPE, "heads: expected an integer, got 2.0"),
    ("criss_cross_attention", {"heads": True}, TYPE, "heads: expected an integer, got True"),
    ("criss_cross_attention", {"scale": "1"}, TYPE, "scale: expected a real number, got '1'"),
    ("criss_cross_attention", {"scale": None}, TYPE, "scale: expected a real number, got None"),
    ("criss_cross_attention", {"scale": 1j}, TYPE,
     "scale: expected a real number, got complex 1j"),
    ("criss_cross_attention", {"scale": float("nan")}, VALUE,
     "scale: expected a finite number, got nan"),
    ("criss_cross_attention", {"scale": float("-inf")}, VALUE,
     "scale: expected a finite number, got -inf"),
    ("criss_cross_attention", {"axes": ()}, VALUE,
     "axes: expected at least one spatial axis, got none: ()"),
    ("criss_cross_attention", {"axes": (0, -2)}, VALUE,
     "axes: expected each spatial axis once, got tuple (0, -2)"),
    ("criss_cross_attention", {"axes": 1}, TYPE,
     "axes: expected None or a tuple of integers, such as (0,), got 1"),
    ("criss_cross_attention", {"axes": (0, 2)}, VALUE,
     "axes: expected a spatial axis in [-2, 2), got 2"),
    ("criss_cross_attention", {"axes": (-3,)}, VALUE,
     "axes: expected a spatial axis in [-2, 2), got -3"),
    ("criss_cross_attention", {"axes": ("row",)}, TYPE,
     "axes: expected an integer, got 'row'"),
    ("criss_cross_attention", {"channel_axis": 0}, VALUE,
     "channel_axis: expected 1 (N, C, *S) or -1 (N, *S, C), got 0"),
    ("criss_cross_attention", {"channel_axis": None}, TYPE,
     "channel_axis: expected an integer, got None"),
    ("criss_cross_attention", {"precision": "fp8"}, VALUE,
     f"precision: expected {PRECISIONS}, got 'fp8'"),
    ("criss_cross_attention", {"precision": 32}, TYPE, f"precision: expected {PRECISIONS}, got 32"),
    ("criss_cross_attention", {"return_lse": 1}, TYPE,
     "return_lse: expected True or False, got 1"),
    ("criss_cross_attention", {"backend": "cuda"}, VALUE,
     f"backend: expected {BACKENDS}, got 'cuda'"),
    ("criss_cross_attention", {"backend": 0}, TYPE, f"backend: expected {BACKENDS}, got 0"),
    ("criss_cross_attention", {"key_mask": MASK.astype(float)}, TYPE,
     "key_mask.dtype: expected bool (True = takes part as a key), got float64"),
    ("criss_cross_attention", {"key_mask": MASK[:, None]}, VALUE,
     "key_mask.shape: expected (2, 5, 7) (N, *S), got (2, 1, 5, 7)"),
    ("criss_cross_attention", {"key_mask": [True]}, TYPE,
     f"key_mask: expected {ANY_ARRAY}, got list"),
    # one axis
    ("axial_attention", {"axis": 2}, VALUE, "axis: expected a spatial axis in [-2, 2), got 2"),
    ("axial_attention", {"axis": None}, TYPE, "axis: expected an integer, got None"),
    ("axial_attention", {"axis": (0,)}, TYPE, "axis: expected an integer, got tuple (0,)"),
    ("axial_attention", {"include_self": 0}, TYPE,
     "include_self: expected True or False, got 0"),
    ("axial_attention", {"return_lse": "yes"}, TYPE,
     "return_lse: expected True or False, got 'yes'"),
    # backward
    ("criss_cross_attention_backward", {"dout": V[:1]}, VALUE,
     "dout.shape: expected (2, 16, 5, 7) like v, got (1, 16, 5, 7)"),
    ("criss_cross_attention_backward", {"dout": V.astype(float)}, TYPE,
     "dout.dtype: expected float32 like q, got float64"),
    ("criss_cross_attention_backward", {"dout": None}, TYPE,
     f"dout: expected {ANY_ARRAY}, got NoneType"),
    ("criss_cross_attention_backward", {"out": Q}, VALUE,
     "out.shape: expected (2, 16, 5, 7) like v, got (2, 8, 5, 7)"),
    ("criss_cross_attention_backward", {"lse": LSE[:, :1]}, VALUE,
     "lse.shape: expected (2, 2, 5, 7) (N, heads, *S), got (2, 1, 5, 7)"),
    ("criss_cross_attention_backward", {"lse": LSE.astype(float)}, TYPE,
     "lse.dtype: expected float32 for float32 inputs, got float64"),
    ("criss_cross_attention_backward", {"dlse": LSE[0]}, VALUE,
     "dlse.shape: expected (2, 2, 5, 7) (N, heads, *S), got (2, 5, 7)"),
    ("axial_attention_backward", {"dlse": LSE.astype(np.float16)}, TYPE,
     "dlse.dtype: expected float32 for float32 inputs, got float16"),
    ("axial_attention_backward", {"axis": -3}, VALUE,
     "axis: expected a spatial axis in [-2, 2), got -3"),
    # merge
    ("merge_attentions", {"outs": [], "lses": []}, VALUE,
     "outs: expected at least one part, got none"),
    ("merge_attentions", {"outs": V}, TYPE,
     "outs: expected a list or tuple of arrays, got ndarray"),
    ("merge_attentions", {"lses": [LSE]}, VALUE, "lses: expected as many parts as outs: 2, got 1"),
    ("merge_attentions", {"outs": [V, 3]}, TYPE, f"outs[1]: expected {ANY_ARRAY}, got int"),
    ("merge_attentions", {"outs": [V, V[:1]]}, VALUE,
     "outs[1].shape: expected (2, 16, 5, 7) like outs[0], got (1, 16, 5, 7)"),
    ("merge_attentions", {"outs": [V, V.astype(float)]}, TYPE,
     "outs[1].dtype: expected float32 like outs[0], got float64"),
    ("merge_attentions", {"outs": [V[0, 0]] * 2}, VALUE,
     "outs[0].shape: expected at least 3 axes, (N, C, *S) or (N, *S, C), got 2 axes: (5, 7)"),
    ("merge_attentions", {"lses": [LSE, LSE[:, :1]]}, VALUE,
     "lses[1].shape: expected (2, 2, 5, 7) (N, heads, *S), got (2, 1, 5, 7)"),
    ("merge_attentions", {"lses": [LSE, LSE.astype(float)]}, TYPE,
     "lses[1].dtype: expected float32 for float32 parts, got float64"),
    ("merge_attentions", {"lses": [np.zeros((2, 3, 5, 7), np.float32)] * 2}, VALUE,
     "outs[0].shape[1]: expected a positive multiple of lses[0].shape[1] = 3 heads, got 16"),
    ("merge_attentions", {"channel_axis": 3}, VALUE,
     "channel_axis: expected 1 (N, C, *S) or -1 (N, *S, C), got 3"),
    # CCNet's operators
    ("ca_weight", {"q": Q[0]}, VALUE,
     "q.shape: expected 4 axes, (N, C, H, W), got 3 axes: (8, 5, 7)"),
    ("ca_weight", {"k": Q[:, :4]}, VALUE,
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 4, 5, 7)"),
    ("ca_weight", {"k": HALF}, TYPE, "k.dtype: expected float32 like q, got float16"),
    ("ca_weight", {"q": Q[:, :, :0], "k": Q[:, :, :0]}, VALUE,
     "q.shape: expected C, H and W of at least 1, (N, C, H, W), got (2, 8, 0, 7)\n"
     "k.shape: expected C, H and W of at least 1, (N, C, H, W), got (2, 8, 0, 7)"),
    ("ca_weight_backward", {"denergy": MAP[:, 1:]}, VALUE,
     "denergy.shape: expected (2, 11, 5, 7) (N, H+W-1, H, W), got (2, 10, 5, 7)"),
    ("ca_weight_backward", {"denergy": MAP.astype(np.float16)}, TYPE,
     "denergy.dtype: expected float32 for float32 q, got float16"),
    ("ca_softmax", {"energy": Q}, VALUE,
     "energy.shape: expected (2, 11, 5, 7) (N, H+W-1, H, W), got (2, 8, 5, 7)"),
    ("ca_softmax", {"energy": MAP.astype(np.float16)}, TYPE,
     "energy.dtype: expected float32 (also for 16-bit features) or float64, got float16"),
    ("ca_softmax", {"energy": MAP[0]}, VALUE,
     "energy.shape: expected 4 axes, (N, H+W-1, H, W), got 3 axes: (11, 5, 7)"),
    ("ca_softmax", {"energy": MAP[:, :6, :0]}, VALUE,
     "energy.shape: expected H and W of at least 1, (N, H+W-1, H, W), got (2, 6, 0, 7)"),
    ("ca_softmax_backward", {"dattention": MAP[:1]}, VALUE,
     "dattention.shape: expected (2, 11, 5, 7) like attention, got (1, 11, 5, 7)"),
    ("ca_softmax_backward", {"dattention": MAP.astype(float)}, TYPE,
     "dattention.dtype: expected float32 like attention, got float64"),
    ("ca_map", {"attention": V}, VALUE,
     "attention.shape: expected (2, 11, 5, 7) (N, H+W-1, H, W), got (2, 16, 5, 7)"),
    ("ca_map", {"attention": MAP.astype(float)}, TYPE,
     "attention.dtype: expected float32 for float32 v, got float64"),
    ("ca_map", {"v": V.astype(np.uint8)}, TYPE, f"v.dtype: expected {FLOATS}, got uint8"),
    ("ca_map_backward", {"dout": V[:, :1]}, VALUE,
     "dout.shape: expected (2, 16, 5, 7) like v, got (2, 1, 5, 7)"),
    ("to_port_layout", {"self_value": "0"}, TYPE,
     "self_value: expected a real number, got '0'"),
    ("from_port_layout", {"ported": MAP}, VALUE,
     "ported.shape: expected (2, 11, 5, 16) (N, H, W, H+W), got (2, 11, 5, 7)"),
    ("criss_cross_attention", {"scale": 10**400}, VALUE,
     "scale: expected a number that float64 holds, got int"),
    ("criss_cross_attention", {"scale": 1e39}, VALUE,
     "scale: expected a number that float32 holds, got 1e+39"),
    ("criss_cross_attention", {"return_lse": np.True_}, TYPE,
     "return_lse: expected True or False, got bool np.True_"),
    ("criss_cross_attention", {"backend": np.ones(2)}, TYPE,
     f"backend: expected {BACKENDS}, got ndarray array([1., 1.])"),
    ("criss_cross_attention", {"precision": "x" * 100_000}, VALUE,
     f"precision: expected {PRECISIONS}, got str"),
    ("criss_cross_attention", {"axes": "row"}, TYPE,
     "axes: expected None or a tuple of integers, such as (0,), got 'row'"),
    ("criss_cross_attention", {"v": V[0, 0], "channel_axis": -1, "key_mask": None}, VALUE,
     "v.shape: expected at least 3 axes, (N, *S, C), got 2 axes: (5, 7)\n"
     "q.shape[-1]: expected a positive multiple of heads = 2, got 7"),
    ("criss_cross_attention", {"axes": b"\0\1"}, TYPE,
     "axes: expected None or a tuple of integers, such as (0,), got bytes b'\\x00\\x01'"),
    ("criss_cross_attention", {"axes": {0: 1}}, TYPE,
     "axes: expected None or a tuple of integers, such as (0,), got dict {0: 1}"),
    ("criss_cross_attention", {"axes": np.array(0)}, TYPE,
     "axes: expected None or a tuple of integers, such as (0,), got ndarray array(0)"),
    ("criss_cross_attention", {"heads": 10**5000}, VALUE,
     "heads: expected an integer of 64 bits, got int"),
    ("criss_cross_attention", {"heads": np.True_}, TYPE,
     "heads: expected an integer, got bool np.True_"),
    ("axial_attention", {"axis": -(10**5000)}, VALUE,
     "axis: expected an integer of 64 bits, got int"),
    ("merge_attentions", {"channel_axis": 10**5000}, VALUE,
     "channel_axis: expected an integer of 64 bits, got int"),
    ("to_port_layout", {"self_value": 1e300}, VALUE,
     "self_value: expected a number that float32 holds, got 1e+300"),
    ("to_port_layout", {"self_value": -(10**400)}, VALUE,
     "self_value: expected a number that float64 holds, got int"),
    # what can be known without the first array
    ("criss_cross_attention", {"q": [1.0], "v": V[:1]}, VALUE,
     f"q: expected {ANY_ARRAY}, got list\n"
     "v.shape: expected (2, channels, 5, 7) like k but for the channels, got (1, 16, 5, 7)"),
    ("criss_cross_attention", {"q": [1.0], "axes": (0, -2)}, VALUE,
     f"q: expected {ANY_ARRAY}, got list\n"
     "axes: expected each spatial axis once, got tuple (0, -2)"),
    ("merge_attentions", {"outs": 3, "lses": [LSE, LSE[:1]]}, VALUE,
     "outs: expected a list or tuple of arrays, got 3\n"
     "lses[1].shape: expected (2, 2, 5, 7) like lses[0], got (1, 2, 5, 7)"),
    ("ca_weight", {"q": Q[0], "k": HALF[0]}, VALUE,
     "k.dtype: expected float32 like q, got float16\n"
     "q.shape: expected 4 axes, (N, C, H, W), got 3 axes: (8, 5, 7)\n"
     "k.shape: expected 4 axes, (N, C, H, W), got 3 axes: (8, 5, 7)"),
    ("ca_map", {"v": V.astype(int), "attention": MAP.astype(int)}, TYPE,
     f"v.dtype: expected {FLOATS}, got int64\n"
     "attention.dtype: expected float32 (also for 16-bit features) or float64, got int64"),
    # two and more at once
    ("criss_cross_attention", {"k": Q[:, :, :4], "scale": "x"}, VALUE,
     "scale: expected a real number, got 'x'\n"
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 4, 7)"),
    ("criss_cross_attention", {"k": HALF, "heads": 1.5}, TYPE,
     "heads: expected an integer, got 1.5\nk.dtype: expected float32 like q, got float16"),
    ("criss_cross_attention", {"q": None, "axes": (), "precision": "x", "backend": "y"}, VALUE,
     f"backend: expected {BACKENDS}, got 'y'\n"
     f"q: expected {ANY_ARRAY}, got NoneType\n"
     f"precision: expected {PRECISIONS}, got 'x'\n"
     "axes: expected at least one spatial axis, got none: ()"),
    ("merge_attentions", {"outs": [V, V[:1]], "lses": [LSE, LSE[0]]}, VALUE,
     "outs[1].shape: expected (2, 16, 5, 7) like outs[0], got (1, 16, 5, 7)\n"
     "lses[1].shape: expected (2, 2, 5, 7) (N, heads, *S), got (2, 5, 7)"),
    ("ca_map_backward", {"dout": V.astype(np.float16), "attention": MAP[:, :2]}, VALUE,
     "dout.dtype: expected float32 like v, got float16\n"
     "attention.shape: expected (2, 11, 5, 7) (N, H+W-1, H, W), got (2, 2, 5, 7)"),
]  # fmt: skip


@pytest.mark.parametrize("function", VALID)
def test_the_valid_call_is_valid(function):
    assert getattr(crisscross, function)(**VALID[function]) is not None


@pytest.mark.parametrize(
    ("function", "changes", "error", "lines"),
    TABLE,
    ids=[f"{row[0]}-{'-'.join(row[1])}" for row in TABLE],
)
def test_messages(function, changes, error, lines):
    with pytest.raises(error) as caught:
        getattr(crisscross, function)(**{**VALID[function], **changes})
    assert type(caught.value) is error
    expected = lines.split("\n")
    assert [str(mismatch) for mismatch in caught.value.mismatches] == expected
    if len(expected) == 1:
        assert str(caught.value) == f"{function}: {lines}"
    else:
        listed = "\n  ".join(expected)
        assert str(caught.value) == f"{function}: {len(expected)} mismatches\n  {listed}"


def root(mismatch):
    """The argument that a mismatch is about: `outs` of `outs[1].shape`."""
    return mismatch.argument.partition(".")[0].partition("[")[0]


def find_roots(function, changes):
    with pytest.raises(errors.CrissCrossError) as caught:
        getattr(crisscross, function)(**{**VALID[function], **changes})
    return {root(mismatch) for mismatch in caught.value.mismatches}


def list_pairs():
    """Two faults of one function that touch different arguments."""
    for number, (function, changes, _, lines) in enumerate(TABLE):
        for other, more, _, other_lines in TABLE[:number]:
            if function == other and not set(changes) & set(more):
                # Only faults of the very arguments that were changed, and not of one that is held
                # to the other: if q is no array, nobody can say whether k or v is the wrong one.
                every = f"{lines}\n{other_lines}".split("\n")
                own = {re.split(r"[.:\[]", line)[0] for line in every}
                leaders = set(re.findall(r" (?:like|as|for \w+) (\w+)", f"{lines} {other_lines}"))
                changed = set(changes) | set(more)
                if own == changed and not leaders & changed:
                    yield function, {**changes, **more}


def test_any_two_faults_are_both_named():
    pairs = list(list_pairs())
    assert len(pairs) > 500
    missing = [
        (function, changes.keys(), found)
        for function, changes in pairs
        if not set(changes) <= (found := find_roots(function, changes))
    ]
    assert missing == []


#: What may be broken in any array of any function, and the words its message must hold.
ARRAY_FAULTS = [
    (lambda array: array.tolist(), "an array of NumPy", "got list"),
    (lambda array: array[..., None], "(2, ", "1)"),
    (lambda array: array[:1], "(2, ", "(1, "),
    (lambda array: array.astype(np.int8), "dtype", "int8"),
    (lambda array: array.astype(array.dtype.newbyteorder(">"), copy=False), "native", "endian"),
]


def list_array_faults():
    for function, arguments in VALID.items():
        arrays = {name: x for name, x in arguments.items() if isinstance(x, np.ndarray)}
        for name, array in arrays.items():
            for fault in range(len(ARRAY_FAULTS)):
                # Another batch is no fault of a single array, and one byte has no order.
                if not (fault == 2 and len(arrays) == 1) and not (
                    fault == 4 and array.dtype == bool
                ):
                    yield function, name, fault


@pytest.mark.parametrize(("function", "name", "fault"), list(list_array_faults()))
def test_every_array_of_every_function(function, name, fault):
    """No array argument of any function goes unchecked."""
    break_array, expected, got = ARRAY_FAULTS[fault]
    array = VALID[function][name]
    with pytest.raises(errors.CrissCrossError) as caught:
        getattr(crisscross, function)(**{**VALID[function], name: break_array(array)})
    assert isinstance(caught.value, ValueError | TypeError | BufferError)
    message = str(caught.value)
    assert message.startswith(function)
    # Where the first array has another batch, it is the others that are not like it.
    assert name in message or fault == 2
    assert expected in message
    assert got in message


@pytest.mark.parametrize("function", VALID)
def test_every_function_checks_its_backend(function):
    with pytest.raises(ValueError, match=r"backend: expected .*, got 'tpu'"):
        getattr(crisscross, function)(**VALID[function], backend="tpu")
    with pytest.raises(crisscross.BackendError, match="gpu: it serves arrays in CUDA memory"):
        getattr(crisscross, function)(**VALID[function], backend="gpu")


def test_errors_are_built_in_types():
    assert issubclass(errors.ArgumentError, ValueError)
    assert issubclass(errors.ArgumentTypeError, TypeError)
    assert issubclass(errors.BridgeError, BufferError)
    assert issubclass(errors.BackendError, RuntimeError)
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_errors_survive_pickling():
    with pytest.raises(errors.ArgumentError) as caught:
        crisscross.criss_cross_attention(Q, Q[:1], V, heads=0)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)
    assert copied.mismatches == caught.value.mismatches
