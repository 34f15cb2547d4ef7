"""The blocks of `crisscross.nn` as pairs of pure functions: `init` from a key, and `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec

from jax import Array

from crisscross import nn
from crisscross.jax.initial import (
    init_channel_attention_block,
    init_criss_cross_block,
    init_non_local_block,
    init_position_attention_block,
    init_rcca_head,
)
from crisscross.jax.training import Training, hold_statistics, read_training
from crisscross.problem import Findings

OfInit = ParamSpec("OfInit")
OfApply = ParamSpec("OfApply")
#: Name -> array: a tree that JAX maps over, and that any library of modules can hold.
Parameters = Mapping[str, Any]


class Block(NamedTuple, Generic[OfInit, OfApply]):
    """A block as two functions without state; `jit`, `grad` and `vmap` take both.

    Attributes
    ----------
    init
        From a key and the number of channels to parameters: a dict of arrays, by the names that
        `crisscross.nn` and checkpoints have.
    apply
        From parameters and features to features: the function of `crisscross.nn`.
    """

    init: Callable[OfInit, dict[str, Array]]
    apply: Callable[OfApply, Any]


def apply_criss_cross_block(
    parameters: Parameters,
    x: Array,
    *,
    recurrence: int | None = None,
    scale: float = 1.0,
    heads: int = 1,
    axes: Iterable[int] | None = None,
    key_mask: Array | None = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    return_pairs: bool = False,
) -> Any:
    """Apply CCNet's attention module R times: ``x = gamma * attention(q, k, v) + x``.

    Parameters
    ----------
    parameters : mapping of str to jax.Array
        As for `crisscross.nn.criss_cross_block`.
    x : jax.Array, (N, C, \\*S), or (N, \\*S, C) with ``channel_axis=-1``
    recurrence, scale, heads, axes, key_mask, channel_axis, precision, backend
        As for `crisscross.nn.criss_cross_block`. All but `key_mask` are static.
    return_pairs : bool
        Whether to return q and k of each recurrence too, for `crisscross.compose_attention`.

    Returns
    -------
    out : jax.Array, like x
    pairs : list of tuple of jax.Array
        Only with `return_pairs`.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import criss_cross_block
    >>> parameters = criss_cross_block.init(jax.random.key(0), 64, gamma=0.1)
    >>> x = jax.random.normal(jax.random.key(1), (1, 9, 11, 64))
    >>> apply = jax.jit(criss_cross_block.apply, static_argnames=("recurrence", "channel_axis"))
    >>> apply(parameters, x, recurrence=2, channel_axis=-1).shape
    (1, 9, 11, 64)
    """
    findings = Findings("criss_cross_block")
    pairs = _begin_pairs(findings, return_pairs)
    findings.raise_if_any()
    out = nn.criss_cross_block(
        parameters,
        x,
        recurrence=recurrence,
        scale=scale,
        heads=heads,
        axes=axes,
        key_mask=key_mask,
        channel_axis=channel_axis,
        precision=precision,
        backend=backend,
        pairs=pairs,
    )
    return out if pairs is None else (out, pairs)


def apply_rcca_head(
    parameters: Parameters,
    x: Array,
    *,
    recurrence: int | None = None,
    norm: str | None = "batch",
    groups: int = 32,
    epsilon: float = 1e-5,
    activation: str | None = "leaky_relu",
    last_activation: str | None = "same",
    training: Training | None = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    return_pairs: bool = False,
) -> Any:
    """Classify every position: CCNet's head without its backbone.

    Parameters
    ----------
    parameters : mapping of str to jax.Array
        As for `crisscross.nn.rcca_head`. Running statistics have no gradients.
    x : jax.Array, (N, C, \\*S), or (N, \\*S, C) with ``channel_axis=-1``
    training : Training, optional
        With it, "batch" takes the statistics of x, channels are dropped, and the running statistics
        that follow are returned too.
    recurrence, norm, groups, epsilon, activation, last_activation
        As for `crisscross.nn.rcca_head`; static, as what follows.
    channel_axis, precision, backend
        As for `criss_cross_attention`.
    return_pairs : bool
        Whether to return q and k of each recurrence too.

    Returns
    -------
    logits : jax.Array, (N, classes, \\*S)
    statistics : dict of str to jax.Array
        Only with `training`: ``running_mean`` and ``running_var`` by name, to be put in the place
        of those in `parameters`; none of other norms.
    pairs : list of tuple of jax.Array
        Only with `return_pairs`.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import Training, rcca_head
    >>> parameters = rcca_head.init(jax.random.key(0), 64, classes=19, inner=16, outer=32)
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 9, 11))
    >>> logits, statistics = jax.jit(rcca_head.apply)(
    ...     parameters, x, training=Training(jax.random.key(2))
    ... )
    >>> parameters = {**parameters, **statistics}
    >>> rcca_head.apply(parameters, x).shape
    (1, 19, 9, 11)
    """
    findings = Findings("rcca_head")
    pairs = _begin_pairs(findings, return_pairs)
    taught = read_training(findings, training)
    findings.raise_if_any()
    found = nn.rcca_head(
        hold_statistics(parameters),
        x,
        recurrence=recurrence,
        norm=norm,
        groups=groups,
        epsilon=epsilon,
        activation=activation,
        last_activation=last_activation,
        training=taught,
        channel_axis=channel_axis,
        precision=precision,
        backend=backend,
        pairs=pairs,
    )
    results = (found,) if taught is None else (found[0], hold_statistics(found[1]))
    results = results if pairs is None else (*results, pairs)
    return results[0] if len(results) == 1 else results


def apply_non_local_block(
    parameters: Parameters,
    x: Array,
    *,
    mode: str = "embedded_gaussian",
    scale: float = 1.0,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Let every position attend to all: ``x + W(softmax(theta phi^T) g)``.

    Parameters
    ----------
    parameters : mapping of str to jax.Array
        As for `crisscross.nn.non_local_block`.
    x : jax.Array, (N, C, \\*S), or (N, \\*S, C) with ``channel_axis=-1``
    mode, scale, channel_axis, precision, backend
        As for `crisscross.nn.non_local_block`; static.

    Returns
    -------
    jax.Array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import non_local_block
    >>> parameters = non_local_block.init(jax.random.key(0), 64)
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 9, 11))
    >>> jax.jit(non_local_block.apply)(parameters, x).shape
    (1, 64, 9, 11)
    """
    out: Array = nn.non_local_block(
        parameters,
        x,
        mode=mode,
        scale=scale,
        channel_axis=channel_axis,
        precision=precision,
        backend=backend,
    )
    return out


def apply_position_attention_block(
    parameters: Parameters,
    x: Array,
    *,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Let every position attend to all, with gamma and a residual (DANet).

    Parameters
    ----------
    parameters : mapping of str to jax.Array
        As for `crisscross.nn.position_attention_block`.
    x : jax.Array, (N, C, \\*S), or (N, \\*S, C) with ``channel_axis=-1``
    channel_axis, precision, backend
        As for `criss_cross_attention`; static.

    Returns
    -------
    jax.Array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import position_attention_block
    >>> parameters = position_attention_block.init(jax.random.key(0), 64, gamma=0.1)
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 9, 11))
    >>> jax.jit(position_attention_block.apply)(parameters, x).shape
    (1, 64, 9, 11)
    """
    out: Array = nn.position_attention_block(
        parameters, x, channel_axis=channel_axis, precision=precision, backend=backend
    )
    return out


def apply_channel_attention_block(
    parameters: Parameters, x: Array, *, channel_axis: int = 1
) -> Array:
    """Let channels attend to each other, with gamma and a residual (DANet).

    Parameters
    ----------
    parameters : mapping of str to jax.Array
        ``gamma`` (1,) alone.
    x : jax.Array, (N, C, \\*S), or (N, \\*S, C) with ``channel_axis=-1``
    channel_axis : 1 or -1
        Static.

    Returns
    -------
    jax.Array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import jax
    >>> from crisscross.jax import channel_attention_block
    >>> parameters = channel_attention_block.init(jax.random.key(0), gamma=0.1)
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 9, 11))
    >>> jax.jit(channel_attention_block.apply)(parameters, x).shape
    (1, 64, 9, 11)
    """
    out: Array = nn.channel_attention_block(parameters, x, channel_axis=channel_axis)
    return out


#: CCNet's attention module, R times.
criss_cross_block = Block(init_criss_cross_block, apply_criss_cross_block)
#: CCNet's head.
rcca_head = Block(init_rcca_head, apply_rcca_head)
#: Non-local, in two modes.
non_local_block = Block(init_non_local_block, apply_non_local_block)
#: DANet's attention of positions to all others.
position_attention_block = Block(init_position_attention_block, apply_position_attention_block)
#: DANet's attention of channels to each other.
channel_attention_block = Block(init_channel_attention_block, apply_channel_attention_block)


def _begin_pairs(findings: Findings, return_pairs: bool) -> list[tuple[Any, Any]] | None:
    return [] if findings.check_flag("return_pairs", return_pairs) else None
