"""CCNet's block: projections, criss-cross attention, gamma and a residual, R times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from crisscross.nn.attending import attend
from crisscross.nn.layers import add_scaled, project
from crisscross.nn.parameters import Parameters, Reader, Size
from crisscross.nn.tape import Tape

#: q and k of each recurrence, in order.
Pairs = list[tuple[Any, Any]]
_PROJECTIONS = ("query_conv", "key_conv", "value_conv")


def criss_cross_block(
    parameters: Parameters,
    x: Any,
    *,
    recurrence: int | None = None,
    scale: float = 1.0,
    heads: int = 1,
    axes: Iterable[int] | None = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    tape: Tape | None = None,
    pairs: Pairs | None = None,
) -> Any:
    """Apply CCNet's attention module R times: ``x = gamma * attention(q, k, v) + x``.

    q, k and v are projections of x by convolutions of size 1 with bias (CCNet, ICCV 2019, section
    3.2; the recurrence, section 3.3).

    Parameters
    ----------
    parameters : mapping of str to array
        ``query_conv.weight`` (heads * D_qk, C), ``key_conv.weight``, ``value_conv.weight`` (C, C),
        their ``.bias``, and ``gamma`` (1,): the names of CCNet's module. Weights may have further
        sizes of 1. Shared by all recurrences; or each its own, with ``0.``, ``1.``, ... in front.
    x : array, (N, C, \\*S)
    recurrence : int, optional
        R. By default 1, or as many as `parameters` has for; R = 2 lets every position see all.
    scale, heads, axes, key_mask, channel_axis, precision, backend
        As for `criss_cross_attention`.
    tape : Tape, optional
        Where to record what gradients need.
    pairs : list, optional
        Where to append (q, k) of each recurrence: `compose_attention` takes such a list, and
        `plot.show_recurrence`.

    Returns
    -------
    array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Notes
    -----
    gamma is 0 in the beginning, as in CCNet: then the result is x, whatever the attention.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> parameters = nn.init_criss_cross_block(64, seed=0, gamma=0.1)
    >>> x = np.random.default_rng(0).standard_normal((1, 64, 9, 11), np.float32)
    >>> nn.criss_cross_block(parameters, x, recurrence=2).shape
    (1, 64, 9, 11)
    """
    reader = Reader("criss_cross_block", parameters, x, channel_axis)
    steps = read_recurrence(reader, reader.channels, recurrence)
    if isinstance(axes, Iterator):
        axes = tuple(axes)  # to be walked through more than once
    options = {"scale": scale, "heads": heads, "axes": axes, "key_mask": key_mask}
    options |= {"channel_axis": channel_axis, "precision": precision, "backend": backend}
    reader.finish_attention(list_rows(reader), reader.channels, options, tape, pairs)
    return repeat(steps, x, options, tape, pairs)


def read_recurrence(
    reader: Reader, channels: Size, recurrence: int | None, usual: int = 1
) -> list[Parameters]:
    """Read the parameters of each of R recurrences."""
    own, count = find_own(reader), None
    if recurrence is not None:
        count = reader.findings.check_count("recurrence", recurrence, 0)
        if count is not None and own and count != len(own):
            expected = f"{len(own)}, as many as there are parameters for"
            reader.findings.add("recurrence", expected, str(count))
    if own:
        return [read_step(each, channels) for each in own]
    return [read_step(reader, channels)] * (usual if count is None else count)


def find_own(reader: Reader) -> list[Reader]:
    """Return readers of the parameters that each recurrence has of its own, none if they share."""
    numbers = itertools.takewhile(lambda number: f"{number}.gamma" in reader, itertools.count())
    return [reader.within(f"{number}.") for number in numbers]


def list_rows(reader: Reader) -> list[Size]:
    """Return the channels of q and k, of each set of parameters."""
    return [each.count_outputs("query_conv.weight") for each in find_own(reader) or [reader]]


def read_step(reader: Reader, channels: Size) -> Parameters:
    rows = reader.count_outputs("query_conv.weight")
    found: dict[str, Any] = {"gamma": reader.take_scalar("gamma")}
    for name, outputs in zip(_PROJECTIONS, (rows, rows, channels), strict=True):
        found[f"{name}.weight"] = reader.take_matrix(f"{name}.weight", outputs, channels)
        found[f"{name}.bias"] = reader.take_vector(f"{name}.bias", outputs)
    return found


def repeat(
    steps: list[Parameters],
    x: Any,
    options: dict[str, Any],
    tape: Tape | None,
    pairs: Pairs | None,
) -> Any:
    """Apply the module once for each of `steps`."""
    for step in steps:
        q, k, v = project_all(x, step, options["channel_axis"], tape)
        if pairs is not None:
            pairs.append((q, k))
        x = add_scaled(x, attend(q, k, v, options, tape), step["gamma"], tape)
    return x


def project_all(x: Any, step: Parameters, channel_axis: int, tape: Tape | None) -> list[Any]:
    """Make q, k and v of x."""
    return [
        project(x, step[f"{name}.weight"], step[f"{name}.bias"], channel_axis, tape)
        for name in _PROJECTIONS
    ]
