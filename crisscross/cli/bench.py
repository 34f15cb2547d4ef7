"""`crisscross bench`: the operation measured beside its peers."""

from __future__ import annotations

import shlex
from argparse import Namespace
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crisscross.bench.process import count_usable_cpus
from crisscross.bench.records import CaseRecord, Report
from crisscross.bench.run import run_bench
from crisscross.bench.settings import DEFAULT_PROCESSES, DEFAULT_ROUNDS, QUICK_ROUNDS, Settings
from crisscross.bench.shapes import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    CUDA,
    GPU_SHAPES,
    QUICK_GPU_SHAPES,
    QUICK_SHAPES,
    SHAPES,
)
from crisscross.bench.team import BenchError
from crisscross.cli.bench_plot import draw
from crisscross.cli.bench_tables import (
    HEADINGS,
    describe_run,
    list_cells,
    list_notes,
    title_of,
    write_markdown,
)
from crisscross.cli.errors import CommandError
from crisscross.cli.files import replace_when_done
from crisscross.cli.progress import show_steps

__all__ = ["run"]

_WIDTH_WITHOUT_TERMINAL = 150
#: What is measured if nothing is said: shapes, those of --quick, dtype and layout.
_ON_CPU = (SHAPES, QUICK_SHAPES, "float32", CHANNELS_FIRST)
_ON_GPU = (GPU_SHAPES, QUICK_GPU_SHAPES, "bfloat16", CHANNELS_LAST)


def run(arguments: Namespace) -> None:
    """Run the benchmark: write the files, print the tables.

    Raises
    ------
    CommandError
        If an argument does not serve, a file cannot be written, or there is nothing to measure.
    """
    settings = _choose_settings(arguments)
    with ExitStack() as stack:
        # Opened first: that a file cannot be written should not be found out at the end.
        json = stack.enter_context(replace_when_done(arguments.json, ".json"))
        plot = stack.enter_context(replace_when_done(arguments.plot, ".png"))
        markdown = None
        if arguments.markdown is not None:
            markdown = stack.enter_context(replace_when_done(arguments.markdown, ".md"))
        try:
            # The exact results are products of strips, too small for several threads.
            with show_steps() as on_step, threadpool_limits(1, "blas"):
                report = run_bench(settings, on_step)
        except BenchError as error:
            raise CommandError(str(error)) from error
        json.write_text(report.to_json())
        draw(report, plot)
        if markdown is not None:
            markdown.write_text(write_markdown(report))
    _print(report)
    written = filter(None, (arguments.json, arguments.plot, arguments.markdown))
    print(f"Wrote {', '.join(map(str, written))}")


def _choose_settings(arguments: Namespace) -> Settings:
    usable = count_usable_cpus()
    threads = usable if arguments.threads is None else arguments.threads
    if threads > usable:
        raise CommandError(
            f"argument --threads: expected at most {usable}, the usable CPUs, got {threads}"
        )
    rounds = QUICK_ROUNDS if arguments.quick else DEFAULT_ROUNDS
    rounds = rounds if arguments.rounds is None else arguments.rounds
    processes = 1 if arguments.quick or arguments.device == CUDA else DEFAULT_PROCESSES
    shapes, quick_shapes, dtype, layout = _ON_GPU if arguments.device == CUDA else _ON_CPU
    return Settings(
        shapes=tuple(arguments.shape or (quick_shapes if arguments.quick else shapes)),
        dtype=arguments.dtype or dtype,
        device=arguments.device,
        layout=arguments.layout or layout,
        rounds=rounds,
        processes=min(rounds, processes if arguments.processes is None else arguments.processes),
        threads=threads,
        peers=arguments.peers,
        only=tuple(arguments.only),
        seed=arguments.seed,
        command=shlex.join(["crisscross", "bench", *arguments.given]),
    )


def _print(report: Report) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    for case in report.cases:
        console.print(_make_table(case, report))
        for note in list_notes(case):
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    for line in describe_run(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _make_table(case: CaseRecord, report: Report) -> Table:
    table = Table(title=title_of(case, report), title_justify="left")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in case.rows:
        table.add_row(*list_cells(row, report.ours))
    return table
