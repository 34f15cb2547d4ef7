"""Where compiler and transforms meet: derivatives could be dropped there without a word."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import crisscross
from tests.with_torch.test_tracing import assert_equal, draw, find_loss, require_grad

pytestmark = [
    pytest.mark.usefixtures("nothing_compiled"),
    # Compilers load deprecated parts of PyTorch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ALL = (0, 1, 2)


def map_images(function):
    return vmap(lambda *x: function(*(y[None] for y in x)))


TRANSFORMS = {
    "grad": lambda f: grad(f, ALL),
    "jacfwd": lambda f: jacfwd(f, ALL),
    "jacrev": lambda f: jacrev(f, ALL),
    "jvp": lambda f: lambda *x: jvp(f, x, x)[1],
    "vmap": map_images,
    "vmap of grad": lambda f: map_images(grad(f, ALL)),
    "hessian": hessian,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compile_of_transforms(transform, device):
    inputs = draw(*[(2, 2, 2, 3)] * 3, device=device)
    run = TRANSFORMS[transform](find_loss)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*inputs), run(*inputs))


OF_COMPILED = {
    **TRANSFORMS,
    "grad of vmap": lambda f: grad(lambda *x: map_images(f)(*x).sum(), ALL),
    "vjp": lambda f: lambda *x: vjp(f, *x)[1](f(*x)),
    "jvp of jvp": lambda f: lambda *x: jvp(lambda *y: jvp(f, y, x)[1], x, x)[1],
}


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("transform", OF_COMPILED)
def test_transforms_of_what_is_compiled(transform, is_first, device):
    """Before it has run, or after: PyTorch leaves its compiler out, and it comes back."""
    inputs = draw(*[(2, 2, 2, 3)] * 3, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(find_loss, backend=counter)
    if not is_first:
        assert_equal(compiled(*inputs), find_loss(*inputs))
        assert counter.frame_count == 1
    run = OF_COMPILED[transform]
    assert_equal(run(compiled)(*inputs), run(find_loss)(*inputs))
    # What the compiler gave up it may try again in parts, which have to fit together.
    assert_equal(compiled(*inputs), find_loss(*inputs))
    leaves = require_grad(inputs)
    found = torch.autograd.grad(compiled(*leaves), leaves)
    assert_equal(found, grad(find_loss, ALL)(*inputs))


# Autocast, of float32 that bfloat16 holds, so that nothing is lost in casting what is given

SHAPES = ((2, 8, 5, 7), (2, 8, 5, 7), (2, 8, 5, 7))


def attend(q, k, v):
    return crisscross.criss_cross_attention(q, k, v, heads=2, return_lse=True)


def find_products(inputs):
    """A loss that is linear in out and lse, so that rounding them changes no gradient."""
    *qkv, dout, dlse = inputs
    out, lse = attend(*qkv)
    return (out * dout).sum() + (lse * dlse).sum()


def map_products(q, k, v):
    energy = crisscross.ca_weight(q, k)
    return (crisscross.ca_map(energy / 8, v) * v.detach()).sum()


#: Functions of q, k and v, and of two more for out and lse.
IN_AUTOCAST = {
    "grad": lambda *x: grad(lambda *y: find_products((*y, *x[3:])), ALL)(*x[:3]),
    "vmap of grad": lambda *x: map_images(
        lambda *x: grad(lambda *y: find_products((*y, *x[3:])), ALL)(*x[:3])
    )(*x),
    "jvp": lambda *x: jvp(attend, x[:3], (x[3], *x[:2]))[1],
    "jvp of jvp": lambda *x: jvp(
        lambda *y: jvp(attend, y, (x[3], *x[:2]))[1], x[:3], (x[3], *x[:2])
    )[1],
    "jacrev of ca_map": lambda *x: jacrev(map_products, ALL)(*x[:3]),
}


@pytest.mark.parametrize("name", IN_AUTOCAST)
def test_autocast_rounds_results_alone(name, device):
    """Where plain PyTorch serves, whose own products autocast would round; there and back."""
    run = IN_AUTOCAST[name]
    inputs = draw(*SHAPES, SHAPES[2], (2, 2, 5, 7), device=device, dtype=torch.bfloat16)

    def run_in_autocast(*x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return run(*x)

    # Forward mode twice needs no compiler; PyTorch's fails on it after any jacfwd, ours or not.
    if name != "jvp of jvp":
        run_in_autocast = torch.compile(run_in_autocast, fullgraph=True, backend="aot_eager")
    found = run_in_autocast(*(x.float() for x in inputs))
    for one, other in zip(found, run(*(x.double() for x in inputs)), strict=True):
        # The unit roundoff of bfloat16, and what float32 needs where terms cancel.
        largest = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=2e-6 * largest)
