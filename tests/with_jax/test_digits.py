"""The example of digits in JAX: its sheets are what it says, who knows the key, that it learns."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits_jax", ROOT / "examples/digits_jax.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(example):
    return example.load()


@pytest.mark.parametrize("seed", [0, 1])
def test_no_digit_is_trained_with_and_held_out(example, digits, seed):
    parts = example.split(digits, seed)
    assert [len(part) for part in parts] == [1297, 500]
    assert set(parts[0]) | set(parts[1]) == set(range(1797))


def test_sheets_are_those_described(example, digits):
    """Each place, by looking its pixels up in what scikit-learn has."""
    data = load_digits()
    pool = np.arange(100, 160)
    known = {data.data[number].tobytes(): number for number in pool}
    assert len(known) == len(pool)
    sheets = example.draw(np.random.default_rng(0), digits, pool, 30)
    assert sheets.x.dtype == np.float32 and sheets.x.shape == (30, 6, 6, 64)
    for x, labels, aligned in zip(*sheets, strict=True):
        found = {}
        for at in np.ndindex(6, 6):
            for tone in (1, 0.6):
                number = known.get(np.round(x[at] * 16 / tone, 3).astype(float).tobytes())
                if number is not None:
                    found[at] = number, tone
        assert len(found) == 10 and np.count_nonzero(x.any(-1)) == 10
        (key,) = [at for at, (_, tone) in found.items() if tone == 1]
        for at in np.ndindex(6, 6):
            if at in found and at != key:
                assert labels[at] == data.target[found[at][0]] + data.target[found[key][0]]
                assert aligned[at] == (at[0] == key[0] or at[1] == key[1])
            else:
                assert labels[at] == -1 and not aligned[at]


@pytest.mark.parametrize("recurrence", [0, 1, 2])
def test_who_can_know_the_key(example, recurrence):
    """The logits of which places change with the pixels of one?"""
    tree = example.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, 6, 6, 64))
    other = x.at[0, 2, 3].set(jax.random.uniform(jax.random.key(2), (64,)))
    apply = jax.jit(example.apply, static_argnums=2)
    first, second = (apply(tree, each, recurrence) for each in (x, other))
    changed = np.abs(first - second).max(-1)[0] > 1e-6
    cross = np.zeros((6, 6), bool)
    cross[2], cross[:, 3] = True, True
    own = np.zeros((6, 6), bool)
    own[2, 3] = True
    np.testing.assert_array_equal(changed, {0: own, 1: cross, 2: np.ones((6, 6), bool)}[recurrence])


def test_the_loss_is_the_mean_cross_entropy_of_what_is_labelled(example):
    tree = example.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 64))
    labels = np.full((2, 6, 6), -1)
    labels[0, 1, 2], labels[1, 5, 0] = 3, 18
    logits = np.asarray(example.apply(tree, x, 2), float)
    told = [(logits[0, 1, 2], 3), (logits[1, 5, 0], 18)]
    expected = np.mean([np.log(np.exp(each).sum()) - each[label] for each, label in told])
    np.testing.assert_allclose(example.find_loss(tree, x, labels, 2), expected, 1e-5)


def test_gradients_are_those_of_differences(example):
    """Along a direction in all parameters at once, of which the attention's are most."""
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda x: x.astype("float64"), example.init(jax.random.key(0)))
        x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 64), "float64")
        labels = jax.random.randint(jax.random.key(2), (2, 6, 6), 0, 19)
        find_loss = jax.jit(example.find_loss, static_argnums=3)
        gradients = jax.jit(jax.grad(example.find_loss), static_argnums=3)(tree, x, labels, 2)
        for part in tree:
            leaves, form = jax.tree.flatten(tree[part])
            rng = np.random.default_rng(0)
            direction = form.unflatten([rng.standard_normal(leaf.shape) for leaf in leaves])

            def move(by, part=part, direction=direction):
                moved = jax.tree.map(lambda p, d: p + by * d, tree[part], direction)
                return float(find_loss({**tree, part: moved}, x, labels, 2))

            products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradients[part], direction)
            found, step = float(sum(jax.tree.leaves(products))), 1e-6
            assert abs(found) > 1e-3
            np.testing.assert_allclose(found, (move(step) - move(-step)) / (2 * step), 1e-5)


def test_a_step_is_adams(example):
    """Of one number, by the formula of the paper; the rate rises for a tenth, and falls to 0."""
    tree = example.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (2, 6, 6, 64))
    labels = np.asarray(jax.random.randint(jax.random.key(2), (2, 6, 6), 0, 19))
    zeros = jax.tree.map(jnp.zeros_like, tree)
    state = example.State(tree, zeros, zeros, jnp.zeros((), int))
    differentiate = jax.jit(jax.grad(example.find_loss), static_argnums=3)
    m = s = 0.0
    p = float(tree["attention"]["gamma"][0])
    for step in range(1, 21):
        g = differentiate(state.parameters, x, labels, 2)["attention"]["gamma"][0]
        state, _ = example.advance(state, x, labels, recurrence=2, steps=20)
        m, s = 0.9 * m + 0.1 * float(g), 0.999 * s + 0.001 * float(g) ** 2
        rate = 3e-3 * min(step / 2, (20 - step) / 18)
        p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
        found = float(state.parameters["attention"]["gamma"][0])
        np.testing.assert_allclose(found - 1, p - 1, 1e-3, equal_nan=False)


def test_context_is_learned_by_attention_alone(example, digits):
    """Half of the steps are enough to see it; gamma and all else have moved."""
    pool, others = example.split(digits, 0)
    trained = example.train(digits, pool, (0, 2), 300, 0)
    sheets = example.draw(np.random.default_rng(2), digits, others, 500)
    first = example.init(jax.random.key(0))
    shares = {r: example.judge(each.parameters, sheets, r) for r, each in trained.items()}
    assert all(share < 0.16 for share in shares[0].values())
    assert all(share > 0.6 for share in shares[2].values()), shares
    moved = jax.tree.map(lambda p, q: float(jnp.abs(p - q).max()), trained[2].parameters, first)
    key_bias = moved["attention"].pop("key_conv.bias")  # changes no softmax
    assert min(jax.tree.leaves(moved)) > 1e-3 and np.isfinite(key_bias)
    unmoved = jax.tree.map(jnp.array_equal, trained[0].parameters["attention"], first["attention"])
    assert all(jax.tree.leaves(unmoved))


def test_it_prints_the_losses_and_the_shares(example, monkeypatch, capsys):
    """What is printed is what was computed, and the loss falls; the document shows such a table."""
    kept, train = {}, example.train
    monkeypatch.setattr(example, "train", lambda *args: kept.update(train(*args)) or kept)
    monkeypatch.setattr("sys.argv", ["digits_jax.py", "--steps", "40", "--seed", "1"])
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == [" step", "R = 0", "R = 1", "R = 2"]
    curve = np.array([line.split() for line in lines[1:21]], float)
    np.testing.assert_array_equal(curve[:, 0], range(2, 41, 2))
    for column, r in enumerate((0, 1, 2), 1):
        losses = np.array(kept[r].losses)
        assert len(losses) == 40
        np.testing.assert_allclose(curve[:, column], losses.reshape(20, 2).mean(1), atol=6e-4)
        assert curve[-1, column] < curve[0, column] - 0.05
    header, _, *rows = lines[-5:]
    document = (ROOT / "docs/jax.md").read_text()
    assert header in document
    digits = example.load()
    held_out = example.split(digits, 1)[1]
    sheets = example.draw(np.random.default_rng([1, 2]), digits, held_out, 2000)
    for r, row in enumerate(rows):
        shares = example.judge(kept[r].parameters, sheets, r).values()
        found = re.findall(r"([\d.]+)%", row)
        assert found == [f"{100 * share:.1f}" for share in shares] and len(found) == 3
        assert re.search(rf"^\| {r} \| [\d.]+% ", document, re.M)
