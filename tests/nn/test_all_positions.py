"""Attention to all positions of large images: exact, with little memory, its gradients too."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from crisscross import nn
from tests.nn import definitions

BLOCKS = {
    "position_attention": (
        nn.position_attention_block,
        nn.init_position_attention_block(8, inner=2, seed=3, gamma=0.7),
        ("query_conv", "key_conv", "value_conv"),
    ),
    "non_local": (
        nn.non_local_block,
        nn.init_non_local_block(8, inner=2, zero=False, seed=3),
        ("theta", "phi", "g"),
    ),
}


def draw(size, seed):
    return np.random.default_rng(seed).standard_normal((1, 8, size, size)).astype(np.float32)


def find_peak(run):
    tracemalloc.start()
    try:
        return run(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sample(size):
    """All positions, some at a time; of 256 x 256 of them, 64."""
    every = np.arange(size * size)
    if size == 97:
        return np.array_split(every, 20)
    return [np.random.default_rng(0).permutation(every)[:64]]


def find_lse(q, k):
    """Of every row of the map, a few rows at a time: (P,)."""
    parts = []
    for some in np.array_split(q, max(len(q) // 512, 1)):
        energies = some @ k.T
        peak = energies.max(-1, keepdims=True)
        np.exp(np.subtract(energies, peak, out=energies), out=energies)
        parts.append(peak[:, 0] + np.log(energies.sum(-1)))
    return np.concatenate(parts).astype(float)


def read(block, x):
    """Parameters, q, k and v in float64: positions as rows."""
    _, parameters, names = BLOCKS[block]
    wide = {name: array.astype(float) for name, array in parameters.items()}
    return wide, *(definitions.flatten(definitions.project(wide, name, x))[0].T for name in names)


def check_output(block, x, out):
    wide, q, k, v = read(block, x)
    flat_x, flat_out = (definitions.flatten(array.astype(float))[0].T for array in (x, out))
    for some in sample(x.shape[-1]):
        energies = q[some] @ k.T
        weights = np.exp(energies - energies.max(-1, keepdims=True))
        attended = weights @ v / weights.sum(-1, keepdims=True)
        if block == "non_local":
            added = attended @ wide["W.weight"][..., 0, 0].T + wide["W.bias"]
        else:
            added = 0.7 * attended
        np.testing.assert_allclose(flat_out[some], flat_x[some] + added, 1e-5, 1e-5)


def check_gradient(block, x, out, dout, dx):
    """At a position, by its row of the map, as a query, and its column, as a key."""
    wide, q, k, v = read(block, x)
    # What was attended to comes from the output, which has been checked.
    added = definitions.flatten(out.astype(float) - x)[0].T
    flat_dout = definitions.flatten(dout.astype(float))[0].T
    if block == "non_local":
        matrix = wide["W.weight"][..., 0, 0]
        dattended = flat_dout @ matrix
        attended = (added - wide["W.bias"]) @ np.linalg.pinv(matrix).T
    else:
        dattended, attended = 0.7 * flat_dout, added / 0.7
    lse = find_lse(q.astype(np.float32), k.astype(np.float32))
    delta = (dattended * attended).sum(-1)
    for some in sample(x.shape[-1]):
        row = np.exp(q[some] @ k.T - lse[some, None])
        dq = (row * (dattended[some] @ v.T - delta[some, None])) @ k
        column = np.exp(q @ k[some].T - lse[:, None])
        dk = (column * (dattended @ v[some].T - delta[:, None])).T @ q
        dv = column.T @ dattended
        expected = flat_dout[some]
        for name, gradient in zip(BLOCKS[block][2], (dq, dk, dv), strict=True):
            expected = expected + gradient @ wide[f"{name}.weight"][..., 0, 0]
        found = definitions.flatten(dx)[0].T[some]
        np.testing.assert_allclose(found, expected, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("size", "block"), [(97, "position_attention"), (97, "non_local"), (256, "position_attention")]
)
def test_all_positions_and_gradients(size, block):
    """The map of 97 x 97 positions would have 354 MB in float32, that of 256 x 256 17 GB."""
    run, parameters, _ = BLOCKS[block]
    x, dout = draw(size, 0), draw(size, 1)

    def differentiate():
        tape = nn.Tape()
        out = run(parameters, x, tape=tape)
        return out, tape.pull(out, dout, x)

    (out, dx), peak = find_peak(differentiate)
    assert peak < 30 * x.nbytes + 100e6
    check_output(block, x, out)
    check_gradient(block, x, out, dout, dx)


def test_all_positions_without_gradients():
    run, parameters, _ = BLOCKS["non_local"]
    x = draw(256, 0)
    out, peak = find_peak(lambda: run(parameters, x))
    assert peak < 12 * x.nbytes + 100e6
    check_output("non_local", x, out)
