"""CCNet's operators, pixel by pixel, in the order of its own attention map.

Key i of pixel (y, x): the row's (y, i) for i < W, self included; then the column's (j, x) for
j = 0..H-1 without j = y.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crisscross.problem import MapProblem
from crisscross.reference.numbers import round_into, widen

#: NaN and infinity in the inputs go where arithmetic takes them, without a warning.
_follows_ieee = np.errstate(invalid="ignore", over="ignore")


def list_cross(height: int, width: int, y: int, x: int) -> list[tuple[int, int]]:
    """List the keys of pixel (y, x) in CCNet's order."""
    row = [(y, z) for z in range(width)]
    column = [(j, x) for j in range(height) if j != y]
    return row + column


def _each_pair(problem: MapProblem) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (key number i, pixel y, x, key y, x) with the image n in front."""
    for n in range(problem.batch):
        for y in range(problem.height):
            for x in range(problem.width):
                for i, (ky, kx) in enumerate(list_cross(problem.height, problem.width, y, x)):
                    yield n, i, y, x, ky, kx


@_follows_ieee
def ca_weight(problem: MapProblem, *, q: np.ndarray, k: np.ndarray, energy: np.ndarray) -> None:
    """energy[n, i, y, x] = <q[n, :, y, x], k[n, :, key i]>."""
    q_, k_ = widen(q), widen(k)
    energy_ = np.zeros(problem.map_shape, q_.dtype)
    for n, i, y, x, ky, kx in _each_pair(problem):
        energy_[n, i, y, x] = q_[n, :, y, x] @ k_[n, :, ky, kx]
    round_into(energy, energy_)


@_follows_ieee
def ca_weight_backward(
    problem: MapProblem,
    *,
    denergy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
) -> None:
    """dq += denergy k and dk += denergy q, over every pair."""
    q_, k_ = widen(q), widen(k)
    denergy_ = denergy.astype(q_.dtype)
    dq_, dk_ = np.zeros_like(q_), np.zeros_like(k_)
    for n, i, y, x, ky, kx in _each_pair(problem):
        dq_[n, :, y, x] += denergy_[n, i, y, x] * k_[n, :, ky, kx]
        dk_[n, :, ky, kx] += denergy_[n, i, y, x] * q_[n, :, y, x]
    round_into(dq, dq_)
    round_into(dk, dk_)


@_follows_ieee
def ca_softmax(problem: MapProblem, *, energy: np.ndarray, attention: np.ndarray) -> None:
    """Softmax over the keys of each pixel."""
    energy_ = widen(energy)
    attention_ = np.zeros_like(energy_)
    for n, y, x in np.ndindex(problem.batch, problem.height, problem.width):
        weights = np.exp(energy_[n, :, y, x] - energy_[n, :, y, x].max())
        attention_[n, :, y, x] = weights / weights.sum()
    round_into(attention, attention_)


@_follows_ieee
def ca_softmax_backward(
    problem: MapProblem, *, dattention: np.ndarray, attention: np.ndarray, denergy: np.ndarray
) -> None:
    """denergy = attention * (dattention - <dattention, attention>) of each pixel."""
    dattention_, attention_ = widen(dattention), widen(attention)
    denergy_ = np.zeros_like(attention_)
    for n, y, x in np.ndindex(problem.batch, problem.height, problem.width):
        pixel, dpixel = attention_[n, :, y, x], dattention_[n, :, y, x]
        denergy_[n, :, y, x] = pixel * (dpixel - dpixel @ pixel)
    round_into(denergy, denergy_)


@_follows_ieee
def ca_map(problem: MapProblem, *, attention: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """out[n, :, y, x] = sum over keys of attention[n, i, y, x] v[n, :, key i]."""
    v_ = widen(v)
    attention_ = attention.astype(v_.dtype)
    out_ = np.zeros_like(v_)
    for n, i, y, x, ky, kx in _each_pair(problem):
        out_[n, :, y, x] += attention_[n, i, y, x] * v_[n, :, ky, kx]
    round_into(out, out_)


@_follows_ieee
def ca_map_backward(
    problem: MapProblem,
    *,
    dout: np.ndarray,
    attention: np.ndarray,
    v: np.ndarray,
    dattention: np.ndarray,
    dv: np.ndarray,
) -> None:
    """dattention = <dout, v> and dv += attention dout, over every pair."""
    v_, dout_ = widen(v), widen(dout)
    attention_ = attention.astype(v_.dtype)
    dattention_, dv_ = np.zeros(problem.map_shape, v_.dtype), np.zeros_like(v_)
    for n, i, y, x, ky, kx in _each_pair(problem):
        dattention_[n, i, y, x] = dout_[n, :, y, x] @ v_[n, :, ky, kx]
        dv_[n, :, ky, kx] += attention_[n, i, y, x] * dout_[n, :, y, x]
    round_into(dattention, dattention_)
    round_into(dv, dv_)


def to_port_layout(
    problem: MapProblem, *, weights: np.ndarray, self_value: float, ported: np.ndarray
) -> None:
    """Order the keys as the ports do: the column (H, `self_value` at self), then the row (W)."""
    height = problem.height
    for n, y, x in np.ndindex(problem.batch, problem.height, problem.width):
        ported[n, y, x, y] = self_value
        for i, (ky, kx) in enumerate(list_cross(problem.height, problem.width, y, x)):
            ported[n, y, x, height + kx if ky == y else ky] = weights[n, i, y, x]


def from_port_layout(problem: MapProblem, *, ported: np.ndarray, weights: np.ndarray) -> None:
    """Undo `to_port_layout`, dropping the column's entry for self."""
    height = problem.height
    for n, y, x in np.ndindex(problem.batch, problem.height, problem.width):
        for i, (ky, kx) in enumerate(list_cross(problem.height, problem.width, y, x)):
            weights[n, i, y, x] = ported[n, y, x, height + kx if ky == y else ky]
