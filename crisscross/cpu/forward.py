"""Forward: each axis's strips in turn, merged by log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from crisscross.cpu.copies import write_back
from crisscross.cpu.crew import Crew
from crisscross.cpu.kits import attend_prepared
from crisscross.cpu.lengths import convert_and_judge
from crisscross.cpu.medium import attend_medium
from crisscross.cpu.plan import Plan, recall_plan
from crisscross.cpu.products import multiply, suit_pieces
from crisscross.cpu.small import attend_small
from crisscross.cpu.strips import Task, cut_tasks, fits_tile, lay_along
from crisscross.cpu.sums import AxisSum
from crisscross.cpu.weights import invert, take_in, weigh_tile
from crisscross.cpu.workspace import Workspace
from crisscross.problem import AttentionProblem, split_heads


def attention_forward(
    problem: AttentionProblem,
    *,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    out: np.ndarray,
    lse: np.ndarray,
) -> None:
    """Fill `out` and `lse`; the axis that comes first owns self, the others skip it."""
    if out.size == 0:
        return
    plan = recall_plan(problem)
    q, k, v, out = (split_heads(x, problem.heads, problem.channel_axis) for x in (q, k, v, out))
    mask = None if key_mask is None else np.broadcast_to(key_mask[:, None], lse.shape)

    # Values whose channels are innermost need not be turned.
    medium = plan.medium and abs(v.strides[-1]) > abs(v.strides[-2])

    def attend(images: slice, crew: Crew) -> None:
        group = (q[images], k[images], v[images], None if mask is None else mask[images])
        if medium:
            attend_medium(problem, plan, crew, *group, out[images], lse[images])
        elif plan.prepared:
            attend_prepared(problem, plan, *group, out[images], lse[images])
        elif plan.small:
            attend_small(problem, plan, crew, *group, out[images], lse[images])
        else:
            make = partial(_Forward, problem, plan, crew, *group)
            _attend_strips(make, out[images], lse[images])

    plan.run(problem.batch, attend)


def _attend_strips(make: Callable[..., _Forward], out: np.ndarray, lse: np.ndarray) -> None:
    """Fill `out` and `lse` of a group of images, for which it may take a second attempt."""
    if make(out, lse).run():
        return
    # Sums of large values, or values that are not finite: what can be is a mean again.
    again = np.empty_like(out)
    careful = make(again, lse)
    careful.judgement = careful.judgement._replace(gentle=None)
    careful.run()
    np.copyto(out, again, where=~np.isfinite(out))


class _Forward:
    """The forward of a group of images.

    Between the axes stand the peak of the energies and the total relative to it: lse, rounded at
    the size of large energies, would cost digits that the peak, an energy itself, does not. The
    mean of the values is not a sum, unless energies are gentle: of values near the largest float, a
    sum would be infinite.
    """

    def __init__(
        self,
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
        self.plan, self.crew = plan, crew
        self.scale, self.include_self = problem.scale, problem.include_self
        features = {"q": q, "k": k, "v": v}
        (self.q, self.k, self.v), self.judgement = convert_and_judge(
            features, problem, plan.dtype, crew, key_mask
        )
        self.key_mask, self.lse = key_mask, lse
        self.axes = problem.axes
        # Tiles of whole strips are done with their values; those of rows share them.
        done_with = self.v is not v and fits_tile(lse.shape[2 + self.axes[-1]], plan.dtype.itemsize)
        copy = self.v if done_with else None
        #: Of gentle sums that are infinite; also where they are NaN.
        self.spilled = False
        workspace = crew.workspace
        self.mean = AxisSum("out", out, self.axes, plan.dtype, workspace, copy)
        self.peak, self.total = (
            workspace.reuse(name, lse.shape, plan.dtype) for name in ("peak", "total")
        )
        #: Positions whose values are added up before they are divided by the total.
        self.summed = workspace.reuse("summed", lse.shape, bool)

    def run(self) -> bool:
        """Fill out and lse; return whether all sums that were gentle are finite."""
        for axis in self.axes:
            self._attend_along(axis)
        write_back(self.mean.left, self.crew)
        np.log(self.total, out=self.lse)
        self.lse += self.peak
        return not self.spilled

    def _attend_along(self, axis: int) -> None:
        """Attend along one axis; write to the state, or merge with what it holds."""
        dtype, spatial_ndim = self.plan.dtype, self.q.ndim - 3
        first, last = axis == self.axes[0], axis == self.axes[-1]
        skips_self = not (first and self.include_self)
        q, k, v, peak, total, summed = (
            lay_along(x, axis, spatial_ndim)
            for x in (self.q, self.k, self.v, self.peak, self.total, self.summed)
        )
        mask = None if self.key_mask is None else lay_along(self.key_mask, axis, spatial_ndim)
        judgement = self.judgement.lay(total.shape[:-1])
        in_pieces = suit_pieces(v)
        tasks = cut_tasks(
            total.shape,
            dtype.itemsize,
            self.crew.threads,
            head_size=v.shape[-1],
            share_rows=True,
        )

        def attend(task: Task, workspace: Workspace) -> None:
            block = task.block
            queries, keys, values = block.of(q), block.of(k), block.of(v)
            known = judgement.of(block)
            seen = None if mask is None else block.of(mask)
            for rows in task.rows:
                q_tile = queries[..., rows, :]
                shape = (*q_tile.shape[:-1], keys.shape[-2])
                weights = workspace.reuse("energies", shape, dtype)
                skipped = rows if skips_self else None
                part_peak, part_total = weigh_tile(
                    q_tile, keys, self.scale, seen, weights, skipped=skipped, judgement=known
                )
                state = block.of(peak)[..., rows], block.of(total)[..., rows]
                sums = None
                if known.gentle is not None:
                    sums = block.of(summed)[..., rows]
                    if first:
                        np.logical_and(known.gentle[..., None], part_total >= 1, out=sums)
                rest, factor = take_in(*state, part_peak, part_total, sums, first=first)
                if factor is not None:
                    weights *= factor[..., None]
                mean = self.mean.lend(block, rows, workspace)
                excluded = rows.start if skips_self else None
                multiply(weights, values, mean, excluded=excluded, in_pieces=in_pieces)
                if not part_total.all():
                    # Weights of zero, but the values may be NaN.
                    mean[part_total == 0] = 0
                whole = None
                if last and sums is not None:
                    whole = np.where(sums, invert(state[1]), 1)
                found = self.mean.add(block, rows, mean, rest, whole)
                if whole is None or np.isfinite(found).all():
                    continue
                if (sums & ~np.isfinite(found).all(axis=-1)).any():
                    # Only ever set: another thread may have found one as well.
                    self.spilled = True

        self.mean.open_axis(axis)
        self.crew.run(tasks, attend)
