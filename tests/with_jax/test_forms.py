"""What is traced, by every backend, against the oracle: outputs and all gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crisscross
from crisscross.jax import forms
from crisscross.testing import assert_matches_reference, make_case
from tests.with_jax.arrays import assert_close, draw, draw_all, make_mask, to_jax

#: Attention by spatial sizes and options of a case: odd, rectangular, of one to three axes.
CASES = {
    "plain": ((5, 7), {}),
    "wide": ((3, 9), {"head_size_qk": 5, "head_size_v": 2, "scale": -0.7}),
    "heads": ((4, 3), {"heads": 2, "head_size_v": 3, "batch": 2, "scale": 0.4}),
    "masked": ((5, 3), {"heads": 2, "masked": True, "batch": 2}),
    "channels at the end": ((3, 5), {"channel_axis": -1, "masked": True, "heads": 2}),
    "one axis": ((4, 3), {"axes": (1,), "masked": True}),
    "line": ((9,), {"heads": 2}),
    "video": ((2, 3, 4), {"masked": True}),
    "one row": ((1, 6), {}),
    "one position": ((1, 1), {"masked": True}),
}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def attend(case, arrays, backend=None):
    """Return a function of q, k and v with the options of a case."""
    options = {**case.options, "key_mask": arrays["key_mask"], "backend": backend}
    return functools.partial(crisscross.criss_cross_attention, **options, return_lse=True)


def run(case, arrays, backend):
    """Return out, lse and gradients by name, all from one program."""

    @jax.jit
    def differentiate(q, k, v, dout, dlse):
        results, pull = jax.vjp(attend(case, arrays, backend), q, k, v)
        dlse = jnp.zeros_like(results[1]) if dlse is None else dlse
        return *results, *pull((dout, dlse))

    results = differentiate(*(arrays[name] for name in ("q", "k", "v", "dout", "dlse")))
    return dict(zip(("out", "lse", "dq", "dk", "dv"), map(np.asarray, results), strict=True))


def copy(case):
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    return {name: to_jax(getattr(case, name)) for name in names}


@pytest.mark.parametrize("backend", [None, "xla", "cpu", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_agreement_with_the_oracle(name, backend, device):
    if device != "cpu" and backend in ("cpu", "reference"):
        pytest.skip("it serves the CPU alone")
    spatial, options = CASES[name]
    case = make_case(spatial, **options, dtype="float64")
    with jax.enable_x64(True):
        assert_matches_reference(case, **run(case, copy(case), backend))


#: What is called on each platform.
CALLED = {"cpu": "cpu", "cuda": "gpu"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_called", [False, True])
def test_every_dtype(is_called, dtype, device):
    backend = CALLED[device] if is_called else "xla"
    case = make_case((9, 12), heads=2, head_size_qk=8, head_size_v=5, dtype=dtype, masked=True)
    with jax.enable_x64(dtype == "float64"):
        assert_matches_reference(case, **run(case, copy(case), backend))


@pytest.mark.parametrize("at_once", [1, 64, 200])
def test_strips_in_groups(at_once, monkeypatch):
    """One at a time, several, and a group that is not whole."""
    monkeypatch.setattr(forms, "_WEIGHTS_AT_ONCE", at_once)
    case = make_case((5, 7), heads=2, batch=2, dtype="float64", masked=True)
    with jax.enable_x64(True):
        arrays = copy(case)
        out, lse = forms.attention(case.problem, *(arrays[x] for x in ("q", "k", "v", "key_mask")))
        given = [arrays[name] for name in ("dout", "q", "k", "v")]
        gradients = forms.attention_backward(
            case.problem, *given, out, lse, arrays["dlse"], arrays["key_mask"]
        )
        results = dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), strict=True))
        assert_matches_reference(case, **{name: np.asarray(x) for name, x in results.items()})


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_no_map_in_memory(backend):
    """What XLA sets aside for forward and backward, beside arguments and results: not a map."""
    q, v = jnp.ones((1, 8, 256, 256)), jnp.ones((1, 16, 256, 256))

    def differentiate(q, k, v, dout):
        attend = functools.partial(crisscross.criss_cross_attention, backend=backend)
        return jax.vjp(attend, q, k, v)[1](dout)

    compiled = jax.jit(differentiate).lower(q, q, v, v).compile()
    map_bytes = 4 * 256 * 256 * (256 + 256 - 1)
    # Copies of the arrays as strips, and of the weights of a group of these.
    assert compiled.memory_analysis().temp_size_in_bytes < map_bytes / 2
    # As many positions, mapped over.
    mapped = jax.jit(jax.vmap(differentiate)).lower(
        *(x.reshape(16, 1, -1, 64, 64) for x in (q, q, v, v))
    )
    in_all = mapped.compile().memory_analysis().temp_size_in_bytes
    assert in_all < 4 * 16 * 64 * 64 * (64 + 64 - 1) * 2


HUGE = {"nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("backend", ["xla", "cpu"])
@pytest.mark.parametrize("value", HUGE)
def test_hidden_keys_are_never_read(value, backend):
    q, k, v = (draw(1, 4, 3, 5, seed=seed) for seed in range(3))
    mask = jnp.ones((1, 3, 5), bool).at[0, 1, 2].set(False)

    def find(k, v):
        def loss(*x):
            return crisscross.criss_cross_attention(*x, key_mask=mask, backend=backend).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

    spoilt = [x.at[0, :, 1, 2].set(HUGE[value]) for x in (k, v)]
    assert_close(find(*spoilt), find(k, v), 1e-6)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_hidden_keys_have_no_gradient(backend):
    """Nor beside queries and gradients that are NaN."""
    q, k, v = (draw(1, 4, 3, 5, seed=seed).at[0, :, 1, 0].set(np.nan) for seed in range(3))
    mask = jnp.ones((1, 3, 5), bool).at[0, 1, 2].set(False)
    attend = functools.partial(crisscross.criss_cross_attention, key_mask=mask, backend=backend)
    _, dk, dv = jax.jit(lambda *x: jax.vjp(attend, *x)[1](v))(q, k, v)
    for gradient in (dk, dv):
        assert (gradient[0, :, 1, 2] == 0).all() and np.isnan(gradient[0, :, 1, 1]).all()


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_what_saw_no_key_has_no_gradient(backend):
    """Whatever comes back to it, which is NaN of many a function of -inf."""
    q, k, v = (draw(2, 4, 3, 5, seed=seed) for seed in range(3))
    mask = jnp.ones((2, 3, 5), bool).at[0].set(False)

    def find_loss(q, k, v):
        options = {"key_mask": mask, "return_lse": True, "backend": backend}
        out, lse = crisscross.criss_cross_attention(q, k, v, **options)
        return jnp.where(jnp.isneginf(lse), 0.0, lse**2).sum() + (out**2).sum()

    gradients = jax.jit(jax.grad(find_loss, (0, 1, 2)))(q, k, v)
    for gradient in gradients:
        assert (gradient[0] == 0).all() and (jnp.abs(gradient[1]) > 0).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_merge_of_either_layout(channel_axis, device):
    q, k, v = (jnp.moveaxis(draw(2, 4, 3, 5, seed=seed), 1, channel_axis) for seed in range(3))

    @jax.jit
    def find(q, k, v):
        options = {"heads": 2, "channel_axis": channel_axis, "return_lse": True}
        row = crisscross.axial_attention(q, k, v, axis=1, **options)
        column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, **options)
        parts = zip(row, column, strict=True)
        whole = crisscross.criss_cross_attention(q, k, v, **options)
        return crisscross.merge_attentions(*map(list, parts), channel_axis=channel_axis), whole

    assert_close(*find(q, k, v), 1e-5)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_nan_and_large_energies(backend):
    """NaN stays in the strips that have it; energies of thousands do not overflow."""
    q, k, v = (draw(1, 4, 3, 5, seed=seed) for seed in range(3))
    attend = jax.jit(functools.partial(crisscross.criss_cross_attention, backend=backend))
    spoilt = np.asarray(attend(q, k.at[0, :, 1, 2].set(jnp.nan), v))
    cross = np.zeros((3, 5), bool)
    cross[1], cross[:, 2] = True, True
    assert np.isnan(spoilt[0][:, cross]).all()
    assert_close(spoilt[0][:, ~cross], np.asarray(attend(q, k, v))[0][:, ~cross], 1e-6)
    large = crisscross.criss_cross_attention(*map(np.asarray, (1e3 * q, 1e3 * k, v)))
    assert_close(attend(1e3 * q, 1e3 * k, v), large, 1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 0, 5), (2, 4, 5, 0), (0, 4, 3, 5), (2, 4, 0)])
def test_nothing_at_all(shape, device):
    """No callback is called, let alone captured, where there is nothing to do."""
    x = jnp.zeros(shape)

    @jax.jit
    def differentiate(x):
        (out, lse), pull = jax.vjp(
            lambda *x: crisscross.criss_cross_attention(*x, return_lse=True), x, x, x
        )
        return out, lse, pull((out, lse))

    out, lse, gradients = differentiate(x)
    assert out.shape == shape and lse.shape == (shape[0], 1, *shape[2:])
    assert all(gradient.shape == shape for gradient in gradients)
    assert "callback" not in str(jax.make_jaxpr(differentiate)(x))


# The others: what they return is what NumPy's path returns

SHAPES = [(2, 3, 4, 5), (1, 2, 1, 4), (1, 2, 5, 1), (1, 1, 1, 1)]


def find_others(q, k, v, mask, dout, backend):
    """Return what every other function returns; they are pulled back by `dout`, too."""
    options = {"backend": backend}
    energy = crisscross.ca_weight(q, k, **options)
    attention = crisscross.ca_softmax(energy, **options)
    mapped = crisscross.ca_map(attention, v, **options)
    ported = crisscross.to_port_layout(attention, self_value=-0.5, **options)
    axial = {**options, "key_mask": mask, "scale": 0.7, "return_lse": True}
    row = crisscross.axial_attention(q, k, v, axis=1, **axial)
    column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, **axial)
    merged = crisscross.merge_attentions([row[0], column[0]], [row[1], column[1]])
    given = {**options, "key_mask": mask, "scale": 0.7}
    return {
        "energy": energy,
        "attention": attention,
        "mapped": mapped,
        "ported": ported,
        "unported": crisscross.from_port_layout(ported, **options),
        "row": row,
        "merged": merged,
        "drow": crisscross.axial_attention_backward(dout, q, k, v, *row, axis=1, **given),
        "dmerged": crisscross.criss_cross_attention_backward(dout, q, k, v, *merged, **given),
        "dmapped": crisscross.ca_map_backward(dout, attention, v, **options),
        "denergy": crisscross.ca_softmax_backward(attention, attention, **options),
        "dweight": crisscross.ca_weight_backward(energy, q, k, **options),
    }


@pytest.mark.parametrize("backend", [None, "xla", "cpu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_functions(shape, backend, device):
    if device != "cpu" and backend == "cpu":
        pytest.skip("it serves the CPU alone")
    with jax.enable_x64(True):
        n, channels, *spatial = shape
        wide = (n, channels + 2, *spatial)
        q, k, v, dout = draw_all(shape, shape, wide, wide)
        mask = make_mask(n, *spatial)
        found = jax.jit(functools.partial(find_others, backend=backend))(q, k, v, mask, dout)
        plain = find_others(*map(np.asarray, (q, k, v, mask, dout)), None)
        plain = jax.tree.map(jnp.asarray, plain)
        for results in (found, plain):
            for name in ("row", "merged"):
                out, lse = results[name]
                results[name] = out, jnp.where(jnp.isneginf(lse), -1e3, lse)
        assert_close(found, plain, 1e-12)
