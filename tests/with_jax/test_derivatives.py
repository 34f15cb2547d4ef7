"""Derivatives of every function: against differences and against NumPy's gradients, twice."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import crisscross
import crisscross.jax
from tests.with_jax.arrays import assert_close, draw_all, make_mask

BACKWARD = ("dout", "q", "k", "v", "out", "lse")


@pytest.fixture(autouse=True)
def in_float64():
    """Compiled as fast as may be, for everything runs a few times only."""
    with jax.enable_x64(True):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def put_zero(lse):
    """Hide -inf, which has no differences."""
    return jnp.where(jnp.isneginf(lse), 0.0, lse)


#: Attention by spatial sizes and options: odd, rectangular, of one to three axes.
ATTENTIONS = {
    "plain": ((2, 3), {}),
    "heads and scale": ((3, 2), {"heads": 2, "scale": -0.7}),
    "masked": ((3, 2), {"mask": True, "heads": 2}),
    "one axis": ((2, 3), {"axes": (1,), "mask": True}),
    "channels at the end": ((2, 3), {"channel_axis": -1, "heads": 2, "mask": True}),
    "line": ((4,), {"scale": 0.3}),
    "video": ((2, 1, 2), {}),
}


def prepare(name, **further):
    """Return a function of q, k and v, and these."""
    spatial, options = ATTENTIONS[name]
    options = {**options, **further}
    masked = options.pop("mask", False)
    last = options.get("channel_axis") == -1
    shapes = [(2, *spatial, c) if last else (2, c, *spatial) for c in (4, 4, 6)]
    mask = make_mask(2, *spatial, hidden=[1]) if masked else None

    def attend(q, k, v):
        out, lse = crisscross.criss_cross_attention(
            q, k, v, key_mask=mask, return_lse=True, **options
        )
        return out, put_zero(lse)

    return attend, draw_all(*shapes)


def check(run, arrays, modes=("rev",)):
    """First and second derivatives, backwards unless said otherwise, of what is compiled."""
    check_grads(jax.jit(run), arrays, order=2, modes=list(modes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name, device):
    check(*prepare(name))


@pytest.mark.parametrize("backend", ["cpu", "xla"])
def test_attention_of_a_backend(backend):
    check(*prepare("masked", backend=backend))


def test_attention_that_is_not_compiled(device):
    attend, arrays = prepare("masked")

    def run(*arrays):
        return attend(*map(jnp.asarray, arrays))  # differences are taken with arrays of NumPy

    check_grads(run, arrays, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("include_self", [True, False])
def test_axial_attention(include_self, device):
    """Without itself, a strip of one position has no key."""
    arrays = draw_all((1, 4, 1, 3), (1, 4, 1, 3), (1, 6, 1, 3))

    def attend(q, k, v):
        options = {"include_self": include_self, "heads": 2, "return_lse": True}
        row, lse = crisscross.axial_attention(q, k, v, axis=1, **options)
        column, lonely = crisscross.axial_attention(q, k, v, axis=0, **options)
        return row, lse, column, put_zero(lonely)

    check(attend, arrays)


@pytest.mark.parametrize("masked", [False, True])
def test_backward_itself(masked, device):
    """Of out, lse and dlse too, which are given by themselves."""
    mask = make_mask(2, 2, 3, hidden=[1]) if masked else None
    q, k, v, dout = draw_all((2, 4, 2, 3), (2, 4, 2, 3), (2, 6, 2, 3), (2, 6, 2, 3))
    out, lse = crisscross.criss_cross_attention(q, k, v, key_mask=mask, heads=2, return_lse=True)
    (dlse,) = draw_all(lse.shape, seed=1)

    def pull(dout, q, k, v, out, lse, dlse):
        return crisscross.criss_cross_attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, key_mask=mask, heads=2
        )

    if masked:
        lse = put_zero(lse)  # of what is hidden: whatever it is, its weights are zero
    check(pull, (dout, q, k, v, out, lse, dlse))

    def pull_axis(dout, q, k, v, out, lse):
        return crisscross.axial_attention_backward(
            dout, q, k, v, out, lse, axis=1, key_mask=mask, heads=2
        )

    check(pull_axis, (dout, q, k, v, out, lse))


def test_merge(device):
    outs = draw_all(*[(2, 4, 2, 3)] * 3)
    lses = draw_all(*[(2, 2, 2, 3)] * 3, seed=1)

    def merge(outs, lses):
        return crisscross.merge_attentions(outs, lses)

    check(merge, (outs, lses))
    check(merge, (outs, lses), ["fwd"])


def test_merge_of_nothing():
    """A part without keys has no share and no gradient, whatever it holds."""
    outs = [*draw_all((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), jnp.nan)]
    lses = [*draw_all((1, 1, 2, 3), seed=1), jnp.full((1, 1, 2, 3), -jnp.inf)]

    def find_loss(outs, lses):
        out, lse = crisscross.merge_attentions(outs, lses)
        return (out**2).sum() + (lse**2).sum()

    douts, dlses = jax.jit(jax.grad(find_loss, (0, 1)))(outs, lses)
    assert_close(douts[0], 2 * outs[0], 1e-12)
    assert_close(dlses[0], 2 * lses[0], 1e-12)
    assert_close((douts[1], dlses[1]), (jnp.zeros_like(outs[1]), jnp.zeros_like(lses[1])), 0)


SIZES = [(2, 3), (1, 3), (3, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_ccnets_operators(size, device):
    q, k, v = draw_all(*[(2, 2, *size)] * 2, (2, 3, *size))
    check(crisscross.ca_weight, (q, k))
    (energy,) = draw_all((2, sum(size) - 1, *size))
    check(crisscross.ca_softmax, (energy,))
    attention = jax.nn.softmax(energy, 1)
    check(crisscross.ca_map, (attention, v))
    check(crisscross.ca_weight_backward, (energy, q, k))
    check(crisscross.ca_softmax_backward, (energy, attention))
    check(crisscross.ca_map_backward, (v, attention, v))
    check(functools.partial(crisscross.to_port_layout, self_value=2.5), (attention,))
    check(crisscross.from_port_layout, (crisscross.to_port_layout(attention),))


def test_what_is_looked_at(device):
    q, k = draw_all((1, 4, 2, 3), (1, 4, 2, 3))
    check(functools.partial(crisscross.attention_map, at=[(1, 2), (0, 0)], heads=2), (q, k))
    check(functools.partial(crisscross.attention_entropy, heads=2), (q, k))
    composed = functools.partial(crisscross.compose_attention, at=(1, 2))
    check(lambda q, k: composed([(q, k), (k, q)]), (q, k))


# Forwards, as it is asked for


def test_forward_mode(device):
    """jvp, linearize, both Hessians and the modes over each other; the default says no."""
    q, k, v = draw_all((1, 4, 2, 3), (1, 4, 2, 3), (1, 6, 2, 3))
    mask = make_mask(1, 2, 3)
    options = {"key_mask": mask, "heads": 2, "scale": 0.6, "return_lse": True}
    attend = functools.partial(crisscross.jax.criss_cross_attention, forward_mode=True, **options)
    usual = functools.partial(crisscross.criss_cross_attention, **options)
    assert_close(attend(q, k, v), usual(q, k, v), 1e-12)
    check(attend, (q, k, v), ["fwd", "rev"])  # and over each other

    def find_loss(attend, q):
        out, lse = attend(q, k, v)
        return (out**2).sum() + (lse**3).sum()

    forward = jax.jit(jax.hessian(functools.partial(find_loss, attend)))(q)
    reverse = jax.jacrev(jax.jacrev(functools.partial(find_loss, usual)))(q)
    assert_close(forward, reverse, 1e-9)
    assert float(jnp.abs(forward).max()) > 0.1
    with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(usual, (q, k, v), (q, k, v))


def test_forward_mode_of_axial_attention(device):
    q, k, v = draw_all((1, 4, 1, 3), (1, 4, 1, 3), (1, 6, 1, 3))

    def attend(q, k, v):
        out, lse = crisscross.jax.axial_attention(
            q, k, v, axis=0, include_self=False, return_lse=True, forward_mode=True
        )
        return out, put_zero(lse)

    check(attend, (q, k, v), ["fwd", "rev"])


def test_forward_mode_of_ccnets_operators(device):
    q, k, v = draw_all((1, 2, 2, 3), (1, 2, 2, 3), (1, 1, 2, 3))

    def run(q, k, v):
        attention = crisscross.jax.ca_softmax(
            crisscross.jax.ca_weight(q, k, forward_mode=True), forward_mode=True
        )
        return crisscross.jax.ca_map(attention, v, forward_mode=True)

    usual = crisscross.ca_map(crisscross.ca_softmax(crisscross.ca_weight(q, k)), v)
    assert_close(run(q, k, v), usual, 1e-12)
    check(run, (q, k, v), ["fwd", "rev"])


def test_gradients_of_16_bits(device):
    """Everything in the dtype of its array, as accurate as NumPy's path."""
    q, k, v = (x.astype(jnp.bfloat16) for x in draw_all(*[(1, 4, 3, 5)] * 3))

    def find_loss(*x):
        return crisscross.criss_cross_attention(*x).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(find_loss, (0, 1, 2)))(q, k, v)
    assert all(x.dtype == jnp.bfloat16 for x in gradients)
    out, lse = crisscross.criss_cross_attention(*map(np.asarray, (q, k, v)), return_lse=True)
    expected = crisscross.criss_cross_attention_backward(
        np.ones_like(out), *map(np.asarray, (q, k, v)), out, lse
    )
    assert_close(gradients, expected, 2e-2)
