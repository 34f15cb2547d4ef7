"""The bar that long commands show while they run."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["make_progress"]


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
