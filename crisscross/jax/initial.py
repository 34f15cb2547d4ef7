"""Parameters to begin with, drawn from a key: what `crisscross.nn` draws from a seed."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from crisscross.errors import Fault
from crisscross.nn.plans import (
    Draft,
    Plan,
    plan_channel_attention_block,
    plan_criss_cross_block,
    plan_non_local_block,
    plan_position_attention_block,
    plan_rcca_head,
)
from crisscross.problem import COMPUTE_DTYPES, Findings
from crisscross.problem.findings import describe_value


def init_criss_cross_block(
    key: Array,
    channels: int,
    *,
    inner: int | None = None,
    recurrence: int | None = None,
    gamma: float = 0.0,
    dtype: Any = "float32",
    spatial_ndim: int = 2,
) -> dict[str, Array]:
    """Draw parameters for `criss_cross_block`.

    Parameters
    ----------
    key : jax.Array
        Of `jax.random.key`: the same parameters each time. It may be traced; what follows may not.
    channels : int
        C.
    inner : int, optional
        Channels of queries and keys, C / 8 by default.
    recurrence : int, optional
        How many sets of parameters to draw, one for each recurrence; by default one for all.
    gamma : float
        0 in CCNet: then the block returns its input until it is trained.
    dtype : str or dtype
        float16, bfloat16, float32 or, while 64 bits are switched on, float64.
    spatial_ndim : int
        Number of spatial axes: how many sizes of 1 the weights have.

    Returns
    -------
    dict of str to jax.Array
        Names, shapes and distributions are those of `crisscross.nn.init_criss_cross_block`; its
        numbers are not.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import criss_cross_block
    >>> parameters = criss_cross_block.init(jax.random.key(0), 64, gamma=0.1)
    >>> parameters["query_conv.weight"].shape
    (8, 64, 1, 1)
    """
    findings, dtype = _begin("criss_cross_block.init", key, dtype)
    plan = plan_criss_cross_block(
        findings,
        channels,
        inner=inner,
        recurrence=recurrence,
        gamma=gamma,
        dtype=dtype,
        spatial_ndim=spatial_ndim,
    )
    return _draw(plan, key, dtype)


def init_rcca_head(
    key: Array,
    channels: int = 2048,
    *,
    classes: int,
    inner: int | None = None,
    outer: int = 512,
    recurrence: int | None = None,
    norm: str | None = "batch",
    gamma: float = 0.0,
    dtype: Any = "float32",
    spatial_ndim: int = 2,
) -> dict[str, Array]:
    """Draw parameters for `rcca_head`.

    Parameters
    ----------
    key, gamma, dtype, spatial_ndim
        As for `criss_cross_block`.
    channels, classes, inner, outer, recurrence, norm
        As for `crisscross.nn.init_rcca_head`.

    Returns
    -------
    dict of str to jax.Array
        The running statistics of "batch" are among them: gradients of these are zero.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import rcca_head
    >>> parameters = rcca_head.init(jax.random.key(0), 64, classes=19, inner=16, outer=32)
    >>> parameters["bottleneck.3.weight"].shape
    (19, 32, 1, 1)
    """
    findings, dtype = _begin("rcca_head.init", key, dtype)
    plan = plan_rcca_head(
        findings,
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
    return _draw(plan, key, dtype)


def init_non_local_block(
    key: Array,
    channels: int,
    *,
    inner: int | None = None,
    zero: bool = True,
    dtype: Any = "float32",
    spatial_ndim: int = 2,
) -> dict[str, Array]:
    """Draw parameters for `non_local_block`.

    Parameters
    ----------
    key, channels, dtype, spatial_ndim
        As for `criss_cross_block`.
    inner : int, optional
        Channels of theta, phi and g, C / 2 by default.
    zero : bool
        Whether ``W`` is zero, as in the paper: then the block returns its input until it is
        trained.

    Returns
    -------
    dict of str to jax.Array

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import non_local_block
    >>> non_local_block.init(jax.random.key(0), 64)["theta.weight"].shape
    (32, 64, 1, 1)
    """
    findings, dtype = _begin("non_local_block.init", key, dtype)
    plan = plan_non_local_block(
        findings, channels, inner=inner, zero=zero, dtype=dtype, spatial_ndim=spatial_ndim
    )
    return _draw(plan, key, dtype)


def init_position_attention_block(
    key: Array,
    channels: int,
    *,
    inner: int | None = None,
    gamma: float = 0.0,
    dtype: Any = "float32",
    spatial_ndim: int = 2,
) -> dict[str, Array]:
    """Draw parameters for `position_attention_block`.

    Parameters
    ----------
    key, channels, inner, gamma, dtype, spatial_ndim
        As for `criss_cross_block`.

    Returns
    -------
    dict of str to jax.Array

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import position_attention_block
    >>> sorted(position_attention_block.init(jax.random.key(0), 64))[:2]
    ['gamma', 'key_conv.bias']
    """
    findings, dtype = _begin("position_attention_block.init", key, dtype)
    plan = plan_position_attention_block(
        findings, channels, inner=inner, gamma=gamma, dtype=dtype, spatial_ndim=spatial_ndim
    )
    return _draw(plan, key, dtype)


def init_channel_attention_block(
    key: Array, channels: int | None = None, *, gamma: float = 0.0, dtype: Any = "float32"
) -> dict[str, Array]:
    """Make the one parameter of `channel_attention_block`.

    Parameters
    ----------
    key, channels
        As for the other blocks; nothing depends on them.
    gamma, dtype
        As for `criss_cross_block`.

    Returns
    -------
    dict of str to jax.Array

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import channel_attention_block
    >>> channel_attention_block.init(jax.random.key(0), gamma=0.5)
    {'gamma': Array([0.5], dtype=float32)}
    """
    findings, dtype = _begin("channel_attention_block.init", key, dtype)
    if channels is not None:
        findings.check_count("channels", channels)
    return _draw(plan_channel_attention_block(findings, gamma=gamma, dtype=dtype), key, dtype)


def _begin(function: str, key: Any, dtype: Any) -> tuple[Findings, Any]:
    """Check what NumPy's have not, and return the name of the dtype."""
    findings = Findings(function)
    check_key(findings, "key", key)
    if not isinstance(dtype, str | None):
        with suppress(TypeError, ValueError):  # which is then named with the rest
            dtype = jnp.dtype(dtype).name
    if dtype == "float64" and jax.dtypes.canonicalize_dtype("float64") != "float64":
        expected = "float32, or jax.config.update('jax_enable_x64', True)"
        findings.add("dtype", expected, "float64 while 64-bit dtypes are switched off", Fault.TYPE)
    return findings, dtype


def check_key(findings: Findings, name: str, key: object) -> None:
    """Report what `jax.random` would not take for one key."""
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError):
        expected = "one key, as jax.random.key makes it"
        findings.add(name, expected, describe_value(key), Fault.TYPE)


def _draw(plan: Plan, key: Array, dtype: str) -> dict[str, Array]:
    made: dict[str, Array] = _draw_all(tuple(plan.items()), key, dtype)
    return made


@partial(jax.jit, static_argnums=(0, 2))
def _draw_all(drafts: tuple[tuple[str, Draft], ...], key: Array, dtype: str) -> dict[str, Array]:
    """Draw all at once, and cut it: XLA takes a while to compile a draw. 16 bits are rounded."""
    counts = [0 if draft.bound is None else math.prod(draft.shape) for _, draft in drafts]
    drawn = jax.random.uniform(key, (sum(counts),), COMPUTE_DTYPES[dtype], -1, 1)
    made, at = {}, 0
    for (name, draft), count in zip(drafts, counts, strict=True):
        if draft.bound is None:
            made[name] = jnp.full(draft.shape, draft.constant, dtype)
        else:
            part = drawn[at : at + count].reshape(draft.shape)
            made[name] = (draft.bound * part).astype(dtype)
        at += count
    return made
