"""Blocks as pairs of functions: those of `crisscross.nn`, compiled, differentiated, mapped."""

from __future__ import annotations

import inspect
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crisscross.jax
from crisscross import ArgumentError, ArgumentTypeError, compose_attention, nn
from crisscross.jax import (
    Training,
    channel_attention_block,
    criss_cross_block,
    non_local_block,
    position_attention_block,
    rcca_head,
)

NAMES = (
    "criss_cross_block",
    "rcca_head",
    "non_local_block",
    "position_attention_block",
    "channel_attention_block",
)
HEAD = {"classes": 3, "inner": 8, "outer": 6}
#: What is computed -> block, options of `init`, options of `apply`.
CASES = {
    "criss-cross": ("criss_cross_block", {"gamma": 0.7}, {"recurrence": 2}),
    "its own parameters": ("criss_cross_block", {"gamma": 0.7, "recurrence": 3}, {}),
    "heads and one axis": (
        "criss_cross_block",
        {"gamma": 0.7, "inner": 4},
        {"heads": 2, "scale": 0.3, "axes": (1,)},
    ),
    "head": ("rcca_head", {"gamma": 0.7, **HEAD}, {"epsilon": 1e-3, "activation": "relu"}),
    "head with groups": (
        "rcca_head",
        {"gamma": 0.7, "norm": "group", **HEAD},
        {"norm": "group", "groups": 2, "recurrence": 1},
    ),
    "non-local": ("non_local_block", {"zero": False}, {"scale": 0.5}),
    "dot product": ("non_local_block", {"zero": False}, {"mode": "dot_product"}),
    "position": ("position_attention_block", {"gamma": 0.7}, {}),
    "channel": ("channel_attention_block", {"gamma": 0.7}, {}),
}
#: Of `init`, for features of 6 channels.
MADE = {
    "criss_cross_block": {},
    "rcca_head": HEAD,
    "non_local_block": {"zero": False},
    "position_attention_block": {},
    "channel_attention_block": {},
}
STATISTICS = {
    f"{name}.1.{part}"
    for name in ("conva", "convb", "bottleneck")
    for part in ("running_mean", "running_var")
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def lay(x, channel_axis):
    return x if channel_axis == 1 else np.moveaxis(x, 1, -1)


def init_numpy(name, channels=8, **options):
    """Parameters of NumPy, each channel with numbers of its own."""
    counted = () if name == "channel_attention_block" else (channels,)
    made = getattr(nn, f"init_{name}")(*counted, **{"dtype": "float64", **options})
    rng = np.random.default_rng(5)
    return {
        key: (x if key.endswith("gamma") else x + 0.1 * rng.uniform(0.5, 1, x.shape)).astype(
            x.dtype
        )
        for key, x in made.items()
    }


def to_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def assert_close(found, expected, tolerance=1e-11):
    assert isinstance(found, jax.Array) and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, tolerance, tolerance, equal_nan=False)


# What is applied


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_numpy(case, channel_axis, x64, device):
    """Of all parameters and of x, compiled; running statistics have none."""
    name, made, options = CASES[case]
    options = {**options, "channel_axis": channel_axis}
    make = make_head if case == "head with groups" else partial(init_numpy, name)
    parameters, x = make(**made), lay(draw(2, 8, 5, 4, scale=0.5), channel_axis)
    tape = nn.Tape()
    expected = getattr(nn, name)(parameters, x, tape=tape, **options)
    dout = draw(*expected.shape, seed=1)
    wanted, dx = tape.pull(expected, dout, (parameters, x))
    apply = partial(getattr(crisscross.jax, name).apply, **options)

    @jax.jit
    def differentiate(parameters, x):
        out, pull = jax.vjp(apply, parameters, x)
        return out, pull(jnp.asarray(dout))

    out, (found, found_dx) = differentiate(to_jax(parameters), jnp.asarray(x))
    assert_close(out, expected)
    assert np.abs(expected - (x if expected.shape == x.shape else 0)).max() > 0.1
    assert_close(found_dx, dx)
    assert found.keys() == parameters.keys()
    for key, gradient in wanted.items():
        if gradient is None:
            assert key in STATISTICS and not np.any(found[key])
        else:
            assert_close(found[key], gradient)
    if name != "rcca_head":  # of which JAX would compile every step
        # And without a compiler, where our own backends compute.
        assert_close(apply(to_jax(parameters), jnp.asarray(x)), expected)


@pytest.mark.parametrize("backend", ["cpu", "xla", "reference"])
def test_each_backend_and_a_mask(backend, x64):
    """The mask is an array as any other, and may be traced."""
    parameters, x = init_numpy("criss_cross_block", gamma=0.7), draw(2, 8, 5, 4)
    mask = np.random.default_rng(1).random((2, 5, 4)) < 0.6
    expected = nn.criss_cross_block(parameters, x, recurrence=2, key_mask=mask)
    assert np.abs(expected - nn.criss_cross_block(parameters, x, recurrence=2)).max() > 1e-3
    apply = jax.jit(partial(criss_cross_block.apply, recurrence=2, backend=backend))
    assert_close(apply(to_jax(parameters), jnp.asarray(x), key_mask=jnp.asarray(mask)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_reaches_the_function(name, monkeypatch):
    """All that there are, but the tape and a list to be appended to; with the same defaults."""
    apply, function = getattr(crisscross.jax, name).apply, getattr(nn, name)
    ours, theirs = (
        {each.name: each.default for each in inspect.signature(f).parameters.values()}
        for f in (apply, function)
    )
    pairs = {"pairs"} & theirs.keys()
    assert theirs.keys() - ours.keys() == {"tape"} | pairs
    assert ours.keys() - theirs.keys() == ({"return_pairs"} if pairs else set())
    shared = [each for each in ours if each in theirs and each not in ("parameters", "x")]
    assert all(ours[each] == theirs[each] for each in shared)
    seen = []
    monkeypatch.setattr(nn, name, lambda *args, **given: seen.append((args, given)))
    options = {each: object() for each in shared if each != "training"}
    apply({}, 1, **options)
    ((args, given),) = seen
    assert args == ({}, 1)
    assert options.items() <= given.items()


@pytest.mark.parametrize("name", ["criss_cross_block", "rcca_head"])
def test_pairs_are_returned(name, x64, device):
    """As often as it is called, those of that call: nothing is appended to anything."""
    options = {"norm": None} if name == "rcca_head" else {}
    make = make_head if options else partial(init_numpy, name, gamma=0.7)
    parameters, x = make(**options), draw(1, 8, 5, 4)
    expected = []
    out = getattr(nn, name)(parameters, x, recurrence=2, pairs=expected, **options)
    apply = partial(getattr(crisscross.jax, name).apply, recurrence=2, return_pairs=True, **options)
    for call in (apply, jax.jit(apply), jax.jit(apply)):
        found, pairs = call(to_jax(parameters), jnp.asarray(x))
        assert_close(found, out)
        assert len(pairs) == 2
        jax.tree.map(assert_close, pairs, expected)
    seen = compose_attention(pairs, at=(2, 1))
    np.testing.assert_allclose(seen, compose_attention(expected, at=(2, 1)), 1e-6, 1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case != "head with groups"])
def test_vmap_over_batches_and_over_parameters(case, x64, device):
    name, made, options = CASES[case]
    apply = jax.jit(partial(getattr(crisscross.jax, name).apply, **options))
    parameters = [make_head(**made) if name == "rcca_head" else init_numpy(name, **made)]
    parameters.append({key: 1.5 * x for key, x in parameters[0].items()})
    parameters = list(map(to_jax, parameters))
    xs = jnp.asarray(draw(3, 2, 8, 5, 4, scale=0.5))
    mapped = jax.vmap(apply, (None, 0))(parameters[0], xs)
    for found, x in zip(mapped, xs, strict=True):
        assert_close(found, np.asarray(apply(parameters[0], x)))
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *parameters)
    ensemble = jax.vmap(apply, (0, None))(stacked, xs[0])
    for found, each in zip(ensemble, parameters, strict=True):
        assert_close(found, np.asarray(apply(each, xs[0])))
    assert np.abs(ensemble[0] - ensemble[1]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(dtype, device):
    """Parameters and features of them; each step is rounded once, as by NumPy."""
    parameters = criss_cross_block.init(jax.random.key(0), 8, gamma=0.7, dtype=dtype)
    x = jax.random.normal(jax.random.key(1), (2, 8, 5, 4), dtype)
    out = jax.jit(partial(criss_cross_block.apply, recurrence=2))(parameters, x)
    assert out.dtype == dtype
    given = {name: np.asarray(each) for name, each in parameters.items()}
    expected = nn.criss_cross_block(given, np.asarray(x), recurrence=2).astype(np.float32)
    step = {"float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(out.astype("float32"), expected, step, step)


# What is drawn


VARIANTS = [
    ("criss_cross_block", {}),
    ("criss_cross_block", {"recurrence": 2, "spatial_ndim": 3}),
    ("criss_cross_block", {"inner": 5, "gamma": 0.3}),
    ("rcca_head", {"spatial_ndim": 1}),
    ("rcca_head", {"recurrence": 2, "gamma": 0.3}),
    ("rcca_head", {"norm": "group"}),
    ("rcca_head", {"norm": None}),
    ("non_local_block", {}),
    ("non_local_block", {"zero": True, "inner": 5}),
    ("position_attention_block", {"inner": 5, "gamma": 0.3}),
    ("channel_attention_block", {"gamma": 0.3}),
]


def is_drawn(name):
    """Whether a parameter is random: those of norms, gamma and statistics are not."""
    return "gamma" not in name and not re.match(r"(conva|convb|bottleneck)\.1\.", name)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_names_shapes_and_constants_are_those_of_numpy(name, variant, x64, device):
    options = {**MADE[name], **variant}
    init = partial(getattr(crisscross.jax, name).init, channels=6, **options)
    key = jax.random.key(0)
    counted = () if name == "channel_attention_block" else (6,)
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        expected = getattr(nn, f"init_{name}")(*counted, dtype=dtype, **options)
        for spelt in (dtype, jnp.dtype(dtype), getattr(jnp, dtype)):
            found = jax.eval_shape(partial(init, dtype=spelt), key)
            assert type(found) is dict
            assert {name: (each.shape, each.dtype) for name, each in found.items()} == {
                name: (array.shape, array.dtype) for name, array in expected.items()
            }
    expected = getattr(nn, f"init_{name}")(*counted, **options)
    for part, array in init(key).items():
        assert isinstance(array, jax.Array) and array.dtype == "float32"
        is_zero = options.get("zero", False) and part.startswith("W")
        if is_drawn(part) and not is_zero:
            assert np.any(array)
        else:
            np.testing.assert_array_equal(array, expected[part])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_roundings_of_float32(dtype):
    one, other = (
        criss_cross_block.init(jax.random.key(0), 8, dtype=each) for each in ("float32", dtype)
    )
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array.astype(dtype))


@pytest.mark.parametrize("spatial_ndim", [1, 2])
@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_bounds_are_those_of_numpy(name, spatial_ndim):
    """Uniform within 1 / sqrt(inputs) of a position of the output, the biases too."""
    made = getattr(crisscross.jax, name).init(
        jax.random.key(3), 64, spatial_ndim=spatial_ndim, **{**MADE[name], "inner": 32}
    )
    for key, array in made.items():
        if not is_drawn(key):
            continue
        weight = made[key.replace("bias", "weight")]
        bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
        assert np.abs(array).max() <= bound, key
        if array.size > 2000:
            assert min(-array.min(), array.max()) > 0.99 * bound, key
        if array.size > 200:
            assert min(-array.min(), array.max()) > 0.95 * bound, key
            error = 4 * bound / math.sqrt(array.size)
            assert abs(array.std() - bound / math.sqrt(3)) < error, key
            assert abs(array.mean()) < error, key


@pytest.mark.parametrize("name", NAMES[:-1])
def test_every_name_and_every_key_has_numbers_of_its_own(name, device):
    init = partial(getattr(crisscross.jax, name).init, channels=8, **MADE[name])
    one, again, other = (init(jax.random.key(seed)) for seed in (3, 3, 4))
    jitted = jax.jit(init)(jax.random.key(3))
    drawn = [key for key in one if is_drawn(key)]
    for key, array in one.items():
        np.testing.assert_array_equal(array, again[key])
        np.testing.assert_array_equal(array, jitted[key])
        assert bool((array != other[key]).any()) == (key in drawn), key
    # Relative to their bounds, so that none is another one's, scaled.
    heads = []
    for key in drawn:
        inputs = math.prod(one[key.replace("bias", "weight")].shape[1:])
        heads.append(np.round(np.ravel(one[key])[0] * math.sqrt(inputs), 4))
    assert len(set(heads)) == len(drawn)
    # Of a mapped key, as of each.
    mapped = jax.vmap(init)(jnp.stack([jax.random.key(seed) for seed in (3, 4)]))
    for key in one:
        np.testing.assert_array_equal(mapped[key][0], one[key])
        np.testing.assert_array_equal(mapped[key][1], other[key])


def test_an_old_key_is_a_key():
    old, new = jax.random.PRNGKey(7), jax.random.key(7)
    one, other = (non_local_block.init(key, 8) for key in (old, new))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_blocks_begin_as_the_identity(device):
    """gamma and W are 0 in the beginning, as in the originals."""
    x = jax.random.normal(jax.random.key(1), (1, 8, 3, 4))
    for block in (
        criss_cross_block,
        position_attention_block,
        channel_attention_block,
        non_local_block,
    ):
        parameters = block.init(jax.random.key(0), 8)
        np.testing.assert_array_equal(jax.jit(block.apply)(parameters, x), x)


# Training


def make_head(dtype="float64", **options):
    """Kernels of size 1, for those of 3 take XLA a while to compile."""
    made = init_numpy("rcca_head", **{"gamma": 0.7, "dtype": dtype, **HEAD, **options})
    return {key: x[..., 1:2, 1:2] if x.shape[2:] == (3, 3) else x for key, x in made.items()}


def test_statistics_are_those_of_numpy(x64, device):
    parameters, x = make_head(), draw(2, 8, 5, 4)
    expected, statistics = nn.rcca_head(parameters, x, training=nn.Training(momentum=0.25))
    apply = jax.jit(rcca_head.apply)
    found, moved = apply(to_jax(parameters), jnp.asarray(x), training=Training(momentum=0.25))
    assert_close(found, expected)
    assert type(moved) is dict and moved.keys() == STATISTICS == statistics.keys()
    jax.tree.map(assert_close, moved, statistics)
    # Merged, they are what the next step follows, and what is read in the end.
    merged = {**to_jax(parameters), **moved}
    _, again = apply(merged, jnp.asarray(x), training=Training(momentum=0.25))
    theirs = {**parameters, **statistics}
    _, expected = nn.rcca_head(theirs, x, training=nn.Training(momentum=0.25))
    jax.tree.map(assert_close, again, expected)
    assert_close(apply(merged, jnp.asarray(x)), nn.rcca_head(theirs, x))


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_gradients_while_training(channel_axis, x64, device):
    """Those of the statistics of the batch included; no gradient goes through what follows them."""
    parameters, x = make_head(), lay(draw(2, 8, 5, 4), channel_axis)
    tape = nn.Tape()
    options = {"channel_axis": channel_axis}
    expected, _ = nn.rcca_head(parameters, x, training=nn.Training(), tape=tape, **options)
    dout = draw(*expected.shape, seed=1)
    wanted, dx = tape.pull(expected, dout, (parameters, x))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def differentiate(parameters, x):
        logits, statistics = rcca_head.apply(parameters, x, training=Training(), **options)
        return (logits * dout).sum() + sum(each.sum() for each in statistics.values())

    found, found_dx = differentiate(to_jax(parameters), jnp.asarray(x))
    assert_close(found_dx, dx)
    for key, gradient in wanted.items():
        if gradient is None:
            assert key in STATISTICS and not np.any(found[key])
        else:
            assert_close(found[key], gradient, 1e-10)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_whole_channels_are_dropped_by_the_key(channel_axis, x64, device):
    """Others with another key, the same with the same one; what is kept makes up for them."""
    parameters = make_head(norm=None, outer=64, classes=64)
    # Each channel of the bottleneck is seen through a class of its own.
    parameters["bottleneck.3.weight"] = np.eye(64)
    parameters["bottleneck.3.bias"] = np.zeros(64)
    x = jnp.asarray(lay(draw(2, 8, 5, 4), channel_axis))
    apply = jax.jit(partial(rcca_head.apply, norm=None, channel_axis=channel_axis))
    whole = apply(to_jax(parameters), x)

    def find_factors(seed):
        training = Training(jax.random.key(seed), dropout=0.25)
        dropped, statistics = apply(to_jax(parameters), x, training=training)
        assert statistics == {}
        return np.moveaxis(dropped / whole, channel_axis, 1).reshape(2, 64, -1)

    factors, again, other = (find_factors(seed) for seed in (0, 0, 1))
    for each in (factors, other):
        assert np.all((each == 0) | np.isclose(each, 4 / 3))
        assert np.all(np.isclose(each, each[:, :, :1]))
        assert 0.1 < np.mean(each[:, :, 0] == 0) < 0.4 and np.any(each[0] != each[1])
    np.testing.assert_array_equal(factors, again)
    assert np.any(factors != other)


def test_no_key_drops_nothing(x64, device):
    parameters, x = to_jax(make_head(norm=None)), jnp.asarray(draw(2, 8, 5, 4))
    apply = jax.jit(partial(rcca_head.apply, norm=None))
    np.testing.assert_array_equal(
        apply(parameters, x, training=Training(dropout=0.9))[0], apply(parameters, x)
    )


def test_training_is_mapped_over_keys(device):
    """One compilation serves all keys, and a mapped key drops as each by itself."""
    parameters, x = to_jax(make_head("float32", norm=None)), draw(2, 8, 5, 4).astype("f4")
    count = []

    @jax.jit
    def apply(parameters, x, training):
        count.append(1)
        return rcca_head.apply(parameters, x, norm=None, training=training)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    each = [apply(parameters, x, Training(key, 0.4)) for key in keys]
    assert len(count) == 1
    mapped = jax.vmap(apply, (None, None, Training(0, 0.4)))(parameters, x, Training(keys, 0.4))
    np.testing.assert_allclose(mapped, jnp.stack(each), 1e-5, 1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-3


def test_numbers_of_numpy_are_not_kept_by_a_trace():
    """They would drop the same channels in every call."""
    parameters, x = to_jax(make_head("float32")), jnp.asarray(draw(2, 8, 5, 4), "float32")
    training = nn.Training(np.random.default_rng(0))
    message = r"training\.generator: expected what draws while JAX traces: a key, given to cr"
    for function, given in (
        (lambda x: nn.rcca_head(parameters, x, training=training), x),
        (lambda p: nn.rcca_head(p, x, training=training), parameters),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            jax.jit(function)(given)
    jax.eval_shape(lambda x: nn.rcca_head(parameters, x, training=nn.Training()), x)


# As others use it


def test_by_hand(device):
    """A tree among others, a step of descent by `jax.tree.map`; the loss falls."""
    key = jax.random.key(0)
    tree = {
        "block": criss_cross_block.init(key, 8, gamma=0.5),
        "scale": jnp.ones(()),
    }
    x, y = jax.random.normal(key, (2, 2, 4, 5, 8))

    @jax.value_and_grad
    def find_loss(tree, x, y):
        out = criss_cross_block.apply(tree["block"], x, recurrence=2, channel_axis=-1)
        return jnp.mean((tree["scale"] * out - y) ** 2)

    @jax.jit
    def step(tree, x, y):
        loss, gradients = find_loss(tree, x, y)
        return loss, jax.tree.map(lambda p, g: p - 0.3 * g, tree, gradients)

    losses = []
    for _ in range(40):
        loss, tree = step(tree, x, y)
        losses.append(float(loss))
    assert losses[-1] < 0.75 * losses[0]
    assert {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)} == set(tree)
    assert type(tree["block"]) is dict and float(tree["block"]["gamma"][0]) != 0.5


@pytest.mark.filterwarnings("error")
def test_a_loop_that_is_compiled(device):
    """`lax.scan` over keys: parameters, statistics among them, are what is carried; none leak."""
    parameters = to_jax(make_head("float32"))
    x, y = jnp.asarray(draw(2, 4, 8, 3, 4), "float32")

    def step(parameters, key):
        def find_loss(parameters):
            training = Training(key, dropout=0.2)
            logits, statistics = rcca_head.apply(parameters, x, training=training)
            return jnp.mean((logits - y[:, :3]) ** 2), statistics

        (loss, statistics), gradients = jax.value_and_grad(find_loss, has_aux=True)(parameters)
        moved = jax.tree.map(lambda p, g: p - 0.05 * g, parameters, gradients)
        return {**moved, **statistics}, loss

    keys = jax.random.split(jax.random.key(1), 30)
    with jax.checking_leaks():
        end, losses = jax.jit(partial(jax.lax.scan, step))(parameters, keys)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    # What is added to all keys alike changes no softmax, and has no gradient.
    still = {name for name in parameters if np.all(end[name] == parameters[name])}
    assert still <= {"cca.key_conv.bias"}


def test_ccnets_checkpoint(device):
    """Its state dict by our names is a tree of JAX after one `jax.tree.map`."""
    theirs = init_numpy("rcca_head", gamma=0.7, dtype="float32", **HEAD)
    state = {
        re.sub(r"^conv([ab])", r"conv1\1", name).replace("cca.", "pc."): x
        for name, x in theirs.items()
    }
    state = {f"module.head.{name}": x for name, x in state.items()}
    loaded = to_jax(nn.from_ccnet(state))
    assert loaded.keys() == theirs.keys()
    x = draw(1, 8, 5, 4).astype("f4")
    out = jax.jit(rcca_head.apply)(loaded, x)
    expected = nn.rcca_head(nn.from_ccnet(state), x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, 1e-4, 1e-4)


# What does not fit


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda _: criss_cross_block.init(0, 0, inner=-1, dtype="int8"),
         ["key: expected one key, as jax.random.key makes it, got 0",
          "channels: expected at least 1, got 0", "inner: expected at least 1, got -1",
          "dtype: expected one of ('float16', 'bfloat16', 'float32', 'float64'), got 'int8'"]),
        (lambda key: non_local_block.init(jax.random.split(key), 8, dtype=jnp.int8),
         ["key: expected one key, as jax.random.key makes it, got PRNGKeyArray",
          "dtype: expected one of ('float16', 'bfloat16', 'float32', 'float64'), got 'int8'"]),
        (lambda key: position_attention_block.init(key, 8, gamma=None, dtype=None),
         ["gamma: expected a real number, got None",
          "dtype: expected one of ('float16', 'bfloat16', 'float32', 'float64'), got None"]),
        (lambda key: rcca_head.init(key, 8, classes=0, norm="layer", dtype="float64"),
         ["dtype: expected float32, or jax.config.update('jax_enable_x64', True), "
          "got float64 while 64-bit dtypes are switched off",
          "classes: expected at least 1, got 0",
          "norm: expected one of ('batch', 'group', None), got 'layer'"]),
        (lambda _: channel_attention_block.init(None, 0, dtype=float),
         ["key: expected one key, as jax.random.key makes it, got None",
          "dtype: expected float32, or jax.config.update('jax_enable_x64', True), "
          "got float64 while 64-bit dtypes are switched off",
          "channels: expected at least 1, got 0"]),
    ],
)  # fmt: skip
def test_what_init_refuses(call, expected):
    with pytest.raises((ArgumentError, ArgumentTypeError)) as raised:
        call(jax.random.key(0))
    assert raised.value.function.endswith(".init")
    assert list(map(str, raised.value.mismatches)) == expected


def test_what_apply_refuses():
    """All of it at once, of traced arrays as of others, in the name of the block."""
    parameters = criss_cross_block.init(jax.random.key(0), 8, gamma=0.5)
    wrong = {**parameters, "gamma": jnp.zeros(2), "spare": parameters["gamma"]}
    del wrong["key_conv.bias"]
    x = jnp.zeros((1, 8, 3, 4))
    apply = partial(criss_cross_block.apply, recurrence=-1, precision="half")
    found = []
    for call in (apply, jax.jit(apply), jax.grad(lambda p, x: apply(p, x).sum())):
        with pytest.raises(ArgumentError) as raised:
            call(wrong, x)
        assert raised.value.function == "criss_cross_block"
        found.append([mismatch.argument for mismatch in raised.value.mismatches])
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {
        "recurrence",
        "precision",
        "parameters",
        "parameters['gamma'].shape",
        "parameters['key_conv.bias']",
    }
    with pytest.raises(ArgumentTypeError, match="parameters: expected a mapping of names"):
        rcca_head.apply([], x)
    with pytest.raises(ArgumentTypeError, match=r"return_pairs: expected True or False, got 1"):
        criss_cross_block.apply(parameters, x, return_pairs=1)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (nn.Training(), ["training: expected None or a Training of crisscross.jax, got Training"]),
        (Training(3), ["training.key: expected one key, as jax.random.key makes it, got 3"]),
        (Training(None, 1.0, -1),
         ["training.dropout: expected a share, dropout below 1, got 1.0",
          "training.momentum: expected a share, dropout below 1, got -1"]),
    ],
)  # fmt: skip
def test_training_that_is_refused(training, expected):
    parameters, x = to_jax(make_head("float32")), jnp.zeros((1, 8, 3, 4))
    with pytest.raises((ArgumentError, ArgumentTypeError)) as raised:
        rcca_head.apply(parameters, x, training=training)
    assert raised.value.function == "rcca_head"
    found = list(map(str, raised.value.mismatches))
    assert len(found) == len(expected)
    assert all(each.startswith(start) for each, start in zip(found, expected, strict=True))
