"""`crisscross tune`: which tiles are fastest on this GPU, measured and stored."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    Place,
    UnreadableError,
    find_path,
    format_file,
    read_choices,
    read_file,
    replace_choices,
)

if TYPE_CHECKING:
    from crisscross.gpu.cupy_trials import CupyTrials

__all__ = ["run"]

_DEVICE = "cuda:0"
_WIDTH_WITHOUT_TERMINAL = 150


def run(arguments: Namespace) -> None:
    """Measure, store what is faster than the tables' own, and print the tables.

    Raises
    ------
    CommandError
        If there is no GPU, or it fails; if the file cannot be read or written, or is not one of
        ours.
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
    except RuntimeError as error:  # of CUDA's: the GPU is another's, or has failed
        told = f"{type(error).__name__}: {error}"
        raise CommandError(f"cannot measure on {_DEVICE}: {told}") from error


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
    # As it is: that it can be written is to be known before the work.
    with replace_when_done(path, ".json", is_shared=True) as temporary:
        temporary.write_text(format_file(read_file(path)))
    with open_trials(_DEVICE) as device:
        findings: list[Finding] = []
        try:
            _measure(device, arguments, path, findings)
        finally:  # a later shape may fail, and those before it count
            if findings:
                _print(findings, device.name, path)


def _measure(device: CupyTrials, arguments: Namespace, path: Path, findings: list[Finding]) -> None:
    """Measure; store each finding as soon as it is made, and append it."""
    # Redrawn at each step only, and one thread: nothing else is to take the host's time.
    with show_steps() as on_step, threadpool_limits(1, "blas"):
        for found in tune(
            device,
            arguments.shape or GPU_SHAPES,
            dtype=arguments.dtype,
            precision=arguments.precision,
            channel_axis=-1 if arguments.layout == CHANNELS_LAST else 1,
            rounds=arguments.rounds,
            on_step=on_step,
        ):
            _store(found, path, device.place)
            findings.append(found)


def _store(found: Finding, path: Path, place: Place) -> None:
    """Store what was found; where the table's own has no number, nothing was."""
    if found.chosen is None:
        return
    with replace_when_done(path, ".json", is_shared=True) as temporary:
        # Read only now: others may have stored theirs meanwhile.
        stored = read_choices(path, place)
        tiles = {} if stored is None else dict(stored.tiles)
        tiles.pop((found.direction, found.strip), None)
        if found.choice is not None:
            tiles[found.direction, found.strip] = found.choice
        temporary.write_text(format_file(replace_choices(read_file(path), place, tiles)))


def _print(findings: Sequence[Finding], name: str, path: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    for found in findings:
        strip = found.strip
        title = f"{found.direction}, {strip.arithmetic}, strips of {strip.length}, "
        title += f"measured on {name} with C/C' = {found.shape}"
        table = Table(title=title, title_justify="left")
        for number, heading in enumerate(("tile", "call", "table's own / it", "")):
            table.add_column(heading, justify="right" if number in (1, 2) else "left")
        for trial in found.trials:
            table.add_row(*_list_cells(trial, found))
        console.print(table)
        for trial in found.trials:
            if trial.reason is not None:
                note = f"  {trial.tile}: {trial.reason}"
                console.print(note, markup=False, highlight=False, soft_wrap=True)
        console.print()
    stored = sum(found.choice is not None for found in findings)
    print(
        f"Stored {stored} of {len(findings)}, each faster than the table's own by more than "
        f"{MARGIN:.0%}, in {path}"
    )


def _list_cells(trial: Trial, found: Finding) -> list[str]:
    seconds = "-" if trial.seconds is None else f"{1e3 * trial.seconds:.4g} ms"
    ratio = "-" if trial.ratio is None else f"{trial.ratio:.3f}"
    marks = ["the table's own"] if trial is found.trials[0] else []
    marks += ["chosen"] if trial is found.chosen else []
    return [str(trial.tile), seconds, ratio, ", ".join(marks)]
