"""What kernels cost, counted: ``python -m tests.kernels.traces`` prints it, a test holds it.

Wavefronts of shared memory over those that the bytes need, and sectors of global memory likewise;
whatever runs here is also looked through for races.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crisscross.kernels import attention, ccnet
from crisscross.kernels.configuration import Tile
from crisscross.kernels.layout import copy_features
from crisscross.kernels.merge import merge
from crisscross.kernels.select import TABLE, Selection
from crisscross.problem import COMPUTE_DTYPES, MapProblem, MergeProblem
from crisscross.testing import AttentionCase, make_case, numpy_dtype
from crisscross.view import View
from tests.emulator.build import Mode
from tests.emulator.trace import Total
from tests.kernels.devices import EmulatedBench, run_attention
from tests.kernels.emulated import EmulatorEngine, load

#: Configuration -> shared and global totals.
Costs = dict[str, tuple[Total, Total]]


@dataclass
class TracedEngine(EmulatorEngine):
    """The emulator, tracing all of it."""

    mode: Mode = Mode.TRACED


class LaterTurns(TracedEngine):
    """The emulator, tracing what comes after the first axis."""

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        plain = load(f"{kernel}.cu", source, options, Mode.PLAIN)
        return plain, *super().compile(source, kernel, options, shared_bytes)

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        plain, traced, name = kernel
        turn = "merges" if name == "strip_forward" else "adds"
        module = traced if argument[turn][0] else plain
        super().launch((module, name), grid, block, argument, shared_bytes)


def _sum_up(engine: EmulatorEngine, suffix: str) -> Costs:
    costs: dict[str, tuple[Total, Total]] = defaultdict(lambda: (Total(), Total()))
    for name, result in engine.results:
        if result.trace is None:
            continue
        shared, sectors = costs[f"{name}, {suffix}"]
        costs[f"{name}, {suffix}"] = (
            shared + result.trace.total("shared"),
            sectors + result.trace.total("global"),
        )
    return dict(costs)


def trace_strips(dtype: str, row: int) -> Costs:
    """Trace forward and backward along one axis, channels side by side and aligned."""
    tile = TABLE[dtype][row].tile
    sizes = {"head_size_qk": 32, "head_size_v": 64, "axes": (1,)}
    case = make_case((1, tile.columns - 3), dtype=dtype, channel_axis=-1, **sizes)
    return _trace_attention(case, tile)


def trace_streams(dtype: str, row: int) -> Costs:
    """Trace what takes several tiles of keys, of rows and of channels, the last of each ragged.

    It is the second axis, along which self is left out, parts are merged and gradients added. The
    first one has many strips, short ones, that would take long to trace.
    """
    tile = TABLE[dtype][row].tile
    channels = tile.channels + tile.channels // tile.thread_columns + 1
    sizes = {"head_size_qk": tile.depth + 1, "head_size_v": channels, "channel_axis": -1}
    case = make_case((2, tile.columns + 5), dtype=dtype, masked=True, **sizes)
    return _trace_attention(case, tile, LaterTurns)


def trace_sums() -> Costs:
    """Trace three axes in 16 bits: gradients are summed in float32, and rounded in the end."""
    case = make_case((2, 3, 5), dtype="float16", head_size_qk=5, head_size_v=9, masked=True)
    return _trace_attention(case, TABLE["float16"][0].tile)


def _trace_attention(
    case: AttentionCase, tile: Tile, engine_type: type[EmulatorEngine] = TracedEngine
) -> Costs:
    problem = case.problem
    bench = EmulatedBench(engine=engine_type)
    kept = attention.select
    attention.select = lambda *_: Selection(tile, "asked for")
    try:
        with bench.open() as engine:
            run_attention(bench, engine, case)
            return _sum_up(engine, f"{problem.dtype}, {tile}")
    finally:
        attention.select = kept


def trace_ccnet(dtype: str) -> Costs:
    """Trace CCNet's operators, channels first, rows that end within a sector."""
    bench = EmulatedBench(engine=TracedEngine)
    rng = np.random.default_rng(0)
    n, c, h, w = 1, 16, 13, 49
    compute = COMPUTE_DTYPES[dtype]
    problem, maps = MapProblem(n, h, w, dtype), MapProblem(n, h, w, compute)

    def draw(shape: tuple[int, ...], dtype: str) -> View:
        return bench.put(rng.standard_normal(shape).astype(numpy_dtype(dtype)))

    with bench.open() as engine:
        q, k, energy = (
            *(draw((n, c, h, w), dtype) for _ in range(2)),
            draw(problem.map_shape, compute),
        )
        made = bench.make(problem.map_shape, compute)
        ccnet.ca_weight(engine, problem, q=q, k=k, energy=made)
        gradients = {name: bench.make(q.shape, dtype) for name in ("dq", "dk")}
        ccnet.ca_weight_backward(engine, problem, denergy=energy, q=q, k=k, **gradients)
        if dtype == compute:
            ccnet.ca_softmax(engine, maps, energy=energy, attention=made)
            other = bench.make(problem.map_shape, compute)
            ccnet.ca_softmax_backward(
                engine, maps, dattention=energy, attention=made, denergy=other
            )
            ported = bench.make(problem.port_shape, compute)
            ccnet.to_port_layout(engine, maps, weights=energy, self_value=0.0, ported=ported)
            ccnet.from_port_layout(engine, maps, ported=ported, weights=made)
        return _sum_up(engine, dtype)


def trace_layout(dtype: str) -> Costs:
    """Trace copies from channels-first to channels-last and back, and a merge of either."""
    bench = EmulatedBench(engine=TracedEngine)
    rng = np.random.default_rng(0)
    shape = (1, 64, 7, 43)
    with bench.open() as engine:
        first = bench.put(rng.standard_normal(shape).astype(numpy_dtype(dtype)))
        last = bench.make((1, 7, 43, 64), dtype)
        source, target = first.split_heads(1, 1), last.split_heads(1, -1)
        copy_features(engine, source, target)
        copy_features(engine, target, source)
        compute = COMPUTE_DTYPES[dtype]
        lses = [bench.put(rng.standard_normal((1, 1, 7, 43)).astype(compute)) for _ in range(2)]
        for array, channel_axis in ((first, 1), (last, -1)):
            problem = MergeProblem(2, 1, channel_axis, dtype, array.shape, (1, 1, 7, 43))
            out, lse = bench.make(array.shape, dtype), bench.make((1, 1, 7, 43), compute)
            merge(engine, problem, outs=[array, array], lses=lses, out=out, lse=lse)
        return _sum_up(engine, dtype)


def trace_all() -> Iterator[Costs]:
    for dtype in COMPUTE_DTYPES:
        yield trace_layout(dtype)
        yield trace_ccnet(dtype)
        for row in range(len(TABLE[dtype])):
            yield trace_strips(dtype, row)


def divide(total: Total) -> float:
    return total.units / total.ideal if total.ideal else 1.0


def main() -> None:
    print(f"{'kernel':66} {'wavefronts':>11} {'ratio':>6} {'sectors':>9} {'ratio':>6}")
    for costs in trace_all():
        for name, (shared, sectors) in costs.items():
            print(
                f"{name:66} {shared.units:11,} {divide(shared):6.3f} "
                f"{sectors.units:9,} {divide(sectors):6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
