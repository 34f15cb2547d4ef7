"""Derivatives of every function: against differences, against CCNet's definition, and twice."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import crisscross

# Checks of forward mode load deprecated parts of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def draw(*shapes, device="cpu", dtype=torch.float64, seed=0):
    """Leaves of several shapes, with values that are large enough to tell keys apart."""
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [x.to(device, dtype).requires_grad_() for x in made]


def make_mask(shape, device, hidden=()):
    """A mask of keys, with images that have none at all, as well as lonely positions."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    for image in hidden:
        mask[image] = False
    return mask.to(device)


def put_zero(lse):
    """Hide -inf, which has no differences."""
    return torch.where(lse.isinf(), 0.0, lse)


def check(run, inputs, **options):
    """First and second derivatives: both modes, one over the other, and many at once."""
    assert gradcheck(
        run,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
        **options,
    )
    assert gradgradcheck(
        run, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True, **options
    )


#: Attention by spatial sizes and options: odd, rectangular, of one to three axes.
ATTENTIONS = {
    "plain": ((3, 5), {}),
    "heads and scale": ((2, 3), {"heads": 2, "scale": -0.7}),
    "masked": ((3, 2), {"mask": True, "heads": 2}),
    "one axis": ((3, 4), {"axes": (1,), "mask": True}),
    "channels at the end": ((2, 3), {"channel_axis": -1, "heads": 2, "mask": True}),
    "line": ((5,), {"scale": 0.3}),
    "video": ((2, 3, 2), {"axes": (0, -1), "mask": True}),
    "one row": ((1, 4), {}),
    "one pixel": ((1, 1), {}),
}


def make_problem(name, device):
    """q, k and v, the options of the call, and the shape of lse."""
    spatial, options = ATTENTIONS[name]
    options = dict(options)
    heads, channel_axis = options.get("heads", 1), options.get("channel_axis", 1)
    if options.pop("mask", False):
        options["key_mask"] = make_mask((2, *spatial), device, hidden=[0])

    def shape(channels):
        return (2, channels, *spatial) if channel_axis == 1 else (2, *spatial, channels)

    inputs = draw(shape(2 * heads), shape(2 * heads), shape(3 * heads), device=device)
    return inputs, options, (2, heads, *spatial)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name, device):
    """Of out and of lse, whose gradients are real ones."""
    inputs, options, _ = make_problem(name, device)

    def run(q, k, v):
        out, lse = crisscross.criss_cross_attention(q, k, v, **options, return_lse=True)
        return out, put_zero(lse)

    check(run, inputs)


def test_every_entry_of_the_jacobian(device):
    """Not only along random directions, as elsewhere."""
    inputs = draw((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3), device=device)
    run = functools.partial(crisscross.criss_cross_attention, return_lse=True)
    assert gradcheck(run, inputs, check_forward_ad=True)
    assert gradgradcheck(run, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("which", [(True, False), (False, True)])
def test_one_of_the_results(which, device):
    """Where only out or only lse is used, the other has no gradient, not one of zeros."""
    inputs = draw((1, 2, 3, 2), (1, 2, 3, 2), (1, 3, 3, 2), device=device)

    def run(q, k, v):
        found = crisscross.criss_cross_attention(q, k, v, return_lse=True)
        return tuple(x for x, used in zip(found, which, strict=True) if used)

    used = inputs if which[0] else inputs[:2]
    check(lambda *moved: run(*moved, *inputs[len(moved) :]), used)
    if not which[0]:
        dv = torch.autograd.grad(run(*inputs)[0].sum(), inputs[2], allow_unused=True)[0]
        assert dv is None or not dv.any()


@pytest.mark.parametrize("wrt", range(3))
def test_one_of_the_inputs(wrt, device):
    """The others are constants: they have neither gradients nor tangents."""
    inputs = draw((1, 2, 3, 2), (1, 2, 3, 2), (1, 3, 3, 2), device=device)
    fixed = [x.detach() for x in inputs]

    def run(moved):
        given = [*fixed[:wrt], moved, *fixed[wrt + 1 :]]
        return crisscross.criss_cross_attention(*given, return_lse=True)

    check(run, [inputs[wrt]])


def test_one_tensor_in_every_place(device):
    (x,) = draw((1, 2, 3, 2), device=device)
    check(lambda x: crisscross.criss_cross_attention(x, x, x), [x])


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
def test_axial_attention(axis, include_self, device):
    inputs = draw((2, 4, 3, 2), (2, 4, 3, 2), (2, 2, 3, 2), device=device)
    options = {"axis": axis, "include_self": include_self, "heads": 2, "scale": 0.8}
    options["key_mask"] = make_mask((2, 3, 2), device, hidden=[1])

    def run(q, k, v):
        out, lse = crisscross.axial_attention(q, k, v, **options, return_lse=True)
        return out, put_zero(lse)

    check(run, inputs)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_merging(channel_axis, device):
    """Of three parts, one of them without keys here and there."""
    shape = (2, 4, 3, 2) if channel_axis == 1 else (2, 3, 2, 4)
    inputs = draw(shape, shape, shape, *[(2, 2, 3, 2)] * 3, device=device)
    hole = make_mask((2, 2, 3, 2), device)

    def run(*parts):
        lses = [*parts[3:5], torch.where(hole, parts[5], -torch.inf)]
        return crisscross.merge_attentions(parts[:3], lses, channel_axis=channel_axis)

    check(run, inputs)


def test_merged_parts_have_the_derivatives_of_the_whole(device):
    """Of the second order, too: rows and columns without self make up criss-cross attention."""
    inputs = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device)

    def in_parts(q, k, v):
        row = crisscross.axial_attention(q, k, v, axis=1, return_lse=True)
        column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, return_lse=True)
        return crisscross.merge_attentions([row[0], column[0]], [row[1], column[1]])

    def differentiate(run):
        out, lse = run(*inputs)
        first = torch.autograd.grad(out.sin().sum() + lse.cos().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), inputs)
        return [out, lse, *first, *second]

    whole = functools.partial(crisscross.criss_cross_attention, return_lse=True)
    for found, expected in zip(differentiate(in_parts), differentiate(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


MAP = (2, 4, 3, 2)  # of images of 3 x 2
IMAGES = (2, 2, 3, 2)

#: Functions that are given tensors alone, with their shapes.
OTHERS = {
    "ca_weight": (crisscross.ca_weight, [IMAGES, IMAGES]),
    "ca_softmax": (crisscross.ca_softmax, [MAP]),
    "ca_map": (crisscross.ca_map, [MAP, IMAGES]),
    "ca_weight_backward": (crisscross.ca_weight_backward, [MAP, IMAGES, IMAGES]),
    "ca_softmax_backward": (crisscross.ca_softmax_backward, [MAP, MAP]),
    "ca_map_backward": (crisscross.ca_map_backward, [IMAGES, MAP, IMAGES]),
    "to_port_layout": (functools.partial(crisscross.to_port_layout, self_value=0.5), [MAP]),
    "from_port_layout": (crisscross.from_port_layout, [(2, 3, 2, 5)]),
    "attention_map": (
        functools.partial(crisscross.attention_map, at=[(1, 1), (-1, 0)], heads=2, scale=0.7),
        [IMAGES, IMAGES],
    ),
    "compose_attention": (
        lambda *x: crisscross.compose_attention([x[:2], x[2:]], at=(1, 1), scale=0.7),
        [IMAGES] * 4,
    ),
    "attention_entropy": (
        functools.partial(crisscross.attention_entropy, scale=0.7, heads=2),
        [IMAGES, IMAGES],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions(name, device):
    run, shapes = OTHERS[name]
    check(run, draw(*shapes, device=device))


@pytest.mark.parametrize("name", ["attention_map", "compose_attention", "attention_entropy"])
def test_maps_of_positions_without_keys(name, device):
    run, shapes = OTHERS[name]
    mask = make_mask((2, 3, 2), device, hidden=[1])
    if name == "compose_attention":

        def run(*x):
            return crisscross.compose_attention([x[:2], x[2:]], at=(1, 1), key_mask=mask)
    else:
        run = functools.partial(run, key_mask=mask)
    check(run, draw(*shapes, device=device))


@pytest.mark.parametrize(
    ("name", "with_dlse"),
    [("plain", False), ("one row", True), ("masked", True), ("channels at the end", True)],
)
def test_the_backward_itself(name, with_dlse, device):
    """As a function of all that it is given: out and lse are no constants."""
    (q, k, v), options, shape = make_problem(name, device)
    out, lse = crisscross.criss_cross_attention(q, k, v, **options, return_lse=True)
    known = ~lse.detach().isinf()
    dout, dlse = draw(v.shape, shape, device=device, seed=2)
    inputs = [dout, q, k, v, out.detach().requires_grad_()]
    inputs += [put_zero(lse).detach().requires_grad_(), *[dlse] * with_dlse]

    def run(dout, q, k, v, out, lse, dlse=None):
        lse = torch.where(known, lse, -torch.inf)
        return crisscross.criss_cross_attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, **options
        )

    check(run, inputs)


def test_the_backward_along_one_axis(device):
    """Of the merged out and lse, of which each part has its share."""
    dout, q, k, v, out = draw(*[(1, 2, 3, 2)] * 5, device=device)
    lse, dlse = draw((1, 1, 3, 2), (1, 1, 3, 2), device=device, seed=2)

    def run(dout, q, k, v, out, lse, dlse):
        return crisscross.axial_attention_backward(
            dout, q, k, v, out, lse, axis=0, include_self=False, dlse=dlse
        )

    check(run, [dout, q, k, v, out, lse, dlse])


# CCNet's definition, as its ports in PyTorch have it


def attend_as_ccnet(q, k, v):
    """`CrissCrossAttention.forward` between its convolutions: permute, bmm, and -inf at self."""
    n, _, height, width = q.shape

    def by_columns(x):
        return x.permute(0, 3, 1, 2).reshape(n * width, -1, height)

    def by_rows(x):
        return x.permute(0, 2, 1, 3).reshape(n * height, -1, width)

    itself = torch.full((height,), -torch.inf, dtype=q.dtype, device=q.device).diag()
    itself = itself.masked_fill(itself.isnan(), 0.0)
    column = torch.bmm(by_columns(q).permute(0, 2, 1), by_columns(k)) + itself
    column = column.view(n, width, height, height).permute(0, 2, 1, 3)
    row = torch.bmm(by_rows(q).permute(0, 2, 1), by_rows(k)).view(n, height, width, width)
    energies = torch.cat([column, row], 3)
    weights = energies.softmax(3)
    column = weights[..., :height].permute(0, 2, 1, 3).reshape(n * width, height, height)
    row = weights[..., height:].reshape(n * height, width, width)
    out = torch.bmm(by_columns(v), column.permute(0, 2, 1)).view(n, width, -1, height)
    out = out.permute(0, 2, 3, 1)
    out = out + torch.bmm(by_rows(v), row.permute(0, 2, 1)).view(n, height, -1, width).movedim(1, 2)
    return out, energies.logsumexp(3)[:, None]


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (5, 7), (9, 4), (13, 11)])
def test_agreement_with_ccnets_definition(size, device):
    """The whole block, gamma and all: outputs, all gradients, and theirs, to their rounding."""
    channels = 6
    x, *weights = draw(
        (2, channels, *size), (2, channels), (2, channels), (channels, channels), device=device
    )
    gamma = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    leaves = [x, *weights, gamma]
    up, sideways = draw(x.shape, (2, 1, *size), device=device, seed=3)

    def differentiate(attend):
        q, k, v = (torch.einsum("oc,ncyx->noyx", w, x) for w in weights)
        out, lse = attend(q, k, v)
        y = gamma * out + x
        loss = (y * up).sum() + (lse * sideways).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        return [x.detach() for x in (y, lse, *first)], second

    ours = functools.partial(crisscross.criss_cross_attention, return_lse=True)
    found, expected = differentiate(ours), differentiate(attend_as_ccnet)
    for each, exacts, tolerance in zip(found, expected, (1e-12, 1e-11), strict=True):
        for actual, exact in zip(each, exacts, strict=True):
            scale = max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(actual, exact, rtol=0, atol=tolerance * scale)


def test_what_hidden_keys_hold_is_never_read(device):
    """NaN there reaches no derivative, of the second order, of a tangent, or of anything."""
    inputs = draw((2, 2, 3, 5), (2, 2, 3, 5), (2, 3, 3, 5), device=device)
    mask = make_mask((2, 3, 5), device, hidden=[0])

    def differentiate(fill):
        q, k, v = inputs
        k, v = (torch.where(mask[:, None], x, fill).detach().requires_grad_() for x in (k, v))
        run = functools.partial(crisscross.criss_cross_attention, key_mask=mask)
        first = torch.autograd.grad(run(q, k, v).sin().sum(), (q, k, v), create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), (q, k, v))
        assert not any((x * ~mask[:, None]).any() for x in first[1:])
        return *first, *second, torch.func.jvp(run, (q, k, v), (q, q, inputs[2]))[1]

    for found, expected in zip(differentiate(torch.nan), differentiate(0.0), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_third_derivatives(device):
    inputs = draw((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3), device=device)

    def differentiate(attend):
        out, lse = attend(*inputs)
        found = [out.sin().sum() + lse.cos().sum()]
        for _ in range(3):
            loss = sum(x.sin().sum() for x in found)
            found = torch.autograd.grad(loss, inputs, create_graph=True)
        return found

    ours = functools.partial(crisscross.criss_cross_attention, return_lse=True)
    for actual, exact in zip(differentiate(ours), differentiate(attend_as_ccnet), strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_in_the_dtype_of_what_they_are_of(dtype, device):
    """Second ones as well; to the rounding of the dtype, those of float64."""
    inputs = draw((1, 2, 5, 7), (1, 2, 5, 7), (1, 3, 5, 7), device=device, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def differentiate(inputs):
        out, lse = crisscross.criss_cross_attention(*inputs, return_lse=True)
        first = torch.autograd.grad(out.sum() + lse.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), inputs)
        return out, *first, *second

    tolerance = 16 * torch.finfo(dtype).eps
    for found, expected in zip(differentiate(inputs), differentiate(exact), strict=True):
        assert found.dtype is dtype
        error = (found.double() - expected).abs().max()
        assert error <= tolerance * expected.abs().max()
