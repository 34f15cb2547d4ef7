"""What training is made of: autocast, checkpoints, hooks, modes, and several processes."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import warnings

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import crisscross
from crisscross.torch import CrissCrossAttention

# PyTorch loads deprecated parts of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHORT = [torch.bfloat16, torch.float16]


def draw(*shapes, device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple(x.to(device, dtype) for x in made)


def require_grad(inputs):
    return tuple(x.detach().clone().requires_grad_() for x in inputs)


def draw_qkv(device, dtype=torch.float32):
    return draw((2, 4, 3, 5), (2, 4, 3, 5), (2, 6, 3, 5), device=device, dtype=dtype)


attend = functools.partial(crisscross.criss_cross_attention, heads=2, return_lse=True)


def run_both_ways(run, inputs):
    """Results and gradients of all inputs."""
    leaves = require_grad(inputs)
    out, lse = run(*leaves)
    (out.double().sin().sum() + lse.double().cos().sum()).backward()
    return [out.detach(), lse.detach(), *(x.grad for x in leaves)]


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        assert x.dtype is y.dtype and torch.equal(x, y)


# Autocast


@pytest.mark.parametrize("dtype", SHORT)
def test_autocast(dtype, device):
    """As if the caller cast; gradients come back in the dtype of the leaves."""
    inputs = draw_qkv(device)

    def cast(*x):
        return attend(*(y.to(dtype) for y in x))

    def run(*x):
        with torch.autocast(device, dtype=dtype):
            return attend(*x)

    found = run_both_ways(run, inputs)
    assert [x.dtype for x in found] == [dtype, *[torch.float32] * 4]
    assert_same(found, run_both_ways(cast, inputs))
    # Without anything to differentiate it is the same.
    assert_same(run(*inputs), cast(*inputs))
    mixed = (inputs[0].to(torch.float16), inputs[1].to(torch.bfloat16), inputs[2])
    assert_same(run(*mixed), cast(*mixed))


@pytest.mark.parametrize("dtype", SHORT)
def test_autocast_of_ccnets_operators(dtype, device):
    """Energies and attention stay as they are: their softmax is no matter of 16 bits."""
    q, k, v = draw_qkv(device)
    with torch.autocast(device, dtype=dtype):
        energy = crisscross.ca_weight(q, k)
        attention = crisscross.ca_softmax(energy)
        out = crisscross.ca_map(attention, v)
    assert [x.dtype for x in (energy, attention, out)] == [torch.float32, torch.float32, dtype]
    assert torch.equal(energy, crisscross.ca_weight(q.to(dtype), k.to(dtype)))
    assert torch.equal(out, crisscross.ca_map(attention, v.to(dtype)))


def test_where_autocast_does_nothing(device):
    """float64, a region inside that switches it off, and a region of another device."""
    inputs, wide = draw_qkv(device), draw_qkv(device, torch.float64)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert attend(*wide)[0].dtype is torch.float64
        with torch.autocast(device, enabled=False):
            assert_same(attend(*inputs), attend(*inputs))
            assert attend(*inputs)[0].dtype is torch.float32
    other = "cuda" if device == "cpu" else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a device that is not there
        with torch.autocast(other, dtype=torch.bfloat16):
            assert attend(*inputs)[0].dtype is torch.float32


def test_maps_to_look_at_are_those_outside_of_autocast(device):
    """What is looked at is exact, whatever region it is called in."""
    q, k, _ = draw_qkv(device)
    calls = {
        "map": lambda: crisscross.attention_map(q, k, at=(1, 2)),
        "composed": lambda: crisscross.compose_attention([(q, k), (k, q)], at=(1, 2)),
        "entropy": lambda: crisscross.attention_entropy(q, k),
    }
    for name, call in calls.items():
        expected = call()
        with torch.autocast(device, dtype=torch.bfloat16):
            found = call()
        torch.testing.assert_close(found, expected, msg=name)


def test_derivatives_are_not_cast(device):
    """The backward of the backward may run in a region, and tangents: nothing is rounded there."""
    inputs = draw_qkv(device)
    ported = crisscross.ca_softmax(crisscross.ca_weight(*inputs[:2]))

    def differentiate(enabled):
        leaves = require_grad((*inputs, ported))
        out, lse = attend(*leaves[:3])
        loss = out.sum() + lse.sum() + crisscross.ca_map(leaves[3], leaves[2]).sin().sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        squares = sum(x.square().sum() for x in first)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            return torch.autograd.grad(squares, leaves)

    assert_same(differentiate(True), differentiate(False))
    short = tuple(x.bfloat16() for x in inputs)
    expected = jvp(attend, short, short)[1]
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_same(jvp(attend, short, short)[1], expected)


def test_autocast_inside_of_transforms_and_compilers(device):
    inputs = draw_qkv(device)
    half = [x.bfloat16() for x in inputs]

    def run(*x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return attend(*x)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), attend(*half))
    torch._dynamo.reset()
    out, lse = vmap(run)(*(x[:, None] for x in inputs))
    expected = attend(*half)
    assert_same([out[:, 0], lse[:, 0]], expected)
    assert grad(lambda *x: run(*x)[0].float().sum())(*inputs).dtype is torch.float32


def test_a_module_in_autocast(device):
    """Weights are cast once and kept, as autocast does; their gradients are in their dtype."""
    module = CrissCrossAttention(8, recurrence=2).to(device)
    module.gamma.data.fill_(0.5)
    (x,) = draw((1, 8, 3, 5), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        first, second = module(x), module(x)
    assert torch.equal(first, second)
    (first + second).float().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad.dtype is torch.float32 and parameter.grad.isfinite().all()
    torch.testing.assert_close(first.float(), module(x), rtol=0.1, atol=0.1)


# Memory, hooks and modes


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant, device):
    """What is computed anew has the same results and gradients."""
    inputs = draw_qkv(device)
    run = functools.partial(checkpoint, lambda *x: attend(*x), use_reentrant=reentrant)
    assert_same(run_both_ways(run, inputs), run_both_ways(attend, inputs))


def test_a_checkpoint_that_keeps_the_attention(device):
    """The operator may be named among what is not to be computed anew."""
    kept = [torch.ops.crisscross.criss_cross_attention.default]
    context = functools.partial(create_selective_checkpoint_contexts, kept)
    inputs = draw_qkv(device)
    run = functools.partial(
        checkpoint, lambda *x: attend(*x), use_reentrant=False, context_fn=context
    )
    assert_same(run_both_ways(run, inputs), run_both_ways(attend, inputs))


def test_hooks_of_what_is_saved(device):
    """On the CPU, or in any form: the backward takes what the hooks give back."""
    inputs = draw_qkv(device)
    expected = run_both_ways(attend, inputs)
    with torch.autograd.graph.save_on_cpu():
        assert_same(run_both_ways(attend, inputs), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (x.cpu().numpy(), x.device), unpack):
        assert_same(run_both_ways(attend, inputs), expected)


def unpack(packed):
    array, device = packed
    return torch.from_numpy(array).to(device)


def test_what_was_changed_in_place_is_not_differentiated(device):
    q, k, v = require_grad(draw_qkv(device))
    moved = q * 1
    out, _ = attend(moved, k, v)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_deterministic_algorithms(device):
    """Nothing that PyTorch refuses then, in second derivatives either; and it is the same twice."""

    def run():
        inputs = require_grad(draw_qkv(device))
        out, lse = attend(*inputs)
        attention = crisscross.ca_softmax(crisscross.ca_weight(*inputs[:2]))
        ported = crisscross.from_port_layout(crisscross.to_port_layout(attention))
        loss = out.sin().sum() + lse.sum() + crisscross.ca_map(ported, inputs[2]).sin().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), inputs)
        return [out, *first, *second]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(first, second)


def test_without_recording(device):
    leaves = require_grad(draw_qkv(device))
    expected = attend(*leaves)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = attend(*leaves)
            assert not any(x.requires_grad for x in found)
            assert_same(found, expected)
    with torch.inference_mode():
        made = attend(*(x.clone() for x in leaves))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        attend(made[0][:, :4], *leaves[1:])


def test_anomalies_are_found(device):
    """The mode names the operator whose gradient is no number."""
    q, k, v = require_grad(draw_qkv(device))
    with torch.no_grad():
        q[0, 0, 0, 0] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces itself, and shows where the call was
        with torch.autograd.detect_anomaly():
            run_both_ways(attend, draw_qkv(device))
            with pytest.raises(RuntimeError, match=r"criss_cross_attention.*returned nan values"):
                attend(q, k, v)[0].sum().backward()


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_module(make_copy, device):
    """Before and after it has run, with all its options; the copy has parameters of its own."""
    module = CrissCrossAttention(8, recurrence=2, heads=1, scale=0.5, axes=(1,)).to(device)
    module.gamma.data.fill_(0.5)
    (x,) = draw((1, 8, 3, 5), device=device)
    made = make_copy(module)
    assert torch.equal(made(x), module(x))
    made = make_copy(module)
    made.gamma.data.fill_(0.7)
    assert not torch.equal(made(x), module(x))


# Several processes


def make_module():
    torch.manual_seed(0)
    module = CrissCrossAttention(8, recurrence=2).double()
    module.gamma.data.fill_(0.5)
    return module


def find_loss(module, x):
    return module(x).sin().mean()


def train_a_part(rank, folder):
    """Two steps on half of the batch, in one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    module = DistributedDataParallel(make_module())
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    (x,) = draw((4, 8, 3, 5), dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        find_loss(module, x[2 * rank : 2 * rank + 2]).backward()
        optimizer.step()
    torch.save(module.module.state_dict(), f"{folder}/state{rank}")
    torch.distributed.barrier()
    # On a busy machine taking the group down aborts now and then, in a thread of PyTorch's own.
    os._exit(0)


def test_two_processes_train_as_one(tmp_path):
    """On the halves of a batch, by gloo."""
    torch.multiprocessing.spawn(train_a_part, (str(tmp_path),), nprocs=2)
    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    (x,) = draw((4, 8, 3, 5), dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        find_loss(module, x).backward()
        optimizer.step()
    for rank in range(2):
        for name, found in torch.load(f"{tmp_path}/state{rank}").items():
            expected = module.state_dict()[name]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
