"""Who serves which platform: what programs for CUDA, TPU and CPU contain, without such devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

import crisscross
from crisscross.jax import platforms

CUDA, CPU = "xla_buffer_python_gpu_callback", "xla_buffer_python_cpu_callback"
SMALL = jax.ShapeDtypeStruct((2, 4, 3, 5), jnp.float32)
LARGE = jax.ShapeDtypeStruct((2, 64, 64, 64), jnp.float32)


def lower(function, platform, *specs):
    return jax.jit(function).trace(*specs).lower(lowering_platforms=(platform,)).as_text()


def attend(x, **options):
    return crisscross.criss_cross_attention(x, x, x, **options)


def differentiate(x, **options):
    return jax.grad(lambda x: attend(x, **options).sum())(x)


FUNCTIONS = {
    "attention": attend,
    "axial attention": lambda x: crisscross.axial_attention(x, x, x, axis=1),
    "ca_weight": lambda x: crisscross.ca_weight(x, x),
    "ca_softmax": lambda x: crisscross.ca_softmax(jnp.zeros((2, 7, 3, 5)) + x[:, :1]),
    "ca_map": lambda x: crisscross.ca_map(jnp.zeros((2, 7, 3, 5)) + x[:, :1], x),
    "to_port_layout": lambda x: crisscross.to_port_layout(jnp.zeros((2, 7, 3, 5)) + x[:, :1]),
    "forward mode": lambda x: crisscross.jax.criss_cross_attention(x, x, x, forward_mode=True),
    "vmap": lambda x: jax.vmap(lambda y: attend(y[None]))(x),
    "scan": lambda x: jax.lax.scan(lambda y, _: (attend(y), None), x, None, length=2)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kernels_serve_cuda_alone(name):
    assert CUDA in lower(FUNCTIONS[name], "cuda", SMALL)
    for platform in ("tpu", "rocm", "cpu"):
        assert "callback" not in lower(FUNCTIONS[name], platform, SMALL)


def test_gradients_are_kernels_too():
    assert lower(differentiate, "cuda", SMALL).count(f"custom_call @{CUDA}") == 2
    assert "callback" not in lower(differentiate, "tpu", SMALL)


def test_second_derivatives_are_those_of_xla():
    def twice(x):
        return jax.grad(lambda x: (differentiate(x) ** 2).sum())(x)

    text = lower(twice, "cuda", SMALL)
    assert CUDA in text and "dot_general" in text


def test_nothing_is_called_for_nothing():
    empty = jax.ShapeDtypeStruct((0, 4, 3, 5), jnp.float32)
    assert "callback" not in lower(differentiate, "cuda", empty)
    empty = jax.ShapeDtypeStruct((0, 2, 4, 3, 5), jnp.float32)
    assert "callback" not in lower(jax.vmap(differentiate), "cuda", empty)


def test_large_problems_on_a_cpu_are_numpys():
    """From where on it is faster; forward and backward alike."""
    assert CPU in lower(attend, "cpu", LARGE)
    assert lower(differentiate, "cpu", LARGE).count(f"custom_call @{CPU}") == 2
    assert "callback" not in lower(attend, "cpu", SMALL)
    assert CUDA in lower(attend, "cuda", LARGE) and "callback" not in lower(attend, "tpu", LARGE)


def test_the_bound_counts_multiplications(monkeypatch):
    """Positions, keys of each, and channels of both products."""
    work = 2 * 3 * 5 * (3 + 5) * (4 + 4)
    monkeypatch.setattr(platforms, "_LEAST_FOR_NUMPY", work)
    jax.clear_caches()
    assert CPU in lower(attend, "cpu", SMALL)
    assert CPU not in lower(functools.partial(attend, axes=(0,)), "cpu", SMALL)
    assert CPU in lower(functools.partial(attend, heads=2), "cpu", SMALL)
    samples = jax.ShapeDtypeStruct((2, 1, *SMALL.shape[1:]), jnp.float32)
    assert CPU in lower(jax.vmap(attend), "cpu", samples)
    monkeypatch.setattr(platforms, "_LEAST_FOR_NUMPY", work + 1)
    jax.clear_caches()
    assert CPU not in lower(attend, "cpu", SMALL)


#: Backend asked for -> platforms that it serves, with what there is in the program.
ASKED_FOR = {
    "gpu": {"cuda": CUDA},
    "cpu": {"cpu": CPU},
    "reference": {"cpu": CPU},
    "xla": dict.fromkeys(("cuda", "cpu", "tpu"), "dot_general"),
}


@pytest.mark.parametrize("platform", ["cuda", "cpu", "tpu"])
@pytest.mark.parametrize("backend", ASKED_FOR)
def test_a_backend_that_is_asked_for(backend, platform):
    """It serves, or the error says who does: nothing else does so silently."""
    run = functools.partial(differentiate, backend=backend)
    expected = ASKED_FOR[backend].get(platform)
    if expected is not None:
        text = lower(run, platform, SMALL)
        assert expected in text
        assert ("callback" in text) == (backend != "xla")
        return
    (served,) = ASKED_FOR[backend]
    words = (
        f"backend='{backend}' serves the platform '{served}', and this is compiled for {platform}"
    )
    with pytest.raises(crisscross.BackendError, match=words):
        lower(run, platform, SMALL)
    with pytest.raises(crisscross.BackendError, match=words):
        lower(lambda x: jax.vmap(lambda y: attend(y[None], backend=backend))(x), platform, SMALL)


def test_a_program_of_xla_alone_can_be_exported():
    """A callback lives in one process; what XLA compiles goes elsewhere."""
    run = jax.jit(functools.partial(differentiate, backend="xla"))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(LARGE)
    x = jax.random.normal(jax.random.key(0), LARGE.shape)
    assert jnp.allclose(exported.call(x), run(x), atol=1e-5)


def test_a_program_for_any_number_of_images():
    (n,) = jax.export.symbolic_shape("n")
    run = jax.jit(functools.partial(differentiate, backend="xla"))
    exported = jax.export.export(run)(jax.ShapeDtypeStruct((n, 4, 3, 5), jnp.float32))
    x = jax.random.normal(jax.random.key(0), (3, 4, 3, 5))
    assert jnp.allclose(exported.call(x), run(x), atol=1e-5)


def test_products_are_as_precise_as_asked_for():
    """What a TPU would round to bfloat16 says how much it may."""
    highest = lower(functools.partial(differentiate, backend="xla"), "tpu", SMALL)
    count = highest.count("dot_general")
    assert count and highest.count("precision = [HIGHEST, HIGHEST]") == count
    high = lower(functools.partial(differentiate, backend="xla", precision="tf32"), "tpu", SMALL)
    assert high.count("precision = [HIGH, HIGH]") == high.count("dot_general") > 0


def explain(spec, **options):
    found = []

    def run(x):
        found.append(crisscross.explain(x, x, x, **options))
        return x

    jax.eval_shape(run, spec)
    return found[0]


def test_explain_of_what_is_traced():
    small, large = explain(SMALL), explain(LARGE)
    assert (small.backend, large.backend) == ("xla", "cpu")
    assert small.way == "traced; when it is compiled, by platform: gpu on cuda, XLA elsewhere"
    assert "gpu on cuda, cpu on cpu, XLA elsewhere" in large.way
    assert "XLA compiles" in small.algorithm and "matmul along strips" in large.algorithm
    assert "nothing elsewhere" in explain(SMALL, backend="cpu").way
    assert explain(LARGE, backend="xla").way.endswith("by platform: XLA elsewhere")
    assert explain(SMALL).device == "cpu"
    assert small.reason.endswith("default platform of JAX; faster there below 2^26 multiplications")
    assert large.reason.endswith(
        "default platform of JAX; faster there from 2^26 multiplications on"
    )


def test_explain_of_a_platform_that_is_not_here(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    found = explain(LARGE)
    assert (found.backend, found.device) == ("xla", "tpu:0")
    assert found.reason == "serves tpu, the default platform of JAX"


def test_explain_of_a_mask_that_is_traced():
    x, told = jnp.zeros(SMALL.shape), []

    def run(mask):
        told.append(crisscross.explain(x, x, x, key_mask=mask).way)
        return mask

    jax.eval_shape(run, jax.ShapeDtypeStruct((2, 3, 5), bool))
    assert told[0].startswith("traced")


def test_explain_of_arrays():
    x = jnp.zeros(SMALL.shape)
    assert crisscross.explain(x, x, x).way.startswith("directly")
    assert crisscross.explain(x, x, x).backend == "cpu"
    asked = crisscross.explain(x, x, x, backend="xla")
    assert (asked.backend, asked.way) == ("xla", "by XLA, which compiles it")
    with pytest.raises(crisscross.BackendError, match="gpu: it serves arrays in CUDA memory"):
        explain(SMALL, backend="gpu")
