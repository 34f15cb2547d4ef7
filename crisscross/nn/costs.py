"""What a block costs: arithmetic, memory traffic, parameters, each by a formula that is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from crisscross.errors import Fault
from crisscross.nn.plans import find_inner
from crisscross.nn.rcca import NORMS
from crisscross.nn.relatives import MODES
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Numbers of a channel that a norm learns, and that it reads: running statistics too.
_NORM_NUMBERS = {"batch": (2, 4), "group": (2, 2), None: (0, 0)}
#: Keys of a position: those that there are, and those that are published.
_CROSS = ("(sum(S) - d + 1)", "(sum(S) + 1)")
_ALL = ("P", "P")


@dataclass(frozen=True)
class Cost:
    """What a block costs for given sizes.

    Attributes
    ----------
    parameters : int
        Numbers to learn; running statistics are not.
    flops : int
        Multiplications and additions of the products alone: projections, convolutions, energies of
        the keys that there are, weighted sums.
    published_flops : int or None
        The same as CCNet's author counts (github.com/speedinghzl/CCNet/issues/2). None for blocks
        of which nobody published it; then `formulas` has no entry for it.
    map_bytes : int
        The attention map of one recurrence. Ports keep that of each when they train; this library
        keeps none of positions.
    least_bytes : int
        What memory has to move at the least, if the steps of each recurrence, projections,
        attention and residual, read their arrays once and write their results once. A convolution
        with its norm and activation is one step.
    formulas : dict of str to str
        Each figure as an expression: N images of sizes S, d of them, P positions of an image, C
        and D channels of x and of queries, R recurrences, b bytes of a number; of a head also M
        channels of the attention, B of the bottleneck, and K classes.
    """

    parameters: int
    flops: int
    published_flops: int | None
    map_bytes: int
    least_bytes: int
    formulas: dict[str, str]


def count_criss_cross_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    inner: int | None = None,
    recurrence: int = 1,
    shared: bool = True,
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `criss_cross_block` costs, forward, with all axes.

    Parameters
    ----------
    spatial : tuple of int
        Sizes of an image: at least one. They may be 0, as may `batch`.
    channels : int
        C.
    inner : int, optional
        Channels of queries and keys, C / 8 by default.
    recurrence : int
        R; 0 too.
    shared : bool
        Whether all recurrences have the same parameters, or each its own.
    batch : int
        Number of images.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of x and of the parameters.

    Returns
    -------
    Cost

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> from crisscross import nn
    >>> cost = nn.count_criss_cross_block((97, 97), 512)
    >>> cost.published_flops / 1e9, cost.flops / 1e9, cost.parameters
    (8.29196352, 8.258241664, 328321)
    """
    findings = Findings("count_criss_cross_block")
    letters = _read_sizes(findings, spatial, channels, batch, dtype)
    letters["D"] = findings.check_count("inner", find_inner(inner, letters["C"]))
    letters["R"] = findings.check_count("recurrence", recurrence, 0)
    findings.check_flag("shared", shared)
    findings.raise_if_any()
    return _evaluate(_repeat(_describe_module("C", _CROSS), shared), letters, dtype)


def count_position_attention_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    inner: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `position_attention_block` costs: what CCNet's paper calls Non-local.

    Parameters
    ----------
    spatial, channels, inner, batch, dtype
        As for `count_criss_cross_block`.

    Returns
    -------
    Cost

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> from crisscross import nn
    >>> nn.count_position_attention_block((97, 97), 512).published_flops / 1e9
    108.16405...
    """
    findings = Findings("count_position_attention_block")
    letters = _read_sizes(findings, spatial, channels, batch, dtype)
    letters["D"] = findings.check_count("inner", find_inner(inner, letters["C"]))
    findings.raise_if_any()
    return _evaluate(_describe_module("C", _ALL), letters, dtype)


def count_non_local_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    inner: int | None = None,
    mode: str = "embedded_gaussian",
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `non_local_block` costs, with a bias of each projection.

    Parameters
    ----------
    spatial, channels, batch, dtype
        As for `count_criss_cross_block`.
    inner : int, optional
        Channels of theta, phi and g, C / 2 by default.
    mode : {"embedded_gaussian", "dot_product"}
        "dot_product" multiplies phi by g, and theta by what comes of it, which stays within its
        step: time is linear in P. The map is that of ports, which store it for both.

    Returns
    -------
    Cost

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> from crisscross import nn
    >>> for mode in ("embedded_gaussian", "dot_product"):
    ...     nn.count_non_local_block((97, 97), 512, mode=mode).flops / 1e9
    100.520035328
    12.33256448
    """
    findings = Findings("count_non_local_block")
    letters = _read_sizes(findings, spatial, channels, batch, dtype)
    inner = max(letters["C"] // 2, 1) if inner is None else inner
    letters["D"] = findings.check_count("inner", inner)
    findings.check_choice("mode", mode, MODES)
    findings.raise_if_any()
    rows = "P" if mode == "embedded_gaussian" else "D"
    parameters = "3 * (C + 1) * D + (D + 1) * C"
    terms = _Terms(
        parameters=parameters,
        products=f"4 * C * D + 2 * {rows} * D",
        # x to theta, phi and g; these to what is attended to; that to W's result; that, x to all.
        moved="(C + 3 * D) + (3 * D + D) + (D + C) + 3 * C",
        read=parameters,
        weights="P * P",
    )
    return _evaluate(terms, letters, dtype)


def count_channel_attention_block(
    spatial: tuple[int, ...],
    channels: int,
    *,
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `channel_attention_block` costs; its map is of channels, C x C.

    Parameters
    ----------
    spatial, channels, batch, dtype
        As for `count_criss_cross_block`.

    Returns
    -------
    Cost

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> from crisscross import nn
    >>> cost = nn.count_channel_attention_block((97, 97), 512)
    >>> cost.flops / 1e9, cost.map_bytes, cost.published_flops
    (9.866051584, 1048576, None)
    """
    findings = Findings("count_channel_attention_block")
    letters = _read_sizes(findings, spatial, channels, batch, dtype)
    findings.raise_if_any()
    terms = _Terms(
        parameters="1",
        products="2 * C * C",
        moved="2 * C + 3 * C",  # x to what is attended to; that and x to the result
        read="1",
        weights="C * C",
    )
    return _evaluate(terms, letters, dtype)


def count_rcca_head(
    spatial: tuple[int, ...],
    channels: int = 2048,
    *,
    classes: int,
    inner: int | None = None,
    outer: int = 512,
    recurrence: int = 2,
    shared: bool = True,
    norm: str | None = "batch",
    batch: int = 1,
    dtype: str = "float32",
) -> Cost:
    """Count what `rcca_head` costs, forward, with convolutions of size 3 and all axes.

    Convolutions are counted at every position alike: with the products of the zeros around. Norms
    and activations have no products, but norms have parameters.

    Parameters
    ----------
    spatial, recurrence, shared, batch, dtype
        As for `count_criss_cross_block`; R is 2 by default, as in the paper.
    channels : int
        C, of the backbone's features.
    classes : int
        K, of the logits.
    inner : int, optional
        M, channels of the attention, C / 4 by default; queries and keys have an eighth.
    outer : int
        B, channels of the bottleneck.
    norm : {"batch", "group", None}
        As for `rcca_head`. "batch" also reads running statistics, which are not learned.

    Returns
    -------
    Cost

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.

    Examples
    --------
    >>> from crisscross import nn
    >>> cost = nn.count_rcca_head((97, 97), classes=19)
    >>> cost.flops / 1e9, cost.parameters
    (460.671866112, 23934100)
    """
    findings = Findings("count_rcca_head")
    letters = _read_sizes(findings, spatial, channels, batch, dtype)
    letters["K"] = findings.check_count("classes", classes)
    inner = max(letters["C"] // 4, 1) if inner is None else inner
    letters["M"] = findings.check_count("inner", inner)
    letters["B"] = findings.check_count("outer", outer)
    letters["R"] = findings.check_count("recurrence", recurrence, 0)
    findings.check_flag("shared", shared)
    findings.check_choice("norm", norm, NORMS)
    findings.raise_if_any()
    letters["D"] = find_inner(None, letters["M"])
    cca = _repeat(_describe_module("M", _CROSS), shared)
    kernels, classifier = "3 ** d * (C * M + M * M + (C + M) * B)", "K * (B + 1)"
    learned, read = (f"{numbers} * (2 * M + B)" for numbers in _NORM_NUMBERS[norm])
    terms = _Terms(
        parameters=f"{kernels} + {learned} + {cca.parameters} + {classifier}",
        products=f"{kernels} + {cca.products} + B * K",
        # x to conva's result; the attention; convb; that and x to the bottleneck's; the logits.
        moved=f"(C + M) + {cca.moved} + 2 * M + (C + M + B) + (B + K)",
        read=f"{kernels} + {read} + {cca.read} + {classifier}",
        weights=cca.weights,
    )
    return _evaluate(terms, letters, dtype)


class _Terms(NamedTuple):
    """What a block has and does, as expressions: parts of the formulas."""

    parameters: str
    products: str  #: At a position: pairs of a multiplication and an addition.
    moved: str  #: At a position: numbers that the steps read and write.
    read: str  #: Parameters and statistics, as often as they are read.
    weights: str  #: Numbers of the map of an image.
    published: str | None = None  #: As `products`.


def _describe_module(channels: str, all_keys: tuple[str, str]) -> _Terms:
    """Describe CCNet's module, applied once to so many channels."""
    keys, published_keys = all_keys
    outputs = f"(2 * D + {channels})"  # of the projections
    parameters = f"({channels} + 1) * {outputs} + 1"
    return _Terms(
        parameters=parameters,
        products=f"{channels} * {outputs} + {keys} * (D + {channels})",
        # x to q, k and v; these to what is attended to; that and x to the result.
        moved=f"({channels} + {outputs}) + ({outputs} + {channels}) + 3 * {channels}",
        read=parameters,
        weights=f"P * {keys}",
        published=f"({channels} + 1) * {outputs} + {published_keys} * (D + {channels})",
    )


def _repeat(terms: _Terms, shared: bool) -> _Terms:
    """Describe R recurrences of what `terms` describe, with the same parameters or each its own."""
    return terms._replace(
        parameters=terms.parameters if shared else f"R * ({terms.parameters})",
        products=f"R * ({terms.products})",
        moved=f"R * ({terms.moved})",
        read=f"R * ({terms.read})",
        published=f"R * ({terms.published})",
    )


def _read_sizes(
    findings: Findings, spatial: object, channels: object, batch: object, dtype: object
) -> dict[str, Any]:
    """Check what all blocks have, and return it by the letters of the formulas."""
    sizes: list[int] = []
    if not isinstance(spatial, tuple | list):
        expected = "a tuple of integers, such as (97, 97)"
        findings.add("spatial", expected, describe_value(spatial), Fault.TYPE)
    elif not spatial:
        findings.add("spatial", "at least one size", f"none: {spatial}")
    else:
        for number, size in enumerate(spatial):
            sizes.append(findings.check_count(f"spatial[{number}]", size, 0) or 0)
    findings.check_choice("dtype", dtype, tuple(_ITEM_BYTES))
    return {
        "S": tuple(sizes),
        "d": len(sizes),
        "P": math.prod(sizes),
        "C": findings.check_count("channels", channels) or 1,
        "N": findings.check_count("batch", batch, 0),
    }


def _evaluate(terms: _Terms, letters: dict[str, Any], dtype: str) -> Cost:
    """Compute each figure by the formula that is told: there is no other."""
    formulas = {"parameters": terms.parameters, "flops": f"2 * N * P * ({terms.products})"}
    if terms.published is not None:
        formulas["published_flops"] = f"2 * N * P * ({terms.published})"
    formulas["map_bytes"] = f"b * N * {terms.weights}"
    formulas["least_bytes"] = f"b * (N * P * ({terms.moved}) + {terms.read})"
    named = {**letters, "b": _ITEM_BYTES[dtype]}
    figures: dict[str, Any] = {"published_flops": None}
    figures |= {name: eval(formula, {"sum": sum}, named) for name, formula in formulas.items()}
    return Cost(**figures, formulas=formulas)
