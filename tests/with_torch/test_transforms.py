"""torch.func and forward mode: as autograd, and as a loop over samples, would have it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import crisscross
from crisscross.torch import ChannelAttention, CrissCrossAttention, NonLocalBlock

# Transforms load deprecated parts of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ALL = (0, 1, 2)


def draw(*shapes, device="cpu", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple(x.to(device, dtype) for x in made)


def draw_mask(*shape, device="cpu"):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask.to(device)


def assert_equal(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


attend = functools.partial(crisscross.criss_cross_attention, return_lse=True)


def find_loss(q, k, v):
    """A number that depends on out and lse, nonlinearly."""
    out, lse = attend(q, k, v)
    return out.sin().sum() + lse.cos().sum()


def differentiate(loss, inputs):
    """Gradients by autograd itself."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


def loop(function, *inputs):
    """Call sample by sample, and stack the results."""
    found = [function(*sample) for sample in zip(*inputs, strict=True)]
    if isinstance(found[0], torch.Tensor):
        return torch.stack(found)
    return tuple(map(torch.stack, zip(*found, strict=True)))


def test_grad(device):
    inputs = draw((2, 2, 3, 5), (2, 2, 3, 5), (2, 3, 3, 5), device=device)
    assert_equal(grad(find_loss, ALL)(*inputs), differentiate(find_loss, inputs))


def test_vmap_of_any_axes(device):
    q, k, v = draw((3, 2, 4, 3, 5), (3, 2, 4, 3, 5), (3, 2, 6, 3, 5), device=device)
    run = functools.partial(attend, heads=2, scale=0.7)
    expected = loop(run, q, k, v)
    assert_equal(vmap(run)(q, k, v), expected)
    moved = q.movedim(0, 1), k, v.movedim(0, -1)
    assert_equal(vmap(run, in_dims=(1, 0, -1))(*moved), expected)
    out, lse = vmap(run, out_dims=(1, -1))(q, k, v)
    assert_equal((out.movedim(1, 0), lse.movedim(-1, 0)), expected)
    assert_equal(vmap(run, chunk_size=2)(q, k, v), expected)


def test_vmap_of_some(device):
    """What is not mapped over is the same for all samples; a mask is mapped or is not."""
    q, k, v = draw((3, 2, 2, 3, 5), (2, 2, 3, 5), (2, 3, 3, 5), device=device)
    masks = draw_mask(3, 2, 3, 5, device=device)

    def run(q, k, v, mask):
        return attend(q, k, v, key_mask=mask)

    found = vmap(run, in_dims=(0, None, None, None))(q, k, v, masks[0])
    assert_equal(found, loop(lambda x: run(x, k, v, masks[0]), q))
    found = vmap(run, in_dims=(None, None, None, 0))(q[0], k, v, masks)
    assert_equal(found, loop(lambda mask: run(q[0], k, v, mask), masks))


def test_nested_vmap(device):
    q, k = draw((2, 3, 1, 2, 3, 5), (3, 2, 1, 2, 3, 5), device=device)
    (v,) = draw((1, 3, 3, 5, 2), device=device)
    found = vmap(vmap(attend, (0, 0, None)), (0, 1, -1))(q, k, v)
    for i in range(2):
        for j in range(3):
            expected = attend(q[i, j], k[j, i], v[..., i])
            assert_equal((found[0][i, j], found[1][i, j]), expected)


@pytest.mark.parametrize("empty", [(0, 2), (2, 0)])
def test_vmap_of_nothing(empty, device):
    """Of no samples, or of samples without images."""
    (x,) = draw((*empty, 2, 3, 5), device=device)
    out, lse = vmap(attend)(x, x, x)
    assert out.shape == (*empty, 2, 3, 5) and lse.shape == (*empty, 1, 3, 5)


def test_gradients_of_samples(device):
    inputs = draw((3, 1, 2, 3, 5), (3, 1, 2, 3, 5), (3, 1, 3, 3, 5), device=device)
    expected = loop(lambda *sample: differentiate(find_loss, sample), *inputs)
    assert_equal(vmap(grad(find_loss, ALL))(*inputs), expected)
    in_one = grad(lambda *x: vmap(find_loss)(*x).sum(), ALL)
    assert_equal(in_one(*inputs), expected)


def test_explicit_backward_of_samples(device):
    q, k, v, dout = draw(*[(3, 1, 2, 3, 5)] * 4, device=device)
    (dlse,) = draw((3, 1, 1, 3, 5), device=device, seed=1)

    def run(dout, q, k, v, dlse):
        out, lse = attend(q, k, v)
        return crisscross.criss_cross_attention_backward(dout, q, k, v, out, lse, dlse=dlse)

    inputs = dout, q, k, v, dlse
    assert_equal(vmap(run)(*inputs), loop(run, *inputs))


def test_vjp(device):
    inputs = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    results, expected = vjp(attend, *inputs), attend(*leaves)
    assert_equal(results[0], tuple(x.detach() for x in expected))
    up = draw((1, 3, 3, 5), (1, 1, 3, 5), device=device, seed=1)
    assert_equal(results[1](up), torch.autograd.grad(expected, leaves, up))


def test_tangents(device):
    """Against the gradients, which say the same: <up, J t> = <J^T up, t>."""
    inputs = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device)
    tangents = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device, seed=1)
    ups = draw((1, 3, 3, 5), (1, 1, 3, 5), device=device, seed=2)
    out, pushed = jvp(attend, inputs, tangents)
    assert_equal(out, attend(*inputs))
    pulled = vjp(attend, *inputs)[1](ups)
    forwards = sum((a * b).sum() for a, b in zip(pushed, ups, strict=True))
    backwards = sum((a * b).sum() for a, b in zip(pulled, tangents, strict=True))
    assert_equal(forwards, backwards, atol=1e-10)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, inputs, tangents)
        found = [forward_ad.unpack_dual(x).tangent for x in attend(*duals)]
    assert_equal(found, list(pushed))


def test_a_tangent_of_one_input(device):
    """Inputs without tangents are constants, and so are results of such inputs alone."""
    q, k, v = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device)
    step = 1e-6
    ends = [attend((1 + sign * step) * q, k, v) for sign in (1, -1)]
    expected = [(one - other) / (2 * step) for one, other in zip(*ends, strict=True)]
    found = jvp(lambda q: attend(q, k, v), (q,), (q,))[1]
    torch.testing.assert_close([*found], expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        with torch.no_grad():
            out, lse = attend(forward_ad.make_dual(q, q), k, v)
        assert_equal([forward_ad.unpack_dual(x).tangent for x in (out, lse)], list(found))
        assert forward_ad.unpack_dual(crisscross.criss_cross_attention(q, k, v)).tangent is None


def test_tangents_of_gradients(device):
    inputs = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device)
    expected = jvp(grad(find_loss, ALL), inputs, inputs)[1]
    with forward_ad.dual_level():
        leaves = [x.clone().requires_grad_() for x in inputs]
        duals = map(forward_ad.make_dual, leaves, inputs)
        found = torch.autograd.grad(find_loss(*duals), leaves)
        found = [forward_ad.unpack_dual(x).tangent for x in found]
    assert_equal(found, list(expected))


def test_jacobians(device):
    inputs = draw((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3), device=device)
    expected = torch.autograd.functional.jacobian(attend, inputs)
    assert_equal(jacrev(attend, ALL)(*inputs), expected)
    assert_equal(jacfwd(attend, ALL)(*inputs), expected)


ORDERS = {
    "hessian": hessian,
    "reverse over reverse": lambda f, wrt: jacrev(jacrev(f, wrt), wrt),
    "reverse over forward": lambda f, wrt: jacrev(jacfwd(f, wrt), wrt),
    "forward over forward": lambda f, wrt: jacfwd(jacfwd(f, wrt), wrt),
}


@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives(order, device):
    """In whatever order: a mode that dropped the other's derivatives would do so silently."""
    inputs = draw((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3), device=device)
    expected = torch.autograd.functional.hessian(find_loss, inputs)
    assert_equal(ORDERS[order](find_loss, ALL)(*inputs), expected, atol=1e-11)


def test_third_derivatives(device):
    inputs = draw((1, 1, 2, 2), (1, 1, 2, 2), (1, 1, 2, 2), device=device)
    expected = jacrev(jacrev(jacrev(find_loss)))(*inputs)
    assert_equal(jacfwd(hessian(find_loss))(*inputs), expected, atol=1e-11)
    assert_equal(jacrev(jacfwd(jacfwd(find_loss)))(*inputs), expected, atol=1e-11)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning")
def test_tangents_that_are_traced(device):
    inputs = draw((1, 2, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3), device=device)
    expected = jvp(attend, inputs, inputs)[1]
    assert_equal(linearize(attend, *inputs)[1](*inputs), expected)

    def push(*inputs):
        return jvp(attend, inputs, inputs)[1]

    assert_equal(make_fx(push)(*inputs)(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_derivatives_in_the_dtype(dtype, device):
    inputs = draw((1, 2, 3, 5), (1, 2, 3, 5), (1, 3, 3, 5), device=device, dtype=dtype)
    wide = torch.float32
    out, lse = jvp(attend, inputs, inputs)[1]
    assert (out.dtype, lse.dtype) == (dtype, wide)
    assert [x.dtype for x in grad(find_loss, ALL)(*inputs)] == [dtype] * 3
    out, lse = vmap(lambda *x: attend(*(y[None] for y in x)))(*inputs)
    assert (out.dtype, lse.dtype) == (dtype, wide)


def merge(first, second, *lses):
    return crisscross.merge_attentions([first, second], list(lses))


def compose(*x):
    return crisscross.compose_attention([x[:2], x[2:]], at=(1, 2))


#: Functions of tensors, with the shapes of one sample.
OTHERS = {
    "axial_attention": (
        functools.partial(crisscross.axial_attention, axis=0, include_self=False),
        [(1, 2, 3, 4)] * 3,
    ),
    "merge_attentions": (merge, [(1, 2, 3, 4), (1, 2, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)]),
    "ca_weight": (crisscross.ca_weight, [(1, 2, 3, 4)] * 2),
    "ca_softmax": (crisscross.ca_softmax, [(1, 6, 3, 4)]),
    "ca_map": (crisscross.ca_map, [(1, 6, 3, 4), (1, 2, 3, 4)]),
    "ca_weight_backward": (crisscross.ca_weight_backward, [(1, 6, 3, 4), *[(1, 2, 3, 4)] * 2]),
    "ca_softmax_backward": (crisscross.ca_softmax_backward, [(1, 6, 3, 4)] * 2),
    "ca_map_backward": (
        crisscross.ca_map_backward,
        [(1, 2, 3, 4), (1, 6, 3, 4), (1, 2, 3, 4)],
    ),
    "to_port_layout": (crisscross.to_port_layout, [(1, 6, 3, 4)]),
    "from_port_layout": (crisscross.from_port_layout, [(1, 3, 4, 7)]),
    "attention_map": (
        functools.partial(crisscross.attention_map, at=[(1, 2), (0, 0)]),
        [(1, 2, 3, 4)] * 2,
    ),
    "compose_attention": (compose, [(1, 2, 3, 4)] * 4),
    "attention_entropy": (crisscross.attention_entropy, [(1, 2, 3, 4)] * 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions(name, device):
    """Of samples, their tangents, and their gradients."""
    function, shapes = OTHERS[name]
    samples = draw(*[(3, *shape) for shape in shapes], device=device)
    assert_equal(vmap(function)(*samples), loop(function, *samples))

    def find_loss(*inputs):
        found = function(*inputs)
        found = [found] if isinstance(found, torch.Tensor) else found
        return sum(x.sin().sum() for x in found)

    wrt = tuple(range(len(shapes)))
    expected = loop(lambda *sample: differentiate(find_loss, sample), *samples)
    assert_equal(vmap(grad(find_loss, wrt))(*samples), expected)
    one = tuple(x[0] for x in samples)
    assert_equal(jacfwd(find_loss, wrt)(*one), tuple(x[0] for x in expected))


@pytest.mark.parametrize("make", [CrissCrossAttention, NonLocalBlock, ChannelAttention])
def test_modules(make, device):
    """Gradients of parameters for each sample, by `functional_call`."""
    torch.manual_seed(0)
    options = {"recurrence": 2} if make is CrissCrossAttention else {}
    options |= {"zero": False} if make is NonLocalBlock else {}
    module = make(8, **options).to(device, torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3)
    (x,) = draw((3, 8, 3, 5), device=device)

    def find_loss(parameters, sample):
        return functional_call(module, parameters, (sample[None],)).sin().sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    out = vmap(lambda sample: functional_call(module, parameters, (sample[None],))[0])(x)
    assert_equal(out, module(x).detach())
    found = vmap(grad(find_loss), (None, 0))(parameters, x)
    pushed = jvp(lambda p: find_loss(p, x[0]), (parameters,), (parameters,))[1]
    for number, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).sin().sum().backward()
        for name, parameter in module.named_parameters():
            assert_equal(found[name][number], parameter.grad)
    pairs = ((found[name][0] * p).sum() for name, p in parameters.items())
    assert_equal(pushed, sum(pairs), atol=1e-10)
