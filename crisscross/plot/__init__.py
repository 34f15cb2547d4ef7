"""Pictures of attention: what a position sees, at once and through several steps, and how widely.

Needs the extra ``plot``. Functions return matplotlib's axes, and write a file if told to: then a
figure that they made themselves is closed. Arrays of a device are copied to be drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crisscross.bridge import describe, share
from crisscross.dispatch import adapter_of, kind_of
from crisscross.errors import Fault, MissingDependencyError
from crisscross.ops import attention_entropy
from crisscross.ops.maps import compose_steps
from crisscross.ops.positions import Positions, check_positions, is_one
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
#: Of what is no finite number: neither colour map comes near it.
_BAD = "magenta"
Path_ = str | os.PathLike[str]


def show_attention(
    weights: Any,
    image: Any = None,
    *,
    at: Positions | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    path: Path_ | None = None,
) -> Axes:
    """Show how much one position attends to every other, over an image if there is one.

    Parameters
    ----------
    weights : array, (H, W)
        Of `attention_map` or `compose_attention`: one image, one head, one position. Further axes
        of size 1 in front are left out. Those that are NaN or infinite are magenta, and have no
        part in the scale of colours.
    image : array, (height, width) or (height, width, 3 or 4), optional
        What lies below, of any size; both are drawn over the same area.
    at : (y, x), or several, optional
        The position, to be marked; several get a mark each.
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
    ArgumentError, ArgumentTypeError, BridgeError
        If the weights or the image are no image of numbers, a position is not in it, the suffix is
        another, or the library of an array does not copy it to the CPU.

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
    findings = Findings("show_attention")
    plane = _read_plane(findings, "weights", weights)
    picture = _read_image(findings, image)
    _check_path(findings, path)
    shape = None if plane is None else plane.shape
    positions = [] if at is None else check_positions(findings, at, shape)
    findings.raise_if_any()
    assert plane is not None
    drawn = _draw_weights(plane, picture, positions, ax, _find_largest(plane))
    if title is not None:
        drawn.set_title(title)
    _write(drawn, path, ax is None)
    return drawn


def show_recurrence(
    pairs: Sequence[tuple[Any, Any]],
    image: Any = None,
    *,
    at: Sequence[int],
    scale: float = 1.0,
    heads: int = 1,
    axes: Iterable[int] | None = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    head: int = 0,
    number: int = 0,
    path: Path_ | None = None,
) -> np.ndarray:
    """Show what a position sees through the last step of attention, the last two, and so on.

    For criss-cross attention: the cross at R = 1, the whole image at R = 2. All share one scale of
    colours, which goes by the square root of the weights.

    Parameters
    ----------
    pairs : sequence of (q, k)
        As for `compose_attention`.
    image : array, optional
        As for `show_attention`.
    at : (y, x)
        The position.
    scale, heads, axes, key_mask, channel_axis
        As for `compose_attention`.
    head, number : int
        Which head, and which image of the batch; negative numbers from the end.
    path : str or path, optional
        Where to write it: a name that ends in ``.png`` or ``.svg``.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        One for each R.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError
        As `compose_attention` and `show_attention`, and if there is no such head or image.
    """
    findings = Findings("show_recurrence")
    picture = _read_image(findings, image)
    _check_path(findings, path)
    check_positions(findings, at, None)
    findings.raise_if_any()
    if not is_one(at):
        findings.add("at", "one position, (y, x)", f"{len(at)} of them")
        findings.raise_if_any()
    options: dict[str, Any] = {"scale": scale, "heads": heads, "axes": axes}
    options |= {"key_mask": key_mask, "channel_axis": channel_axis}
    planes = []
    for weights in compose_steps(pairs, at=at, **options):
        if len(weights.shape) != 4:
            expected = "q and k of images: two spatial axes"
            findings.add("pairs", expected, f"{len(weights.shape) - 2} of them")
            findings.raise_if_any()
        planes.append(_choose_plane(findings, "weights", weights, head, number))
    positions = check_positions(findings, at, planes[0].shape)
    findings.raise_if_any()
    count = len(planes)
    figure, grid = plt.subplots(1, count, figsize=(4.2 * count + 0.6, 4.2), squeeze=False)
    figure.set_layout_engine("constrained")
    row: np.ndarray = grid[0]
    largest = max(map(_find_largest, planes))
    for recurrence, (ax, plane) in enumerate(zip(row, planes, strict=True), 1):
        _draw_weights(plane, picture, positions, ax, largest)
        seen = np.count_nonzero(plane) / plane.size
        ax.set_title(f"R = {recurrence}: reaches {seen:.1%} of the image")
    figure.colorbar(row[0].images[-1], ax=row.tolist(), shrink=0.8, label="weight")
    _write(row[0], path, True)
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
        As for `show_recurrence`.
    **options
        scale, heads, axes, key_mask, channel_axis and backend, as for `attention_entropy`.

    Returns
    -------
    matplotlib.axes.Axes
        With a scale of exp(entropy): as many keys, equally weighted, would have it. Where that is
        NaN or infinite, it is magenta.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `attention_entropy` and `show_attention`, and if there is no such head or image.
    """
    findings = Findings("show_entropy")
    picture = _read_image(findings, image)
    _check_path(findings, path)
    findings.raise_if_any()
    entropy = attention_entropy(q, k, **options)
    with np.errstate(over="ignore"):  # the rounding of large energies
        keys = np.exp(_choose_plane(findings, "entropy", entropy, head, number))
    norm = Normalize(1.0, float(np.max(keys, where=np.isfinite(keys), initial=1.001)))
    drawn = _draw(keys, picture, ax, "viridis", norm, 0.65)
    drawn.set_title("keys that a position attends to")
    _find_figure(drawn).colorbar(drawn.images[-1], ax=drawn, shrink=0.8)
    _write(drawn, path, ax is None)
    return drawn


def _choose_plane(
    findings: Findings, name: str, arrays: Any, head: object, number: object
) -> np.ndarray:
    """Read one head of one image of the batch, of (N, heads, *S)."""
    chosen_head = _check_index(findings, "head", head, arrays.shape[1])
    chosen_number = _check_index(findings, "number", number, arrays.shape[0])
    findings.raise_if_any()
    # Before it is read: no more is copied off a device than is drawn.
    plane = _read_plane(findings, name, arrays[chosen_number, chosen_head, ...])
    findings.raise_if_any()
    assert plane is not None
    return plane


def _check_index(findings: Findings, name: str, value: object, size: int) -> int | None:
    index = findings.check_integer(name, value)
    if index is not None and not -size <= index < size:
        findings.add(name, f"an index in [{-size}, {size})", str(index))
    return index


def _read_plane(findings: Findings, name: str, array: Any) -> np.ndarray | None:
    found = _read(findings, name, array)
    if found is None:
        return None
    plane = found
    while plane.ndim > 2 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.ndim != 2 or not plane.size:
        findings.add(f"{name}.shape", "one image: (H, W)", str(found.shape))
        return None
    return plane if plane.dtype.kind == "f" else plane.astype(np.float64)


def _read_image(findings: Findings, image: Any) -> np.ndarray | None:
    if image is None:
        return None
    found = _read(findings, "image", image)
    if found is None:
        return None
    is_image = found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (3, 4))
    if not is_image or not found.size:
        expected = "(height, width) or (height, width, 3 or 4), of a pixel or more"
        findings.add("image.shape", expected, str(found.shape))
        return None
    return found


def _read(findings: Findings, name: str, array: Any) -> np.ndarray | None:
    """View an array of numbers; report it if it is none, or its memory is out of reach."""
    description = describe(findings, name, array)
    if description is None or description.obstacle is not None:
        return None
    if description.device == "cpu":
        kind = kind_of(array)
        assert kind is not None
        view = share(findings, name, array, adapter_of(kind))
    else:
        view = _copy_to_cpu(findings, name, array, description.device)
    if view is None:
        return None
    # What matplotlib itself asks. Of NumPy's own dtypes these are bool, integers and reals.
    if not np.can_cast(view.dtype, np.float64, "same_kind"):
        findings.add(f"{name}.dtype", "bool, integers or reals", view.dtype.name, Fault.TYPE)
        return None
    # Others, 16 bits of any kind first of all, it draws in part or not at all.
    is_drawn = view.dtype.kind in "iu" or view.dtype in (np.float32, np.float64)
    return view if is_drawn else view.astype(np.float64)


class _OnCpu:
    """An array of a device whose library is asked for a copy on the CPU, whoever imports it."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        # No stream: of memory of the CPU the library waits until it is written.
        return self._array.__dlpack__(**{**options, "dl_device": (1, 0), "copy": True})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _copy_to_cpu(
    findings: Findings, name: str, array: Any, device: str | None
) -> np.ndarray | None:
    try:
        return adapter_of("dlpack").to_numpy(_OnCpu(array))
    except Exception as error:  # libraries raise what they like, TypeError before DLPack 1.0
        expected = "memory that its library copies to the CPU by DLPack; copy the array there first"
        got = f"{device} ({type(error).__name__}: {error})"
        findings.add(f"{name}.device", expected, got, Fault.MEMORY)
        return None


def _check_path(findings: Findings, path: Path_ | None) -> None:
    if path is not None and Path(path).suffix not in _SUFFIXES:
        findings.add("path", f"a name that ends in one of {_SUFFIXES}", repr(str(path)))


def _draw_weights(
    plane: np.ndarray,
    image: np.ndarray | None,
    positions: Sequence[tuple[int, ...]],
    ax: Axes | None,
    largest: float,
) -> Axes:
    # By the square root: most weights are small, and are to be seen beside the largest.
    norm = PowerNorm(0.5, 0.0, largest)
    alpha = 0.35 + 0.6 * np.asarray(norm(np.where(np.isfinite(plane), plane, 0)))
    drawn = _draw(plane, image, ax, "inferno", norm, alpha)
    for y, x in positions:
        drawn.plot(x, y, marker="+", color="deepskyblue", markersize=12, markeredgewidth=2)
    return drawn


def _find_largest(plane: np.ndarray) -> float:
    return float(np.max(plane, where=np.isfinite(plane), initial=0.0))


def _draw(
    plane: np.ndarray,
    image: np.ndarray | None,
    ax: Axes | None,
    colours: str,
    norm: Normalize,
    alpha: Any,
) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    height, width = plane.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if image is not None:
        ax.imshow(image, extent=extent, cmap="gray", interpolation="bilinear")
    ax.imshow(
        plane,
        extent=extent,
        cmap=plt.get_cmap(colours).with_extremes(bad=_BAD),
        norm=norm,
        # The image shines through, but where there is no number.
        alpha=None if image is None else np.where(np.isfinite(plane), alpha, 1.0),
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
