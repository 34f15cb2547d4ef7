"""What kernels cost, counted: ``python -m tests.kernels.traces`` prints it, a test holds it.

Wavefronts of shared memory over those that the bytes need, and sectors of global memory likewise;
whatever runs here is also looked through for races.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from crisscross.kernels import ccnet
from crisscross.kernels.layout import copy_features
from crisscross.kernels.merge import merge
from crisscross.kernels.select import find_arithmetic
from crisscross.kernels.tables import DIRECTIONS, TABLES, Direction
from crisscross.kernels.tiles import FmaTile, MmaBackwardStreamTile, MmaStreamTile, Tile
from crisscross.problem import COMPUTE_DTYPES, MapProblem, MergeProblem
from crisscross.testing import AttentionCase, make_case, numpy_dtype
from crisscross.view import View
from tests.emulator.build import Mode
from tests.emulator.trace import Total
from tests.kernels.devices import (
    EmulatedBench,
    make_arithmetic_case,
    run_attention,
    run_forward,
    select_tile,
)
from tests.kernels.emulated import EmulatorEngine, load

#: Configuration -> shared and global totals.
Costs = dict[str, tuple[Total, Total]]
MODES = (Mode.PLAIN, Mode.TRACED)


#: Whether to trace a launch: of the kernel's name and its argument.
Choice = Callable[[str, np.void], bool]


@dataclass
class TracedEngine(EmulatorEngine):
    """The emulator, tracing some of the launches."""

    traces: Choice = lambda _kernel, _argument: True

    def compile(self, source: str, kernel: str, options: tuple[str, ...], shared_bytes: int) -> Any:
        super().compile(source, kernel, options, shared_bytes)
        return {mode: load(f"{kernel}.cu", source, options, mode) for mode in MODES}, kernel

    def launch(
        self, kernel: Any, grid: int, block: int, argument: np.ndarray, shared_bytes: int
    ) -> None:
        modules, name = kernel
        mode = Mode.TRACED if self.traces(name, argument[0]) else Mode.PLAIN
        super().launch((modules[mode], name), grid, block, argument, shared_bytes)


def is_first_turn(kernel: str, argument: np.void) -> bool:
    return kernel.startswith("strip") and not is_later_turn(kernel, argument)


def is_later_turn(kernel: str, argument: np.void) -> bool:
    if kernel.startswith("strip_forward"):
        return bool(argument["before"]["data"] != 0)
    return kernel.startswith("strip") and bool(argument["adds"])


def is_copy(kernel: str, _argument: np.void) -> bool:
    return kernel == "copy_features"


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


def trace_strips(direction: Direction, arithmetic: str, row: int) -> Costs:
    """Trace one axis, channels side by side and aligned."""
    tile = TABLES[direction][arithmetic][row].tile
    sizes = {"head_size_qk": 32, "head_size_v": 64, "axes": (1,)}
    case = make_arithmetic_case(
        (1, _count_keys(tile) - 3), arithmetic=arithmetic, channel_axis=-1, **sizes
    )
    return _trace_attention(case, direction, tile)


def trace_streams(direction: Direction, arithmetic: str, row: int) -> Costs:
    """Trace what takes several tiles of channels, of keys and rows too where it may.

    The last of each is ragged. It is the second axis, along which self is left out, parts are
    merged and gradients added. The first one has many strips, short ones, that would take long.
    """
    tile = TABLES[direction][arithmetic][row].tile
    if isinstance(tile, FmaTile):
        length, depth = tile.columns + 5, tile.depth
        channels = tile.channels + tile.channels // tile.thread_columns + 1
    elif isinstance(tile, MmaStreamTile):
        length, depth, channels = tile.rows + 5, 62, tile.group + 9
    elif isinstance(tile, MmaBackwardStreamTile):
        length, depth, channels = tile.rows + 5, 62, min(tile.group + 9, tile.width - 1)
    else:
        length, depth, channels = tile.rows - 1, tile.channels, tile.channels + 9
    sizes = {"head_size_qk": depth + 1, "head_size_v": channels, "channel_axis": -1}
    case = make_arithmetic_case((2, length), arithmetic=arithmetic, masked=True, **sizes)
    return _trace_attention(case, direction, tile, is_later_turn)


def trace_merging(direction: Direction, arithmetic: str, row: int) -> Costs:
    """Trace the second axis where all is aligned, of several tiles of channels."""
    tile = TABLES[direction][arithmetic][row].tile
    widest = tile.width if isinstance(tile, MmaBackwardStreamTile) else 128
    sizes = {"head_size_qk": 64, "head_size_v": min(128, widest), "channel_axis": -1}
    case = make_arithmetic_case((2, _count_keys(tile) - 3), arithmetic=arithmetic, **sizes)
    return _trace_attention(case, direction, tile, is_later_turn)


def trace_across(arithmetic: str, row: int) -> Costs:
    """Trace the second axis where channels come first, and results are written as they lie."""
    tile = TABLES["forward"][arithmetic][row].tile
    case = make_arithmetic_case(
        (2, _count_keys(tile) - 7), arithmetic=arithmetic, head_size_qk=16, head_size_v=72
    )
    return _trace_attention(case, "forward", tile, is_later_turn)


def count_traffic(direction: Direction, length: int, channel_axis: int) -> float:
    """Count the bytes a pixel that CCNet's block moves on square images, of 64 and 512 channels.

    All sectors count that warps ask for, as if there were no L2 cache. Strips of an axis cost the
    same, each; so one image has two columns, and another two rows.
    """
    sizes = {"dtype": "bfloat16", "head_size_qk": 64, "head_size_v": 512}

    def count(spatial: tuple[int, int], traces: Choice) -> float:
        case = make_case(spatial, channel_axis=channel_axis, **sizes)
        bench = EmulatedBench(engine=partial(TracedEngine, traces=_in(direction, traces)))
        with bench.open() as engine:
            _find_run(direction)(bench, engine, case)
            costs = _sum_up(engine, "")
        return sum(cost.units for _, cost in costs.values()) * 32 / math.prod(spatial)

    found = count((length, 2), is_first_turn) + count((2, length), is_later_turn)
    return found if channel_axis == -1 else found + count((2, length), is_copy)


def trace_sums(row: int) -> Costs:
    """Trace three axes in 16 bits: gradients are summed in float32, and rounded in the end."""
    case = make_case((2, 3, 5), dtype="float16", head_size_qk=5, head_size_v=9, masked=True)
    return _trace_attention(case, "backward", TABLES["backward"]["float16"][row].tile)


def _count_keys(tile: Tile) -> int:
    return tile.columns if isinstance(tile, FmaTile) else tile.rows


def _trace_attention(
    case: AttentionCase,
    direction: Direction,
    tile: Tile,
    traces: Choice = lambda _kernel, _argument: True,
) -> Costs:
    """Trace one direction."""
    bench = EmulatedBench(engine=partial(TracedEngine, traces=_in(direction, traces)))
    with bench.open() as engine, select_tile(direction, tile):
        _find_run(direction)(bench, engine, case)
        return _sum_up(engine, f"{find_arithmetic(case.problem)}, {tile}")


def _in(direction: Direction, traces: Choice) -> Choice:
    """Trace the strip kernels of one direction; what the other makes may be needed."""
    other = "strip_backward" if direction == "forward" else "strip_forward"
    return lambda kernel, argument: not kernel.startswith(other) and traces(kernel, argument)


def _find_run(direction: Direction) -> Callable[..., Any]:
    return run_forward if direction == "forward" else run_attention


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
    for direction in DIRECTIONS:
        for arithmetic, rows in TABLES[direction].items():
            for row in range(len(rows)):
                yield trace_strips(direction, arithmetic, row)


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
