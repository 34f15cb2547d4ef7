"""The CUDA kernels within what JAX compiles; an emulator stands in for the device."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crisscross
from crisscross import gpu
from crisscross.jax import callbacks, platforms
from crisscross.jax.task import Task
from crisscross.problem import MapProblem
from crisscross.testing import assert_matches_reference, make_case
from tests.kernels.emulated import EmulatorEngine
from tests.with_jax.arrays import assert_close, draw, make_mask, to_jax

STREAM = 4321


@pytest.fixture
def engines(monkeypatch):
    """Let programs for the CPU call what programs for CUDA do; yields the engines of all calls."""
    opened = []

    @contextmanager
    def open_device(device, stream, make):
        assert device == "cuda:0" and make is None  # scratch is CuPy's
        opened.append(EmulatorEngine(stream=stream))
        yield gpu.GpuBackend(opened[-1])

    def fill(task, _context, buffers):
        for name in task.operation.outputs:
            np.asarray(buffers[name])[...] = np.nan
        callbacks.fill_on_cuda(task, SimpleNamespace(stream=STREAM), buffers)

    monkeypatch.setattr(gpu, "open_device", open_device)
    run = lambda task, *arrays: callbacks.call_back(task, arrays, fill)  # noqa: E731
    monkeypatch.setitem(platforms._CALLS, "gpu", ("cpu", run))
    jax.clear_caches()
    yield opened
    jax.clear_caches()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_kernels_fill_what_xla_has_allocated(engines, channel_axis, dtype):
    sizes = {"heads": 2, "head_size_qk": 3, "head_size_v": 6}
    case = make_case((5, 7), **sizes, channel_axis=channel_axis, dtype=dtype, masked=True)

    @jax.jit
    def run(q, k, v, key_mask, dout, dlse):
        options = {**case.options, "key_mask": key_mask, "backend": "gpu", "return_lse": True}
        attend = functools.partial(crisscross.criss_cross_attention, **options)
        results, pull = jax.vjp(attend, q, k, v)
        return *results, *pull((dout, dlse))

    names = ("q", "k", "v", "key_mask", "dout", "dlse")
    with jax.enable_x64(dtype == "float64"):
        results = run(*(to_jax(getattr(case, name)) for name in names))
    found = dict(zip(("out", "lse", "dq", "dk", "dv"), map(np.asarray, results), strict=True))
    assert_matches_reference(case, **found)
    assert [engine.stream for engine in engines] == [STREAM] * 2
    assert all(engine.launches for engine in engines)


def test_vmap_makes_more_images(engines):
    """One launch for all, whatever is mapped, and however often."""
    q, k, v = draw(2, 3, 2, 4, 3, 5), draw(3, 2, 4, 3, 5, seed=1), draw(2, 2, 6, 3, 5, seed=2)
    masks = make_mask(2, 3, 2, 3, 5)

    def attend(q, k, v, mask, backend):
        return crisscross.criss_cross_attention(q, k, v, key_mask=mask, heads=2, backend=backend)

    def find(backend):
        run = functools.partial(attend, backend=backend)
        return jax.vmap(jax.vmap(run, (0, 0, None, 0)), (0, None, 0, 0))(q, k, v, masks)

    found = find("gpu")
    assert len(engines) == 1
    assert_close(found, find("xla"), 1e-5)


def test_the_device_of_the_buffers(monkeypatch):
    opened = []

    class Buffer:
        def __dlpack__(self):
            return np.zeros(3).__dlpack__()

        def __dlpack_device__(self):
            return 2, 3

    @contextmanager
    def open_device(device, stream, _make):
        opened.append((device, stream))
        yield None

    monkeypatch.setattr(gpu, "open_device", open_device)
    monkeypatch.setattr(callbacks, "run", lambda *given: opened.append([*given[2]]))
    task = Task("ca_softmax", MapProblem(1, 2, 3, "float32"), None)
    buffers = {"energy": Buffer(), "attention": Buffer()}
    callbacks.fill_on_cuda(task, SimpleNamespace(stream=STREAM), buffers)
    assert opened == [("cuda:3", STREAM), ["energy", "attention"]]


def test_the_backend_on_a_cpu_is_the_one_asked_for(monkeypatch):
    asked = []
    load = callbacks.load_backend
    monkeypatch.setattr(callbacks, "load_backend", lambda name: asked.append(name) or load(name))
    x = draw(1, 4, 3, 5)
    for backend in ("reference", "cpu"):
        attend = functools.partial(crisscross.criss_cross_attention, backend=backend)
        jax.block_until_ready(jax.jit(attend)(x, x, x))
    assert asked == ["reference", "cpu"]


def find_all(x, backend):
    """Every operator that keeps a map, forward and backward."""
    options = {"backend": backend}
    q, k, v = x, 2 * x, x[:, :3]

    def run(q, k, v):
        attention = crisscross.ca_softmax(crisscross.ca_weight(q, k, **options), **options)
        ported = crisscross.to_port_layout(attention, self_value=0.5, **options)
        out = crisscross.ca_map(crisscross.from_port_layout(ported, **options), v, **options)
        along = crisscross.axial_attention(q, k, v, axis=1, include_self=False, **options)
        return out, ported, along

    results, pull = jax.vjp(run, q, k, v)
    return results, pull(results)


def test_other_kernels(engines):
    x = draw(2, 4, 3, 5)
    found = jax.jit(functools.partial(find_all, backend="gpu"))(x)
    assert len(engines) >= 9
    assert_close(found, find_all(x, "xla"), 1e-5)


def test_callbacks_are_not_captured():
    """A graph of commands would be replayed with scratch that is somebody else's by then."""
    x = jax.ShapeDtypeStruct((1, 4, 3, 5), jnp.float32)
    run = jax.jit(lambda x: crisscross.criss_cross_attention(x, x, x))
    text = run.trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "gpu_callback" in text and "cmd_buffer" not in text


def test_what_goes_wrong_is_in_the_error(monkeypatch):
    """XLA raises an error of its own, with the words of what was raised within."""

    def fail(*_):
        raise crisscross.BackendError("CuPy is not installed: somewhere")

    monkeypatch.setitem(
        platforms._CALLS,
        "gpu",
        ("cpu", lambda task, *arrays: callbacks.call_back(task, arrays, fail)),
    )
    jax.clear_caches()
    x = draw(1, 4, 3, 5)
    with pytest.raises(jax.errors.JaxRuntimeError, match="CuPy is not installed: somewhere"):
        jax.jit(lambda x: crisscross.criss_cross_attention(x, x, x, backend="gpu"))(x)
    jax.clear_caches()


@pytest.mark.gpu
def test_no_copy_to_the_host_on_cuda():
    """Under a guard that forbids transfers, forward and backward, twice."""
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("JAX sees no CUDA device")
    with jax.default_device(device):
        q, k, v = (draw(1, c, 33, 47, seed=c) for c in (8, 9, 16))
        k = q + 1
        run = jax.jit(
            jax.value_and_grad(lambda *x: crisscross.criss_cross_attention(*x).sum(), (0, 1, 2))
        )
        with jax.transfer_guard("disallow"), jax.transfer_guard_device_to_host("disallow"):
            jax.block_until_ready(run(q, k, v))
            jax.block_until_ready(run(q, k, v))
