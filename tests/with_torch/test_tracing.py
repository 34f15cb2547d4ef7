"""Compilers, exporters and tracers: one graph, of our operators."""

from __future__ import annotations

import functools
import io
import warnings

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

import crisscross
from crisscross.ops.backends import BACKENDS
from crisscross.torch import CrissCrossAttention

pytestmark = [
    pytest.mark.usefixtures("nothing_compiled"),
    # Compilers load deprecated parts of PyTorch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def draw(*shapes, device="cpu", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple(x.to(device, dtype) for x in made)


def require_grad(inputs):
    return tuple(x.detach().clone().requires_grad_() for x in inputs)


def assert_equal(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


attend = functools.partial(crisscross.criss_cross_attention, heads=2, scale=0.7, return_lse=True)


def attend_and_more(q, k, v):
    """With operations of PyTorch before and after."""
    out, lse = attend(2 * q, k, v)
    return out.sin(), lse + 1


def find_loss(q, k, v):
    out, lse = attend(q, k, v)
    return out.sin().sum() + lse.cos().sum()


def list_ours(graph):
    """Names of our operators in a graph."""
    names = [str(node.target) for node in graph.nodes if "crisscross" in str(node.target)]
    return [name.removeprefix("crisscross.").removesuffix(".default") for name in names]


FORWARD, BACKWARD = "criss_cross_attention", "criss_cross_attention_backward"
SHAPES = ((2, 4, 3, 5), (3, 4, 7, 6), (5, 4, 11, 9))


def check_gradients(found, expected, inputs):
    """Of two functions: results, and gradients of all inputs."""
    leaves, others = require_grad(inputs), require_grad(inputs)
    first, second = found(*leaves), expected(*others)
    assert_equal(first, second)
    sum(x.sum() for x in first).backward()
    sum(x.sum() for x in second).backward()
    assert_equal([x.grad for x in leaves], [x.grad for x in others])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend, device):
    inputs = draw((2, 4, 3, 5), (2, 4, 3, 5), (2, 6, 3, 5), device=device)
    compiled = torch.compile(attend_and_more, fullgraph=True, backend=backend)
    check_gradients(compiled, attend_and_more, inputs)


def test_one_graph_for_all_sizes(device):
    """Three shapes, gradients and all, and nothing is compiled again after the first."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend_and_more, fullgraph=True, backend=counter, dynamic=True)
    check_gradients(compiled, attend_and_more, draw(*[SHAPES[0]] * 3, device=device))
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in SHAPES[1:]:
            check_gradients(compiled, attend_and_more, draw(*[shape] * 3, device=device))
    assert list_ours(counter.graphs[-1].graph) == [FORWARD]


MASK = (2, 3, 5)

#: What else is compiled: functions of q, k, v and a mask.
OTHERS = {
    "masked": lambda q, k, v, mask: crisscross.criss_cross_attention(q, k, v, key_mask=mask),
    "axial": lambda q, k, v, mask: crisscross.axial_attention(
        q, k, v, axis=-1, include_self=False, key_mask=mask, return_lse=True
    ),
    "merge": lambda q, k, *_: crisscross.merge_attentions([q, k], [q[:, :2], k[:, :2]]),
    "backward": lambda q, k, v, mask: crisscross.criss_cross_attention_backward(
        v, q, k, v, v, q[:, :1], dlse=k[:, :1], key_mask=mask
    ),
    "ccnet": lambda q, k, v, _: crisscross.ca_map(
        crisscross.ca_softmax(crisscross.ca_weight(q, k)), v
    ),
    "layouts": lambda q, k, *_: crisscross.from_port_layout(
        crisscross.to_port_layout(crisscross.ca_weight(q, k))
    ),
    "attention_map": lambda q, k, _, mask: crisscross.attention_map(
        q, k, at=[(1, 2), (0, 0)], key_mask=mask
    ),
    "compose_attention": lambda q, k, v, mask: crisscross.compose_attention(
        [(q, k), (k, v)], at=(1, 2), key_mask=mask
    ),
    "attention_entropy": lambda q, k, _, mask: crisscross.attention_entropy(q, k, key_mask=mask),
}


@pytest.mark.parametrize("name", OTHERS)
def test_compile_of_others(name, device):
    inputs = draw(*[SHAPES[0]] * 3, device=device)
    mask = torch.rand(MASK, generator=torch.Generator().manual_seed(0)).to(device) > 0.3
    compiled = torch.compile(OTHERS[name], fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*inputs, mask), OTHERS[name](*inputs, mask))


#: Functions of q and options, with the options of several calls.
OPTIONS = {
    "heads and scale": (
        lambda q, heads, scale: crisscross.criss_cross_attention(q, q, q, heads=heads, scale=scale),
        [(2, 0.5), (4, 0.25), (1, 2)],
    ),
    "axes and channel_axis": (
        lambda q, axes, channel_axis: crisscross.criss_cross_attention(
            q, q, q, axes=axes, channel_axis=channel_axis
        ),
        [((0,), 1), ((-1,), -1), ((1, 0), 1)],
    ),
    "axis": (lambda q, axis: crisscross.axial_attention(q, q, q, axis=axis), [(0,), (1,), (-1,)]),
    "axis of a gradient": (
        lambda q, axis: grad(lambda q: crisscross.axial_attention(q, q, q, axis=axis).sin().sum())(
            q
        ),
        [(0,), (1,), (-1,)],
    ),
    "channel_axis of parts": (
        lambda q, axis: crisscross.merge_attentions([q, -q], [q[:, :2]] * 2, channel_axis=axis)[0],
        [(1,), (-1,)],
    ),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_the_compiler_takes_for_sizes(name, dynamic, device):
    """A number that is an argument is a symbol, at once or as soon as it changes."""
    run, calls = OPTIONS[name]
    (q,) = draw((2, 4, 4, 4), device=device)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for options in calls:
        assert_equal(compiled(q, *options), run(q, *options))


def find_message(function, *args):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
    return str(caught.value)


WRONG = {
    "heads": ({"heads": 3}, "expected a positive multiple of heads = 3, got 4"),
    "axes": ({"axes": (5,)}, r"axes: expected a spatial axis in [-2, 2), got 5"),
    "backend": ({"backend": "tpu"}, f"expected None or one of {BACKENDS}"),
    "precision": ({"precision": "fp8"}, "precision: expected None or one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_in_the_error_of_the_compiler(name, device):
    options, message = WRONG[name]
    inputs = draw(*[SHAPES[0]] * 3, device=device)
    run = functools.partial(crisscross.criss_cross_attention, **options)
    assert message in find_message(lambda *x: run(*x), *inputs)


def test_shapes_that_do_not_fit_under_compile(device):
    q, k, v = draw(SHAPES[0], SHAPES[0], (2, 4, 2, 5), device=device)
    found = find_message(crisscross.criss_cross_attention, q, k, v)
    assert "v.shape: expected (2, channels, 3, 5) like q but for the channels" in found


# Export and tracing


def make_module(device):
    torch.manual_seed(0)
    module = CrissCrossAttention(8, recurrence=2).to(device, torch.float64)
    module.gamma.data.fill_(0.7)
    return module


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, device):
    """Of any N, H and W; saved and loaded, it computes and trains as the module does."""
    module = make_module(device)
    sizes = {0: Dim("N"), 2: Dim("H"), 3: Dim("W")}
    (x,) = draw((2, 8, 3, 5), device=device)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": sizes}, strict=strict)
    assert list_ours(program.graph) == [FORWARD] * 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in ((2, 8, 3, 5), (3, 8, 7, 4), (5, 8, 6, 9)):
        (x,) = draw(shape, device=device)
        assert_equal(loaded(x), module(x))
    loaded(x).sin().sum().backward()
    module(x).sin().sum().backward()
    for name, parameter in loaded.named_parameters():
        assert_equal(parameter.grad, module.get_parameter(name).grad)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode, device):
    inputs = draw(*[(2, 4, 3, 5)] * 3, device=device)
    graph = make_fx(attend_and_more, tracing_mode=mode)(*inputs)
    assert list_ours(graph.graph) == [FORWARD]
    for shape in SHAPES if mode == "symbolic" else SHAPES[:1]:
        inputs = draw(*[shape] * 3, device=device, seed=1)
        assert_equal(graph(*inputs), attend_and_more(*inputs))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_of_derivatives(mode, device):
    """By autograd and by torch.func, a graph holds the operators, and no constants."""
    inputs = draw(*[(2, 4, 3, 5)] * 3, device=device)

    def by_autograd(*inputs):
        return torch.autograd.grad(find_loss(*inputs), inputs)

    expected = by_autograd(*require_grad(inputs))
    others = require_grad(draw(*[(2, 4, 3, 5)] * 3, device=device, seed=1))
    for run in (by_autograd, grad(find_loss, (0, 1, 2))):
        graph = make_fx(run, tracing_mode=mode)(*others)
        assert list_ours(graph.graph) == [FORWARD, BACKWARD]
        assert_equal(graph(*require_grad(inputs)), expected)


def test_the_ahead_of_time_compiler(device):
    graphs = []

    def keep(graph, _):
        graphs.append(list_ours(graph.graph))
        return make_boxed_func(graph.forward)

    compiled = aot_function(attend_and_more, fw_compiler=keep, bw_compiler=keep)
    inputs = draw((2, 4, 3, 5), (2, 4, 3, 5), (2, 6, 3, 5), device=device)
    check_gradients(compiled, attend_and_more, inputs)
    assert graphs == [[FORWARD], [BACKWARD]]


def test_the_old_tracer(device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates torch.jit
        traced = torch.jit.trace(attend_and_more, draw(*[SHAPES[0]] * 3, device=device))
    for shape in SHAPES:
        check_gradients(traced, attend_and_more, draw(*[shape] * 3, device=device))


def test_compile_is_what_comes_first(run_python):
    """In a fresh process nothing has been imported for tensors yet."""
    code = """
import torch
import crisscross

def look(q):
    return crisscross.attention_map(q, q, at=(1, 2)) + crisscross.attention_entropy(q, q)

def attend(q):
    return crisscross.criss_cross_attention(q, q, q)

q = torch.randn(1, 4, 3, 5)
for function in (look, attend):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    print(torch.equal(compiled(q), function(q)))
"""
    assert run_python(code).split() == ["True", "True"]
