"""Which way a problem is computed: what its bits depend on follows from one image alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from crisscross.cpu.crew import Crew, gather_crew
from crisscross.cpu.strips import TILE_BYTES, cut
from crisscross.cpu.threads import get_num_threads
from crisscross.cpu.workspace import KIT_BYTES, Workspace
from crisscross.problem import AttentionProblem

#: Most operations and bytes of energies, along all axes, of a small image, and most operations of
#: a whole call that is not worth a second thread.
SMALL_IMAGE_FLOPS = 1e8
SMALL_IMAGE_BYTES = 1 << 21
SMALL_CALL_FLOPS = 2e7
#: Most bytes of energies of an image of medium size; fewest channels of a head, for fewer are no
#: faster by groups; and most positions, for each thread needs scratch for some channels of them.
MEDIUM_IMAGE_BYTES = 1 << 23
MEDIUM_HEAD_SIZE = 128
MEDIUM_POSITIONS = 1 << 15
#: Bytes of energies of a group of small images.
SMALL_GROUP_BYTES = 1 << 19
#: Up to these sizes OpenBLAS multiplies on one thread by itself.
_SINGLE_THREADED_GEMM = 1 << 17
_SINGLE_THREADED_GEMV = 1 << 13
#: Bytes of scratch for a group of images.
GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Plan:
    """How a problem is computed.

    Attributes
    ----------
    dtype
        Of the computation.
    small
        Whether an image is so small that one thread computes it by a few operations on whole
        arrays. Otherwise blocks of its strips are shared out.
    medium
        Whether the weights of an image are kept, and its values go by channels: forward, unless the
        channels are innermost in memory.
    alone
        Whether the call is not worth a second thread.
    prepared
        Whether it is so small that memory and all its views are prepared for the next of its kind.
    image_bytes, energy_bytes
        Size of an image's largest operand, and of its energies along all axes.
    """

    dtype: np.dtype[Any]
    small: bool
    medium: bool
    alone: bool
    prepared: bool
    image_bytes: int
    energy_bytes: int

    def run(self, batch: int, work: Callable[[slice, Crew], None]) -> None:
        """Run `work` on each group of images, with the crew that serves it."""
        if self.alone:
            # BLAS is left as it is: with problems so small it starts no threads.
            with np.errstate(all="ignore"), Workspace() as workspace:
                for group in self.group_small(batch, 1):
                    work(group, Crew(1, workspace))
            return
        with np.errstate(all="ignore"), gather_crew() as crew:
            even = batch % crew.threads == 0 or batch >= 4 * crew.threads
            if self.small:
                groups = self.group_small(batch, crew.threads)
            elif even and self.image_bytes * crew.threads <= GROUP_BYTES:
                images = max(1, TILE_BYTES // self.energy_bytes)
                groups = cut(batch, min(images, -(-batch // crew.threads)))
            else:
                for group in cut(batch, max(1, GROUP_BYTES // self.image_bytes)):
                    work(group, crew)
                return
            # Groups for a thread each: nobody waits for the others, and each stays in one cache.
            crew.run(groups, lambda group, workspace: work(group, Crew(1, workspace)))

    def group_small(self, batch: int, threads: int) -> list[slice]:
        """Cut a batch of small images into groups, one for each thread as far as they go round."""
        return cut(batch, min(max(1, SMALL_GROUP_BYTES // self.energy_bytes), -(-batch // threads)))


def describe_plan(problem: AttentionProblem) -> str:
    """Say how the problem is computed, in one line."""
    merged = "" if len(problem.axes) == 1 else ", merged by log-sum-exp"
    plan = make_plan(problem)
    if plan.small:
        threads = 1 if plan.alone else get_num_threads()
        if threads > 1:
            threads = min(threads, len(plan.group_small(problem.batch, threads)))
        way = f"small images: by whole arrays, each on one of {_name_threads(threads)}"
        if threads == 1:
            way = "small images: by whole arrays, on the caller's thread"
        if plan.prepared:
            way += ", in memory prepared by the first such call"
    else:
        threads = get_num_threads()
        way = f"in tiles of {TILE_BYTES >> 10} KiB of energies on {_name_threads(threads)}"
        if plan.medium and problem.channel_axis == 1:
            weights = f"{plan.energy_bytes >> 10} KiB of weights of an image at a time"
            way += f"; forward, unless channels are innermost in memory, by channels with {weights}"
    return f"matmul along strips{merged}; no attention map outlives the call; {way}"


def _name_threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads, BLAS held to one under each"


def make_plan(problem: AttentionProblem) -> Plan:
    """Plan a problem, forward or backward."""
    dtype = np.dtype(problem.compute_dtype)
    if 0 in (problem.batch, *problem.spatial):
        return Plan(dtype, True, False, True, False, image_bytes=0, energy_bytes=0)
    positions = problem.heads * math.prod(problem.spatial)
    lengths = [problem.spatial[axis] for axis in problem.axes]
    keys = sum(lengths)
    energy_bytes = positions * keys * dtype.itemsize
    flops = 2 * positions * keys * (problem.head_size_qk + problem.head_size_v)
    small = flops <= SMALL_IMAGE_FLOPS and energy_bytes <= SMALL_IMAGE_BYTES
    head_size = max(problem.head_size_qk, problem.head_size_v)
    single = (
        max(lengths) ** 2 * head_size <= _SINGLE_THREADED_GEMM
        and problem.spatial[-1] * keys <= _SINGLE_THREADED_GEMV
    )
    image_bytes = positions * head_size * dtype.itemsize
    alone = small and single and flops * problem.batch <= SMALL_CALL_FLOPS
    medium = (
        not small
        and energy_bytes <= MEDIUM_IMAGE_BYTES
        and problem.head_size_v >= MEDIUM_HEAD_SIZE
        and math.prod(problem.spatial) <= MEDIUM_POSITIONS
    )
    # Of the backward: what `kits` copies, all energies and their gradients, and the products.
    axes, qk, v = len(lengths), problem.head_size_qk, problem.head_size_v
    of_position = 2 * qk + 3 * v + 2 * keys + axes * (2 * qk + v)
    kit_bytes = problem.batch * positions * of_position * dtype.itemsize
    prepared = alone and kit_bytes <= KIT_BYTES
    return Plan(dtype, small, medium, alone, prepared, image_bytes, energy_bytes)


#: `make_plan` for calls: to look a problem up takes less. `explain` does not, for compilers that
#: trace it do not follow a cache.
recall_plan = lru_cache(make_plan)
