"""The operators behind the functions: PyTorch's own checks, any memory, and nothing kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import crisscross
from crisscross.ops.operations import OPERATIONS
from crisscross.torch import CrissCrossAttention
from crisscross.torch.operators import call_operator

# PyTorch's checks load deprecated parts of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ATTENTIONS = [name for name in OPERATIONS if "attention" in name]
CCNET = [name for name in OPERATIONS if name not in ATTENTIONS]

#: Problems of attention, by what is special about them.
PROBLEMS = {
    "plain": {},
    "heads": {"heads": 2, "scale": 0.7},
    "no key": {"mask": "no key"},
    "masked": {"mask": "some", "dlse": True},
    "gradient of lse": {"dlse": True, "heads": 3},
    "channels last": {"layout": "channels_last"},
    "every second": {"layout": "strided", "dlse": True},
    "permuted": {"layout": "permuted", "mask": "some"},
    "broadcast": {"layout": "broadcast"},
    "channels at the end": {"channel_axis": -1, "heads": 2, "mask": "some"},
    "channels at the end, moved": {"channel_axis": -1, "layout": "permuted"},
    "line": {"spatial": (7,)},
    "video": {"spatial": (2, 3, 4), "axes": [-1, 0], "mask": "some", "dlse": True},
    "one axis": {"axes": [1]},
    "one row": {"spatial": (1, 5), "axes": [0]},
    "no images": {"batch": 0},
}
LAYOUTS = ["contiguous", "channels_last", "strided", "permuted", "broadcast"]


def lay_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    if layout == "strided":
        wider = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
        wider[..., ::2] = x
        return wider[..., ::2]
    if layout == "permuted":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "broadcast":
        return x[:1].expand_as(x)
    return x


def make_attention(
    name,
    *,
    batch=2,
    spatial=(3, 5),
    heads=1,
    scale=1.0,
    channel_axis=1,
    axes=None,
    mask=None,
    dlse=False,
    layout="contiguous",
    dtype=torch.float32,
    device="cpu",
):
    """All inputs of an operator of attention, in order."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels, dtype=dtype, channel_axis=channel_axis):
        x = torch.randn((batch, channels, *spatial), generator=generator, dtype=torch.float64)
        x = x.movedim(1, channel_axis).contiguous()
        return lay_out(x.to(device, dtype), layout)

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    found = {"q": draw(2 * heads), "k": draw(2 * heads), "v": draw(3 * heads)}
    found["key_mask"] = None
    if mask is not None:
        found["key_mask"] = torch.rand((batch, *spatial), generator=generator).to(device) > 0.3
        if mask == "no key":
            found["key_mask"][0] = False
    found |= {"scale": scale, "heads": heads, "channel_axis": channel_axis, "axes": axes}
    found |= {"axis": len(spatial) - 1, "include_self": False, "precision": None, "backend": None}
    if name.endswith("_backward"):
        forward = OPERATIONS[name.removesuffix("_backward")]
        inputs = [found[each] for each in (*forward.tensors, *forward.options)]
        found["out"], found["lse"] = call_operator(forward, *inputs)
        found["dout"] = draw(3 * heads)
        found["dlse"] = draw(heads, wide, 1) if dlse else None
    operation = OPERATIONS[name]
    return [found[each] for each in (*operation.tensors, *operation.options)]


def make_ccnet(name, *, layout="contiguous", dtype=torch.float32, device="cpu"):
    """All inputs of one of CCNet's operators, in order."""
    batch, height, width = 2, 3, 4
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    images = {"q": 2, "k": 2, "dq": 2, "dk": 2, "v": 5, "dout": 5}

    def draw(tensor):
        if tensor in images:
            shape, kind = (batch, images[tensor], height, width), dtype
        elif tensor == "ported":
            shape, kind = (batch, height, width, height + width), wide
        else:
            shape, kind = (batch, height + width - 1, height, width), wide
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return lay_out(x.to(device, kind), layout)

    operation = OPERATIONS[name]
    options = {"self_value": 0.5, "backend": None}
    return [*map(draw, operation.tensors), *(options[each] for each in operation.options)]


def get_operator(name):
    return getattr(torch.ops.crisscross, name).default


def require_grad(inputs):
    return [
        x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]


#: What of opcheck is quick: compilation of the derivatives of derivatives takes seconds.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


def make_inputs(name, **options):
    return (make_attention if name in ATTENTIONS else make_ccnet)(name, **options)


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name, device):
    """All of it, with what the ahead-of-time compiler makes of the operator and its gradients."""
    options = {"spatial": (3,), "axes": [0], "dlse": True} if name in ATTENTIONS else {}
    inputs = require_grad(make_inputs(name, device=device, **options))
    torch.library.opcheck(get_operator(name), inputs)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_opcheck_of_attention(name, problem, device):
    inputs = make_attention(name, **PROBLEMS[problem], device=device)
    for each in (inputs, require_grad(inputs)):
        torch.library.opcheck(get_operator(name), each, test_utils=QUICK)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CCNET)
def test_opcheck_of_ccnets_operators(name, layout, device):
    inputs = make_ccnet(name, layout=layout, device=device)
    for each in (inputs, require_grad(inputs)):
        torch.library.opcheck(get_operator(name), each, test_utils=QUICK)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck_of_dtypes(name, dtype, device):
    options = {"dlse": True, "mask": "some"} if name in ATTENTIONS else {}
    inputs = require_grad(make_inputs(name, dtype=dtype, device=device, **options))
    torch.library.opcheck(get_operator(name), inputs, test_utils=QUICK)


def list_results(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_fakes_are_what_comes_of_real_tensors(name, symbolic, device):
    """Shape, strides, dtype and device: graphs are made from these, and read memory by them."""
    special = PROBLEMS.values() if name in ATTENTIONS else [{"layout": each} for each in LAYOUTS]
    varied = [*special, *({"dtype": each} for each in DTYPES)]
    if symbolic:  # which takes long
        varied = varied[::5]
    cases = [make_inputs(name, **each, device=device) for each in varied]
    for inputs in cases:
        expected = list_results(get_operator(name)(*inputs))
        mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
        faked = [
            mode.from_tensor(x, static_shapes=not symbolic) if isinstance(x, torch.Tensor) else x
            for x in inputs
        ]
        for fake, real in zip(list_results(get_operator(name)(*faked)), expected, strict=True):
            assert tuple(map(int, fake.shape)) == real.shape
            assert tuple(map(int, fake.stride())) == real.stride()
            assert (fake.dtype, fake.device) == (real.dtype, real.device)


def test_every_gradient_is_an_operator():
    for operation in OPERATIONS.values():
        if operation.gradients is None:
            continue
        backward = OPERATIONS[operation.gradients]
        known = {*operation.tensors, *operation.outputs, *(f"d{x}" for x in operation.outputs)}
        assert {*backward.tensors} <= known
        assert backward.outputs == tuple(f"d{x}" for x in operation.wrt)
        assert backward.options == operation.options


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_have_the_memory_format_of_what_they_are_of(layout, device):
    inputs = make_attention("criss_cross_attention", layout=layout, device=device)[:3]
    expected = [torch.empty_like(x).stride() for x in inputs]
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    out = crisscross.criss_cross_attention(q, k, v)
    assert out.stride() == expected[2]
    found = torch.autograd.grad(out.sin().sum(), (q, k, v))
    assert [x.stride() for x in found] == expected


def keep(tensors, run):
    """Call, and return the result with what autograd saved for the backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = run(*tensors)
    return result, saved


def find_addresses(tensors):
    return sorted(x.data_ptr() for x in tensors)


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_is_kept_but_inputs_and_results(masked, device):
    """The very tensors, not copies of them; of the attention map, nothing."""
    mask = "some" if masked else None
    inputs = make_attention("criss_cross_attention", mask=mask, device=device)[:4]
    q, k, v, key_mask = require_grad(inputs)

    def run(q, k, v):
        return crisscross.criss_cross_attention(q, k, v, key_mask=key_mask, return_lse=True)

    (out, lse), saved = keep((q, k, v), run)
    expected = [q, k, v, out, lse] + [key_mask] * masked
    assert find_addresses(saved) == find_addresses(expected)


class Ledger(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.largest, self.names = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.name())
        for x in list_results(result):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dlse", [False, True])
def test_no_operation_makes_a_map(dlse, device):
    """Forward and backward, as PyTorch sees them: no tensor has more elements than an input."""
    shape = (1, 2, 24, 40)
    q, k, v = (torch.ones(shape, device=device, requires_grad=True) for _ in range(3))
    with Ledger() as ledger:
        out, lse = crisscross.criss_cross_attention(q, k, v, return_lse=True)
        loss = out.sum() + lse.sum() if dlse else out.sum()
        torch.autograd.grad(loss, (q, k, v))
    ours = [name for name in ledger.names if name.startswith("crisscross::")]
    assert ours == [
        "crisscross::criss_cross_attention",
        "crisscross::criss_cross_attention_backward",
    ]
    # The map would have 63 numbers a pixel.
    assert ledger.largest == q.untyped_storage().nbytes()


def test_ccnets_operators_keep_the_attention_alone(device):
    """It is what one of them returns and the next takes; energies and the sum are not kept."""
    q, k, v = (torch.ones(1, n, 3, 4, device=device, requires_grad=True) for n in (2, 2, 5))
    seen = SimpleNamespace()

    def run(q, k, v):
        seen.attention = crisscross.ca_softmax(crisscross.ca_weight(q, k))
        return crisscross.ca_map(seen.attention, v)

    _, saved = keep((q, k, v), run)
    assert {*find_addresses(saved)} == {*find_addresses([q, k, v, seen.attention])}


LOADED = """
import warnings
import torch, crisscross.torch
warnings.simplefilter("ignore")  # of deprecated parts that PyTorch loads
program = torch.export.load(PATH)
print(tuple(program.module()(torch.ones(1, 8, 3, 5)).shape))
"""


def test_an_exported_program_needs_but_the_import(run_python, tmp_path):
    """Whoever loads one calls no function of ours before: the operators are there at once."""
    path = tmp_path / "program.pt2"
    program = torch.export.export(CrissCrossAttention(8), (torch.ones(1, 8, 3, 5),))
    torch.export.save(program, path)
    assert run_python(LOADED.replace("PATH", repr(str(path)))) == "(1, 8, 3, 5)\n"


WRONG = {
    "heads": lambda q: crisscross.criss_cross_attention(q, q, q, heads=1.5),
    "heads, a truth": lambda q: crisscross.criss_cross_attention(q, q, q, heads=True),
    "heads that do not fit": lambda q: crisscross.criss_cross_attention(q, q, q, heads=3),
    "scale": lambda q: crisscross.criss_cross_attention(q, q, q, scale="x"),
    "scale, infinite": lambda q: crisscross.criss_cross_attention(q, q, q, scale=1e999),
    "scale, too large": lambda q: crisscross.criss_cross_attention(q, q, q, scale=10**999),
    "axes": lambda q: crisscross.criss_cross_attention(q, q, q, axes=2.5),
    "axes, letters": lambda q: crisscross.criss_cross_attention(q, q, q, axes="ab"),
    "axes, none": lambda q: crisscross.criss_cross_attention(q, q, q, axes=()),
    "axes, a truth": lambda q: crisscross.criss_cross_attention(q, q, q, axes=(True,)),
    "axes, twice": lambda q: crisscross.criss_cross_attention(q, q, q, axes=(0, -2)),
    "channel_axis": lambda q: crisscross.criss_cross_attention(q, q, q, channel_axis=2),
    "precision": lambda q: crisscross.criss_cross_attention(q, q, q, precision=3),
    "backend": lambda q: crisscross.criss_cross_attention(q, q, q, backend=3),
    "return_lse": lambda q: crisscross.criss_cross_attention(q, q, q, return_lse="no"),
    "key_mask": lambda q: crisscross.criss_cross_attention(q, q, q, key_mask=3),
    "no array": lambda q: crisscross.criss_cross_attention(q, None, q),
    "shape": lambda q: crisscross.criss_cross_attention(q, q[:, :2], q[..., 1:]),
    "axis": lambda q: crisscross.axial_attention(q, q, q, axis=True),
    "include_self": lambda q: crisscross.axial_attention(q, q, q, axis=0, include_self=3),
    "unknown": lambda q: crisscross.criss_cross_attention(q, q, q, head=2),
    "one too many": lambda q: crisscross.criss_cross_attention(q, q, q, None),
    "one too few": lambda q: crisscross.criss_cross_attention(q, q),
    "one twice": lambda q: crisscross.criss_cross_attention(q, q, q, q=q),
    "self_value": lambda q: crisscross.to_port_layout(q, self_value="x"),
    "merged, no lists": lambda q: crisscross.merge_attentions(q, q),
    "merged, lengths": lambda q: crisscross.merge_attentions([q, q], [q]),
    "merged, shapes": lambda q: crisscross.merge_attentions([q, q], [q[:, :1], q[:, :2]]),
    "merged, heads": lambda q: crisscross.merge_attentions([q, q], [q[:, :3]] * 2),
    "merged, layout": lambda q: crisscross.merge_attentions([q], [q], channel_axis=3),
    "merged, backend": lambda q: crisscross.merge_attentions([q], [q], backend="tpu"),
    "merged, unknown": lambda q: crisscross.merge_attentions([q], [q], heads=1),
    "position": lambda q: crisscross.attention_map(q, q, at=(9, 9)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_as_for_any_array(name):
    """With gradients and within transforms the error is that of NumPy arrays, to the word."""
    x = torch.ones(2, 4, 3, 2)
    with pytest.raises((crisscross.CrissCrossError, TypeError)) as expected:
        WRONG[name](x.numpy())
    for run in (WRONG[name], torch.func.grad(WRONG[name])):
        for requires_grad in (False, True):
            with pytest.raises(type(expected.value)) as found:
                run(x.clone().requires_grad_(requires_grad))
            assert str(found.value).replace("Tensor", "ndarray") == str(expected.value)
