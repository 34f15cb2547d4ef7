"""The picture that the demo writes, drawn without touching matplotlib's global state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["Scene", "draw", "overlay"]

# From violet on, as black would hide where the weights are small but not zero.
_HEAT = ListedColormap(matplotlib.colormaps["inferno"](np.linspace(0.2, 1, 256)), "heat")
#: Weights below this share of the largest are drawn like it.
_LEAST_SHARE = 1e-9
_DIMMED = 0.45
_FAINTEST = 0.35
_INK, _PAPER, _ACCENT = "#e8e8e8", "#14141a", "#5ad1ff"
_COLUMN_INCHES, _DPI = 4.3, 150


@dataclass(frozen=True)
class Scene:
    """What the picture shows: images (H, W, C) with their PSNR, and weights (H, W)."""

    clean: np.ndarray
    noisy: tuple[np.ndarray, float]
    once: tuple[np.ndarray, float]
    again: tuple[np.ndarray, float]
    row: np.ndarray
    composed: np.ndarray
    pixel: tuple[int, int]
    sigma: float


def draw(scene: Scene, path: Path) -> None:
    """Draw the scene and write it to `path` as PNG."""
    height, width = scene.clean.shape[:2]
    # A strip of an image would otherwise make a figure of any height.
    row_inches = _COLUMN_INCHES * min(2.0, max(0.3, height / width))
    size = (3 * _COLUMN_INCHES, 2 * row_inches + 1.4)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=size, facecolor=_PAPER, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3, height_ratios=(row_inches, row_inches, 0.13))
    photograph, once, again, noisy, row, composed = (
        figure.add_subplot(grid[place]) for place in np.ndindex(2, 3)
    )
    _show(photograph, scene.clean, "photograph")
    _show(noisy, scene.noisy[0], f"with noise, sigma = {scene.sigma:g}: {scene.noisy[1]:.1f} dB")
    _show(once, scene.once[0], f"criss-cross attention, R = 1: {scene.once[1]:.1f} dB")
    _show(again, scene.again[0], f"criss-cross attention, R = 2: {scene.again[1]:.1f} dB")

    most = float(scene.row.max())
    norm = LogNorm(_LEAST_SHARE * most, most)
    backdrop = _DIMMED * scene.clean.mean(axis=2)
    _show(row, overlay(backdrop, scene.row, norm), "R = 1: the marked pixel sees its cross")
    title = "R = 2, composed with itself: the image"
    _show(composed, overlay(backdrop, scene.composed, norm), title)
    for ax in (photograph, row, composed):
        _mark(ax, scene.pixel)
    bar = figure.colorbar(
        ScalarMappable(norm, _HEAT), cax=figure.add_subplot(grid[2, 1:]), orientation="horizontal"
    )
    bar.set_label("attention weight of the marked pixel", color=_INK)
    bar.ax.tick_params(colors=_INK)
    figure.savefig(path, format="png", dpi=_DPI)


def overlay(backdrop: np.ndarray, weights: np.ndarray, norm: LogNorm) -> np.ndarray:
    """Lay the weights (H, W) as heat over a grey image; where they are zero only that is seen.

    Lines of one pixel are drawn wider in large images, where they would be lost.

    Examples
    --------
    >>> overlay(np.ones((1, 2)), np.array([[0.0, 1.0]]), LogNorm(0.01, 1.0)).round(2)
    array([[[1.  , 1.  , 1.  ],
            [0.99, 1.  , 0.64]]])
    """
    reach = round(max(weights.shape) / 512)
    around = np.pad(weights, reach)
    side = 2 * reach + 1
    widened = np.lib.stride_tricks.sliding_window_view(around, (side, side)).max(axis=(2, 3))
    heat = np.asarray(norm(widened, clip=True))
    opacity = np.where(widened > 0, _FAINTEST + (1 - _FAINTEST) * heat, 0)[..., None]
    colours = _HEAT(heat)[..., :3]
    drawn: np.ndarray = (1 - opacity) * backdrop[..., None] + opacity * colours
    return drawn


def _show(ax: Axes, image: np.ndarray, title: str) -> None:
    shown = np.clip(image, 0, 1)
    if shown.shape[2] == 1:
        shown = shown.repeat(3, axis=2)
    ax.imshow(shown)
    ax.set_title(title, color=_INK, fontsize=12)
    ax.set_axis_off()


def _mark(ax: Axes, pixel: tuple[int, int]) -> None:
    y, x = pixel
    ax.plot(x, y, "o", ms=13, mfc="none", mec=_PAPER, mew=3.5)
    ax.plot(x, y, "o", ms=13, mfc="none", mec=_ACCENT, mew=1.8)
