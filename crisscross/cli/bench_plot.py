"""The picture that `crisscross bench` writes: how many times as long the peers take."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from crisscross.bench.peer import DENSE
from crisscross.bench.ratios import Spread
from crisscross.bench.records import Report
from crisscross.bench.shapes import PASSES

__all__ = ["draw"]

_INK, _MUTED, _GRID = "#22272e", "#6a737d", "#e3e6ea"
_GROUP_WIDTH = 0.84
_LEGEND_INCHES = 3.6
_DPI = 150


def draw(report: Report, path: Path) -> None:
    """Draw the ratios of all shapes and forms, and write them to `path` as PNG."""
    forms = [row.form for row in report.cases[0].rows if row.form != report.ours]
    width = min(20.0, max(8.0, 1.6 + 0.22 * len(report.cases) * (len(forms) + 2)))
    figure = Figure(figsize=(width, 8.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(PASSES), 1, sharex=True)
    for ax, name in zip(axes, PASSES, strict=True):
        _draw_pass(ax, report, name, forms)
    axes[-1].set_xticks(
        range(len(report.cases)),
        [str(case.shape).replace(", ", "\n") for case in report.cases],
        color=_INK,
    )
    figure.suptitle(
        f"Time over that of {report.ours}: above 1 it is faster ({report.dtype}, {report.device})",
        color=_INK,
        fontsize=13,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        columns = max(1, int(width / _LEGEND_INCHES))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, format="png", dpi=_DPI)


def _draw_pass(ax: Axes, report: Report, name: str, forms: list[str]) -> None:
    shades = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = (*shades[::2], *shades[1::2])
    bar = _GROUP_WIDTH / max(1, len(forms))
    for number, form in enumerate(forms):
        places, ratios, dense = _collect(report, name, form)
        offset = (number - (len(forms) - 1) / 2) * bar
        medians = np.array([ratio.median for ratio in ratios])
        spread = np.array(
            [[ratio.median - ratio.low, ratio.high - ratio.median] for ratio in ratios]
        )
        # From 1, up or down: a bar's length is how much slower or faster.
        ax.bar(
            np.array(places) + offset,
            medians - 1,
            0.92 * bar,
            bottom=1,
            color=colours[number % len(colours)],
            hatch="///" if dense else None,
            edgecolor="white",
            linewidth=0,
            label=f"{form} (another function)" if dense else form,
        )
        if ratios:
            ax.errorbar(
                np.array(places) + offset,
                medians,
                spread.T,
                fmt="none",
                ecolor=_INK,
                elinewidth=1,
                capsize=2,
            )
    ax.axhline(1, color=_INK, linewidth=1.2)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=20))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.set_title(name, loc="left", color=_INK, fontsize=11)
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=_GRID)
    ax.tick_params(colors=_MUTED, length=0)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.margins(x=0.01)


def _collect(report: Report, name: str, form: str) -> tuple[list[int], list[Spread], bool]:
    """Return the shapes where the form has a ratio, these, and whether it is another function."""
    places, ratios, dense = [], [], False
    for place, case in enumerate(report.cases):
        for row in case.rows:
            if row.form == form:
                dense = row.function == DENSE
                found = row.passes.get(name)
                if found is not None and found.ratio is not None:
                    places.append(place)
                    ratios.append(found.ratio)
    return places, ratios, dense
