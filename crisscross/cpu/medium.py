"""Forward of images of medium size: their weights are kept, and their values go by channels.

The weights along all axes fit in a cache that the cores share. So no mean is read and rescaled from
axis to axis, and the values need not be turned as a whole: some channels at a time they are copied,
multiplied along every axis and written where they belong, in little more than the cache of a core.
"""

from __future__ import annotations

import math
from functools import reduce
from itertools import product
from typing import NamedTuple

import numpy as np

from crisscross.cpu.copies import convert, write_back
from crisscross.cpu.crew import Crew
from crisscross.cpu.lengths import convert_and_judge
from crisscross.cpu.plan import Plan
from crisscross.cpu.products import multiply, suit_pieces
from crisscross.cpu.strips import Task, cut, cut_tasks, lay_along
from crisscross.cpu.weights import invert, relate, weigh_tile
from crisscross.cpu.workspace import Workspace
from crisscross.problem import AttentionProblem

#: Bytes of values that go at a time, in groups of a multiple of so many channels: those are a line
#: of a cache. There are to be some groups for the threads.
_GROUP_BYTES = 5 << 18
_CHANNELS = 16
_FEWEST_GROUPS = 4


class _Side(NamedTuple):
    """What belongs to an axis.

    The weights are (1, heads, *others, L, L), their peak and total (1, heads, *S).
    """

    axis: int
    skips_self: bool
    weights: np.ndarray
    peak: np.ndarray
    total: np.ndarray
    tasks: list[Task]


def attend_medium(
    problem: AttentionProblem,
    plan: Plan,
    crew: Crew,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse` of a group of images; arrays are (N, heads, *S[, D])."""
    for n in range(len(lse)):
        image = slice(n, n + 1)
        mask = None if key_mask is None else key_mask[image]
        medium = _Medium(problem, plan, crew, mask, lse[image])
        medium.weigh(q[image], k[image])
        medium.normalise()
        medium.fill(v[image], out[image])


def cut_channels(channel_bytes: int, channels: int, heads: int) -> list[slice]:
    """Cut the channels of each head, of so many bytes each, into groups."""
    most = min(_GROUP_BYTES // channel_bytes, channels * heads // _FEWEST_GROUPS)
    width = max(1, most // _CHANNELS) * _CHANNELS
    return [slice(i, min(i + width, channels)) for i in range(0, channels, width)]


class _Medium:
    """The forward of one image."""

    def __init__(
        self,
        problem: AttentionProblem,
        plan: Plan,
        crew: Crew,
        key_mask: np.ndarray | None,
        lse: np.ndarray,
    ) -> None:
        self.problem, self.dtype, self.crew = problem, plan.dtype, crew
        self.key_mask, self.lse = key_mask, lse
        self.sides = [self._make_side(axis) for axis in problem.axes]

    def _make_side(self, axis: int) -> _Side:
        take, crew, shape = self.crew.workspace.reuse, self.crew, self._lay(self.lse, axis).shape
        owns_self = axis == self.problem.axes[0] and self.problem.include_self
        return _Side(
            axis,
            not owns_self,
            take(f"weights {axis}", (*shape, shape[-1]), self.dtype),
            take(f"peak {axis}", self.lse.shape, self.dtype),
            take(f"total {axis}", self.lse.shape, self.dtype),
            cut_tasks(
                shape,
                self.dtype.itemsize,
                crew.threads,
                head_size=self.problem.head_size_qk,
                share_rows=True,
            ),
        )

    def _lay(self, array: np.ndarray, axis: int) -> np.ndarray:
        return lay_along(array, axis, self.lse.ndim - 2)

    @property
    def _tasks(self) -> list[tuple[_Side, Task]]:
        return [(side, task) for side in self.sides for task in side.tasks]

    def weigh(self, q: np.ndarray, k: np.ndarray) -> None:
        """Compute the weights of each side, relative to peaks of its own."""
        features = {"q": q, "k": k}
        (q, k), judgement = convert_and_judge(
            features, self.problem, self.dtype, self.crew, self.key_mask
        )

        def weigh_tiles(share: tuple[_Side, Task], _: Workspace) -> None:
            side, (block, tiles) = share
            queries, keys = (block.of(self._lay(x, side.axis)) for x in (q, k))
            peak, total = (block.of(self._lay(x, side.axis)) for x in (side.peak, side.total))
            seen = None
            if self.key_mask is not None:
                seen = block.of(self._lay(self.key_mask, side.axis))
            known = judgement.lay(side.weights.shape[:-2]).of(block)
            for rows in tiles:
                weights = block.of(side.weights)[..., rows, :]
                found, total[..., rows] = weigh_tile(
                    queries[..., rows, :],
                    keys,
                    self.problem.scale,
                    seen,
                    weights,
                    skipped=rows if side.skips_self else None,
                    judgement=known,
                )
                peak[..., rows] = 0 if found is None else found

        self.crew.run(self._tasks, weigh_tiles)

    def normalise(self) -> None:
        """Make the weights of all sides add up to 1, and fill lse."""
        peak = reduce(np.maximum, [side.peak for side in self.sides])
        shares = [relate(side.peak, peak) for side in self.sides]
        whole = reduce(
            np.add, [s.total * share for s, share in zip(self.sides, shares, strict=True)]
        )
        inverse = invert(whole)
        factors = {s.axis: share * inverse for s, share in zip(self.sides, shares, strict=True)}
        np.log(whole, out=self.lse)
        self.lse += peak

        def scale(share: tuple[_Side, Task], _: Workspace) -> None:
            side, (block, tiles) = share
            weights, factor = (
                block.of(side.weights),
                block.of(self._lay(factors[side.axis], side.axis)),
            )
            for rows in tiles:
                weights[..., rows, :] *= factor[..., rows, None]

        self.crew.run(self._tasks, scale)

    def fill(self, v: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` with the weighted means."""

        def fill_some(task: tuple[slice, slice], workspace: Workspace) -> None:
            head, channels = task
            place = (slice(None), head, ..., channels)
            mask = None if self.key_mask is None else self.key_mask[:, head]
            alone = Crew(1, workspace)
            (values,) = convert({"v": v[place]}, self.dtype, alone, mask)
            mean = workspace.reuse("mean", values.shape, self.dtype)
            for side in self.sides:
                self._add(side, head, values, mean, workspace)
            write_back([(mean, out[place])], alone)

        heads, *spatial, channels = v.shape[1:]
        groups = cut_channels(math.prod(spatial) * self.dtype.itemsize, channels, heads)
        self.crew.run([*product(cut(heads, 1), groups)], fill_some)

    def _add(
        self,
        side: _Side,
        head: slice,
        values: np.ndarray,
        mean: np.ndarray,
        workspace: Workspace,
    ) -> None:
        """Add the products of some channels of a head along one axis."""
        weights, total = side.weights[:, head], self._lay(side.total, side.axis)[:, head]
        strips, sums = self._lay(values, side.axis), self._lay(mean, side.axis)
        part = sums
        if side is not self.sides[0]:
            part = workspace.reuse("part", sums.shape, self.dtype)
        multiply(
            weights,
            strips,
            part,
            excluded=0 if side.skips_self else None,
            in_pieces=suit_pieces(strips),
        )
        if not total.all():
            # Weights of zero, but the values may be NaN.
            part[total == 0] = 0
        if part is not sums:
            sums += part
