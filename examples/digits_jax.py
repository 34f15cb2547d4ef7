"""Train on digits whose label depends on a digit far away, in JAX: jit, grad, and Adam by hand.

    python examples/digits_jax.py [--steps N] [--seed N]

Needs the extras ``jax`` and ``demo``, and a minute of a CPU; prints losses as they fall, and the
table of docs/jax.md.

A sheet has 6 x 6 places. Ten of them, at random, hold one of scikit-learn's digits, 8 x 8 pixels,
drawn independently; one of the ten, the key, is brighter than the others. To be found at each digit
but the key: the sum of its class and the key's, 0 to 18.

A place is a position, its pixels are the channels. Before and behind the attention each position
is by itself. So without attention (R = 0) the key is unknown, and the best guess is right about
once in ten. R = 1 can know it in the key's row and column, R = 2 everywhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.datasets import load_digits

from crisscross.jax import criss_cross_block

PLACES, DIGITS, PIXELS, SUMS = 6, 10, 64, 19
HELD_OUT, DIM = 500, 0.6
CHANNELS, HIDDEN, INNER = 64, 128, 32
#: 0 in CCNet, whose module is added to a trained backbone; here all start together.
GAMMA = 1.0
BATCH, RATE, WARM_UP = 64, 3e-3, 0.1
RECURRENCES = (0, 1, 2)
#: Adam's, as usual.
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8

#: Whatever arrays are in; JAX maps over it.
Tree = Any


class Digits(NamedTuple):
    images: np.ndarray  # (1797, 64), from 0 to 1
    classes: np.ndarray


class Sheets(NamedTuple):
    """N sheets; `labels` are those of the digits but the key, elsewhere -1."""

    x: np.ndarray  # (N, 6, 6, 64)
    labels: np.ndarray  # (N, 6, 6)
    aligned: np.ndarray  # (N, 6, 6), digits in the key's row or column


class Trained(NamedTuple):
    parameters: Tree
    losses: list[float]  # of each step, before it
    seconds: float  # of the steps; compilation counts


class State(NamedTuple):
    """Parameters, and Adam's means of their gradients and of the squares of these."""

    parameters: Tree
    means: Tree
    squares: Tree
    step: Array


def load() -> Digits:
    images, classes = load_digits(return_X_y=True)
    return Digits((images / 16).astype(np.float32), classes)


def split(digits: Digits, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the digits to train with, and of those held out."""
    order = np.random.default_rng([seed, 0]).permutation(len(digits.classes))
    return order[:-HELD_OUT], order[-HELD_OUT:]


def draw(rng: np.random.Generator, digits: Digits, pool: np.ndarray, count: int) -> Sheets:
    """Draw sheets with digits of the pool."""
    picked = rng.choice(pool, (count, DIGITS))
    places = rng.permuted(np.tile(np.arange(PLACES**2), (count, 1)), axis=1)[:, :DIGITS]
    at = np.arange(count)[:, None], places
    x = np.zeros((count, PLACES**2, PIXELS), np.float32)
    tones = np.array([1.0] + [DIM] * (DIGITS - 1), np.float32)
    x[at] = digits.images[picked] * tones[:, None]
    labels = np.full((count, PLACES**2), -1)
    labels[at] = digits.classes[picked] + digits.classes[picked[:, :1]]
    labels[np.arange(count), places[:, 0]] = -1
    row, column = np.divmod(places, PLACES)
    aligned = np.zeros((count, PLACES**2), bool)
    aligned[at] = (row == row[:, :1]) | (column == column[:, :1])
    aligned &= labels >= 0
    shape = (count, PLACES, PLACES)
    return Sheets(x.reshape(*shape, PIXELS), labels.reshape(shape), aligned.reshape(shape))


def init(key: Array) -> Tree:
    """Draw a layer or two before the attention, its parameters, and two layers behind it."""
    keys = jax.random.split(key, 5)
    sizes = (PIXELS, HIDDEN), (HIDDEN, CHANNELS), (CHANNELS, HIDDEN), (HIDDEN, SUMS)
    layers = [
        {"weight": jax.random.normal(own, each) * (2 / each[0]) ** 0.5, "bias": jnp.zeros(each[1])}
        for own, each in zip(keys, sizes, strict=False)
    ]
    attention = criss_cross_block.init(keys[4], CHANNELS, inner=INNER, gamma=GAMMA)
    return {"stem": layers[:2], "attention": attention, "head": layers[2:]}


def apply(tree: Tree, x: Array, recurrence: int) -> Array:
    """Return logits, (N, 6, 6, 19)."""
    x = perceive(tree["stem"], x)
    x = criss_cross_block.apply(tree["attention"], x, recurrence=recurrence, channel_axis=-1)
    return perceive(tree["head"], x)


def perceive(layers: list[Tree], x: Array) -> Array:
    """Apply two layers to each position."""
    hidden = jax.nn.relu(x @ layers[0]["weight"] + layers[0]["bias"])
    return hidden @ layers[1]["weight"] + layers[1]["bias"]


def find_loss(tree: Tree, x: Array, labels: Array, recurrence: int) -> Array:
    """Return the mean cross-entropy of what is labelled."""
    told = labels >= 0
    logs = jax.nn.log_softmax(apply(tree, x, recurrence))
    of_labels = jnp.take_along_axis(logs, jnp.where(told, labels, 0)[..., None], -1)[..., 0]
    return -jnp.sum(of_labels, where=told) / told.sum()


@partial(jax.jit, static_argnames=("recurrence", "steps"))
def advance(
    state: State, x: Array, labels: Array, recurrence: int, steps: int
) -> tuple[State, Array]:
    """Take one step of Adam; the rate rises for a while, then falls to zero."""
    loss, gradients = jax.value_and_grad(find_loss)(state.parameters, x, labels, recurrence)
    step = state.step + 1
    means = jax.tree.map(lambda m, g: FIRST * m + (1 - FIRST) * g, state.means, gradients)
    squares = jax.tree.map(lambda s, g: SECOND * s + (1 - SECOND) * g**2, state.squares, gradients)
    done = step / steps
    rate = RATE * jnp.minimum(done / WARM_UP, (1 - done) / (1 - WARM_UP))

    def move(p: Array, m: Array, s: Array) -> Array:
        m, s = m / (1 - FIRST**step), s / (1 - SECOND**step)
        return p - rate * m / (jnp.sqrt(s) + EPSILON)

    return State(jax.tree.map(move, state.parameters, means, squares), means, squares, step), loss


@partial(jax.jit, static_argnames="recurrence")
def predict(tree: Tree, x: Array, recurrence: int) -> Array:
    return apply(tree, x, recurrence).argmax(-1)


def judge(tree: Tree, sheets: Sheets, recurrence: int) -> dict[str, float]:
    """Return the share of digits that are right, for each kind of place."""
    right = np.asarray(predict(tree, sheets.x, recurrence)) == sheets.labels
    told = sheets.labels >= 0
    kinds = {"all": told, "aligned": sheets.aligned, "elsewhere": told & ~sheets.aligned}
    return {kind: float(right[mask].mean()) for kind, mask in kinds.items()}


def train(
    digits: Digits, pool: np.ndarray, recurrences: Sequence[int], steps: int, seed: int
) -> dict[int, Trained]:
    """Train a network for each R, from the same parameters, on the same sheets; print losses."""
    rng = np.random.default_rng([seed, 1])
    first = init(jax.random.key(seed))
    zeros = jax.tree.map(jnp.zeros_like, first)
    states = {r: State(first, zeros, zeros, jnp.zeros((), int)) for r in recurrences}
    losses: dict[int, list[float]] = {r: [] for r in recurrences}
    seconds = dict.fromkeys(recurrences, 0.0)
    often = max(1, steps // 20)
    print(" step  " + "  ".join(f"R = {r}" for r in recurrences))
    for step in range(1, steps + 1):
        sheets = draw(rng, digits, pool, BATCH)
        for r, state in states.items():
            start = time.perf_counter()
            states[r], loss = advance(state, sheets.x, sheets.labels, recurrence=r, steps=steps)
            losses[r].append(float(loss))
            seconds[r] += time.perf_counter() - start
        if step % often == 0:
            told = "  ".join(f"{np.mean(losses[r][-often:]):5.3f}" for r in recurrences)
            print(f"{step:5}  {told}", flush=True)
    return {r: Trained(each.parameters, losses[r], seconds[r]) for r, each in states.items()}


def read_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("it is negative")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=read_number, default=600)
    parser.add_argument("--seed", type=read_number, default=0)
    options = parser.parse_args()
    digits = load()
    pool, others = split(digits, options.seed)
    trained = train(digits, pool, RECURRENCES, max(options.steps, 1), options.seed)
    held_out = draw(np.random.default_rng([options.seed, 2]), digits, others, 2000)
    print("\nHeld-out digits that are right, but the key:\n")
    names = "all", "in the key's row or column", "elsewhere", "training"
    print(f"| R | {' | '.join(names)} |\n" + "| --- " * 5 + "|")
    for r, each in trained.items():
        shares = judge(each.parameters, held_out, r).values()
        cells = " | ".join(f"{100 * share:.1f}%" for share in shares)
        print(f"| {r} | {cells} | {each.seconds:.0f} s |")


if __name__ == "__main__":
    main()
