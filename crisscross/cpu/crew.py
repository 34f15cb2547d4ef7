"""Who works on a call: a thread or several, each with scratch of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from crisscross.cpu.threads import hold_blas, run_tasks
from crisscross.cpu.workspace import Workspace

Task = TypeVar("Task")


class Crew:
    """Threads that share the tasks of a call.

    Attributes
    ----------
    threads
        How many work at a time.
    workspace
        Scratch for what lasts from one round of tasks to the next.
    """

    def __init__(self, threads: int, workspace: Workspace) -> None:
        self.threads, self.workspace = threads, workspace

    def run(self, tasks: list[Task], work: Callable[[Task, Workspace], None]) -> None:
        """Run `work` on every task, in any order; each thread lends it scratch of its own."""
        if self.threads == 1 or len(tasks) == 1:
            for task in tasks:
                work(task, self.workspace)
            return

        def work_through(share: Iterator[Task]) -> None:
            with Workspace() as workspace:
                for task in share:
                    work(task, workspace)

        run_tasks(work_through, tasks, self.threads)


@contextmanager
def gather_crew() -> Iterator[Crew]:
    """Gather as many threads as the policy allows, and hold BLAS to one under each of them."""
    with Workspace() as workspace, hold_blas() as threads:
        yield Crew(threads, workspace)


def run_images(batch: int, work: Callable[[int], None]) -> None:
    """Run `work` on the number of each image."""
    with np.errstate(all="ignore"), gather_crew() as crew:
        crew.run(list(range(batch)), lambda image, _: work(image))
