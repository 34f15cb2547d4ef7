"""`crisscross tune`: which tiles are fastest on this GPU, measured and stored."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crisscross.bench.shapes import CHANNELS_LAST, GPU_SHAPES
from crisscross.bench.team import BenchError
from crisscross.bench.trials import MARGIN, Finding, Trial
from crisscross.bench.tune import tune
from crisscross.cli.errors import CommandError
from crisscross.cli.files import replace_when_done
from crisscross.cli.progress import show_steps
from crisscross.gpu import find_unavailability, open_trials
from crisscross.gpu.tuned import (
    VARIABLE,
    UnreadableError,
    find_path,
    read_choices,
    read_file,
    write_choices,
)

__all__ = ["run"]

_DEVICE = "cuda:0"
_WIDTH_WITHOUT_TERMINAL = 150


def run(arguments: Namespace) -> None:
    """Measure, print the tables, and store what is faster than the tables' own.

    Raises
    ------
    CommandError
        If there is no GPU, or the file cannot be read or written, or is not one of ours.
    """
    path = find_path()
    if path is None:
        raise CommandError(f"{VARIABLE} is empty, which says that nothing is stored")
    try:
        read_file(path)  # before the work, and no other file is removed or written over
        if arguments.clear:
            _clear(path)
        else:
            _tune(arguments, path)
    except (BenchError, UnreadableError) as error:
        raise CommandError(str(error)) from error


def _clear(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        print(f"Nothing is stored: there is no {path}")
    except OSError as error:
        raise CommandError(f"cannot remove {path}: {error.strerror or error}") from error
    else:
        print(f"Removed {path}")


def _tune(arguments: Namespace, path: Path) -> None:
    problem = find_unavailability(_DEVICE)
    if problem is not None:
        raise CommandError(f"there is no GPU to measure on: {problem}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    with replace_when_done(path, ".json") as temporary:
        # Redrawn at each step only, and one thread: nothing else is to take the host's time.
        with open_trials(_DEVICE) as device, show_steps() as on_step, threadpool_limits(1, "blas"):
            name, architecture = device.name, device.engine.limits.architecture
            choices = read_choices(path, name, architecture)
            findings = tune(
                device,
                arguments.shape or GPU_SHAPES,
                dtype=arguments.dtype,
                precision=arguments.precision,
                channel_axis=-1 if arguments.layout == CHANNELS_LAST else 1,
                rounds=arguments.rounds,
                on_step=on_step,
            )
        for found in findings:
            if found.chosen is not None:
                choices.pop((found.direction, found.strip), None)
            if found.choice is not None:
                choices[found.direction, found.strip] = found.choice
        temporary.write_text(write_choices(path, name, architecture, choices))
    _print(findings, name)
    stored = sum(found.choice is not None for found in findings)
    print(
        f"Stored {stored} of {len(findings)}, each faster than the table's own by more than "
        f"{MARGIN:.0%}, in {path}"
    )


def _print(findings: Sequence[Finding], name: str) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    for found in findings:
        strip = found.strip
        title = f"{found.direction}, {strip.arithmetic}, strips of {strip.length}, "
        title += f"measured on {name} with C/C' = {found.shape}"
        table = Table(title=title, title_justify="left")
        for number, heading in enumerate(("tile", "time", "table's own / it", "")):
            table.add_column(heading, justify="right" if number in (1, 2) else "left")
        for trial in found.trials:
            table.add_row(*_list_cells(trial, found))
        console.print(table)
        for trial in found.trials:
            if trial.reason is not None:
                note = f"  {trial.tile}: {trial.reason}"
                console.print(note, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _list_cells(trial: Trial, found: Finding) -> list[str]:
    seconds = "-" if trial.seconds is None else f"{1e3 * trial.seconds:.4g} ms"
    ratio = "-" if trial.ratio is None else f"{trial.ratio:.3f}"
    marks = ["the table's own"] if trial is found.trials[0] else []
    marks += ["chosen"] if trial is found.chosen else []
    return [str(trial.tile), seconds, ratio, ", ".join(marks)]
