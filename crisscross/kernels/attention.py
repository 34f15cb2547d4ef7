"""Attention along strips, axis after axis, image group after image group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from crisscross.dispatch import Held
from crisscross.kernels.engine import Engine
from crisscross.kernels.geometry import is_aligned
from crisscross.kernels.launch import Block, launch_strips
from crisscross.kernels.layout import copy_features
from crisscross.kernels.select import (
    configure_backward,
    configure_forward,
    find_arithmetic,
    find_strip,
    select,
)
from crisscross.kernels.tables import Direction
from crisscross.kernels.tiles import MmaForwardTile, Tile
from crisscross.problem import AttentionProblem
from crisscross.view import ITEM_BYTES, View, find_strides

#: Bytes that tensor-core kernels move at once, where features begin at multiples of them.
ALIGNMENT = 16
#: The arrays that have channels.
FEATURES = frozenset(("q", "k", "v", "out", "dout", "dq", "dk", "dv"))
#: What each kernel of the backward makes.
GRADIENTS = {
    "strip_backward_queries": ("dq",),
    "strip_backward_keys": ("dk", "dv"),
    "strip_backward_mma": ("dq", "dk", "dv"),
    "strip_backward_queries_mma": ("dq",),
    "strip_backward_keys_mma": ("dk", "dv"),
}


class _Scratch:
    """Memory for one group of images after the other, allocated once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held: dict[str, Held] = {}

    def make(self, name: str, shape: tuple[int, ...], dtype: str) -> View:
        """Make an array in C order; the next one of the name takes its memory, and is no larger."""
        strides = find_strides(shape)
        if name not in self._held:
            self._held[name] = self._engine.make(shape, strides, dtype)
        return View(self._held[name].view.pointer, shape, strides, dtype)


@dataclass(frozen=True)
class _Group:
    """Some images of a problem, their features (N, heads, *S, D) with channels side by side."""

    engine: Engine
    problem: AttentionProblem
    scratch: _Scratch
    first: int
    count: int

    def cut(self, view: View) -> View:
        return view.narrow(0, self.first, self.count)

    def split(self, view: View) -> View:
        """View an array of features as kernels do."""
        return self.cut(view).split_heads(self.problem.heads, self.problem.channel_axis)

    def read(self, name: str, view: View) -> View:
        """Return features to read: the array, or a copy whose channels lie side by side."""
        split = self.split(view)
        if is_direct(view, self.problem.channel_axis):
            return split
        packed = self._pack(name, split, split.dtype)
        self._copy(split, packed)
        return packed

    def write(self, name: str, view: View, dtype: str) -> tuple[View, Callable[[], None]]:
        """Return where to write features, and what to do when all is written."""
        split = self.split(view)
        if is_direct(view, self.problem.channel_axis) and dtype == view.dtype:
            return split, lambda: None
        packed = self._pack(name, split, dtype)
        return packed, lambda: self._copy(packed, split)

    def _pack(self, name: str, split: View, dtype: str) -> View:
        """Make an array for features; heads begin where kernels move most at once."""
        n, heads, *spatial, size = split.shape
        vector = ALIGNMENT // ITEM_BYTES[dtype]
        padded = -(-size // vector) * vector
        made = self.scratch.make(name, (n, *spatial, heads * padded), dtype)
        return made.split_heads(heads, -1).narrow(len(split.shape) - 1, 0, size)

    def _copy(self, source: View, target: View) -> None:
        if all(x.strides[1] == x.shape[-1] * x.strides[-1] for x in (source, target)):
            source, target = _join_heads(source), _join_heads(target)
        copy_features(self.engine, source, target)

    def mask(self, view: View | None) -> View | None:
        """View a key mask as (N, heads, *S): all heads have the same."""
        if view is None:
            return None
        cut = self.cut(view)
        return View(
            cut.pointer,
            (cut.shape[0], self.problem.heads, *cut.shape[1:]),
            (cut.strides[0], 0, *cut.strides[1:]),
            cut.dtype,
        )


def _join_heads(split: View) -> View:
    """View (N, heads, *S, D), heads side by side, as (N, 1, *S, heads * D)."""
    n, heads, *spatial, size = split.shape
    return View(
        split.pointer,
        (n, 1, *spatial, heads * size),
        (split.strides[0], 0, *split.strides[2:]),
        split.dtype,
    )


def is_direct(view: View, channel_axis: int) -> bool:
    """Whether kernels take an array as it is: its channels lie side by side."""
    return view.strides[channel_axis] == 1 or view.shape[channel_axis] == 1


def can_write_across(tile: Tile, out: View, axis: int) -> bool:
    """Whether results (N, heads, *S, D) can be written with positions, not channels, side by side.

    The axis is that of the strips.
    """
    return isinstance(tile, MmaForwardTile) and out.strides[2 + axis] == 1


def count_group_images(problem: AttentionProblem, cache_bytes: int, arrays: int) -> int:
    """Count the images whose features, of so many arrays like q and like v, the L2 cache holds.

    The pass along the second axis then finds there what the first has read and written.
    """
    channels = problem.heads * (problem.head_size_qk + problem.head_size_v)
    image_bytes = arrays * math.prod(problem.spatial) * channels * ITEM_BYTES[problem.dtype]
    images: int = min(problem.batch, cache_bytes // max(1, image_bytes))
    return max(1, images)


def _find_groups(engine: Engine, problem: AttentionProblem, arrays: int) -> Iterator[_Group]:
    if math.prod(problem.lse_shape) == 0:
        return
    scratch = _Scratch(engine)
    count = count_group_images(problem, engine.limits.cache_bytes, arrays)
    for first in range(0, problem.batch, count):
        yield _Group(engine, problem, scratch, first, min(count, problem.batch - first))


def _select(engine: Engine, direction: Direction, problem: AttentionProblem, axis: int) -> Tile:
    return select(direction, find_strip(problem, axis), engine.limits).tile


def _are_aligned(arrays: Mapping[str, View | None]) -> bool:
    return all(
        is_aligned(view, ALIGNMENT)
        for name, view in arrays.items()
        if name in FEATURES and view is not None
    )


def _find_scalars(problem: AttentionProblem, turn: int) -> dict[str, float]:
    return {
        "scale": problem.scale,
        "head_size_qk": problem.head_size_qk,
        "head_size_v": problem.head_size_v,
        "include_self": problem.include_self and turn == 0,  # once, along the first axis
    }


def attention_forward(
    engine: Engine,
    problem: AttentionProblem,
    *,
    q: View,
    k: View,
    v: View,
    key_mask: View | None,
    out: View,
    lse: View,
) -> None:
    """Fill `out` and `lse`; each axis merges its part with those before."""
    arithmetic = find_arithmetic(problem)
    for group in _find_groups(engine, problem, 2):
        split = group.split(out)
        target, finish = group.write("out", out, problem.dtype)
        is_packed = not is_direct(out, problem.channel_axis)
        arrays: dict[str, View | None] = {
            "q": group.read("q", q),
            "k": group.read("k", k),
            "v": group.read("v", v),
            "mask": group.mask(key_mask),
            "lse": group.cut(lse),
        }
        aligned = _are_aligned({**arrays, "out": target})
        for turn, axis in enumerate(problem.axes):
            tile = _select(engine, "forward", problem, axis)
            is_last = axis == problem.axes[-1]
            is_across = is_last and is_packed and can_write_across(tile, split, axis)
            launch_strips(
                engine,
                configure_forward(arithmetic, tile, is_aligned=aligned, is_across=is_across),
                axis,
                {
                    **arrays,
                    "before": None if turn == 0 else target,
                    "out": split if is_across else target,
                },
                _find_scalars(problem, turn),
                block=Block.of(tile),
            )
        if not is_across:
            finish()


def attention_backward(
    engine: Engine,
    problem: AttentionProblem,
    *,
    dout: View,
    q: View,
    k: View,
    v: View,
    out: View,
    lse: View,
    dlse: View | None,
    key_mask: View | None,
    dq: View,
    dk: View,
    dv: View,
) -> None:
    """Fill `dq`, `dk` and `dv`; each axis adds its share.

    Sums over three axes and more are kept in the dtype that is computed in, those over two are
    rounded in between.
    """
    arithmetic = find_arithmetic(problem)
    several = len(problem.axes) > 2
    partial_dtype = problem.compute_dtype if several else problem.dtype
    for group in _find_groups(engine, problem, 4):
        shape = (group.count, *problem.lse_shape[1:])
        arrays: dict[str, View | None] = {
            "q": group.read("q", q),
            "k": group.read("k", k),
            "v": group.read("v", v),
            "dout": group.read("dout", dout),
            "mask": group.mask(key_mask),
            "lse": group.cut(lse),
            "delta": group.scratch.make("delta", shape, problem.compute_dtype),
        }
        targets, finishers = {}, []
        for name, gradient in (("dq", dq), ("dk", dk), ("dv", dv)):
            targets[name], finish = group.write(name, gradient, partial_dtype)
            finishers.append(finish)
        given_out = group.read("out", out)
        aligned = _are_aligned({**arrays, **targets, "out": given_out})
        for turn, axis in enumerate(problem.axes):
            tile = _select(engine, "backward", problem, axis)
            for configuration in configure_backward(
                arithmetic,
                tile,
                partial_dtype=partial_dtype,
                is_aligned=aligned,
                adds=turn > 0,
            ):
                given = {
                    **arrays,
                    **{name: targets[name] for name in GRADIENTS[configuration.kernel]},
                }
                if turn == 0 and "dq" in given:
                    given["out"] = given_out
                    given["dlse"] = None if dlse is None else group.cut(dlse)
                launch_strips(
                    engine,
                    configuration,
                    axis,
                    given,
                    {**_find_scalars(problem, turn), "adds": turn > 0},
                    block=Block.of(tile),
                )
        for finish in finishers:
            finish()
