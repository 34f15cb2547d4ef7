"""Queries and keys of each recurrence of a block, to look at what it attends to."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross import nn
from tests.nn import definitions

X = np.random.default_rng(0).standard_normal((2, 8, 5, 7))
OPTIONS = {"inner": 4, "gamma": 0.7, "seed": 3, "dtype": "float64"}


def attend_to_each(q, k):
    """The map of all positions, (N, P, P)."""
    seen = definitions.find_neighbours(q.shape[2:])
    values = np.broadcast_to(np.eye(len(seen)), (len(q), len(seen), len(seen)))
    weights = definitions.attend(q, k, values.reshape(len(q), -1, *q.shape[2:]), seen)
    return weights.reshape(values.shape).swapaxes(1, 2)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("own", [None, 3])
def test_pairs_are_the_projections_of_each_recurrence(own, channel_axis):
    parameters = nn.init_criss_cross_block(8, recurrence=own, **OPTIONS)
    x = X if channel_axis == 1 else np.moveaxis(X, 1, -1)
    pairs = []
    out = nn.criss_cross_block(parameters, x, recurrence=3, channel_axis=channel_axis, pairs=pairs)
    again = nn.criss_cross_block(parameters, x, recurrence=3, channel_axis=channel_axis)
    np.testing.assert_array_equal(out, again)
    assert len(pairs) == 3
    for number, pair in enumerate(pairs):
        prefix = "" if own is None else f"{number}."
        features = definitions.criss_cross(parameters, X, number)
        for name, array in zip(("query_conv", "key_conv"), pair, strict=True):
            expected = definitions.project(parameters, prefix + name, features)
            found = np.moveaxis(array, channel_axis, 1)
            np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


def test_pairs_compose():
    """A block's attention through two recurrences is the product of their maps."""
    parameters = nn.init_criss_cross_block(8, **OPTIONS)
    pairs = []
    nn.criss_cross_block(parameters, X, recurrence=2, pairs=pairs)
    once, twice = (attend_to_each(*pair) for pair in pairs)
    weights = crisscross.compose_attention(pairs, at=(3, 2))[:, 0]
    expected = (twice @ once)[:, 3 * 7 + 2]
    np.testing.assert_allclose(weights.reshape(2, -1), expected, 1e-12, 1e-14)


def test_pairs_of_a_head():
    """Those of its block, of what `conva` makes of the features."""
    parameters = nn.init_rcca_head(
        8, classes=3, inner=16, outer=6, norm=None, gamma=0.7, seed=3, dtype="float64"
    )
    pairs, expected = [], []
    nn.rcca_head(parameters, X, norm=None, activation=None, pairs=pairs)
    features = definitions.convolve(parameters["conva.0.weight"], X)
    block = {
        name.removeprefix("cca."): array
        for name, array in parameters.items()
        if name.startswith("cca.")
    }
    nn.criss_cross_block(block, features, recurrence=2, pairs=expected)
    assert len(pairs) == len(expected) == 2
    for found, wanted in zip(pairs, expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, 1e-12, 1e-12)


def test_no_recurrence_has_no_pairs():
    pairs = []
    nn.criss_cross_block(nn.init_criss_cross_block(8, **OPTIONS), X, recurrence=0, pairs=pairs)
    assert pairs == []
