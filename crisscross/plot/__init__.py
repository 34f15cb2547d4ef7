"""Pictures of attention: what a position sees, at once and through several steps, and how widely.

Needs the extra ``plot``. Functions return matplotlib's axes, and write a file if told to: then a
figure that they made themselves is closed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crisscross.bridge import from_dlpack
from crisscross.errors import ArgumentError, Mismatch, MissingDependencyError
from crisscross.ops import attention_entropy, compose_attention
from crisscross.ops.maps import check_positions
from crisscross.problem import Findings

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure
except ImportError:
    raise MissingDependencyError(
        "crisscross.plot needs matplotlib: pip install matplotlib"
    ) from None

__all__ = ["show_attention", "show_entropy", "show_recurrence"]

_SUFFIXES = (".png", ".svg")
Path_ = str | os.PathLike[str]


def show_attention(
    weights: Any,
    image: Any = None,
    *,
    at: Sequence[int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    path: Path_ | None = None,
) -> Axes:
    """Show how much one position attends to every other, over an image if there is one.

    Parameters
    ----------
    weights : array, (H, W)
        Of `attention_map` or `compose_attention`: one image, one head, one position. Further axes
        of size 1 in front are left out.
    image : array, (height, width) or (height, width, 3 or 4), optional
        What lies below, of any size; both are drawn over the same area.
    at : (y, x), optional
        The position, to be marked.
    title : str, optional
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a figure of its own.
    path : str or path, optional
        Where to write it: a name that ends in ``.png`` or ``.svg``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If the weights are not one image, the position is not in it, or the suffix is another.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> from crisscross import plot
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 8, 15, 20))
    >>> ax = plot.show_attention(crisscross.attention_map(q, k, at=(7, 5)), at=(7, 5))
    >>> ax.images[0].get_array().shape
    (15, 20)
    """
    weights = _read_plane("show_attention", "weights", weights)
    _check_path("show_attention", path)
    findings = Findings("show_attention")
    positions = [] if at is None else check_positions(findings, at, weights.shape)
    findings.raise_if_any()
    # By the square root: most weights are small, and are to be seen beside the largest.
    norm = PowerNorm(0.5, 0.0, float(weights.max()))
    alpha = 0.35 + 0.6 * np.asarray(norm(weights))
    drawn = _draw(weights, image, ax, "inferno", norm, alpha)
    for y, x in positions:
        drawn.plot(x, y, marker="+", color="deepskyblue", markersize=12, markeredgewidth=2)
    if title is not None:
        drawn.set_title(title)
    _write(drawn, path, ax is None)
    return drawn


def show_recurrence(
    pairs: Sequence[tuple[Any, Any]],
    image: Any = None,
    *,
    at: Sequence[int],
    head: int = 0,
    number: int = 0,
    path: Path_ | None = None,
    **options: Any,
) -> np.ndarray:
    """Show what a position sees through the last step of attention, the last two, and so on.

    For criss-cross attention: the cross at R = 1, the whole image at R = 2.

    Parameters
    ----------
    pairs : sequence of (q, k)
        As for `compose_attention`.
    image : array, optional
        As for `show_attention`.
    at : (y, x)
        The position.
    head, number : int
        Which head, and which image of the batch.
    path : str or path, optional
        Where to write it: a name that ends in ``.png`` or ``.svg``.
    **options
        scale, heads, axes, key_mask and channel_axis, as for `compose_attention`.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One for each R.
    """
    _check_path("show_recurrence", path)
    longest = compose_attention(pairs, at=at, **options)  # first, for it checks all pairs
    count = len(pairs)
    starts = range(count - 1, 0, -1)
    maps = [*(compose_attention(pairs[start:], at=at, **options) for start in starts), longest]
    planes = [
        _read_plane("show_recurrence", "weights", from_dlpack(each)[number, head]) for each in maps
    ]
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4.2), squeeze=False)
    figure.set_layout_engine("constrained")
    for recurrence, (ax, plane) in enumerate(zip(axes[0], planes, strict=True), 1):
        seen = np.count_nonzero(plane) / plane.size
        title = f"R = {recurrence}: reaches {seen:.1%} of the image"
        show_attention(plane, image, at=at, ax=ax, title=title)
    _write(axes[0, 0], path, True)
    row: np.ndarray = axes[0]
    return row


def show_entropy(
    q: Any,
    k: Any,
    image: Any = None,
    *,
    head: int = 0,
    number: int = 0,
    ax: Axes | None = None,
    path: Path_ | None = None,
    **options: Any,
) -> Axes:
    """Show how widely each position attends: the entropy of its weights, as a number of keys.

    Parameters
    ----------
    q, k
        As for `attention_entropy`.
    image, ax, path
        As for `show_attention`.
    head, number : int
        Which head, and which image of the batch.
    **options
        scale, heads, axes, key_mask, channel_axis and backend, as for `attention_entropy`.

    Returns
    -------
    matplotlib.axes.Axes
        With a scale of exp(entropy): as many keys, equally weighted, would have it.
    """
    _check_path("show_entropy", path)
    entropy = from_dlpack(attention_entropy(q, k, **options))[number, head]
    keys = np.exp(_read_plane("show_entropy", "entropy", entropy))
    norm = Normalize(1.0, max(float(keys.max()), 1.001))
    drawn = _draw(keys, image, ax, "viridis", norm, 0.65)
    drawn.set_title("keys that a position attends to")
    _find_figure(drawn).colorbar(drawn.images[-1], ax=drawn, shrink=0.8)
    _write(drawn, path, ax is None)
    return drawn


def _read_plane(function: str, name: str, array: Any) -> np.ndarray:
    plane = from_dlpack(array)
    while plane.ndim > 2 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.ndim != 2:
        mismatch = Mismatch(f"{name}.shape", "one image: (H, W)", str(tuple(array.shape)))
        raise ArgumentError(function, [mismatch])
    return plane


def _check_path(function: str, path: Path_ | None) -> None:
    if path is not None and Path(path).suffix not in _SUFFIXES:
        mismatch = Mismatch("path", f"a name that ends in one of {_SUFFIXES}", repr(str(path)))
        raise ArgumentError(function, [mismatch])


def _draw(
    plane: np.ndarray, image: Any, ax: Axes | None, colours: str, norm: Normalize, alpha: Any
) -> Axes:
    image = None if image is None else from_dlpack(image)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    height, width = plane.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if image is not None:
        ax.imshow(image, extent=extent, cmap="gray", interpolation="bilinear")
    ax.imshow(
        plane,
        extent=extent,
        cmap=colours,
        norm=norm,
        alpha=None if image is None else alpha,
        interpolation="nearest",
    )
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _find_figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def _write(ax: Axes, path: Path_ | None, is_own: bool) -> None:
    if path is not None:
        figure = _find_figure(ax)
        figure.savefig(path, dpi=150)
        if is_own:  # pyplot would keep it for good
            plt.close(figure)
