"""Layers that attend, each with its gradients: what they compute goes on the tape."""

from __future__ import annotations

from typing import Any

from crisscross.arithmetic import (
    cast,
    find_namespace,
    flatten,
    largest,
    multiply_matrices,
    reshape,
    transpose,
    widen,
)
from crisscross.nn.tape import Tape
from crisscross.ops import (
    axial_attention,
    axial_attention_backward,
    criss_cross_attention,
    criss_cross_attention_backward,
)


def attend(q: Any, k: Any, v: Any, options: dict[str, Any], tape: Tape | None) -> Any:
    """Attend along strips, by `criss_cross_attention` with these options."""
    if tape is None:
        return criss_cross_attention(q, k, v, **options)
    out, lse = criss_cross_attention(q, k, v, return_lse=True, **options)

    def pull(dout: Any) -> Any:
        return criss_cross_attention_backward(cast(dout, v.dtype), q, k, v, out, lse, **options)

    tape.record(out, (q, k, v), pull)
    return out


def attend_to_all(q: Any, k: Any, v: Any, options: dict[str, Any], tape: Tape | None) -> Any:
    """Attend to all positions: one strip through all of them, with memory that does not grow."""
    channel_axis = options["channel_axis"]
    flat_q, flat_k, flat_v = (flatten(x, channel_axis) for x in (q, k, v))
    options = {**options, "axis": 0}
    if tape is None:
        return reshape(axial_attention(flat_q, flat_k, flat_v, **options), v.shape)
    flat_out, lse = axial_attention(flat_q, flat_k, flat_v, return_lse=True, **options)
    out = reshape(flat_out, v.shape)

    def pull(dout: Any) -> tuple[Any, ...]:
        dout = reshape(dout, flat_out.shape)
        gradients = axial_attention_backward(dout, flat_q, flat_k, flat_v, flat_out, lse, **options)
        return tuple(reshape(dx, x.shape) for dx, x in zip(gradients, (q, k, v), strict=True))

    tape.record(out, (q, k, v), pull)
    return out


def multiply_by_all(q: Any, k: Any, v: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Return ``q (k^T v) / N`` over all N positions: attention without softmax, in linear time."""

    def read(x: Any) -> Any:
        """View positions as rows, whatever the layout; in 16 bits it is a copy."""
        flat = widen(flatten(x, channel_axis))
        return transpose(flat) if channel_axis == 1 else flat

    wide_q, wide_k, wide_v = (read(x) for x in (q, k, v))
    count = max(wide_q.shape[-2], 1)
    products = multiply_matrices(transpose(wide_k), wide_v) / count

    def shape_back(array: Any, like: Any) -> Any:
        turned = transpose(array) if channel_axis == 1 else array
        return cast(reshape(turned, like.shape), like.dtype)

    out = shape_back(multiply_matrices(wide_q, products), v)

    def pull(dout: Any) -> tuple[Any, ...]:
        # Made anew, for a tape keeps what is given.
        wide_q, wide_k, wide_v, drows = (read(x) for x in (q, k, v, dout))
        dproducts = multiply_matrices(transpose(wide_q), drows) / count
        return (
            shape_back(multiply_matrices(drows, transpose(products)), q),
            shape_back(multiply_matrices(wide_v, transpose(dproducts)), k),
            shape_back(multiply_matrices(wide_k, dproducts), v),
        )

    if tape is not None:
        tape.record(out, (q, k, v), pull)
    return out


def attend_channels(x: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Let channels attend to each other: the less alike two of an image are, the more (DANet)."""
    xp = find_namespace(x)

    def read(x: Any) -> Any:
        """View channels as rows."""
        flat = widen(flatten(x, channel_axis))
        return flat if channel_axis == 1 else transpose(flat)

    rows = read(x)
    energies = multiply_matrices(rows, transpose(rows))
    # The softmax over max - energy, relative to its own largest: min - energy.
    weights = xp.exp(-largest(-energies) - energies)
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)

    def shape_back(array: Any) -> Any:
        turned = array if channel_axis == 1 else transpose(array)
        return cast(reshape(turned, x.shape), x.dtype)

    out = shape_back(multiply_matrices(weights, rows))

    def pull(dout: Any) -> tuple[Any, ...]:
        rows, drows = read(x), read(dout)
        dweights = multiply_matrices(drows, transpose(rows))
        delta = xp.sum(dweights * weights, axis=-1, keepdims=True)
        denergies = -weights * (dweights - delta)  # of the energies, which come with a minus
        symmetric = denergies + transpose(denergies)
        return (
            shape_back(
                multiply_matrices(transpose(weights), drows) + multiply_matrices(symmetric, rows)
            ),
        )

    if tape is not None:
        tape.record(out, (x,), pull)
    return out
