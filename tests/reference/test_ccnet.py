"""CCNet's operators in the oracle, against the index formula of the original CUDA source."""

from __future__ import annotations

import math

import numpy as np
import pytest

import crisscross

SIZES = [(1, 1), (1, 4), (4, 1), (3, 5), (5, 3)]


def locate_key(channel: int, y: int, x: int, width: int) -> tuple[int, int]:
    """CCNet's formula: row first with self at z == x, then the column, skipping self."""
    if channel < width:
        return y, channel
    i = channel - width
    return (i if i < y else i + 1), x


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ca_weight_and_its_gradients(height, width):
    q, k = draw(2, 3, height, width), draw(2, 3, height, width) + 1
    denergy = draw(2, height + width - 1, height, width)
    energy, dq, dk = np.zeros_like(denergy), np.zeros_like(q), np.zeros_like(k)
    for n, i, y, x in np.ndindex(energy.shape):
        ky, kx = locate_key(i, y, x, width)
        for c in range(3):
            energy[n, i, y, x] += q[n, c, y, x] * k[n, c, ky, kx]
            dq[n, c, y, x] += denergy[n, i, y, x] * k[n, c, ky, kx]
            dk[n, c, ky, kx] += denergy[n, i, y, x] * q[n, c, y, x]
    np.testing.assert_allclose(crisscross.ca_weight(q, k, backend="reference"), energy, 1e-12)
    gradients = crisscross.ca_weight_backward(denergy, q, k, backend="reference")
    np.testing.assert_allclose(gradients[0], dq, 1e-12, 1e-13)
    np.testing.assert_allclose(gradients[1], dk, 1e-12, 1e-13)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ca_map_and_its_gradients(height, width):
    v, dout = draw(2, 3, height, width), draw(2, 3, height, width) + 1
    attention = draw(2, height + width - 1, height, width)
    out, dattention, dv = np.zeros_like(v), np.zeros_like(attention), np.zeros_like(v)
    for n, i, y, x in np.ndindex(attention.shape):
        ky, kx = locate_key(i, y, x, width)
        for c in range(3):
            out[n, c, y, x] += attention[n, i, y, x] * v[n, c, ky, kx]
            dattention[n, i, y, x] += dout[n, c, y, x] * v[n, c, ky, kx]
            dv[n, c, ky, kx] += attention[n, i, y, x] * dout[n, c, y, x]
    actual = crisscross.ca_map(attention, v, backend="reference")
    np.testing.assert_allclose(actual, out, 1e-12, 1e-13)
    gradients = crisscross.ca_map_backward(dout, attention, v, backend="reference")
    np.testing.assert_allclose(gradients[0], dattention, 1e-12, 1e-13)
    np.testing.assert_allclose(gradients[1], dv, 1e-12, 1e-13)


def test_ca_softmax_and_its_gradient():
    energy, dattention = draw(1, 6, 3, 4), draw(1, 6, 3, 4) + 1
    attention = crisscross.ca_softmax(energy, backend="reference")
    denergy = crisscross.ca_softmax_backward(dattention, attention, backend="reference")
    for y, x in np.ndindex(3, 4):
        weights = [math.exp(e) for e in energy[0, :, y, x]]
        for i in range(6):
            assert attention[0, i, y, x] == pytest.approx(weights[i] / sum(weights), rel=1e-12)
    step = 1e-5
    for index in np.ndindex(energy.shape):
        shift = np.zeros_like(energy)
        shift[index] = step
        ahead, behind = (
            (dattention * crisscross.ca_softmax(energy + sign * shift, backend="reference")).sum()
            for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(denergy[index], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_port_layout(height, width):
    """Column first with a placeholder at self, then the row with self."""
    weights = draw(2, height + width - 1, height, width)
    expected = np.zeros((2, height, width, height + width))
    for n, y, x in np.ndindex(2, height, width):
        column = {locate_key(i, y, x, width)[0]: i for i in range(width, height + width - 1)}
        for j in range(height):
            expected[n, y, x, j] = -9.0 if j == y else weights[n, column[j], y, x]
        for z in range(width):
            expected[n, y, x, height + z] = weights[n, z, y, x]
    ported = crisscross.to_port_layout(weights, self_value=-9.0, backend="reference")
    np.testing.assert_array_equal(ported, expected)
    np.testing.assert_array_equal(crisscross.from_port_layout(ported, backend="reference"), weights)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_chain_is_the_fused_operation(height, width, backend):
    """ca_weight, ca_softmax, ca_map: what CCNet's module computes."""
    q, k = draw(2, 3, height, width), draw(2, 3, height, width) + 1
    v = draw(2, 5, height, width)
    attention = crisscross.ca_softmax(crisscross.ca_weight(q, k, backend=backend), backend=backend)
    out = crisscross.ca_map(attention, v, backend=backend)
    fused = crisscross.criss_cross_attention(q, k, v, backend="reference")
    np.testing.assert_allclose(out, fused, 1e-10, 1e-12)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_ports_compute_the_same_function(height, width):
    """The einsum form of CCNet's master branch and mmcv, -inf at the column's self."""
    q, k = draw(2, 3, height, width), draw(2, 3, height, width) + 1
    v = draw(2, 5, height, width)
    column = np.einsum("ncyx,ncjx->nyxj", q, k)
    column[:, np.arange(height), :, np.arange(height)] = -np.inf
    row = np.einsum("ncyx,ncyz->nyxz", q, k)
    energy = np.concatenate([column, row], axis=-1)
    attention = np.exp(energy - energy.max(axis=-1, keepdims=True))
    attention /= attention.sum(axis=-1, keepdims=True)
    out = np.einsum("nyxj,ncjx->ncyx", attention[..., :height], v)
    out += np.einsum("nyxz,ncyz->ncyx", attention[..., height:], v)
    np.testing.assert_allclose(
        crisscross.to_port_layout(crisscross.ca_weight(q, k), self_value=-math.inf), energy, 1e-12
    )
    np.testing.assert_allclose(crisscross.criss_cross_attention(q, k, v), out, 1e-10, 1e-12)
