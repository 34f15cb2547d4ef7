"""Backward: weights recomputed from q, k and lse, each axis adding its share."""

from __future__ import annotations

from itertools import product

import numpy as np

from crisscross.cpu.copies import convert, fits, write_back
from crisscross.cpu.crew import Crew
from crisscross.cpu.kits import differentiate_prepared
from crisscross.cpu.plan import Plan, recall_plan
from crisscross.cpu.products import multiply, suit_pieces
from crisscross.cpu.small import differentiate_small
from crisscross.cpu.strips import Block, Task, cut, cut_tasks, find_diagonal, lay_along
from crisscross.cpu.sums import AxisSum
from crisscross.cpu.weights import clear, compute_delta, compute_energies, differentiate
from crisscross.cpu.workspace import Workspace
from crisscross.problem import AttentionProblem, split_heads

#: Keys of a strip that one task takes; a longer strip has several ranges of them, up to a limit.
_KEYS_OF_RANGE = 1024
_MOST_RANGES = 8
#: Bytes of dout whose products with out are summed at a time.
_DELTA_BYTES = 1 << 22


def attention_backward(
    problem: AttentionProblem,
    *,
    dout: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    dlse: np.ndarray | None,
    key_mask: np.ndarray | None,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Fill `dq`, `dk` and `dv`; the axis that comes first owns self, the others skip it."""
    if dv.size == 0:
        return
    plan = recall_plan(problem)
    arrays = [
        split_heads(x, problem.heads, problem.channel_axis)
        for x in (dout, q, k, v, out, dq, dk, dv)
    ]
    mask = None if key_mask is None else np.broadcast_to(key_mask[:, None], lse.shape)

    def run(images: slice, crew: Crew) -> None:
        optional = [None if x is None else x[images] for x in (dlse, mask)]
        statistics = lse[images], optional[0], optional[1]
        group = [x[images] for x in arrays]
        if plan.prepared:
            differentiate_prepared(problem, plan, *statistics, *group)
        elif plan.small:
            differentiate_small(problem, plan, crew, *statistics, *group)
        else:
            _Backward(problem, plan, crew, *statistics, *group).run()

    plan.run(problem.batch, run)


class _Backward:
    """The backward of a group of images."""

    def __init__(
        self,
        problem: AttentionProblem,
        plan: Plan,
        crew: Crew,
        lse: np.ndarray,
        dlse: np.ndarray | None,
        key_mask: np.ndarray | None,
        dout: np.ndarray,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        out: np.ndarray,
        dq: np.ndarray,
        dk: np.ndarray,
        dv: np.ndarray,
    ) -> None:
        self.plan, self.crew = plan, crew
        self.scale, self.include_self = problem.scale, problem.include_self
        self.q, self.k, self.v, self.dout = convert(
            {"q": q, "k": k, "v": v, "dout": dout}, plan.dtype, crew, key_mask
        )
        self.key_mask, self.lse = key_mask, lse
        self.axes = problem.axes
        # Rows of q serve their own tile alone, keys and values their own range: their gradients
        # come when they are done with.
        self.dq, self.dk, self.dv = (
            AxisSum(name, x, self.axes, plan.dtype, crew.workspace, None if copy is given else copy)
            for name, x, copy, given in (
                ("dq", dq, self.q, q),
                ("dk", dk, self.k, k),
                ("dv", dv, self.v, v),
            )
        )
        self.delta = crew.workspace.reuse("delta", lse.shape, plan.dtype)
        self._compute_delta(dout, out, dlse)

    def run(self) -> None:
        for axis in self.axes:
            self._add_shares(axis)
        write_back([*self.dq.left, *self.dk.left, *self.dv.left], self.crew)

    def _compute_delta(self, dout: np.ndarray, out: np.ndarray, dlse: np.ndarray | None) -> None:
        """Compute delta from out as it came, and dout in that layout if there is one."""
        dout = self.dout if fits(out, self.plan.dtype) else dout
        batch, heads, rows = dout.shape[:3]

        def compute(task: tuple[int, int, slice], _: Workspace) -> None:
            arriving, left = (x[task].astype(self.plan.dtype, copy=False) for x in (dout, out))
            self.delta[task] = compute_delta(arriving, left, None if dlse is None else dlse[task])

        row_bytes = dout[0, 0, 0].size * self.plan.dtype.itemsize
        pieces = cut(rows, max(1, _DELTA_BYTES // row_bytes))
        self.crew.run([*product(range(batch), range(heads), pieces)], compute)

    def _add_shares(self, axis: int) -> None:
        """Add the share of the strips along one axis to dq, dk and dv."""
        dtype, spatial_ndim = self.plan.dtype, self.q.ndim - 3
        skips_self = not (axis == self.axes[0] and self.include_self)
        q, k, v, dout, lse, delta = (
            lay_along(x, axis, spatial_ndim)
            for x in (self.q, self.k, self.v, self.dout, self.lse, self.delta)
        )
        mask = None if self.key_mask is None else lay_along(self.key_mask, axis, spatial_ndim)
        q_in_pieces, k_in_pieces, dout_in_pieces = (suit_pieces(x) for x in (q, k, dout))
        ranges = cut(lse.shape[-1], max(_KEYS_OF_RANGE, -(-lse.shape[-1] // _MOST_RANGES)))
        # One range of keys has all of dq, several have parts of it.
        parts = None
        if len(ranges) > 1:
            shape = (len(ranges), *lse.shape, self.q.shape[-1])
            parts = self.crew.workspace.reuse("dq parts", shape, dtype)

        tasks = cut_tasks(
            lse.shape,
            dtype.itemsize,
            self.crew.threads,
            head_size=v.shape[-1],
            share_rows=False,
        )
        for total in (self.dq, self.dk, self.dv):
            total.open_axis(axis)

        def add_share(numbered: tuple[int, Task], workspace: Workspace) -> None:
            number, task = numbered
            columns = ranges[number]
            block = task.block
            keys, values = (block.of(x)[..., columns, :] for x in (k, v))
            seen = None if mask is None else block.of(mask)[..., columns]
            dk, dv = (x.lend(block, columns, workspace) for x in (self.dk, self.dv))
            for rows in task.rows:
                q_tile, dout_tile = (block.of(x)[..., rows, :] for x in (q, dout))
                lse_tile, delta_tile = (block.of(x)[..., rows] for x in (lse, delta))
                keyless = lse_tile == -np.inf
                some_keyless = keyless.any()
                if some_keyless:
                    # Such a position has no gradient, whatever its q, dout and dlse hold.
                    q_tile, dout_tile = clear(q_tile, keyless), clear(dout_tile, keyless)
                shape = (*q_tile.shape[:-1], keys.shape[-2])
                weights, denergies = (
                    workspace.reuse(name, shape, dtype) for name in ("energies", "denergies")
                )
                compute_energies(q_tile, keys, self.scale, seen, weights)
                np.matmul(dout_tile, values.swapaxes(-1, -2), out=denergies)
                tiles = (weights, denergies) if skips_self else ()
                diagonals = [find_diagonal(tile, rows, columns) for tile in tiles]
                differentiate(weights, denergies, lse_tile, delta_tile, diagonals)

                behind = rows.start - columns.start if skips_self else None
                ahead = None if behind is None else -behind
                added = rows.start > 0
                _accumulate(weights, dout_tile, dv, added, ahead, dout_in_pieces, workspace)
                _accumulate(denergies, q_tile, dk, added, ahead, q_in_pieces, workspace)
                if parts is None:
                    dq = self.dq.lend(block, rows, workspace)
                else:
                    dq = block.of(parts[number])[..., rows, :]
                multiply(denergies, keys, dq, excluded=behind, in_pieces=k_in_pieces)
                if some_keyless:
                    dq[keyless] = 0
                if self.scale != 1.0:
                    dq *= dtype.type(self.scale)
                if parts is None:
                    self.dq.add(block, rows, dq)
            if self.scale != 1.0:
                dk *= dtype.type(self.scale)
            if seen is not None:
                dk[~seen], dv[~seen] = 0, 0
            self.dk.add(block, columns, dk)
            self.dv.add(block, columns, dv)

        self.crew.run([*product(range(len(ranges)), tasks)], add_share)
        if parts is not None:
            self._add_parts(parts, [task.block for task in tasks])

    def _add_parts(self, parts: np.ndarray, blocks: list[Block]) -> None:
        """Add up the parts of dq that the ranges of keys have left."""

        def add(block: Block, workspace: Workspace) -> None:
            everything = slice(None)
            dq = self.dq.lend(block, everything, workspace)
            dq[...] = block.of(parts[0])
            for part in parts[1:]:
                dq += block.of(part)
            self.dq.add(block, everything, dq)

        self.crew.run(blocks, add)


def _accumulate(
    weights: np.ndarray,
    rows: np.ndarray,
    total: np.ndarray,
    added: bool,
    excluded: int | None,
    in_pieces: bool,
    workspace: Workspace,
) -> None:
    """Write the transposed tile of weights times `rows` to `total`, or have it added."""
    result = workspace.reuse("addend", total.shape, total.dtype) if added else total
    multiply(weights.swapaxes(-1, -2), rows, result, excluded=excluded, in_pieces=in_pieces)
    if added:
        total += result
