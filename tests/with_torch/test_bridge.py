"""PyTorch tensors through the bridge: zero copy, the caller's kind, and every refusal by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import crisscross
from crisscross.testing import assert_matches_reference, attention_cases, attention_problems
from tests.support.properties import law

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_zero_copy_into_numpy():
    base = draw(2, 6, 4, 5)
    for dtype in [*DTYPES, torch.int64, torch.bool, torch.complex64]:
        x = base.to(dtype)
        views = {
            "contiguous": x,
            "permuted": x.permute(3, 0, 2, 1),
            "sliced": x[:, ::2, 1:],
            "broadcast": x[:1].expand(3, -1, -1, -1),
            "channels_last": x.to(memory_format=torch.channels_last),
            "scalar": x[0, 0, 0, 0],
            "empty": x[:0],
        }
        for name, tensor in views.items():
            view = crisscross.from_dlpack(tensor)
            assert view.shape == tuple(tensor.shape), name
            assert view.dtype.name == str(tensor.dtype).removeprefix("torch."), name
            if tensor.numel():
                assert view.ctypes.data == tensor.data_ptr(), name
                strides = tuple(stride // view.itemsize for stride in view.strides)
                assert strides == tensor.stride(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_copy_back(dtype):
    array = crisscross.from_dlpack(draw(2, 3, 4, dtype=dtype)).transpose(2, 0, 1)
    tensor = crisscross.to_dlpack(array, "torch")
    assert tensor.dtype is dtype
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.shape == array.shape
    tensor[0, 0, 0] = 7
    assert float(array[0, 0, 0]) == 7


@law(attention_cases(attention_problems(), layouts=("contiguous", "permuted", "strided", "offset")))
def test_functions_in_the_callers_kind(case):
    """Forward and explicit backward on tensors, every dtype and layout, against the oracle."""

    def tensor(array):
        return None if array is None else crisscross.to_dlpack(array, "torch")

    q, k, v, dout, dlse = (tensor(x) for x in (case.q, case.k, case.v, case.dout, case.dlse))
    options = {**case.options, "key_mask": tensor(case.key_mask)}
    out, lse = crisscross.criss_cross_attention(q, k, v, **options, return_lse=True)
    gradients = crisscross.criss_cross_attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, **options
    )
    results = dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=True))
    assert all(isinstance(result, torch.Tensor) for result in results.values())
    assert_matches_reference(case, **results)


def test_every_other_function():
    q, k, v = draw(1, 4, 3, 5), draw(1, 4, 3, 5) + 1, draw(1, 6, 3, 5)
    energy = crisscross.ca_weight(q, k)
    attention = crisscross.ca_softmax(energy)
    out = crisscross.ca_map(attention, v)
    row = crisscross.axial_attention(q, k, v, axis=1, return_lse=True)
    column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, return_lse=True)
    merged, lse = crisscross.merge_attentions([row[0], column[0]], [row[1], column[1]])
    torch.testing.assert_close(merged, out)
    dattention, dv = crisscross.ca_map_backward(out, attention, v)
    denergy = crisscross.ca_softmax_backward(dattention, attention)
    dq, dk = crisscross.ca_weight_backward(denergy, q, k)
    fused = crisscross.criss_cross_attention_backward(out, q, k, v, merged, lse)
    for actual, expected in zip((dq, dk, dv), fused, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    ported = crisscross.to_port_layout(attention)
    assert torch.equal(crisscross.from_port_layout(ported), attention)


def test_memory_format_is_kept():
    q, v = draw(1, 4, 3, 5), draw(1, 6, 3, 5)
    last = {"memory_format": torch.channels_last}
    out = crisscross.criss_cross_attention(q, q, v.to(**last))
    assert out.is_contiguous(**last)
    torch.testing.assert_close(out, crisscross.criss_cross_attention(q, q, v))


def test_results_share_memory_with_numpy():
    """Results are handed over, not copied: NumPy's memory stands behind them, aligned."""
    out = crisscross.criss_cross_attention(*(draw(1, 4, 3, 5),) * 3)
    assert out.data_ptr() % 64 == 0
    assert not out.requires_grad


def refuse_memory(make, match):
    """The bridge refuses: its memory is not what the tensor means."""
    with pytest.raises(crisscross.BridgeError, match=match):
        crisscross.from_dlpack(make(draw(1, 4, 3, 5)))


def refuse(make, match):
    """Both the bridge and the functions refuse, with an error of our own, wherever it stands."""
    refuse_memory(make, match)
    x, other = make(draw(1, 4, 3, 5)), draw(1, 4, 3, 5).requires_grad_()
    for inputs in ((x, x, x), (x, other, other), (other, other, x)):
        with pytest.raises(crisscross.CrissCrossError, match=match):
            crisscross.criss_cross_attention(*inputs)

    def call(y):
        return crisscross.criss_cross_attention(y, y, x).sum()

    with pytest.raises(crisscross.CrissCrossError, match=match) as caught:
        torch.func.grad(call)(draw(1, 4, 3, 5))
    assert "torch.func" not in str(caught.value)


def test_requires_grad():
    refuse_memory(lambda x: x.requires_grad_(), r"call x\.detach\(\).*got a tensor that requires")
    refuse_memory(lambda x: torch.nn.Parameter(x), "requires grad")
    x = draw(1, 4, 3, 5).requires_grad_()
    with torch.no_grad():
        assert crisscross.from_dlpack(x).ctypes.data == x.data_ptr()
        out = crisscross.criss_cross_attention(x, x, x)
    assert torch.equal(out, crisscross.criss_cross_attention(x, x, x))


def test_conjugate_bit():
    refuse_memory(lambda x: torch.complex(x, x).conj(), r"call x\.resolve_conj\(\)")
    x = torch.complex(*[draw(1, 4, 3, 5)] * 2).conj()
    with pytest.raises(crisscross.CrissCrossError, match=r"q\.dtype: .* got complex64"):
        crisscross.criss_cross_attention(x, x, x)


def test_negative_bit():
    """The imaginary part of a lazy conjugate: its memory holds the other sign."""

    def negative(x):
        y = torch.complex(x, x).conj().imag
        assert y.is_neg() and torch.equal(y, -x)
        return y

    refuse_memory(negative, r"call x\.resolve_neg\(\)")
    x = draw(1, 4, 3, 5)
    resolved = crisscross.from_dlpack(negative(x).resolve_neg())
    np.testing.assert_array_equal(resolved, -x.numpy())
    for place in range(3):
        inputs = [x, x, x]
        inputs[place] = -x
        expected = crisscross.criss_cross_attention(*inputs)
        inputs[place] = negative(x)
        assert torch.equal(crisscross.criss_cross_attention(*inputs), expected)
        inputs[place] = negative(x.detach().requires_grad_())
        assert torch.equal(crisscross.criss_cross_attention(*inputs), expected)


def test_sparse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that sparse CSR is in beta
        refuse(lambda x: x.to_sparse(), r"call x\.to_dense\(\).*sparse_coo")
        with pytest.raises(crisscross.BridgeError, match="sparse_csr"):
            crisscross.from_dlpack(draw(3, 4).to_sparse_csr())


def test_meta():
    refuse(lambda x: x.to("meta"), "got a meta tensor")


def test_quantized():
    def quantize(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the call that makes one
            return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)

    refuse(quantize, r"call x\.dequantize\(\)")


def test_fake_tensors():
    """NumPy would read garbage from them with no more than a warning."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        refuse_memory(lambda x: torch.empty(x.shape), "got a FakeTensor")
        x = torch.empty(1, 4, 3, 5)
        out, lse = crisscross.criss_cross_attention(x, x, x, return_lse=True)
    assert isinstance(out, FakeTensor) and out.shape == x.shape
    assert isinstance(lse, FakeTensor) and lse.shape == (1, 1, 3, 5)


def test_function_transforms():
    x = draw(2, 4, 3, 5)
    for transform in (torch.func.vmap, lambda f: torch.func.grad(lambda y: f(y).sum())):
        with pytest.raises(crisscross.BridgeError, match=r"outside of torch\.func"):
            transform(crisscross.from_dlpack)(x)


def test_compile():
    """A call that is not to be traced is one of NumPy between two graphs."""

    def call(x):
        return 2 * crisscross.criss_cross_attention(x, x, x)

    x = draw(1, 4, 3, 5)
    crisscross.from_dlpack(x)
    with pytest.raises(crisscross.BridgeError, match=r"torch\.compiler\.disable, got .* traced"):
        torch.compile(crisscross.from_dlpack, backend="eager")(x)

    outside = torch.compiler.disable(crisscross.criss_cross_attention)
    compiled = torch.compile(lambda x: 2 * outside(x, x, x), backend="eager")
    assert torch.equal(compiled(x), call(x))


def test_tracers_that_would_keep_a_constant():
    x = draw(1, 4, 3, 5)
    with pytest.raises(crisscross.BridgeError, match=r"outside of torch\.jit\.trace and make_fx"):
        torch.fx.experimental.proxy_tensor.make_fx(lambda y: crisscross.from_dlpack(y))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates torch.jit
        with pytest.raises(crisscross.BridgeError, match="got a tensor being traced"):
            torch.jit.trace(lambda y: crisscross.from_dlpack(y), x)


def test_forward_mode_tangents():
    """They would be dropped without a word, whether gradients are recorded or not."""
    from torch.autograd import forward_ad

    x = draw(1, 4, 3, 5)
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch loads deprecated parts of its own
            dual = forward_ad.make_dual(x, torch.ones_like(x))
        for recording in (True, False):
            with torch.set_grad_enabled(recording):
                refuse_memory(lambda _: dual, "pass on its primal, got a dual tensor")
        out = crisscross.criss_cross_attention(x, x, x)
    assert torch.equal(out, crisscross.criss_cross_attention(x, x, x))


def test_freed_storage():
    """What sharded training leaves of a parameter: sizes without memory."""

    def free(x):
        x.untyped_storage().resize_(0)
        return x

    refuse(free, "got freed storage")
    x = draw(1, 4, 3, 5)
    x.untyped_storage().resize_(x.numel() * 4 - 1)
    refuse(lambda _: x, "got freed storage")
    refuse(lambda _: torch.nn.parameter.UninitializedParameter(), "got a lazy parameter")


def test_nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a prototype
        refuse(lambda x: torch.nested.nested_tensor([x[0], x[0, :2]]), r"to_padded_tensor")


def test_subclasses_are_tensors():
    class Mine(torch.Tensor):
        pass

    x = draw(1, 4, 3, 5)
    out = crisscross.criss_cross_attention(*(x.as_subclass(Mine),) * 3)
    assert torch.equal(out, crisscross.criss_cross_attention(x, x, x))


def test_broadcast_inputs_give_compact_outputs():
    q, v = draw(6, 4, 3, 5), draw(1, 4, 3, 5).expand(6, -1, -1, -1)
    out = crisscross.criss_cross_attention(q, q, v)
    assert out.stride() == torch.empty_like(v).stride() == (60, 15, 5, 1)


THREADS = """
import sys, threading
import torch, crisscross
sys.setswitchinterval(1e-6)
x, failed = torch.ones(1, 2, 3, 4), []
def call():
    try:
        crisscross.criss_cross_attention(x, x, x)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=call) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failed)
"""


def test_the_first_call_may_come_from_many_threads(run_python):
    assert run_python(THREADS).strip() == "[]"


def test_other_objects_of_torch():
    with pytest.raises(TypeError, match=r"q: expected an array .* got torch\.nn\.modules"):
        crisscross.criss_cross_attention(torch.nn.Identity(), draw(1, 4, 3), draw(1, 4, 3))


def test_a_dtype_of_torch_alone():
    x = draw(1, 4, 3, 5).to(torch.float8_e4m3fn)
    with pytest.raises(
        crisscross.CrissCrossError, match=r"q\.dtype: expected one of .* got float8"
    ):
        crisscross.criss_cross_attention(x, x, x)
    with pytest.raises(crisscross.BridgeError, match=r"a dtype that NumPy has; call x\.to\("):
        crisscross.from_dlpack(x)


def test_negative_strides_do_not_abort_the_process():
    array = np.arange(6.0)[::-1]
    with pytest.raises(crisscross.BridgeError, match=r"strides >= 0, or copy=True, got .*-8"):
        crisscross.to_dlpack(array, "torch")
    assert torch.equal(crisscross.to_dlpack(array, "torch", copy=True), torch.tensor(array.copy()))


def test_read_only_memory_is_not_made_writable():
    array = np.arange(6.0)
    array.flags.writeable = False
    with pytest.raises(crisscross.BridgeError, match="would make it writable"):
        crisscross.to_dlpack(array, "torch")
    copied = crisscross.to_dlpack(array, "torch", copy=True)
    copied[0] = 7
    assert array[0] == 0


def test_big_endian():
    with pytest.raises(crisscross.BridgeError, match="native byte order"):
        crisscross.to_dlpack(np.arange(3, dtype=">f4"), "torch")


def test_mixed_libraries():
    x = draw(1, 4, 3, 5)
    with pytest.raises(
        TypeError, match="k: expected an array of torch like q, got an array of numpy"
    ):
        crisscross.criss_cross_attention(x, x.numpy(), x)


def test_a_dtype_is_no_example():
    with pytest.raises(TypeError, match=r"like: expected one of .* got torch\.dtype"):
        crisscross.to_dlpack(np.zeros(3), torch.float32)


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "O", [("a", "f4"), ("b", "f4")]])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_dtypes_that_no_library_shares(library, dtype):
    with pytest.raises(crisscross.BridgeError, match="expected a plain numeric dtype, got dtype"):
        crisscross.to_dlpack(np.zeros(3, dtype), library, copy=True)


def test_masked_arrays_are_not_handed_over():
    with pytest.raises(crisscross.BridgeError, match="got a masked array"):
        crisscross.to_dlpack(np.ma.masked_array(np.zeros(3), [True, False, False]), "torch")


def test_to_the_library_of_an_example():
    assert isinstance(crisscross.to_dlpack(np.zeros(3), draw(1)), torch.Tensor)
