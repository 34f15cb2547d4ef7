"""Layers that blocks are made of, each with its gradients: what they compute goes on the tape."""

from __future__ import annotations

import itertools
import math
from typing import Any

from crisscross.arithmetic import (
    cast,
    correlate,
    find_namespace,
    join,
    list_sizes,
    make_zeros,
    multiply,
    reshape,
    spread,
    sum_axes,
    sum_positions,
    transpose,
    widen,
)
from crisscross.nn.tape import Tape


def project(x: Any, weight: Any, bias: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Multiply the channels of each position: a convolution of size 1."""
    matrix = widen(reshape(weight, weight.shape[:2]))
    out = multiply(matrix, widen(x), channel_axis)
    if bias is not None:
        out = out + spread(widen(bias), x.ndim, channel_axis)
    out = cast(out, x.dtype)

    def pull(dout: Any) -> tuple[Any, ...]:
        dout = widen(dout)
        dx = cast(multiply(transpose(matrix), dout, channel_axis), x.dtype)
        dweight = cast(correlate(dout, widen(x), channel_axis), x.dtype)
        dbias = None if bias is None else cast(sum_positions(dout, channel_axis), x.dtype)
        return dx, reshape(dweight, weight.shape), dbias

    if tape is not None:
        tape.record(out, (x, weight, bias), pull)
    return out


def convolve(x: Any, weight: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Convolve with odd sizes and zeros around, as PyTorch does: (outputs, inputs, *sizes)."""
    sizes = weight.shape[2:]
    kernel = widen(weight)
    offsets = list(itertools.product(*map(range, sizes)))

    def look(array: Any, offset: tuple[int, ...]) -> Any:
        window = [slice(o, o + n) for o, n in zip(offset, list_sizes(x, channel_axis), strict=True)]
        return array[(*[slice(None)] * (2 if channel_axis == 1 else 1), *window, ...)]

    padded = _pad(widen(x), sizes, channel_axis)
    out = sum(
        multiply(kernel[(..., *offset)], look(padded, offset), channel_axis) for offset in offsets
    )
    out = cast(out, x.dtype)

    def pull(dout: Any) -> tuple[Any, ...]:
        dout, padded = widen(dout), _pad(widen(x), sizes, channel_axis)
        around = _pad(dout, sizes, channel_axis)
        dx = sum(
            multiply(
                transpose(kernel[(..., *offset)]),
                look(around, tuple(s - 1 - o for s, o in zip(sizes, offset, strict=True))),
                channel_axis,
            )
            for offset in offsets
        )
        xp = find_namespace(dout)
        slices = [correlate(dout, look(padded, offset), channel_axis) for offset in offsets]
        dweight = reshape(xp.stack(slices, axis=-1), weight.shape)
        return cast(dx, x.dtype), cast(dweight, x.dtype)

    if tape is not None:
        tape.record(out, (x, weight), pull)
    return out


def _pad(x: Any, sizes: tuple[int, ...], channel_axis: int) -> Any:
    """Put zeros around, half a kernel on each side."""
    for number, size in enumerate(sizes):
        axis, half = number + (2 if channel_axis == 1 else 1), size // 2
        if half:
            zeros = make_zeros((*x.shape[:axis], half, *x.shape[axis + 1 :]), x)
            x = join((zeros, x, zeros), axis)
    return x


def standardise(x: Any, groups: int | None, epsilon: float, channel_axis: int, tape: Any) -> Any:
    """Subtract the mean and divide by the deviation: of a channel, or of a group of an image's.

    Returns
    -------
    out, mean, variance
        The latter two of each channel, over all images, where `groups` is None; else None.
    """
    xp = find_namespace(x)
    wide = widen(x)
    channels = x.shape[channel_axis]
    if groups is None:
        view, axes = wide, tuple(a for a in range(x.ndim) if a != channel_axis % x.ndim)
    elif channel_axis == 1:
        view = reshape(wide, (x.shape[0], groups, channels // groups, *x.shape[2:]))
        axes = tuple(range(2, view.ndim))
    else:
        view = reshape(wide, (*x.shape[:-1], groups, channels // groups))
        axes = (*range(1, x.ndim - 1), x.ndim)
    count = max(math.prod(view.shape[axis] for axis in axes), 1)

    def average(array: Any) -> Any:
        return sum_axes(array, axes[::-1]) / count

    mean = average(view)
    mean = mean + average(view - mean)  # what rounding took, of large numbers
    centred = view - mean
    variance = average(centred * centred)
    factor = 1 / xp.sqrt(variance + epsilon)
    out = cast(reshape(centred * factor, x.shape), x.dtype)
    grouped = tuple(view.shape)

    def pull(dout: Any) -> tuple[Any, ...]:
        dview = reshape(widen(dout), grouped)
        standard = (reshape(widen(x), grouped) - mean) * factor
        dview = factor * (dview - average(dview) - standard * average(dview * standard))
        return (cast(reshape(dview, x.shape), x.dtype),)

    if tape is not None:
        tape.record(out, (x,), pull)
    if groups is not None:
        return out, None, None
    return out, reshape(mean, (channels,)), reshape(variance, (channels,))


def shift_and_scale(x: Any, weight: Any, bias: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Multiply each channel by a number, and add one."""
    factor = spread(widen(weight), x.ndim, channel_axis)
    out = cast(widen(x) * factor + spread(widen(bias), x.ndim, channel_axis), x.dtype)

    def pull(dout: Any) -> tuple[Any, ...]:
        dout = widen(dout)
        dweight, dbias = (sum_positions(each, channel_axis) for each in (dout * widen(x), dout))
        dx = cast(dout * factor, x.dtype)
        return dx, cast(dweight, weight.dtype), cast(dbias, bias.dtype)

    if tape is not None:
        tape.record(out, (x, weight, bias), pull)
    return out


def normalise(
    x: Any, mean: Any, variance: Any, epsilon: float, channel_axis: int, tape: Any
) -> Any:
    """Subtract a known mean of each channel and divide by a known deviation: running statistics."""
    xp = find_namespace(x)
    factor = spread(1 / xp.sqrt(widen(variance) + epsilon), x.ndim, channel_axis)
    out = cast((widen(x) - spread(widen(mean), x.ndim, channel_axis)) * factor, x.dtype)
    if tape is not None:
        tape.record(out, (x,), lambda dout: (cast(widen(dout) * factor, x.dtype),))
    return out


def rectify(x: Any, slope: float, tape: Tape | None) -> Any:
    """Multiply what is negative by `slope`: leaky ReLU, or ReLU where it is 0."""
    xp = find_namespace(x)

    def bend(array: Any) -> Any:
        # Not multiplied by a slope of zero, which would make NaN of infinity. NaN remains.
        low = cast(array * slope, array.dtype) if slope else xp.zeros_like(array)
        return xp.where(x <= 0, low, array)

    out = bend(x)
    if tape is not None:
        tape.record(out, (x,), lambda dout: (bend(dout),))
    return out


def join_channels(x: Any, y: Any, channel_axis: int, tape: Tape | None) -> Any:
    out = join((x, y), channel_axis)
    channels = x.shape[channel_axis]

    def pull(dout: Any) -> tuple[Any, ...]:
        halves = slice(0, channels), slice(channels, None)
        return tuple(
            dout[:, half, ...] if channel_axis == 1 else dout[..., half] for half in halves
        )

    if tape is not None:
        tape.record(out, (x, y), pull)
    return out


def keep_channels(x: Any, kept: Any, channel_axis: int, tape: Tape | None) -> Any:
    """Multiply the channels of each image by a number: those kept by more than 1, others by 0."""
    ones = (1,) * (x.ndim - 2)
    shape = (*kept.shape, *ones) if channel_axis == 1 else (kept.shape[0], *ones, kept.shape[1])
    factor = reshape(kept, shape)
    out = x * factor
    if tape is not None:
        tape.record(out, (x,), lambda dout: (dout * factor,))
    return out


def add_scaled(x: Any, attended: Any, gamma: Any, tape: Tape | None) -> Any:
    """Return ``gamma * attended + x``; `gamma` is a single number, (1,) or ()."""
    xp = find_namespace(x)
    factor = widen(gamma)
    out = cast(widen(attended) * factor + widen(x), x.dtype)

    def pull(dout: Any) -> tuple[Any, ...]:
        dwide = widen(dout)
        dgamma = cast(reshape(xp.sum(dwide * widen(attended)), gamma.shape), x.dtype)
        return dout, cast(dwide * factor, x.dtype), dgamma

    if tape is not None:
        tape.record(out, (x, attended, gamma), pull)
    return out


def add(x: Any, y: Any, tape: Tape | None) -> Any:
    out = x + y
    if tape is not None:
        tape.record(out, (x, y), lambda dout: (dout, dout))
    return out
