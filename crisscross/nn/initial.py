"""Seeded parameters to begin with, by the names of the originals."""

from __future__ import annotations

import numpy as np

from crisscross.bridge import numpy_dtype
from crisscross.nn.plans import (
    Plan,
    plan_channel_attention_block,
    plan_criss_cross_block,
    plan_non_local_block,
    plan_position_attention_block,
    plan_rcca_head,
)
from crisscross.problem import Findings


def init_criss_cross_block(
    channels: int,
    *,
    inner: int | None = None,
    recurrence: int | None = None,
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `criss_cross_block`.

    Parameters
    ----------
    channels : int
        C.
    inner : int, optional
        Channels of queries and keys, C / 8 by default.
    recurrence : int, optional
        How many sets of parameters to draw, one for each recurrence; by default one for all.
    gamma : float
        0 in CCNet: then the block returns its input until it is trained.
    seed : int
        The same parameters each time.
    dtype : str
        float16, bfloat16, float32 or float64.
    spatial_ndim : int
        Number of spatial axes: how many sizes of 1 the weights have.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.
    """
    plan = plan_criss_cross_block(
        _check_seed("init_criss_cross_block", seed),
        channels,
        inner=inner,
        recurrence=recurrence,
        gamma=gamma,
        dtype=dtype,
        spatial_ndim=spatial_ndim,
    )
    return _draw(plan, seed, dtype)


def init_position_attention_block(
    channels: int,
    *,
    inner: int | None = None,
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `position_attention_block`: as `init_criss_cross_block` does."""
    plan = plan_position_attention_block(
        _check_seed("init_position_attention_block", seed),
        channels,
        inner=inner,
        gamma=gamma,
        dtype=dtype,
        spatial_ndim=spatial_ndim,
    )
    return _draw(plan, seed, dtype)


def init_channel_attention_block(
    *, gamma: float = 0.0, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Make the one parameter of `channel_attention_block`."""
    findings = Findings("init_channel_attention_block")
    return _draw(plan_channel_attention_block(findings, gamma=gamma, dtype=dtype), 0, dtype)


def init_non_local_block(
    channels: int,
    *,
    inner: int | None = None,
    zero: bool = True,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `non_local_block`.

    Parameters
    ----------
    channels : int
        C.
    inner : int, optional
        Channels of theta, phi and g, C / 2 by default.
    zero : bool
        Whether ``W`` is zero, as in the paper: then the block returns its input until it is
        trained.
    seed, dtype, spatial_ndim
        As for `init_criss_cross_block`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    plan = plan_non_local_block(
        _check_seed("init_non_local_block", seed),
        channels,
        inner=inner,
        zero=zero,
        dtype=dtype,
        spatial_ndim=spatial_ndim,
    )
    return _draw(plan, seed, dtype)


def init_rcca_head(
    channels: int = 2048,
    *,
    classes: int,
    inner: int | None = None,
    outer: int = 512,
    recurrence: int | None = None,
    norm: str | None = "batch",
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `rcca_head`.

    Parameters
    ----------
    channels : int
        Of the backbone's features.
    classes : int
        Of the logits.
    inner : int, optional
        Channels of the attention, ``channels / 4`` by default; queries and keys have an eighth.
    outer : int
        Channels of the bottleneck.
    recurrence : int, optional
        How many sets of parameters of ``cca`` to draw; by default one for all recurrences.
    norm : {"batch", "group", None}
        As for `rcca_head`.
    gamma, seed, dtype, spatial_ndim
        As for `init_criss_cross_block`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    plan = plan_rcca_head(
        _check_seed("init_rcca_head", seed),
        channels,
        classes=classes,
        inner=inner,
        outer=outer,
        recurrence=recurrence,
        norm=norm,
        gamma=gamma,
        dtype=dtype,
        spatial_ndim=spatial_ndim,
    )
    return _draw(plan, seed, dtype)


def _check_seed(function: str, seed: int) -> Findings:
    findings = Findings(function)
    findings.check_count("seed", seed, 0)
    return findings


def _draw(plan: Plan, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Draw in float64 and round: the same parameters in any dtype."""
    generator, kind = np.random.default_rng(seed), numpy_dtype(dtype)
    return {
        name: np.full(draft.shape, draft.constant, kind)
        if draft.bound is None
        else generator.uniform(-draft.bound, draft.bound, draft.shape).astype(kind)
        for name, draft in plan.items()
    }
