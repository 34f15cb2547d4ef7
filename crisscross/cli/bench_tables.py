"""The tables of `crisscross bench`: the same cells for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from crisscross.bench.peer import DENSE
from crisscross.bench.ratios import Spread
from crisscross.bench.records import CaseRecord, Gpu, PassRecord, Report, Row
from crisscross.bench.shapes import CHANNELS_FIRST, CUDA, PASSES

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
#: Of a call's time: if the host needs more of it, the GPU waits.
_HOST_SHARE = 0.9


def title_of(case: CaseRecord, report: Report) -> str:
    """Name a table by shape, dtype and what else is not as usual."""
    unusual = [report.layout] if report.layout != CHANNELS_FIRST else []
    unusual += [report.device] if report.device == CUDA else []
    return ", ".join([f"C/C' = {case.shape}", report.dtype, *unusual])


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
    """Tell the floor, how ours computed, why a row has no number, what is another function."""
    notes = [*_describe_floor(case), *_describe_algorithms(case)]
    for row in case.rows:
        reasons = {name: found.reason for name, found in row.passes.items() if found.reason}
        if len(set(reasons.values())) == 1 and len(reasons) == len(row.passes):
            notes.append(f"{row.form}: {next(iter(reasons.values()))}")
        else:
            notes += [f"{row.form}, {name}: {reason}" for name, reason in reasons.items()]
        if row.function == DENSE and not reasons:
            notes.append(f"{row.form}: another function; every position attends to all others")
        notes += _find_waiting(row)
    unknown = {found.memory_reason for row in case.rows for found in row.passes.values()}
    if case.foreign_share is not None and case.foreign_share > _QUIET_SHARE:
        notes.append(
            f"the machine was not quiet: other processes took {case.foreign_share:.0%} of the CPUs "
            "while this was timed; measure again"
        )
    notes += sorted(f"extra memory: {reason}" for reason in unknown if reason)
    return notes


def _describe_floor(case: CaseRecord) -> list[str]:
    if case.floor_reason is not None:
        return [f"floor: not measured: {case.floor_reason}"]
    if case.copy_rate is None or case.matmul_rate is None:
        return []
    floors = ", ".join(f"{name} {_write_milliseconds(x)}" for name, x in case.floors.items())
    return [
        f"floor: {floors}: the least bytes at {case.copy_rate / 1e12:.3g} TB/s, as a copy moved "
        f"them, or the matmuls at {case.matmul_rate / 1e12:.3g} TFLOP/s, whichever takes longer; "
        f"sets of inputs in turn: {case.sets}"
    ]


def _describe_algorithms(case: CaseRecord) -> list[str]:
    """Forms that compute alike share a line."""
    forms: dict[str, list[str]] = {}
    for row in case.rows:
        if row.algorithm is not None:
            forms.setdefault(row.algorithm, []).append(row.form)
    return [f"{' and '.join(names)}: {algorithm}" for algorithm, names in forms.items()]


def _find_waiting(row: Row) -> list[str]:
    """Name the passes whose time is that of the host."""
    return [
        f"{row.form}, {name}: the host needs {_write_milliseconds(found.launch)} to launch a call; "
        "the GPU waits for it"
        for name, found in row.passes.items()
        if found.time and found.launch and found.launch > _HOST_SHARE * found.time.median
    ]


def _describe_gpu(gpu: Gpu) -> str:
    runtime, driver = _write_version(gpu.runtime_cuda), _write_version(gpu.driver_cuda)
    state = "".join(f", {name} {value}" for name, value in gpu.state.items())
    return (
        f"{gpu.name}, sm_{gpu.architecture}; CUDA {runtime} (the driver's: {driver}), "
        f"CuPy {gpu.cupy}{state}"
    )


def _write_version(number: int) -> str:
    """12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


def describe_run(report: Report) -> Iterator[str]:
    """Tell, line by line, what the numbers depend on."""
    env = report.environment
    packages = ", ".join(f"{name} {version}" for name, version in sorted(env.packages.items()))
    processes = f" in {report.processes} processes" if report.processes > 1 else ""
    commit = f", commit {env.commit[:12]}" if env.commit else ""
    commit += " with changes" if env.dirty else ""
    if env.gpu is not None:
        yield _describe_gpu(env.gpu)
    yield f"{env.cpu}; {env.threads} of {env.usable_cpus} CPUs; {env.system}"
    yield f"Python {env.python}, {packages}; {env.blas}{commit}"
    yield f"{env.date}, {report.rounds} rounds{processes}, seed {report.seed}: {env.command}"
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
