"""The tables of `crisscross bench`: the same cells for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from crisscross.bench.peer import DENSE
from crisscross.bench.ratios import Spread
from crisscross.bench.records import CaseRecord, PassRecord, Report, Row
from crisscross.bench.shapes import PASSES

__all__ = [
    "HEADINGS",
    "describe_run",
    "list_cells",
    "list_notes",
    "title_of",
    "write_markdown",
]

HEADINGS = (
    "",
    "forward",
    "theirs / ours",
    "x floor",
    "forward + backward",
    "theirs / ours",
    "x floor",
    "extra MiB",
    "worst error",
)
_NONE = "-"
#: Of the CPUs' time: more, taken by other processes, spoils the numbers.
_QUIET_SHARE = 0.05


def title_of(case: CaseRecord, report: Report) -> str:
    """Name a table by shape and dtype."""
    return f"C/C' = {case.shape}, {report.dtype}"


def list_cells(row: Row, ours: str) -> list[str]:
    """Return a row of the table, one cell for each of `HEADINGS`."""
    cells = [row.form]
    for name in PASSES:
        found = row.passes.get(name, PassRecord())
        time = _write_milliseconds(found.time.median) if found.time else _NONE
        ratio = "1" if row.form == ours and found.time else _write_ratio(found.ratio)
        floor = f"{found.over_floor:.1f}" if found.over_floor is not None else _NONE
        cells += [time, ratio, floor]
    memory = [_write_mebibytes(row.passes.get(name, PassRecord())) for name in PASSES]
    return [*cells, " / ".join(memory), _find_worst_error(row)]


def _write_milliseconds(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _write_ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return _NONE
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _write_mebibytes(found: PassRecord) -> str:
    if found.extra_bytes is None:
        return _NONE
    return f"{found.extra_bytes / 2**20:.1f}"


def _find_worst_error(row: Row) -> str:
    errors = [
        (error, output)
        for found in row.passes.values()
        for output, error in found.errors.items()
        if error is not None
    ]
    if not errors:
        return _NONE
    error, output = max(errors)
    return f"{error:.1e} ({output})"


def list_notes(case: CaseRecord) -> list[str]:
    """Say why a row has no number, and what is another function."""
    notes = []
    for row in case.rows:
        reasons = {name: found.reason for name, found in row.passes.items() if found.reason}
        if len(set(reasons.values())) == 1 and len(reasons) == len(row.passes):
            notes.append(f"{row.form}: {next(iter(reasons.values()))}")
        else:
            notes += [f"{row.form}, {name}: {reason}" for name, reason in reasons.items()]
        if row.function == DENSE and not reasons:
            notes.append(f"{row.form}: another function; every position attends to all others")
    unknown = {found.memory_reason for row in case.rows for found in row.passes.values()}
    if case.foreign_share is not None and case.foreign_share > _QUIET_SHARE:
        notes.append(
            f"the machine was not quiet: other processes took {case.foreign_share:.0%} of the CPUs "
            "while this was timed; measure again"
        )
    notes += sorted(f"extra memory: {reason}" for reason in unknown if reason)
    return notes


def describe_run(report: Report) -> Iterator[str]:
    """Tell, line by line, what the numbers depend on."""
    env = report.environment
    packages = ", ".join(f"{name} {version}" for name, version in sorted(env.packages.items()))
    commit = f", commit {env.commit[:12]}" if env.commit else ""
    commit += " with changes" if env.dirty else ""
    yield f"{env.cpu}; {env.threads} of {env.usable_cpus} CPUs; {env.system}"
    yield f"Python {env.python}, {packages}; {env.blas}{commit}"
    yield f"{env.date}, {report.rounds} rounds, seed {report.seed}: {env.command}"
    for name, reason in report.missing.items():
        yield f"Not measured: {name}: {reason}"
    if env.unsettled:
        yield env.unsettled


def write_markdown(report: Report) -> str:
    """Write all tables as Markdown.

    The time is the median of the rounds; the ratio has its quartiles in brackets.
    """
    lines = [*(f"{line}  " for line in describe_run(report)), ""]
    for case in report.cases:
        lines += [f"**{title_of(case, report)}**", "", _write_row(HEADINGS)]
        lines.append(_write_row(["---", *["--:"] * (len(HEADINGS) - 1)]))
        lines += [_write_row(list_cells(row, report.ours)) for row in case.rows]
        lines += ["", *(f"- {note}" for note in list_notes(case)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _write_row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
