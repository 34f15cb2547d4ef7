"""What does not fit is named as ever, traced or not; and what no trace could serve."""

from __future__ import annotations

import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crisscross
import crisscross.jax
from crisscross.jax import calls
from tests.with_jax.arrays import draw

X = draw(1, 4, 3, 5)


def attend(*args, **options):
    return crisscross.criss_cross_attention(*args, **options)


#: Calls with what is wrong: what each raises, and what it says.
WRONG = {
    "shapes": (
        lambda x: attend(x, x[..., :2], x[:, :, :1], heads=3),
        ValueError,
        [
            "k.shape: expected (1, 4, 3, 5) like q, got (1, 4, 3, 2)",
            "v.shape: expected (1, channels, 3, 5)",
            "multiple of heads = 3",
        ],
    ),
    "dtypes": (
        lambda x: attend(x.astype(int), x, x.astype(jnp.float16)),
        TypeError,
        ["q.dtype: expected one of float16", "got int32", "v.dtype"],
    ),
    "options": (
        lambda x: attend(x, x, x, scale="1", axes=3, precision="half", backend="tpu"),
        ValueError,
        ["scale: expected a real number", "axes", "precision", "backend: expected None or one of"],
    ),
    "a traced option": (
        lambda x: attend(x, x, x, scale=x[0, 0, 0, 0]),
        TypeError,
        ["scale: expected a real number, got"],
    ),
    "a flag": (lambda x: attend(x, x, x, return_lse=1), TypeError, ["return_lse: expected True"]),
    "no array": (lambda x: attend(x, x, 3.0), TypeError, ["v: expected an array"]),
    "another library's": (
        lambda x: attend(x, np.asarray(X), x),
        TypeError,
        ["k: expected an array of jax like q, got an array of numpy"],
    ),
    "too many": (lambda x: attend(x, x, x, x), TypeError, ["positional argument"]),
    "unknown": (
        lambda x: attend(x, x, x, head=2),
        TypeError,
        ["unexpected keyword argument 'head'"],
    ),
    "missing": (lambda x: attend(x, x), TypeError, ["missing 1 required positional argument: 'v'"]),
    "a map": (
        lambda x: crisscross.ca_map(x, x),
        ValueError,
        ["attention.shape: expected (1, 7, 3, 5) (N, H+W-1, H, W)"],
    ),
    "self_value": (
        lambda x: crisscross.to_port_layout(jnp.zeros((1, 7, 3, 5)) + x[:, :1], self_value=1e39),
        ValueError,
        ["self_value: expected a number that float32 holds"],
    ),
    "parts": (
        lambda x: crisscross.merge_attentions([x, x], [x[:, :1]]),
        ValueError,
        ["lses: expected as many parts as outs: 2, got 1"],
    ),
    "no parts": (
        lambda x: crisscross.merge_attentions(x, x),
        TypeError,
        ["outs: expected a list or tuple"],
    ),
    "forward_mode": (
        lambda x: crisscross.jax.criss_cross_attention(x, x, x, forward_mode=1),
        TypeError,
        ["forward_mode: expected True or False, got 1"],
    ),
    "an argument twice": (
        lambda x: attend(x, x, x, q=x),
        TypeError,
        ["multiple values for argument 'q'"],
    ),
    "arrays of another library first": (
        lambda x: attend(np.asarray(X), x, x),
        TypeError,
        ["k: expected an array of numpy like q, got an array of jax"],
    ),
    "gradients": (
        lambda x: crisscross.criss_cross_attention_backward(x, x, x, x, x, x, dlse=x),
        ValueError,
        ["lse.shape: expected (1, 1, 3, 5) (N, heads, *S)", "dlse.shape"],
    ),
}
TRANSFORMS = {
    "plain": lambda run: run(X),
    "jit": lambda run: jax.jit(run)(X),
    "grad": lambda run: jax.grad(lambda x: run(x).sum())(X),
    "vmap": lambda run: jax.vmap(run)(X[None]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name, transform):
    """In the same words whether traced or not, every mismatch at once, and no word of tracers."""
    run, kind, words = WRONG[name]
    with pytest.raises(kind) as caught:
        TRANSFORMS[transform](run)
    for each in words:
        assert each in str(caught.value)
    if name not in ("a traced option", "no parts"):  # there it is what came
        assert "racer" not in str(caught.value)


def test_deleted(device):
    """An array that was donated has no memory; by whichever way it comes."""
    x = draw(1, 4, 3, 5)
    x.delete()
    for backend in (None, "xla"):
        with pytest.raises(crisscross.BridgeError, match=r"a live array; .*, got a deleted array"):
            attend(x, x, x, backend=backend)
        with pytest.raises(crisscross.BridgeError, match="got a deleted array"):
            jax.jit(lambda y, backend=backend: attend(y, x, y, backend=backend))(X)


def test_float64_while_it_is_switched_off():
    with jax.enable_x64(True):
        x = jnp.zeros((1, 4, 3, 5), "float64")
    for run in (attend, functools.partial(attend, backend="xla")):
        with pytest.raises(
            crisscross.BridgeError, match=r"jax_enable_x64.*got float64 while 64-bit"
        ):
            run(x, x, x)


def test_a_platform_that_is_asked_for_and_not_there():
    with pytest.raises(crisscross.BackendError, match="gpu: it serves arrays in CUDA memory"):
        attend(X, X, X, backend="gpu")
    with pytest.raises(crisscross.BackendError, match="backend='gpu' serves the platform 'cuda'"):
        jax.grad(lambda x: attend(x, x, x, backend="gpu").sum())(X)
    with jax.disable_jit(), pytest.raises(crisscross.BackendError, match="compiled for cpu"):
        jax.grad(lambda x: attend(x, x, x, backend="gpu").sum())(X)


@pytest.mark.parametrize("backend", ["gpu", "cpu", "reference"])
def test_a_merge_that_is_traced_is_nobody_elses(backend):
    """It is arithmetic of JAX; who is asked for by name does not serve it."""

    def merge(x):
        return crisscross.merge_attentions([x], [x[:, :1]], backend=backend)[0]

    with pytest.raises(crisscross.BackendError, match=f"backend='{backend}' serves arrays with"):
        jax.jit(merge)(X)


def test_a_key_is_no_number():
    keys = jax.random.split(jax.random.key(0), X.shape)
    with pytest.raises(TypeError, match=r"q: expected an array of .*, got .*PRNGKeyArray"):
        attend(keys, X, X)
    with pytest.raises(TypeError, match=r"q\.dtype: expected one of float16.* got key<fry>"):
        jax.jit(attend)(keys, X, X)


def test_options_of_numpy_come_first():
    """By name, in any order."""
    axes = np.array([1])
    found = jax.jit(lambda x: crisscross.criss_cross_attention(axes=axes, q=x, k=x, v=x))(X)
    assert jnp.allclose(found, attend(X, X, X, axes=(1,)), atol=1e-6)


def test_where_no_backend_of_ours_is():
    """XLA serves there; of what is refused the function tells."""

    class Device(NamedTuple):
        platform: str
        id: int

    class Array:
        def __init__(self, platform, *ids):
            self.found = {Device(platform, each) for each in ids}

        def is_deleted(self):
            return not self.found

        def devices(self):
            return self.found

    cases = {("tpu", 0): True, ("gpu", 0): False, ("cpu", 0): False, ("cpu", 1): True}
    for (platform, number), expected in cases.items():
        assert calls._needs_xla([Array(platform, number), None], None) is expected
    assert not calls._needs_xla([Array("tpu", 0, 1)], None)
    assert not calls._needs_xla([Array("tpu")], None)
    assert not calls._needs_xla([Array("tpu", 0)], "gpu")


def test_xla_serves_jax_alone():
    x = np.zeros((1, 4, 3, 5))
    with pytest.raises(
        crisscross.BackendError, match=r"xla: it serves arrays of JAX, and .* numpy"
    ):
        attend(x, x, x, backend="xla")


def test_options_are_read_once():
    """An iterator of axes is used up, and counts all the same."""
    expected = attend(X, X, X, axes=(0,))
    assert jnp.allclose(jax.jit(lambda x: attend(x, x, x, axes=iter([0])))(X), expected, atol=1e-6)
    assert jnp.array_equal(attend(X, X, X, axes=iter([0])), expected)
    assert not jnp.allclose(expected, attend(X, X, X))


WITHOUT = """
import sys
sys.modules["jax"] = None
try:
    import crisscross.jax
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_jax(run_python):
    said = run_python(WITHOUT)
    expected = "crisscross.jax needs JAX: pip install 'crisscross-attention[jax]'"
    assert said.strip() == f"MissingDependencyError {expected}"
    assert "jax" in sys.modules  # of this process


SHARDED = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import crisscross

def draw(*shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)

shape = (4, 4, 12, 16)
q, k = (draw(*shape, seed=seed) for seed in range(2))
v = draw(4, 6, 12, 16, seed=2)
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def find_loss(backend, q, k, v):
    options = dict(return_lse=True, backend=backend)
    out, lse = crisscross.criss_cross_attention(q, k, v, **options)
    return (out ** 2).sum() + (lse ** 2).sum()

differentiate = jax.value_and_grad(find_loss, (1, 2, 3))
expected = differentiate(None, q, k, v)

def close(found):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in pairs)

for backend in (None, "cpu", "xla"):
    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("data"),) * 3,
        out_specs=(P(), (P("data"),) * 3), check_vma=True,
    )
    def images(q, k, v):
        loss, gradients = differentiate(backend, q, k, v)
        return jax.lax.psum(loss, "data"), gradients

    # k is the same everywhere: its gradient is the sum over all shards.
    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P("data"), P(), P("data")),
        out_specs=(P("data"), P(), P("data")), check_vma=True,
    )
    def shared(q, k, v):
        return jax.grad(lambda *x: find_loss(backend, *x), (0, 1, 2))(q, k, v)

    # Backwards through all of it, from outside; and heads in place of images.
    heads = jax.shard_map(
        lambda q, k, v: crisscross.criss_cross_attention(q, k, v, backend=backend),
        mesh=mesh, in_specs=(P(None, "model"),) * 3, out_specs=P(None, "model"), check_vma=True,
    )
    print(backend, close(images(q, k, v)))
    found = shared(q, k[:1].repeat(2, 0), v)
    plain = jax.grad(lambda k: find_loss(None, q, k[:1].repeat(4, 0), v))(k[:1].repeat(2, 0))
    print(backend, np.allclose(found[1].sum(0), plain.sum(0), rtol=1e-4, atol=1e-4))
    def through(run, q):
        return (run(q, k, v) ** 2).sum()
    plain = jax.grad(functools.partial(
        through, lambda *x: crisscross.criss_cross_attention(*x, heads=2)))(q)
    print(backend, np.allclose(jax.jit(jax.grad(functools.partial(through, heads)))(q), plain,
                               rtol=1e-4, atol=1e-4))

# Sharded arrays: XLA takes them apart by itself within jit; outside they are refused.
sharded = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (q, k, v)]
for backend in (None, "cpu", "xla"):
    print("jit", backend, close(jax.jit(functools.partial(differentiate, backend))(*sharded)))
closed = jax.jit(lambda q: find_loss(None, q, *sharded[1:]))
print(np.allclose(closed(sharded[0]), expected[0], rtol=1e-4))
# Each on a device of its own: results are where arguments are, and do not mix.
second = [jax.device_put(x, jax.devices()[1]) for x in (q, k, v)]
out = crisscross.criss_cross_attention(*second)
print(out.devices() == second[0].devices(), np.allclose(
    out, crisscross.criss_cross_attention(q, k, v), atol=1e-5))
try:
    crisscross.criss_cross_attention(second[0], jax.device_put(k, jax.devices()[2]), v)
except crisscross.ArgumentError as error:
    print("k.device: expected cpu:1 like q, got cpu:2" in str(error))
print(np.shares_memory(crisscross.from_dlpack(second[0]), crisscross.from_dlpack(second[0])))
explicit = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(explicit):
    named = [jax.device_put(x, P("data")) for x in (q, k, v)]
    try:
        jax.jit(functools.partial(find_loss, None))(*named)
    except crisscross.BridgeError as error:
        print("whose axes are not sharded by name; use jax.shard_map" in str(error))
try:
    crisscross.criss_cross_attention(*sharded)
except crisscross.BridgeError as error:
    print("sharded over 4 devices" in str(error), "gather it with" in str(error))
"""


def test_many_devices(run_python):
    """shard_map with every check, and jit of what is sharded, on four devices."""
    said = run_python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=4").splitlines()
    expected = [f"{backend} True" for backend in (None, "cpu", "xla") for _ in range(3)]
    expected += [f"jit {backend} True" for backend in (None, "cpu", "xla")]
    assert said == [*expected, "True", "True True", "True", "True", "True", "True True"]
