"""The bar that long commands show while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["make_progress", "show_steps"]


def make_progress(*, auto_refresh: bool = True) -> Progress:
    """Make a bar on a terminal's stderr, and nothing elsewhere.

    Without `auto_refresh` it is redrawn at each step only.
    """
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(
        *columns, console=console, disable=not console.is_interactive, auto_refresh=auto_refresh
    )


@contextmanager
def show_steps() -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar of the steps of a measurement: those done, of how many, and what comes next."""
    # Redrawn at each step only: a thread that draws would take time from what is measured.
    with make_progress(auto_refresh=False) as progress:
        task = progress.add_task("")

        def on_step(done: int, total: int, text: str) -> None:
            progress.update(task, completed=done, total=total, description=text, refresh=True)

        yield on_step
