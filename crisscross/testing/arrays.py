"""Arrays for attention problems: values that reach into the corners, and awkward strides."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from crisscross.bridge import numpy_dtype
from crisscross.problem import AttentionProblem, split_heads
from crisscross.testing.cases import AttentionCase

#: Memory layouts that `lay_out` knows. "reversed" has negative strides, which some libraries lack.
LAYOUTS = ("contiguous", "permuted", "strided", "offset", "reversed")


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Copy `array` into memory of the given layout; the values between its elements are NaN.

    Parameters
    ----------
    array : ndarray
        Any array of a floating dtype.
    layout : {"contiguous", "permuted", "strided", "offset", "reversed"}
        In C order; with axis 1 innermost in memory; every second element of a wider array; one
        element off its alignment; backwards along the last axis.
    """
    if layout == "contiguous":
        return array.copy()
    if layout == "permuted":
        return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    if layout == "strided":
        wider = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wider[..., ::2] = array
        return wider[..., ::2]
    if layout == "offset":
        longer = np.full(array.size + 1, np.nan, array.dtype)
        longer[1:] = array.ravel()
        return longer[1:].reshape(array.shape)
    if layout == "reversed":
        return array[..., ::-1].copy()[..., ::-1]
    raise ValueError(f"layout: expected one of {LAYOUTS}, got {layout!r}")


def fill_case(
    problem: AttentionProblem,
    *,
    seed: int = 0,
    energy_peak: float = 4.0,
    outliers: bool = False,
    key_share: float = 0.7,
    with_dlse: bool = True,
    layout: str = "contiguous",
) -> AttentionCase:
    """Draw arrays for a problem.

    Parameters
    ----------
    problem : AttentionProblem
        Where `masked`, a key mask is drawn too.
    seed : int
        Of the random numbers.
    energy_peak : float
        Upper bound of |scale * <q, k>|, closely approached: up to 100 the tolerance holds. With a
        small scale, <q, k> itself goes beyond float16.
    outliers : bool
        Make one channel in ten eight times as large.
    key_share : float
        Share of the positions that take part as keys, if masked.
    with_dlse : bool
        Whether a gradient of lse takes part.
    layout : str
        Memory layout of all floating arrays, see `lay_out`.
    """
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(problem.dtype)
    q, k = rng.standard_normal(problem.q_shape), rng.standard_normal(problem.q_shape)
    if outliers:
        q, k = (np.where(rng.random(x.shape) < 0.1, 8 * x, x) for x in (q, k))
    if q.size:
        longest = [_longest(x, problem) for x in (q, k)]
        product = abs(problem.scale) * longest[0] * longest[1]
        factor = np.sqrt(energy_peak / product) if product else 1.0
        q, k = q * factor, k * factor
    v, dout = rng.standard_normal(problem.v_shape), rng.standard_normal(problem.v_shape)
    dlse = rng.standard_normal(problem.lse_shape).astype(problem.compute_dtype)
    mask = rng.random(problem.mask_shape) < key_share
    q, k, v, dout = (lay_out(x.astype(dtype), layout) for x in (q, k, v, dout))
    fill: dict[str, Any] = {"seed": seed, "energy_peak": energy_peak, "outliers": outliers}
    fill |= {"key_share": key_share, "with_dlse": with_dlse, "layout": layout}
    return AttentionCase(
        problem,
        q,
        k,
        v,
        dout,
        dlse=lay_out(dlse, layout) if with_dlse else None,
        key_mask=mask if problem.masked else None,
        story=_write_call(problem, fill),
    )


def _write_call(problem: AttentionProblem, fill: dict[str, Any]) -> str:
    """Write the call of `make_case` that makes these arrays again."""
    sizes = dataclasses.asdict(problem)
    spatial = sizes.pop("spatial")
    return f"make_case({spatial}, {', '.join(f'{k}={v!r}' for k, v in {**sizes, **fill}.items())})"


def _longest(array: np.ndarray, problem: AttentionProblem) -> float:
    """Return the largest Euclidean norm of a head's vector."""
    split = split_heads(array, problem.heads, problem.channel_axis)
    return float(np.sqrt(np.square(split).sum(axis=-1)).max())


def make_case(
    spatial: tuple[int, ...],
    *,
    batch: int = 1,
    heads: int = 1,
    head_size_qk: int = 4,
    head_size_v: int = 4,
    axes: tuple[int, ...] | None = None,
    include_self: bool = True,
    scale: float = 1.0,
    channel_axis: int = 1,
    dtype: str = "float32",
    precision: str = "ieee",
    masked: bool = False,
    **fill: Any,
) -> AttentionCase:
    """Make one case by hand: a problem from its sizes, and `fill_case` with what remains.

    Examples
    --------
    >>> from crisscross.testing import make_case
    >>> case = make_case((5, 7), heads=2, head_size_v=8, dtype="float64", seed=3)
    >>> case.v.shape, str(case.v.dtype)
    ((1, 16, 5, 7), 'float64')
    """
    problem = AttentionProblem(
        batch=batch,
        heads=heads,
        head_size_qk=head_size_qk,
        head_size_v=head_size_v,
        spatial=spatial,
        axes=tuple(range(len(spatial))) if axes is None else axes,
        include_self=include_self,
        scale=scale,
        channel_axis=channel_axis,
        dtype=dtype,
        precision=precision,
        masked=masked,
    )
    return fill_case(problem, **fill)
