"""Attention to look at: weights of chosen positions, through several steps too, and entropy."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from crisscross.arithmetic import (
    find_namespace,
    join,
    largest,
    move_axis,
    place,
    quietly,
    reshape,
    widen,
)
from crisscross.errors import ArgumentError, ArgumentTypeError, BridgeError, Fault
from crisscross.ops.attention import criss_cross_attention, criss_cross_attention_backward
from crisscross.ops.call import Call
from crisscross.ops.positions import (
    Positions,
    check_positions,
    find_sizes,
    is_one,
    is_sequence,
)
from crisscross.problem import AttentionProblem, Findings, attention_problem
from crisscross.problem.findings import describe_value

Axes = Iterable[int] | None


def attention_map(
    q: Any,
    k: Any,
    *,
    at: Positions,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
) -> Any:
    """Return how much chosen positions attend to each other position, as images.

    Only their own strips are computed: the map of all positions is never made.

    Parameters
    ----------
    q, k, scale, heads, axes, key_mask, channel_axis
        As for `criss_cross_attention`.
    at : tuple of int, or sequence of such
        A position, ``(y, x)`` in two dimensions, negative numbers from the end; or several.

    Returns
    -------
    array, (N, heads, \\*S), or (N, heads, M, \\*S) for M positions
        Weights that sum to 1, zero off the strips, and everywhere if a position has no key;
        float32, or float64 for float64.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 8, 5, 7))
    >>> weights = crisscross.attention_map(q, k, at=(2, 3))
    >>> weights.shape, int((weights > 0).sum()), round(float(weights.sum()), 6)
    ((1, 1, 5, 7), 11, 1.0)
    """
    call = Call("attention_map", None, {"q": q, "k": k}, {"key_mask": key_mask}, shares=False)
    options: dict[str, Any] = {
        "scale": scale,
        "heads": heads,
        "axes": axes,
        "channel_axis": channel_axis,
    }
    positions = check_positions(call.findings, at, find_sizes(call, channel_axis))
    problem = attention_problem(
        call.findings, call.specs, **options, precision=None, remembered=False
    )
    return _map_positions(problem, positions, q, k, key_mask, not is_one(at))


def compose_attention(
    pairs: Sequence[tuple[Any, Any]],
    *,
    at: Positions,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
) -> Any:
    """Return how much chosen positions see of each position through several steps of attention.

    These are rows of the product ``A_R ... A_1`` of the attention maps: the effective weights
    of ``A_R(... A_1(v))``, with two steps of criss-cross attention those of the whole image. No map
    is made: each step but the last costs a forward and a backward with a value for each position.

    Parameters
    ----------
    pairs : sequence of (q, k)
        Queries and keys of each step, in the order in which they are applied.
    at : tuple of int, or sequence of such
        As for `attention_map`.
    scale, heads, axes, key_mask, channel_axis
        As for `criss_cross_attention`, for all steps.

    Returns
    -------
    array, (N, heads, \\*S), or (N, heads, M, \\*S) for M positions
        As of `attention_map`.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError
        Naming every argument that does not fit.

    Notes
    -----
    Heads are composed each by itself. A key that is NaN in a step but the last makes NaN of its
    whole strips, and of what they see. CCNet's blocks add their input to what they attend to; these
    are the weights of attention alone.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q1, k1, q2, k2 = np.random.default_rng(0).standard_normal((4, 1, 8, 5, 7))
    >>> weights = crisscross.compose_attention([(q1, k1), (q2, k2)], at=(2, 3))
    >>> bool((weights > 0).all()), round(float(weights.sum()), 6)
    (True, 1.0)
    """
    options: dict[str, Any] = {
        "scale": scale,
        "heads": heads,
        "axes": axes,
        "key_mask": key_mask,
        "channel_axis": channel_axis,
    }
    return deque(compose_steps(pairs, at=at, **options), maxlen=1).pop()


def compose_steps(
    pairs: Sequence[tuple[Any, Any]],
    *,
    at: Positions,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
) -> Iterator[Any]:
    """Yield what `compose_attention` returns for the last step, for the last two, ... for all.

    All pairs are checked before the first. Each step builds on the one after it.
    """
    if isinstance(axes, Iterator):
        axes = tuple(axes)  # to be walked through at each step
    options: dict[str, Any] = {
        "scale": scale,
        "heads": heads,
        "axes": axes,
        "channel_axis": channel_axis,
    }
    problem, positions = _check_pairs(pairs, at, key_mask, options)
    q, k = pairs[-1]
    weights = _map_positions(problem, positions, q, k, key_mask, True)
    stacked = weights.shape
    shape = (*stacked[:2], *stacked[3:]) if is_one(at) else stacked
    yield reshape(weights, shape)
    xp = find_namespace(weights)
    # (N, heads, M, *S) as values of M channels a head, in the caller's layout.
    weights = reshape(weights, (problem.batch, heads * len(positions), *problem.spatial))
    weights = move_axis(weights, 1, problem.channel_axis)
    for q, k in reversed(pairs[:-1]):
        q, k = widen(q), widen(k)
        # Queries of positions that nothing is seen through have no part, even if they are NaN.
        # Keys have: one that is NaN makes NaN of its strips.
        is_seen = xp.any(weights != 0, axis=channel_axis, keepdims=True)
        q = xp.where(is_seen, q, xp.zeros_like(q))
        named = {**options, "key_mask": key_mask}
        with quietly(q):
            out, lse = criss_cross_attention(q, k, weights, return_lse=True, **named)
            weights = criss_cross_attention_backward(weights, q, k, weights, out, lse, **named)[2]
        yield reshape(move_axis(weights, problem.channel_axis, 1), shape)


def attention_entropy(
    q: Any,
    k: Any,
    *,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    backend: str | None = None,
) -> Any:
    """Return the entropy of each position's weights, in nats: 0 if it attends to one key alone.

    With lse and the keys attended to it is ``lse - scale * <q, out>``: there is no map.

    Parameters
    ----------
    q, k, scale, heads, axes, key_mask, channel_axis, backend
        As for `criss_cross_attention`.

    Returns
    -------
    array, (N, heads, \\*S)
        From 0 to ``log(keys)``, but for rounding; 0 without any key; float32, or float64 for
        float64. Off by about the rounding of the energies: of energies of thousands, in float32,
        by a thousandth.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q, k = np.zeros((2, 1, 8, 5, 7))
    >>> entropy = crisscross.attention_entropy(q, k)  # of 11 keys that are all alike
    >>> bool(np.allclose(entropy, np.log(11)))
    True
    """
    call = Call(
        "attention_entropy", backend, {"q": q, "k": k}, {"key_mask": key_mask}, shares=False
    )
    options: dict[str, Any] = {
        "scale": scale,
        "heads": heads,
        "axes": axes,
        "channel_axis": channel_axis,
    }
    problem = attention_problem(
        call.findings, call.specs, **options, precision=None, remembered=False
    )
    q, k = widen(q), widen(k)
    xp = find_namespace(q)
    with quietly(q):
        out, lse = criss_cross_attention(
            q, k, k, **options, key_mask=key_mask, return_lse=True, backend=backend
        )
        products = _put_heads_first(q * out, problem)
        entropy = lse - problem.scale * xp.sum(products, axis=2)
    # Rounding may leave a little less than nothing; without any key lse is -inf. NaN remains.
    return xp.where(entropy < 0, xp.zeros_like(entropy), entropy)


def _check_pairs(
    pairs: Any, at: Any, key_mask: Any, options: dict[str, Any]
) -> tuple[AttentionProblem, list[tuple[int, ...]]]:
    """Hold every pair to the first; return the problem of the last."""
    findings = Findings("compose_attention")
    if not is_sequence(pairs) or not len(pairs) or not all(_is_pair(pair) for pair in pairs):
        findings.add("pairs", "at least one (q, k)", describe_value(pairs), Fault.TYPE)
        findings.raise_if_any()
    first: AttentionProblem | None = None
    positions: list[tuple[int, ...]] = []
    for number, (q, k) in enumerate(pairs):
        leader = {"pairs[0].q": pairs[0][0]} if number else {}
        arrays = {**leader, "q": q, "k": k}
        call = Call("compose_attention", None, arrays, {"key_mask": key_mask}, shares=False)
        if number == 0:
            sizes = find_sizes(call, options["channel_axis"])
            positions = check_positions(call.findings, at, sizes)
        if first is not None:
            free: list[Any] = list(first.q_shape)
            free[first.channel_axis] = "channels"
            reason = "like pairs[0].q but for the channels"
            call.findings.check_shape("q", call.specs["q"], tuple(free), reason)
            call.findings.check_dtype("q", call.specs["q"], first.dtype, "like pairs[0].q")
        try:
            problem = attention_problem(
                call.findings, call.specs, **options, precision=None, remembered=False
            )
        except (ArgumentError, ArgumentTypeError, BridgeError) as error:
            for mismatch in error.mismatches:
                if mismatch.argument.partition(".")[0].partition("[")[0] in ("q", "k"):
                    name = f"pairs[{number}].{mismatch.argument}"
                    mismatch = dataclasses.replace(mismatch, argument=name)
                if mismatch not in findings.mismatches:
                    findings.mismatches.append(mismatch)
        else:
            first = first or problem
    findings.raise_if_any()
    return problem, positions


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2


def _map_positions(
    problem: AttentionProblem,
    positions: list[tuple[int, ...]],
    q: Any,
    k: Any,
    key_mask: Any,
    stack: bool,
) -> Any:
    xp = find_namespace(q)
    q, k = (_put_heads_first(x, problem) for x in (q, k))
    with quietly(q):  # NaN and infinity give NaN, as in attention itself
        maps = [_map_position(problem, position, q, k, key_mask) for position in positions]
    return xp.stack(maps, axis=2) if stack else maps[0]


def _put_heads_first(array: Any, problem: AttentionProblem) -> Any:
    """View (N, heads, D, *S)."""
    moved = move_axis(array, problem.channel_axis, 1)
    shape = (problem.batch, problem.heads, moved.shape[1] // problem.heads, *problem.spatial)
    return reshape(moved, shape)


def _map_position(
    problem: AttentionProblem, position: tuple[int, ...], q: Any, k: Any, key_mask: Any
) -> Any:
    """Weights of one position: energies of each of its strips, self in the first of them only."""
    xp = find_namespace(q)
    query = widen(q[(..., *position)])[..., None]
    parts, hidden = [], []
    for number, axis in enumerate(problem.axes):
        strip = (*position[:axis], slice(None), *position[axis + 1 :])
        parts.append(problem.scale * xp.sum(query * widen(k[(..., *strip)]), axis=2))
        is_key = np.ones(problem.spatial[axis], bool)
        is_key[position[axis]] = number == 0
        keys = xp.broadcast_to(place(is_key, q), parts[-1].shape)
        if key_mask is not None:
            keys = keys & key_mask[(slice(None), *strip)][:, None, :]
        hidden.append(~keys)
    energies, is_hidden = join(parts, -1), join(hidden, -1)
    energies = xp.where(is_hidden, xp.zeros_like(energies) - np.inf, energies)
    peak = largest(energies)
    weights = xp.exp(energies - xp.where(xp.isfinite(peak), peak, xp.zeros_like(peak)))
    total = xp.sum(weights, axis=-1, keepdims=True)
    weights = weights / xp.where(total == 0, xp.ones_like(total), total)

    image, first = 0, 0
    for axis in problem.axes:
        length = problem.spatial[axis]
        part = weights[..., first : first + length]
        first += length
        others = [1] * len(problem.spatial)
        others[axis] = length
        part = reshape(part, (*part.shape[:2], *others))
        on_strip = np.ones(problem.spatial, bool)
        for other, number in enumerate(position):
            if other != axis:
                shape = [1] * len(position)
                shape[other] = -1
                on_strip &= (np.arange(problem.spatial[other]) == number).reshape(shape)
        image = image + xp.where(place(on_strip, q), part, xp.zeros_like(part))
    return image
