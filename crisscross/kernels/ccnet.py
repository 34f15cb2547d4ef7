"""CCNet's own operators: the arguments of their kernels, as ``maps.cuh`` has them, and launches.

Functions take views where a `Backend` takes arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np

from crisscross.dispatch import Held
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Engine
from crisscross.kernels.launch import compile_kernel
from crisscross.problem import COMPUTE_DTYPES, MapProblem
from crisscross.view import View, find_strides

_AXIS = np.dtype(
    [("first", "i8"), ("images", "i8"), ("length", "i4"), ("across", "i4"), ("is_row", "i4")],
    align=True,
)
_PLANES = np.dtype(
    [("data", "u8"), ("image", "i8"), ("channel", "i8"), ("along", "i8"), ("across", "i8")],
    align=True,
)


def _make_structure(arrays: tuple[str, ...], scalars: Mapping[str, str]) -> np.dtype[np.void]:
    fields = [("axis", _AXIS), *((name, _PLANES) for name in arrays), *scalars.items()]
    return np.dtype(fields, align=True)


_WEIGHTED_SUM = _make_structure(
    ("map", "features", "sums", "out"), {"channels": "i4", "transposed": "i4"}
)
_SOFTMAX = _make_structure(("energy", "attention", "dattention", "denergy"), {"keys": "i4"})
_PORTS = _make_structure(("weights", "ported"), {"self_value": "f8"})
#: Kernel -> its argument.
STRUCTURES = {
    "ca_weight": _make_structure(("q", "k", "map"), {"channels": "i4"}),
    "ca_map": _WEIGHTED_SUM,
    "ca_map_transposed_rows": _WEIGHTED_SUM,
    "ca_softmax": _SOFTMAX,
    "ca_softmax_backward": _SOFTMAX,
    "to_port_layout": _PORTS,
    "from_port_layout": _PORTS,
}

#: Kernels of features and maps, and those of maps alone.
FEATURE_KERNELS = ("ca_weight", "ca_map", "ca_map_transposed_rows")
MAP_KERNELS = ("ca_softmax", "ca_softmax_backward", "to_port_layout", "from_port_layout")

# What the sources say: shares of a thread, warps of a block, the side of a tile.
_OWN_POSITIONS = 4
_OWN_KEYS = 8
_OWN_KEYS_TRANSPOSED = 4
_OWN_CHANNELS = 8
_WARPS = 4
_LANES = 32
_SOFTMAX_SHARES = 8
_PORTS_SIDE = 32
_PORTS_ROWS = 8


@cache
def configure(kernel: str, dtype: str) -> Configuration:
    """Put together the configuration of one of `FEATURE_KERNELS` or `MAP_KERNELS`."""
    return Configuration(kernel, dtype)


def list_configurations() -> Iterator[Configuration]:
    """List every configuration there is."""
    for kernel in FEATURE_KERNELS:
        for dtype in COMPUTE_DTYPES:
            yield configure(kernel, dtype)
    for kernel in MAP_KERNELS:
        for dtype in dict.fromkeys(COMPUTE_DTYPES.values()):
            yield configure(kernel, dtype)


def ca_weight(engine: Engine, problem: MapProblem, *, q: View, k: View, energy: View) -> None:
    """energy[n, i, y, x] = <q[n, :, y, x], k[n, :, key i]>."""
    for is_row in (True, False):
        _launch(
            engine,
            problem,
            "ca_weight",
            _count_blocks(problem, is_row, _ceil_div(_size(problem, is_row)[0], _OWN_KEYS)),
            _WARPS * _LANES,
            {"q": q, "k": k, "map": energy},
            {"channels": q.shape[1]},
            is_row=is_row,
        )


def ca_weight_backward(
    engine: Engine, problem: MapProblem, *, denergy: View, q: View, k: View, dq: View, dk: View
) -> None:
    """Gradients of `ca_weight`: denergy k, and denergy transposed q."""
    ca_map(engine, problem, attention=denergy, v=k, out=dq)
    _launch_transposed(engine, problem, denergy, q, dk)


def ca_softmax(engine: Engine, problem: MapProblem, *, energy: View, attention: View) -> None:
    """Softmax over the keys of each pixel."""
    arrays = {"energy": energy, "attention": attention}
    _launch_softmax(engine, problem, "ca_softmax", arrays)


def ca_softmax_backward(
    engine: Engine, problem: MapProblem, *, dattention: View, attention: View, denergy: View
) -> None:
    """denergy = attention * (dattention - <dattention, attention>)."""
    arrays = {"attention": attention, "dattention": dattention, "denergy": denergy}
    _launch_softmax(engine, problem, "ca_softmax_backward", arrays)


def ca_map(engine: Engine, problem: MapProblem, *, attention: View, v: View, out: View) -> None:
    """out[n, :, y, x] = sum over keys of attention[n, i, y, x] v[n, :, key i]."""
    sums = _hold_sums(engine, problem, out)
    for is_row in (False, True):
        _launch_sum(engine, problem, attention, v, sums.view, out, is_row=is_row)


def ca_map_backward(
    engine: Engine,
    problem: MapProblem,
    *,
    dout: View,
    attention: View,
    v: View,
    dattention: View,
    dv: View,
) -> None:
    """Gradients of `ca_map`: <dout, v>, and attention transposed dout."""
    ca_weight(engine, problem, q=dout, k=v, energy=dattention)
    _launch_transposed(engine, problem, attention, dout, dv)


def to_port_layout(
    engine: Engine, problem: MapProblem, *, weights: View, self_value: float, ported: View
) -> None:
    """Order the keys as the ports do: the column (`self_value` at self), then the row."""
    _launch_ports(engine, problem, "to_port_layout", weights, ported, self_value)


def from_port_layout(engine: Engine, problem: MapProblem, *, ported: View, weights: View) -> None:
    """Undo `to_port_layout`, dropping the column's entry for self."""
    _launch_ports(engine, problem, "from_port_layout", weights, ported, 0.0)


def _launch_sum(
    engine: Engine,
    problem: MapProblem,
    weights: View,
    features: View,
    sums: View,
    out: View,
    *,
    is_row: bool,
    transposed: bool = False,
) -> None:
    _launch(
        engine,
        problem,
        "ca_map",
        _count_blocks(problem, is_row, _ceil_div(features.shape[1], _OWN_CHANNELS)),
        _WARPS * _LANES,
        {"map": weights, "features": features, "sums": sums, "out": out},
        {"channels": features.shape[1], "transposed": int(transposed)},
        is_row=is_row,
    )


def _launch_transposed(
    engine: Engine, problem: MapProblem, weights: View, features: View, out: View
) -> None:
    """out[n, :, key] = sum over the queries that see it of weights[n, i, query] features[query]."""
    sums = _hold_sums(engine, problem, out)
    _launch_sum(engine, problem, weights, features, sums.view, out, is_row=False, transposed=True)
    channels = features.shape[1]
    tiles = _ceil_div(channels, _OWN_CHANNELS) * _ceil_div(problem.width, _OWN_KEYS_TRANSPOSED)
    _launch(
        engine,
        problem,
        "ca_map_transposed_rows",
        _ceil_div(problem.batch * problem.height * tiles, _WARPS),
        _WARPS * _LANES,
        {"map": weights, "features": features, "sums": sums.view, "out": out},
        {"channels": channels, "transposed": 1},
    )


def _hold_sums(engine: Engine, problem: MapProblem, out: View) -> Held:
    """Find room for the sums over columns: the output, or scratch where that would round them."""
    dtype = problem.compute_dtype
    if out.dtype == dtype:
        return Held(out, None)
    return engine.make(out.shape, find_strides(out.shape), dtype)


def _launch_softmax(
    engine: Engine, problem: MapProblem, kernel: str, arrays: Mapping[str, View]
) -> None:
    blocks = _ceil_div(problem.batch * problem.height * problem.width, _LANES)
    scalars = {"keys": problem.height + problem.width - 1}
    _launch(engine, problem, kernel, blocks, _SOFTMAX_SHARES * _LANES, arrays, scalars)


def _launch_ports(
    engine: Engine,
    problem: MapProblem,
    kernel: str,
    weights: View,
    ported: View,
    self_value: float,
) -> None:
    tiles = _ceil_div(problem.width, _PORTS_SIDE) * _ceil_div(
        problem.height + problem.width, _PORTS_SIDE
    )
    _launch(
        engine,
        problem,
        kernel,
        problem.batch * problem.height * tiles,
        _PORTS_SIDE * _PORTS_ROWS,
        {"weights": weights, "ported": ported.permute(0, 3, 1, 2)},
        {"self_value": self_value},
    )


def _launch(
    engine: Engine,
    problem: MapProblem,
    kernel: str,
    blocks: int,
    threads: int,
    arrays: Mapping[str, View],
    scalars: Mapping[str, float],
    *,
    is_row: bool = True,
) -> None:
    """Launch a kernel, in parts where there are more blocks than one launch may have."""
    if blocks == 0:
        return
    argument = np.zeros(1, STRUCTURES[kernel])
    for name, value in scalars.items():
        argument[name] = value
    for name, view in arrays.items():
        image, channel, y, x = view.strides
        along, across = (x, y) if is_row else (y, x)
        argument[name] = (view.pointer, image, channel, along, across)
    compiled = compile_kernel(engine, configure(kernel, problem.dtype))
    length, across = _size(problem, is_row)
    for first in range(0, blocks, engine.limits.grid):
        argument["axis"] = (first, problem.batch, length, across, is_row)
        engine.launch(compiled, min(blocks - first, engine.limits.grid), threads, argument, 0)


def _size(problem: MapProblem, is_row: bool) -> tuple[int, int]:
    """Positions along the axis, and across."""
    return (problem.width, problem.height) if is_row else (problem.height, problem.width)


def _count_blocks(problem: MapProblem, is_row: bool, tiles: int) -> int:
    """Count the blocks in which each warp has one of `tiles` tiles of some pixels."""
    length, across = _size(problem, is_row)
    lanes = problem.batch * across * _ceil_div(length, _OWN_POSITIONS)
    return _ceil_div(_ceil_div(lanes, _LANES) * tiles, _WARPS)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
