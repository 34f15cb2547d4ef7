"""JAX arrays through the bridge: zero copy, never writable, and every refusal by name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import crisscross
from crisscross.bridge import allocate
from crisscross.testing import assert_matches_reference, attention_cases, attention_problems
from tests.support.properties import law

DTYPES = ["float16", "bfloat16", "float32"]


def draw(*shape, dtype="float32"):
    return jax.random.normal(jax.random.key(0), shape, jnp.float32).astype(dtype)


def address(array) -> int:
    return array.unsafe_buffer_pointer()


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (), (0, 3)])
def test_zero_copy_into_numpy(shape, dtype):
    array = draw(*shape, dtype=dtype)
    view = crisscross.from_dlpack(array)
    assert view.shape == shape and view.dtype.name == dtype
    assert not view.flags.writeable
    if array.size:
        assert view.ctypes.data == address(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_zero_copy_back(dtype, order):
    array = allocate((2, 3, 4), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array[...] = np.arange(24).reshape(2, 3, 4)
    turned = crisscross.to_dlpack(array.transpose(order), "jax")
    assert isinstance(turned, jax.Array) and turned.dtype == dtype
    assert address(turned) == array.ctypes.data
    np.testing.assert_array_equal(np.asarray(turned), array.transpose(order))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_to_numpy_to_jax(dtype):
    """One memory, three libraries."""
    tensor = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    array = crisscross.to_dlpack(crisscross.from_dlpack(tensor), "jax")
    assert address(array) == tensor.data_ptr()
    assert array.dtype == dtype
    assert crisscross.from_dlpack(array).ctypes.data == tensor.data_ptr()


def test_jax_to_torch_needs_a_copy():
    """PyTorch would make JAX's immutable memory writable."""
    array = draw(2, 3)
    view = crisscross.from_dlpack(array)
    with pytest.raises(crisscross.BridgeError, match="would make it writable"):
        crisscross.to_dlpack(view, "torch")
    tensor = crisscross.to_dlpack(view, "torch", copy=True)
    tensor.zero_()
    assert float(jnp.abs(array).max()) > 0


def to_jax(array):
    return None if array is None else crisscross.to_dlpack(array, "jax", copy=True)


@law(attention_cases(attention_problems(dtypes=DTYPES), layouts=("contiguous", "permuted")))
def test_functions_in_the_callers_kind(case):
    """Forward and explicit backward on JAX arrays, against the oracle."""
    q, k, v, dout, dlse = (to_jax(x) for x in (case.q, case.k, case.v, case.dout, case.dlse))
    options = {**case.options, "key_mask": to_jax(case.key_mask)}
    out, lse = crisscross.criss_cross_attention(q, k, v, **options, return_lse=True)
    gradients = crisscross.criss_cross_attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, **options
    )
    results = dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=True))
    assert all(isinstance(result, jax.Array) for result in results.values())
    assert_matches_reference(case, **results)


def test_every_other_function():
    q, k, v = draw(1, 4, 3, 5), draw(1, 4, 3, 5) + 1, draw(1, 6, 3, 5)
    attention = crisscross.ca_softmax(crisscross.ca_weight(q, k))
    out = crisscross.ca_map(attention, v)
    row = crisscross.axial_attention(q, k, v, axis=1, return_lse=True)
    column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, return_lse=True)
    merged, _ = crisscross.merge_attentions([row[0], column[0]], [row[1], column[1]])
    np.testing.assert_allclose(merged, out, rtol=1e-5, atol=1e-5)
    dattention, dv = crisscross.ca_map_backward(out, attention, v)
    denergy = crisscross.ca_softmax_backward(dattention, attention)
    dq, dk = crisscross.ca_weight_backward(denergy, q, k)
    ported = crisscross.to_port_layout(attention)
    for result in (dq, dk, dv, ported, crisscross.from_port_layout(ported)):
        assert isinstance(result, jax.Array)


def test_results_are_handed_over_without_a_copy(monkeypatch):
    """The addresses of what the backend filled and of what the caller gets are the same."""
    filled = []
    original = crisscross.ops.call.allocate

    def remember(*args, **kwargs):
        filled.append(original(*args, **kwargs))
        return filled[-1]

    monkeypatch.setattr(crisscross.ops.call, "allocate", remember)
    for dtype in DTYPES:
        filled.clear()
        x = draw(1, 4, 3, 5, dtype=dtype)
        results = crisscross.criss_cross_attention(x, x, x, return_lse=True)
        assert [address(result) for result in results] == [array.ctypes.data for array in filled]


@pytest.mark.parametrize("shape", [(2, 4, 0, 5), (2, 4, 5, 0), (0, 4, 3, 5), (2, 4, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_at_all(shape, dtype):
    x = jnp.zeros(shape, dtype)
    out, lse = crisscross.criss_cross_attention(x, x, x, return_lse=True)
    assert out.shape == shape and lse.shape == (shape[0], 1, *shape[2:])
    gradients = crisscross.criss_cross_attention_backward(out, x, x, x, out, lse)
    assert all(gradient.shape == shape for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layout_that_is_not_row_major_is_shared(dtype):
    """numpy.asarray would copy it; DLPack carries its strides."""
    array = np.ones((4, 6, 2), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    turned = crisscross.to_dlpack(array.transpose(2, 0, 1), "jax", copy=True)
    view = crisscross.from_dlpack(turned)
    assert view.ctypes.data == address(turned)
    assert view.strides == array.transpose(2, 0, 1).strides


def test_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 3, 5)))
        out, lse = crisscross.criss_cross_attention(x, x, x, return_lse=True)
        assert out.dtype == lse.dtype == "float64"
    np.testing.assert_array_equal(out, crisscross.criss_cross_attention(*(np.asarray(x),) * 3))
    with pytest.raises(crisscross.BridgeError, match=r"jax_enable_x64.*got float64 while 64-bit"):
        crisscross.criss_cross_attention(x, x, x)
    with pytest.raises(crisscross.BridgeError, match="jax_enable_x64"):
        crisscross.to_dlpack(np.zeros(3), "jax", copy=True)


def test_tracers():
    """They look like arrays in every way until their memory is asked for."""
    for transform in (jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())):
        with pytest.raises(crisscross.BridgeError, match=r"outside of jit, .* got a tracer"):
            transform(crisscross.from_dlpack)(draw(2, 4, 3, 5))


def test_deleted():
    x = draw(1, 4, 3, 5)
    x.delete()
    with pytest.raises(
        crisscross.BridgeError, match=r"expected a live array; .*, got a deleted array"
    ):
        crisscross.from_dlpack(x)
    with pytest.raises(crisscross.BridgeError, match="deleted"):
        crisscross.criss_cross_attention(x, x, x)


def test_abstract_values_are_no_arrays():
    with pytest.raises(TypeError, match=r"array: expected an array .* got jax\..*ShapeDtypeStruct"):
        crisscross.from_dlpack(jax.ShapeDtypeStruct((2,), jnp.float32))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (allocate((4, 6), "float32")[:, ::2], "compact memory, or copy=True, got strides"),
        (allocate((4, 6), "float32")[::-1], "compact memory"),
        (allocate((64,), "float32")[1:33], "aligned to 64 bytes, or copy=True"),
        (np.broadcast_to(allocate((4,), "float32"), (3, 4)), "read-only memory"),
    ],
    ids=["sliced", "reversed", "offset", "broadcast"],
)
def test_memory_that_jax_would_copy_or_refuse(array, match):
    with pytest.raises(crisscross.BridgeError, match=match):
        crisscross.to_dlpack(array, "jax")
    copied = crisscross.to_dlpack(array, "jax", copy=True)
    np.testing.assert_array_equal(np.asarray(copied), array)


SHARDED = """
import jax, numpy as np, crisscross
mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
x = jax.device_put(np.ones((2, 4, 3, 5), np.float32), sharding)
for call in (crisscross.from_dlpack, lambda x: crisscross.criss_cross_attention(x, x, x)):
    try:
        call(x)
    except crisscross.BridgeError as error:
        print(error)
"""


def test_sharded(run_python):
    """Two devices need a process of their own."""
    lines = run_python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=2").splitlines()
    assert len([line for line in lines if "sharded over 2 devices" in line]) == 4
    assert all("gather it with jax.device_put" in line for line in lines if "expected" in line)
