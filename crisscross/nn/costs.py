"""What a block costs: arithmetic, memory traffic, parameters, each by a formula that is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crisscross.nn.initial import find_inner

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Cost:
    """What a block costs for given sizes.

    Attributes
    ----------
    parameters : int
        Numbers to learn.
    flops : int
        Multiplications and additions of the products alone: projections, energies of the keys that
        there are, weighted sums.
    published_flops : int
        The same as CCNet's author counts (github.com/speedinghzl/CCNet/issues/2).
    map_bytes : int
        The attention map of one recurrence. Ports keep that of each when they train; this library
        keeps none.
    least_bytes : int
        What memory has to move at the least, if the steps of each recurrence, projections,
        attention and residual, read their arrays once and write their results once.
    formulas : dict of str to str
        Each figure as an expression: N images of sizes S, d of them, P positions of an image, C
        and D channels of x and of queries, R recurrences, b bytes of a number.
    """

    parameters: int
    flops: int
    published_flops: int
    map_bytes: int
    least_bytes: int
    formulas: dict[str, str]


def count_criss_cross_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    inner: int | None = None,
    recurrence: int = 1,
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `criss_cross_block` costs, forward, with shared parameters.

    Examples
    --------
    >>> from crisscross import nn
    >>> cost = nn.count_criss_cross_block((97, 97), 512)
    >>> cost.published_flops / 1e9, cost.flops / 1e9, cost.parameters
    (8.29196352, 8.258241664, 328321)
    """
    keys, published_keys = sum(spatial) - len(spatial) + 1, sum(spatial) + 1
    words = ("(sum(S) - d + 1)", "(sum(S) + 1)")
    return _count(spatial, channels, inner, recurrence, batch, dtype, (keys, published_keys), words)


def count_position_attention_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    inner: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `position_attention_block` costs: what CCNet's paper calls Non-local.

    Examples
    --------
    >>> from crisscross import nn
    >>> nn.count_position_attention_block((97, 97), 512).published_flops / 1e9
    108.16405...
    """
    positions = math.prod(spatial)
    return _count(spatial, channels, inner, 1, batch, dtype, (positions, positions), ("P", "P"))


def _count(
    spatial: tuple[int, ...],
    channels: int,
    inner: int | None,
    recurrence: int,
    batch: int,
    dtype: str,
    all_keys: tuple[int, int],
    words: tuple[str, str],
) -> Cost:
    """Count with the keys of a position that there are, and with those that are published."""
    (keys, published_keys), (word, published_word) = all_keys, words
    inner = find_inner(inner, channels)
    positions = batch * math.prod(spatial)
    outputs = 2 * inner + channels
    item = _ITEM_BYTES[dtype]
    parameters = (channels + 1) * outputs + 1

    def count_flops(inputs: int, keys: int) -> int:
        return 2 * recurrence * positions * (inputs * outputs + keys * (inner + channels))

    # x to q, k and v; these to what is attended to; that and x to the result.
    moved = positions * ((channels + outputs) + (outputs + channels) + 3 * channels) + parameters
    return Cost(
        parameters=parameters,
        flops=count_flops(channels, keys),
        published_flops=count_flops(channels + 1, published_keys),
        map_bytes=positions * keys * item,
        least_bytes=recurrence * moved * item,
        formulas={
            "parameters": "(C + 1) * (2 * D + C) + 1",
            "flops": f"2 * R * N * P * (C * (2 * D + C) + {word} * (D + C))",
            "published_flops": "2 * R * N * P * ((C + 1) * (2 * D + C)"
            f" + {published_word} * (D + C))",
            "map_bytes": f"N * P * {word} * b",
            "least_bytes": "R * b * (N * P * (5 * C + 2 * (2 * D + C))"
            " + (C + 1) * (2 * D + C) + 1)",
        },
    )
