"""Transforms of JAX, each against a loop or a call without it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crisscross
from tests.with_jax.arrays import assert_close, draw, make_mask

BACKENDS = [None, "cpu", "xla"]


@pytest.fixture(params=BACKENDS)
def attend(request, device):
    if device != "cpu" and request.param == "cpu":
        pytest.skip("it serves the CPU alone")
    options = {"heads": 2, "scale": 0.7, "return_lse": True, "backend": request.param}
    return functools.partial(crisscross.criss_cross_attention, **options)


def attend_plainly(q, k, v, **options):
    return crisscross.criss_cross_attention(q, k, v, heads=2, scale=0.7, return_lse=True, **options)


def find_loss(attend, *arrays):
    out, lse = attend(*arrays)
    return (out**2).sum() + (lse**2).sum()


def draw_inputs(*front, seed=0):
    return [draw(*front, 2, c, 3, 5, seed=3 * seed + i) for i, c in enumerate((4, 4, 6))]


def stack(function, *batches):
    """Call it for each sample; the reference for vmap."""
    results = [function(*samples) for samples in zip(*batches, strict=True)]
    return jax.tree.map(lambda *x: jnp.stack(x), *results)


def test_jit_and_gradients(attend):
    inputs = draw_inputs()
    assert_close(jax.jit(attend)(*inputs), attend_plainly(*inputs), 1e-5)
    run = jax.value_and_grad(functools.partial(find_loss, attend), (0, 1, 2))
    eager = run(*inputs)
    assert_close(jax.jit(run)(*inputs), eager, 1e-4)
    out, lse = attend_plainly(*inputs)
    expected = crisscross.criss_cross_attention_backward(
        2 * out, *inputs, out, lse, dlse=2 * lse, heads=2, scale=0.7
    )
    assert_close(eager[1], expected, 1e-4)


def test_vmap_of_any_axes(attend):
    q, k, v = draw_inputs(3)
    expected = stack(attend_plainly, q, k, v)
    assert_close(jax.vmap(attend)(q, k, v), expected, 1e-5)
    moved = (jnp.moveaxis(q, 0, 1), k, jnp.moveaxis(v, 0, -1))
    found = jax.vmap(attend, in_axes=(1, 0, -1), out_axes=(1, -1))(*moved)
    assert_close((jnp.moveaxis(found[0], 1, 0), jnp.moveaxis(found[1], -1, 0)), expected, 1e-5)
    assert_close(jax.jit(jax.vmap(attend))(q, k, v), expected, 1e-5)


def test_vmap_of_some(attend):
    """Of q alone; of masks alone."""
    q, k, v = draw_inputs(3)
    expected = stack(lambda x: attend_plainly(x, k[0], v[0]), q)
    assert_close(jax.vmap(attend, in_axes=(0, None, None))(q, k[0], v[0]), expected, 1e-5)
    masks = make_mask(3, 2, 3, 5)
    found = jax.vmap(lambda mask: attend(q[0], k[0], v[0], key_mask=mask))(masks)
    expected = stack(lambda mask: attend_plainly(q[0], k[0], v[0], key_mask=mask), masks)
    assert np.isneginf(expected[1]).sum() == np.isneginf(found[1]).sum()
    finite = [
        jax.tree.map(lambda x: jnp.where(jnp.isneginf(x), 0, x), y) for y in (found, expected)
    ]
    assert_close(*finite, 1e-5)


def test_nested_vmap(attend):
    q, k, v = draw_inputs(2, 3)
    twice = jax.vmap(jax.vmap(attend, (0, 0, None)), (0, 1, -1))
    found = twice(q, jnp.swapaxes(k, 0, 1), jnp.moveaxis(v[:, 0], 0, -1))
    expected = stack(lambda q, k, v: stack(lambda q, k: attend_plainly(q, k, v[0]), q, k), q, k, v)
    assert_close(found, expected, 1e-5)


def test_vmap_and_gradients(attend):
    """Gradients of samples, and of a sum over samples; a shared array's are summed."""
    inputs = draw_inputs(3)
    loss = functools.partial(find_loss, attend)
    expected = stack(jax.grad(functools.partial(find_loss, attend_plainly), (0, 1, 2)), *inputs)
    assert_close(jax.vmap(jax.grad(loss, (0, 1, 2)))(*inputs), expected, 1e-4)
    q, k, v = inputs

    def total(v):
        return jax.vmap(lambda q, k: loss(q, k, v))(q, k).sum()

    plain = functools.partial(find_loss, attend_plainly)
    expected = sum(jax.grad(plain, 2)(q[i], k[i], v[0]) for i in range(3))
    assert_close(jax.jit(jax.grad(total))(v[0]), expected, 1e-4)


#: Which of q, k and v are mapped, and the others shared.
SHARED = [(0, None, None), (None, None, 0), (None, 0, None), (0, None, 0)]


@pytest.mark.parametrize("mapped", SHARED)
def test_gradients_of_what_is_shared(mapped, attend):
    """Summed over the samples once, also where an output does not depend on them: lse on v."""
    batches = draw_inputs(3)
    given = [x if axis == 0 else x[0] for x, axis in zip(batches, mapped, strict=True)]

    def total(loss, *arrays):
        return jax.vmap(loss, mapped)(*arrays).sum()

    def unroll(*arrays):
        samples = [
            [x[i] if axis == 0 else x for x, axis in zip(arrays, mapped, strict=True)]
            for i in range(3)
        ]
        return sum(find_loss(attend_plainly, *sample) for sample in samples)

    expected = jax.grad(unroll, (0, 1, 2))(*given)
    loss = functools.partial(find_loss, attend)
    found = jax.grad(functools.partial(total, loss), (0, 1, 2))(*given)
    assert_close(found, expected, 1e-3)
    assert_close(jax.jit(jax.grad(functools.partial(total, loss), (0, 1, 2)))(*given), found, 1e-3)


def test_second_gradients_of_what_is_shared(attend):
    q, k, v = draw_inputs(3)

    def curve(attend, q, v):
        gradient = jax.grad(lambda q: find_loss(attend, q, k[0], v))(q)
        return (gradient * k[0]).sum()

    found = jax.grad(lambda q: jax.vmap(lambda v: curve(attend, q, v))(v).sum())(q[0])
    expected = sum(jax.grad(lambda q, i=i: curve(attend_plainly, q, v[i]))(q[0]) for i in range(3))
    scale = float(jnp.abs(expected).max())
    assert_close(found / scale, expected / scale, 1e-4)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_operators_of_what_is_shared(backend):
    """Their gradients too, which have outputs that depend on some of their arrays alone."""
    q, k = draw(3, 2, 4, 3, 5), draw(2, 4, 3, 5, seed=1)

    def loss(q, k, backend=None):
        energy = crisscross.ca_weight(q, k, backend=backend)
        dq, dk = crisscross.ca_weight_backward(energy, q, k, backend=backend)
        out = crisscross.ca_map(energy, k, backend=backend)
        dweights, dv = crisscross.ca_map_backward(k, energy, k, backend=backend)
        return sum((x**2).mean() for x in (energy, dq, dk, out, dweights, dv))

    def total(k):
        return jax.vmap(lambda q: loss(q, k, backend))(q).sum()

    expected = sum(jax.grad(lambda k, i=i: loss(q[i], k))(k) for i in range(3))
    scale = float(jnp.abs(expected).max())
    assert_close(jax.jit(jax.grad(total))(k) / scale, expected / scale, 1e-4)


def test_scan_and_remat(attend):
    """Steps that feed each other, rolled up, and made again for the backward."""
    q, k, v = draw_inputs()

    def step(v, _):
        return attend(q, k, v)[0] + v, None

    def roll(step, v):
        return (jax.lax.scan(step, v, None, length=3)[0] ** 2).sum()

    def unroll(v):
        for _ in range(3):
            v = attend_plainly(q, k, v)[0] + v
        return (v**2).sum()

    expected = jax.value_and_grad(unroll)(v)
    assert_close(jax.jit(jax.value_and_grad(functools.partial(roll, step)))(v), expected, 1e-4)
    again = functools.partial(roll, jax.checkpoint(step))
    assert_close(jax.jit(jax.value_and_grad(again))(v), expected, 1e-4)


def test_control_flow(attend):
    q, k, v = draw_inputs()
    run = jax.jit(lambda flag: jax.lax.cond(flag, lambda: attend(q, k, v)[0], lambda: v))
    assert_close(run(True), attend_plainly(q, k, v)[0], 1e-5)
    assert_close(run(False), v, 0)


def test_donated_and_aliased(attend):
    """An argument three times over, and one whose memory is given away."""
    q, _, _ = draw_inputs()
    expected = attend_plainly(q, q, q)
    assert_close(jax.jit(lambda x: attend(x, x, x))(q), expected, 1e-5)
    run = jax.jit(lambda x: attend(x, x, x)[0] + x, donate_argnums=0)
    assert_close(run(q + 0), expected[0] + q, 1e-5)


def test_inputs_stay_as_they_are(attend):
    """A callback gets memory that it might write to."""
    inputs = draw_inputs()
    before = [np.array(x) for x in inputs]
    jax.block_until_ready(
        jax.jit(jax.grad(functools.partial(find_loss, attend), (0, 1, 2)))(*inputs)
    )
    for x, y in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_many_threads(attend):
    """One program in several threads at once gives the same bits as alone."""
    from concurrent.futures import ThreadPoolExecutor

    run = jax.jit(jax.grad(functools.partial(find_loss, attend), (0, 1, 2)))
    batches = [draw_inputs(seed=seed) for seed in range(6)]
    expected = [run(*inputs) for inputs in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda inputs: run(*inputs), batches))
    assert_close(found, expected, 0)


def test_an_eager_call_makes_nothing_anew(attend, monkeypatch):
    """Gradients without jit: what was traced and compiled at first serves from then on."""
    traced = []
    run_form = crisscross.jax.task.Task.run_form

    def watch(self, *arrays):
        traced.append(self)
        return run_form(self, *arrays)

    monkeypatch.setattr(crisscross.jax.task.Task, "run_form", watch)
    inputs = [x[..., :4] for x in draw_inputs()]
    differentiate = jax.grad(functools.partial(find_loss, attend), (0, 1, 2))
    differentiate(*inputs)
    assert traced
    traced.clear()
    kept = crisscross.jax.callbacks._find_callback, crisscross.jax.derivatives.differentiate
    before = [each.cache_info().misses for each in kept]
    differentiate(*inputs)
    assert not traced
    assert [each.cache_info().misses for each in kept] == before
    jax.vmap(attend)(*(x[None] for x in inputs))
    traced.clear()
    jax.vmap(attend)(*(x[None] for x in inputs))
    assert not traced
