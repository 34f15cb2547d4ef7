"""The way that a call takes, by what PyTorch is at: each on purpose, none by chance."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import crisscross
from crisscross.torch import calls
from crisscross.torch.calls import Route, find_route
from tests.with_torch.test_tracing import attend, attend_and_more, draw, find_loss, require_grad

pytestmark = [
    pytest.mark.usefixtures("nothing_compiled"),
    # Compilers load deprecated parts of PyTorch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def routes(monkeypatch):
    """The ways that the calls of a test took."""
    found = []

    def find(tensors):
        found.append(find_route(tensors))
        return found[-1]

    monkeypatch.setattr(calls, "find_route", find)
    return found


class Mine(torch.Tensor):
    pass


def run_grad(*x):
    return grad(find_loss)(*x)


def run_vmap(*x):
    return vmap(attend)(*(y[None] for y in x))


def run_dual(*x):
    with forward_ad.dual_level():
        return attend(forward_ad.make_dual(x[0], x[0]), *x[1:])


def run_without_tangent(*x):
    with forward_ad.dual_level():
        return attend(*x)


def run_traced(*x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(attend_and_more, x, check_trace=False)


def run_fake(*x):
    with FakeTensorMode() as mode:
        return attend(*map(mode.from_tensor, x))


def run_unrecorded(*x):
    with torch.no_grad():
        return attend(*require_grad(x))


def run_inference(*x):
    with torch.inference_mode():
        return attend(*x)


ROUTES = {
    "plain": (attend, Route.PLAIN),
    "parameters that need no gradient": (
        lambda *x: attend(*(torch.nn.Parameter(y, requires_grad=False) for y in x)),
        Route.PLAIN,
    ),
    "gradients that nobody records": (run_unrecorded, Route.PLAIN),
    "inference": (run_inference, Route.PLAIN),
    "gradients": (lambda *x: attend(*require_grad(x)), Route.OPERATOR),
    "a gradient": (lambda q, k, v: attend(q, k, *require_grad([v])), Route.OPERATOR),
    "parameters": (lambda *x: attend(*map(torch.nn.Parameter, x)), Route.OPERATOR),
    "a subclass": (lambda q, k, v: attend(q.as_subclass(Mine), k, v), Route.OPERATOR),
    "a lazy sign": (lambda q, k, v: attend(torch._neg_view(q), k, v), Route.OPERATOR),
    "fakes": (run_fake, Route.OPERATOR),
    "make_fx": (make_fx(attend), Route.OPERATOR),
    "torch.jit.trace": (run_traced, Route.OPERATOR),
    "grad": (run_grad, Route.FUNCTION),
    "vmap": (run_vmap, Route.FUNCTION),
    "jvp": (lambda *x: jvp(attend, x, x), Route.FUNCTION),
    "a dual tensor": (run_dual, Route.FUNCTION),
    "a level of dual tensors": (run_without_tangent, Route.FUNCTION),
    "make_fx of grad": (lambda *x: make_fx(run_grad)(*x), Route.FUNCTION),
    "make_fx of jvp": (lambda *x: make_fx(lambda *y: jvp(attend, y, y))(*x), Route.COMPOSITE),
    "jvp of jvp": (
        lambda *x: jvp(lambda *y: jvp(find_loss, y, x)[1], x, x),
        Route.COMPOSITE,
    ),
    "a sparse tensor": (lambda q, k, v: attend(q.to_sparse(), k, v), Route.REFUSED),
    "a meta tensor": (lambda q, k, v: attend(q.to("meta"), k, v), Route.REFUSED),
}


@pytest.mark.parametrize("state", ROUTES)
def test_routes(state, routes):
    run, expected = ROUTES[state]
    inputs = draw(*[(1, 2, 2, 3)] * 3)
    if expected is Route.REFUSED:
        with pytest.raises(crisscross.CrissCrossError):
            run(*inputs)
    else:
        run(*inputs)
    assert routes and {*routes} == {expected}


def test_functionalize():
    """Alone, and with a transform within or around it."""
    q, k = torch.randn(2, 2, 4, 3, 5, dtype=torch.float64)

    def run(q):
        return crisscross.criss_cross_attention(q, k, k)

    torch.testing.assert_close(functionalize(run)(q), run(q))
    assert "crisscross.criss_cross_attention" in make_fx(functionalize(run))(q).code
    expected = grad(lambda q: run(q).square().sum())(q)
    for nest in (lambda f: functionalize(grad(f)), lambda f: grad(functionalize(f))):
        torch.testing.assert_close(nest(lambda q: run(q).square().sum())(q), expected)


def find_number(x):
    """The route as a number, which compilers can tell."""
    return 0 * x.sum() + find_route([x]).value


@pytest.mark.parametrize("transform", ["none", "grad", "vmap", "jvp"])
def test_routes_under_compile(transform):
    """What the compiler finds while it traces is what it compiles."""
    run = {
        "none": find_number,
        "grad": lambda x: grad(lambda y: y.sum() * find_number(y).detach())(x).mean(),
        "vmap": lambda x: vmap(find_number)(x).mean(),
        "jvp": lambda x: jvp(find_number, (x,), (x,))[0],
    }[transform]
    found = torch.compile(run, fullgraph=True, backend="eager")(torch.ones(2, 3))
    assert Route(int(found)) is (Route.OPERATOR if transform == "none" else Route.COMPOSITE)


@pytest.mark.parametrize("strict", [True, False])
def test_routes_under_export(strict):
    class Module(torch.nn.Module):
        def forward(self, x):
            return find_number(x)

    program = torch.export.export(Module(), (torch.ones(2),), strict=strict)
    assert Route(int(program.module()(torch.ones(2)))) is Route.OPERATOR


def test_explain_tells_the_route():
    q = torch.ones(1, 2, 3, 4)

    def explain(q):
        return crisscross.explain(q, q, q).way

    told = []
    vmap(lambda q: told.append(explain(q)) or q)(q[None])
    assert explain(q) == "directly: there is nothing to differentiate"
    assert explain(q.requires_grad_()).startswith("by torch.ops.crisscross: autograd")
    assert told[0].startswith("by a torch.autograd.Function")
    x = torch.ones(1, 2, 3, 4)
    jvp(lambda q: jvp(lambda q: told.append(explain(q)) or q, (q,), (q,)), (x,), (x,))
    assert told[1].startswith("in plain PyTorch, which makes the map")
