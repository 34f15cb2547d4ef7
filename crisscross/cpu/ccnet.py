"""CCNet's operators by matmul over rows and columns; the attention map is their output.

Images are shared out among the threads.
"""

from __future__ import annotations

import numpy as np

from crisscross.cpu.crew import run_images
from crisscross.cpu.products import multiply
from crisscross.problem import MapProblem


def _rows(features: np.ndarray, dtype: str) -> np.ndarray:
    """One image's (C, H, W) as rows (H, W, C), contiguous."""
    return np.ascontiguousarray(features.transpose(1, 2, 0), dtype=dtype)


def _columns(features: np.ndarray, dtype: str) -> np.ndarray:
    """One image's (C, H, W) as columns (W, H, C), contiguous."""
    return np.ascontiguousarray(features.transpose(2, 1, 0), dtype=dtype)


def _read_map(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image's map (H+W-1, H, W) as row weights (H, x, z) and column weights (W, y, j).

    The column's weight of self is zero: self is counted by the row.
    """
    _, height, width = weights.shape
    rows = np.ascontiguousarray(weights[:width].transpose(1, 2, 0))
    columns = np.zeros((width, height, height), weights.dtype)
    others = ~np.eye(height, dtype=bool)
    columns[:, others] = weights[width:].transpose(2, 1, 0).reshape(width, height * (height - 1))
    return rows, columns


def _write_map(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> None:
    """Undo `_read_map`, dropping the column's weight of self."""
    width, height, _ = columns.shape
    others = ~np.eye(height, dtype=bool)
    weights[:width] = rows.transpose(2, 0, 1)
    weights[width:] = columns[:, others].reshape(width, height, height - 1).transpose(2, 1, 0)


def _add_up(rows: np.ndarray, columns: np.ndarray, features: np.ndarray) -> None:
    """Sum rows (H, W, C) and columns (W, H, C) into one image's (C, H, W), rounding once."""
    features[...] = (rows + columns.transpose(1, 0, 2)).transpose(2, 0, 1)


def _weigh(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, target: np.ndarray) -> None:
    """Sum `values` (C, H, W) with row weights (H, x, z) and column weights (W, y, j)."""
    dtype = rows.dtype.name
    along_rows = rows @ _rows(values, dtype)
    along_columns = np.empty((*columns.shape[:2], len(values)), columns.dtype)
    multiply(columns, _columns(values, dtype), along_columns, excluded=0)
    _add_up(along_rows, along_columns, target)


def _correlate(a: np.ndarray, b: np.ndarray, dtype: str, weights: np.ndarray) -> None:
    """Dot products of `a` at every pixel with `b` at every key, as one image's map."""
    rows = _rows(a, dtype) @ _rows(b, dtype).transpose(0, 2, 1)
    columns = _columns(a, dtype) @ _columns(b, dtype).transpose(0, 2, 1)
    _write_map(rows, columns, weights)


def ca_weight(problem: MapProblem, *, q: np.ndarray, k: np.ndarray, energy: np.ndarray) -> None:

    def work(n: int) -> None:
        _correlate(q[n], k[n], problem.compute_dtype, energy[n])

    run_images(problem.batch, work)


def ca_weight_backward(
    problem: MapProblem,
    *,
    denergy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
) -> None:

    def work(n: int) -> None:
        rows, columns = _read_map(denergy[n])
        _weigh(rows, columns, k[n], dq[n])
        _weigh(rows.transpose(0, 2, 1), columns.transpose(0, 2, 1), q[n], dk[n])

    run_images(problem.batch, work)


def ca_softmax(problem: MapProblem, *, energy: np.ndarray, attention: np.ndarray) -> None:

    def work(n: int) -> None:
        np.subtract(energy[n], energy[n].max(axis=0), out=attention[n])
        np.exp(attention[n], out=attention[n])
        attention[n] /= attention[n].sum(axis=0)

    run_images(problem.batch, work)


def ca_softmax_backward(
    problem: MapProblem, *, dattention: np.ndarray, attention: np.ndarray, denergy: np.ndarray
) -> None:

    def work(n: int) -> None:
        product = dattention[n] * attention[n]
        np.subtract(dattention[n], product.sum(axis=0), out=denergy[n])
        denergy[n] *= attention[n]

    run_images(problem.batch, work)


def ca_map(problem: MapProblem, *, attention: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:

    def work(n: int) -> None:
        _weigh(*_read_map(attention[n]), v[n], out[n])

    run_images(problem.batch, work)


def ca_map_backward(
    problem: MapProblem,
    *,
    dout: np.ndarray,
    attention: np.ndarray,
    v: np.ndarray,
    dattention: np.ndarray,
    dv: np.ndarray,
) -> None:

    def work(n: int) -> None:
        _correlate(dout[n], v[n], problem.compute_dtype, dattention[n])
        rows, columns = _read_map(attention[n])
        _weigh(rows.transpose(0, 2, 1), columns.transpose(0, 2, 1), dout[n], dv[n])

    run_images(problem.batch, work)


def to_port_layout(
    problem: MapProblem, *, weights: np.ndarray, self_value: float, ported: np.ndarray
) -> None:
    height = problem.height
    for n in range(problem.batch):
        rows, columns = _read_map(weights[n])
        columns[:, np.eye(height, dtype=bool)] = self_value
        ported[n, :, :, :height] = columns.transpose(1, 0, 2)
        ported[n, :, :, height:] = rows


def from_port_layout(problem: MapProblem, *, ported: np.ndarray, weights: np.ndarray) -> None:
    height = problem.height
    for n in range(problem.batch):
        columns = ported[n, :, :, :height].transpose(1, 0, 2)
        _write_map(ported[n, :, :, height:], columns, weights[n])
