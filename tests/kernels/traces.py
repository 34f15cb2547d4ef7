"""What kernels cost, counted: ``python -m tests.kernels.traces`` prints it, a test holds it.

Wavefronts of shared memory over those that the bytes need, and sectors of global memory likewise;
whatever runs here is also looked through for races.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from crisscross.kernels import attention, ccnet
from crisscross.kernels.layout import copy_features
from crisscross.kernels.merge import merge
from crisscross.kernels.select import TABLE, Selection
from crisscross.problem import COMPUTE_DTYPES, MapProblem, MergeProblem
from crisscross.testing import make_case, numpy_dtype
from crisscross.view import View
from tests.emulator.build import Mode
from tests.emulator.memory import allocate, place
from tests.emulator.trace import Total
from tests.kernels.emulated import EmulatedArray, EmulatorEngine

#: Configuration -> shared and global totals.
Costs = dict[str, tuple[Total, Total]]


class Bench:
    """A traced device, and arrays on it."""

    def __init__(self) -> None:
        self.engine = EmulatorEngine(mode=Mode.TRACED)
        self._arrays: list[EmulatedArray] = []

    def put(self, array: np.ndarray) -> View:
        self._arrays.append(EmulatedArray(place(array)))
        return self._arrays[-1].view

    def make(self, shape: tuple[int, ...], dtype: str) -> View:
        self._arrays.append(EmulatedArray(allocate(shape, numpy_dtype(dtype))))
        return self._arrays[-1].view

    def sum_up(self, suffix: str) -> Costs:
        costs: dict[str, tuple[Total, Total]] = defaultdict(lambda: (Total(), Total()))
        for name, result in self.engine.results:
            shared, sectors = costs[f"{name}, {suffix}"]
            assert result.trace is not None
            costs[f"{name}, {suffix}"] = (
                shared + result.trace.total("shared"),
                sectors + result.trace.total("global"),
            )
        return dict(costs)


def trace_strips(dtype: str, row: int) -> Costs:
    """Trace forward and backward along one axis, channels side by side and aligned."""
    tile = TABLE[dtype][row].tile
    bench = Bench()
    length = tile.columns - 3
    case = make_case(
        (1, length), head_size_qk=32, head_size_v=64, dtype=dtype, channel_axis=-1, axes=(1,)
    )
    problem = case.problem
    views: dict[str, View | None] = {"key_mask": None}
    views |= {name: bench.put(getattr(case, name)) for name in ("q", "k", "v", "dout", "dlse")}
    shapes = {"out": problem.v_shape, "dq": problem.q_shape, "dk": problem.q_shape}
    for name, shape in {**shapes, "dv": problem.v_shape}.items():
        views[name] = bench.make(shape, dtype)
    views["lse"] = bench.make(problem.lse_shape, problem.compute_dtype)
    kept = attention.select
    attention.select = lambda *_: Selection(tile, "asked for")
    try:
        names = ("q", "k", "v", "key_mask", "out", "lse")
        attention.attention_forward(bench.engine, problem, **{n: views[n] for n in names})
        attention.attention_backward(bench.engine, problem, **views)
    finally:
        attention.select = kept
    return bench.sum_up(f"{dtype}, {tile}")


def trace_ccnet(dtype: str) -> Costs:
    """Trace CCNet's operators, channels first, rows that end within a sector."""
    bench = Bench()
    rng = np.random.default_rng(0)
    n, c, h, w = 1, 16, 13, 49
    compute = COMPUTE_DTYPES[dtype]
    problem, maps = MapProblem(n, h, w, dtype), MapProblem(n, h, w, compute)

    def draw(shape: tuple[int, ...], dtype: str) -> View:
        return bench.put(rng.standard_normal(shape).astype(numpy_dtype(dtype)))

    q, k, energy = (
        *(draw((n, c, h, w), dtype) for _ in range(2)),
        draw(problem.map_shape, compute),
    )
    made = bench.make(problem.map_shape, compute)
    ccnet.ca_weight(bench.engine, problem, q=q, k=k, energy=made)
    gradients = {name: bench.make(q.shape, dtype) for name in ("dq", "dk")}
    ccnet.ca_weight_backward(bench.engine, problem, denergy=energy, q=q, k=k, **gradients)
    if dtype == compute:
        ccnet.ca_softmax(bench.engine, maps, energy=energy, attention=made)
        other = bench.make(problem.map_shape, compute)
        ccnet.ca_softmax_backward(
            bench.engine, maps, dattention=energy, attention=made, denergy=other
        )
        ported = bench.make(problem.port_shape, compute)
        ccnet.to_port_layout(bench.engine, maps, weights=energy, self_value=0.0, ported=ported)
        ccnet.from_port_layout(bench.engine, maps, ported=ported, weights=made)
    return bench.sum_up(dtype)


def trace_layout(dtype: str) -> Costs:
    """Trace copies from channels-first to channels-last and back, and a merge of either."""
    bench = Bench()
    rng = np.random.default_rng(0)
    shape = (1, 64, 7, 43)
    first = bench.put(rng.standard_normal(shape).astype(numpy_dtype(dtype)))
    last = bench.make((1, 7, 43, 64), dtype)
    source, target = first.split_heads(1, 1), last.split_heads(1, -1)
    copy_features(bench.engine, source, target)
    copy_features(bench.engine, target, source)
    compute = COMPUTE_DTYPES[dtype]
    lses = [bench.put(rng.standard_normal((1, 1, 7, 43)).astype(compute)) for _ in range(2)]
    for array, channel_axis in ((first, 1), (last, -1)):
        problem = MergeProblem(2, 1, channel_axis, dtype, array.shape, (1, 1, 7, 43))
        out, lse = bench.make(array.shape, dtype), bench.make((1, 1, 7, 43), compute)
        merge(bench.engine, problem, outs=[array, array], lses=lses, out=out, lse=lse)
    return bench.sum_up(dtype)


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
