"""Plain PyTorch, where it stands in for the operators: the same values, and the same refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, jvp, vmap

import crisscross
from crisscross.errors import CrissCrossError
from crisscross.ops.operations import OPERATIONS
from crisscross.torch.operators import call_composite, call_operator

#: Relative to the largest value.
BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def draw(*shape, device="cpu", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def assert_close(actual, expected, dtype):
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        finite = torch.isfinite(other)
        assert torch.equal(one[~finite], other[~finite])
        one, other = one[finite].double(), other[finite].double()
        if other.numel():
            assert (one - other).abs().max() <= BOUNDS[dtype] * max(1, other.abs().max())


def list_attention():
    spatial = {1: (6,), 2: (5, 3), 3: (2, 3, 4)}
    for ndim, channel_axis, heads, masked in itertools.product((1, 2, 3), (1, -1), (1, 2), (0, 1)):
        for axes in {None, (0,), (-1,), (0, ndim - 1)} if ndim > 1 else {None, (0,)}:
            yield spatial[ndim], channel_axis, heads, axes, bool(masked)


def make(spatial, channel_axis, masked, dtype, device):
    def lay(x):
        return x if channel_axis == 1 else x.movedim(1, -1).contiguous()

    options = {"device": device, "dtype": dtype}
    q, k = (lay(draw(2, 4, *spatial, **options, seed=seed)) for seed in (0, 1))
    v = lay(draw(2, 6, *spatial, **options, seed=2))
    mask = torch.rand(2, *spatial, generator=torch.Generator().manual_seed(3)) < 0.6
    return q, k, v, mask.to(device) if masked else None


@pytest.mark.parametrize("dtype", BOUNDS)
def test_attention(dtype, device):
    for spatial, channel_axis, heads, axes, masked in list_attention():
        q, k, v, mask = make(spatial, channel_axis, masked, dtype, device)
        forward = OPERATIONS["criss_cross_attention"]
        options = (0.7, heads, channel_axis, axes, None, None)
        out, lse = call_operator(forward, q, k, v, mask, *options)
        assert_close(call_composite(forward, q, k, v, mask, *options), (out, lse), dtype)
        dout, dlse = torch.ones_like(out), torch.where(lse.isneginf(), 0.0, lse)
        given = (dout, q, k, v, out, lse, dlse, mask, *options)
        backward = OPERATIONS["criss_cross_attention_backward"]
        assert_close(call_composite(backward, *given), call_operator(backward, *given), dtype)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axial_attention(axis, include_self, device):
    q, k, v, mask = make((5, 3), 1, True, torch.float64, device)
    forward, backward = (OPERATIONS[f"axial_attention{end}"] for end in ("", "_backward"))
    options = (0.7, 2, 1, axis, include_self, None, None)
    out, lse = call_operator(forward, q, k, v, mask, *options)
    assert_close(call_composite(forward, q, k, v, mask, *options), (out, lse), torch.float64)
    given = (torch.ones_like(out), q, k, v, out, lse, None, mask, *options)
    assert_close(call_composite(backward, *given), call_operator(backward, *given), torch.float64)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("size", [(40, 30), (1, 4), (3, 1), (1, 1)])
def test_ccnets_operators(size, dtype, device):
    """Of many keys: sums of 16-bit numbers are those of float32."""
    options = {"device": device, "dtype": dtype}
    q, k, v, dout = (draw(2, 4, *size, **options, seed=seed) + 1 for seed in range(4))
    energy = crisscross.ca_weight(q, k)
    attention = crisscross.ca_softmax(energy / 10)
    denergy = draw(*energy.shape, device=device, dtype=energy.dtype, seed=5)
    ported = crisscross.to_port_layout(energy, self_value=-2.0)
    for name, inputs in {
        "ca_weight": (q, k, None),
        "ca_weight_backward": (denergy, q, k, None),
        "ca_softmax": (energy, None),
        "ca_softmax_backward": (denergy, attention, None),
        "ca_map": (attention, v, None),
        "ca_map_backward": (dout, attention, v, None),
        "to_port_layout": (energy, -2.0, None),
        "from_port_layout": (ported, None),
    }.items():
        expected = call_operator(OPERATIONS[name], *inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert_close(call_composite(OPERATIONS[name], *inputs), expected, dtype)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_merging(dtype, channel_axis, device):
    """Of tensors that require grad, and of those that do not: one of them without any key."""
    q, k, v, _ = make((5, 3), channel_axis, False, dtype, device)
    options = {"heads": 2, "channel_axis": channel_axis, "return_lse": True}
    parts = [
        crisscross.axial_attention(q, k, v, axis=0, **options),
        crisscross.axial_attention(q, k, v, axis=1, include_self=False, **options),
    ]
    parts.append((torch.full_like(v, torch.nan), torch.full_like(parts[0][1], -torch.inf)))
    outs, lses = zip(*parts, strict=True)
    expected = crisscross.merge_attentions(outs, lses, channel_axis=channel_axis)
    needing = [lse.clone().requires_grad_() for lse in lses]
    found = crisscross.merge_attentions(outs, needing, channel_axis=channel_axis)
    assert found[0].grad_fn is not None
    assert_close([x.detach() for x in found], expected, dtype)


def push_twice(function):
    """Forward mode within forward mode, which the composite serves."""
    return lambda x: jvp(lambda y: jvp(function, (y,), (y,))[1], (x,), (x,))[1]


WRONG = {
    "images": lambda q: crisscross.criss_cross_attention(q, q[:1], q[:1]),
    "axis": lambda q: crisscross.axial_attention(q, q, q, axis=5),
    "an axis twice": lambda q: crisscross.criss_cross_attention(q, q, q, axes=(0, -2)),
    "channel_axis": lambda q: crisscross.criss_cross_attention(q, q, q, channel_axis=2),
    "backend": lambda q: crisscross.criss_cross_attention(q, q, q, backend="tpu"),
    "heads": lambda q: crisscross.criss_cross_attention(q, q, q, heads=3),
    "the mask's shape": lambda q: crisscross.criss_cross_attention(
        q, q, q, key_mask=torch.ones(1, 1, 5, dtype=torch.bool)
    ),
    "the mask's dtype": lambda q: crisscross.criss_cross_attention(
        q, q, q, key_mask=torch.ones(2, 3, 5)
    ),
    "dtypes": lambda q: crisscross.criss_cross_attention(q, q, q.float()),
    "images of a map": lambda q: crisscross.ca_weight(q, q[:1]),
    "parts": lambda q: crisscross.merge_attentions([q, q[:1]], [q[:, :1], q[:1, :1]])[0],
    "a map's gradient": lambda q: crisscross.ca_map_backward(q[:1], crisscross.ca_weight(q, q), q)[
        1
    ],
    "self_value": lambda q: crisscross.to_port_layout(
        crisscross.ca_weight(q.float(), q.float()), self_value=1e39
    ),
    "backend of parts": lambda q: crisscross.merge_attentions([q], [q[:, :1]], backend="tpu")[0],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_are_refused_as_everywhere(name):
    q = draw(2, 4, 3, 5)
    with pytest.raises(CrissCrossError) as plain:
        WRONG[name](q)
    with pytest.raises(CrissCrossError) as composite:
        push_twice(WRONG[name])(q)
    assert str(composite.value) == str(plain.value)
    compiled = torch.compile(
        grad(lambda q: WRONG[name](q).sum()), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception):  # noqa: B017, PT011 (in words of the compiler's)
        compiled(q)


#: Calls that are refused before anything is asked of the arrays.
UNREAD = {
    "scale": lambda q, k: crisscross.criss_cross_attention(q, k, k, scale="1"),
    "heads": lambda q, k: crisscross.criss_cross_attention(q, k, k, heads=1.0),
    "axes": lambda q, k: crisscross.criss_cross_attention(q, k, k, axes=0),
    "return_lse": lambda q, k: crisscross.criss_cross_attention(q, k, k, return_lse=1),
    "an array": lambda q, k: crisscross.criss_cross_attention(q, k, 3.0),
    "the mask": lambda q, k: crisscross.criss_cross_attention(q, k, k, key_mask=np.ones((2, 3, 5))),
    "backend": lambda q, k: crisscross.ca_weight(q, k, backend=3),
    "self_value": lambda q, k: crisscross.to_port_layout(crisscross.ca_weight(q, k), self_value=""),
    "parts": lambda q, k: crisscross.merge_attentions([q, k], [q, k, 3])[0],
    "no list": lambda q, k: crisscross.merge_attentions(k, [q])[0],
    "an argument twice": lambda q, k: crisscross.merge_attentions([q], [q], outs=[k])[0],
    "unknown": lambda q, k: crisscross.merge_attentions([q], [k], axis=1)[0],
    "missing": lambda q, k: crisscross.criss_cross_attention(q, k),
}
TRANSFORMS = {
    "autograd": lambda run: lambda q: run(q.clone().requires_grad_()),
    "grad": lambda run: grad(lambda q: run(q).sum()),
    "grad of vmap": lambda run: grad(lambda q: vmap(run)(q[None]).sum()),
    "jvp": lambda run: lambda q: jvp(run, (q,), (q,)),
    "jvp of jvp": push_twice,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", UNREAD)
def test_only_what_is_wrong_is_named_within_transforms(name, transform):
    """What is shared by all samples and has no derivative included."""
    q, k = draw(2, 4, 3, 5), draw(2, 4, 3, 5, seed=1)
    with pytest.raises((CrissCrossError, TypeError)) as plain:
        UNREAD[name](q, k)
    with pytest.raises(type(plain.value)) as transformed:
        TRANSFORMS[transform](lambda q: UNREAD[name](q, k))(q)
    if name != "no list":  # a tensor, which is written as what it is
        assert str(transformed.value) == str(plain.value)


def test_what_saw_no_key_has_no_gradient():
    """Whatever comes back to it, by the composite as by the operator."""
    q, k, v = (draw(2, 4, 3, 5, seed=seed) for seed in range(3))
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0] = False
    options = {"key_mask": mask, "return_lse": True}
    out, lse = crisscross.criss_cross_attention(q, k, v, **options)
    dout, dlse = torch.ones_like(out), torch.ones_like(lse)
    dout[0], dlse[0] = torch.nan, torch.nan

    def pull(q):
        return crisscross.criss_cross_attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, key_mask=mask
        )

    kept = []
    push_twice(lambda q: kept.append(pull(q)) or q)(q)
    for x, expected in zip(kept[0], pull(q), strict=True):
        plain = x
        while torch._C._functorch.is_functorch_wrapped_tensor(plain):
            plain = torch._C._functorch.get_unwrapped(plain)
        torch.testing.assert_close(plain, expected)
        assert (expected[0] == 0).all()


FORMATS = {"row-major": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_memory_format_stays_with_gradients(memory_format):
    """Of what plain PyTorch makes, as of what the operators do."""
    parts = [draw(2, 6, 3, 5, seed=seed) for seed in range(2)]
    parts = [x.contiguous(memory_format=FORMATS[memory_format]) for x in parts]
    lses = [draw(2, 2, 3, 5, seed=seed) for seed in range(2, 4)]
    plain = crisscross.merge_attentions(parts, lses)[0]
    assert plain.is_contiguous(memory_format=FORMATS[memory_format])
    merge = torch.compile(crisscross.merge_attentions, fullgraph=True, backend="aot_eager")
    found = [
        merge(parts, lses)[0],
        crisscross.merge_attentions([parts[0].requires_grad_(), parts[1]], lses)[0],
    ]
    v, (q, k) = parts[1], (x[:, :4] for x in parts)
    found.append(push_twice(lambda v: crisscross.criss_cross_attention(q, k, v, heads=2))(v))
    weights = crisscross.ca_weight(q, k).detach()
    for x in found:
        assert x.stride() == plain.stride()
    mapped = []
    push_twice(lambda v: mapped.append(crisscross.ca_map(weights, v).stride()) or v)(v)
    assert mapped == [v.stride()]


@pytest.mark.parametrize("transform", [push_twice, lambda f: lambda x: jvp(f, (x,), (x,))[1], vmap])
def test_no_positions(transform, device):
    q = draw(2, 1, 4, 0, 5, device=device)
    out = transform(lambda q: crisscross.criss_cross_attention(q, q, q))(
        q if transform is vmap else q[0]
    )
    assert out.shape == (q if transform is vmap else q[0]).shape


def test_axes_that_are_walked_through_once():
    q = draw(1, 4, 3, 5)
    found, expected = (
        push_twice(lambda q, axes=axes: crisscross.criss_cross_attention(q, q, q, axes=axes))(q)
        for axes in (iter((1,)), (1,))
    )
    assert torch.equal(found, expected)


def test_a_scale_that_has_a_gradient_is_refused():
    """It would be lost: multiply q by it."""
    scale = torch.nn.Parameter(torch.tensor(0.7))
    q = draw(1, 4, 3, 5).requires_grad_()
    for x in (q, q.detach()):
        with pytest.raises(CrissCrossError, match="scale: expected a real number, got "):
            crisscross.criss_cross_attention(x, x, x, scale=scale)
    with pytest.raises(CrissCrossError, match="heads: expected an integer"):
        crisscross.criss_cross_attention(q, q, q, heads=torch.tensor(2.0))


@pytest.mark.parametrize("needs_grad", [True, False])
def test_options_are_those_that_the_function_takes(needs_grad):
    """No more, no fewer, whether there is a gradient or not; and what is taken keeps it."""
    q = draw(1, 4, 3, 5).requires_grad_(needs_grad)
    expected = crisscross.criss_cross_attention(q, q, q, heads=2, axes=(0,))
    for heads, axes in ((torch.tensor(2), [0]), (2, iter((0,)))):
        out = crisscross.criss_cross_attention(q, q, q, heads=heads, axes=axes)
        assert (out.grad_fn is not None) == needs_grad
        assert torch.equal(out, expected)
    for axes in ({0: 1}, "0", 0):
        with pytest.raises(CrissCrossError, match="axes: expected None or a tuple of integers"):
            crisscross.criss_cross_attention(q, q, q, axes=axes)


def test_parts_that_are_none_are_named_with_gradients_too():
    q = draw(1, 4, 3, 5).requires_grad_()
    for wrong in ([q, q.detach().numpy()], [q, 3]):
        with pytest.raises(CrissCrossError) as caught:
            crisscross.merge_attentions(wrong, [q[:, :1], q[:, :1]])
        assert {mismatch.argument for mismatch in caught.value.mismatches} == {"outs[1]"}


@pytest.mark.parametrize(
    "call",
    [
        lambda q: crisscross.criss_cross_attention(scale=0.5, q=q, k=q, v=q),
        lambda q: crisscross.axial_attention(axis=0, key_mask=None, q=q, k=q, v=q),
        lambda q: crisscross.ca_weight(backend=None, q=q, k=q),
        lambda q: crisscross.merge_attentions(channel_axis=1, outs=[q], lses=[q[:, :1]])[0],
    ],
)
def test_the_order_of_keywords_does_not_matter(call):
    q = draw(1, 4, 3, 5).requires_grad_()
    assert call(q).grad_fn is not None


def test_autocast_casts_numbers_alone():
    q = torch.ones(1, 4, 3, 5, dtype=torch.int64)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(CrissCrossError, match=r"q\.dtype: expected one of .*, got int64"),
    ):
        crisscross.criss_cross_attention(q, q, q)


def test_the_backend_is_handed_on(monkeypatch):
    """On every route that has one."""
    asked = []
    choose = crisscross.ops.call.recall_choice

    def watch(function, device, backend, library):
        asked.append(backend)
        return choose(function, device, backend, library)

    monkeypatch.setattr(crisscross.ops.call, "recall_choice", watch)
    q = draw(1, 4, 3, 5).requires_grad_()
    out = crisscross.criss_cross_attention(q, q, q, backend="reference")
    out.sum().backward()
    crisscross.criss_cross_attention(q.detach(), q.detach(), q.detach(), backend="reference")
    vmap(lambda q: crisscross.ca_weight(q, q, backend="reference"))(q.detach()[None])
    assert asked == ["reference"] * 4


def test_fake_tensors_of_a_device_that_is_not_there():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(1, 4, 3, 5, device="cuda")
        assert crisscross.criss_cross_attention(q, q, q).device.type == "cuda"


def test_explain_while_compiling():
    q = draw(1, 4, 3, 5)
    told = []

    def call(q):
        told.append(crisscross.explain(q, q, q).backend)
        return q * 2

    torch.compile(call, backend="aot_eager")(q)
    assert set(told) == {"cpu"}
