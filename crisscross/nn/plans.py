"""What parameters are to be in the beginning, said once for whoever draws them: NumPy, or JAX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from crisscross.nn.rcca import NORMS
from crisscross.problem import COMPUTE_DTYPES, Findings

#: Sizes that None stands for a default of.
_MAY_BE_NONE = ("inner", "recurrence")


class Draft(NamedTuple):
    """What one parameter is to be: uniform within a bound, or, where there is none, one number."""

    shape: tuple[int, ...]
    bound: float | None = None
    constant: float = 0.0


#: By the names of the originals, in the order in which they are drawn.
Plan = dict[str, Draft]


def plan_criss_cross_block(
    findings: Findings,
    channels: int,
    *,
    inner: int | None,
    recurrence: int | None,
    gamma: float,
    dtype: str,
    spatial_ndim: int,
) -> Plan:
    """Plan what `criss_cross_block` takes; raise what was found before, and what does not fit."""
    sizes = {"channels": channels, "inner": inner, "recurrence": recurrence}
    _check(findings, sizes, dtype, spatial_ndim, gamma)
    return _plan_attention(
        "", channels, find_inner(inner, channels), recurrence, gamma, [1] * spatial_ndim
    )


def find_inner(inner: int | None, channels: int) -> int:
    """Return the channels of queries and keys, as in CCNet where nobody says."""
    return max(channels // 8, 1) if inner is None else inner


def plan_position_attention_block(
    findings: Findings,
    channels: int,
    *,
    inner: int | None,
    gamma: float,
    dtype: str,
    spatial_ndim: int,
) -> Plan:
    _check(findings, {"channels": channels, "inner": inner}, dtype, spatial_ndim, gamma)
    return _plan_attention(
        "", channels, find_inner(inner, channels), None, gamma, [1] * spatial_ndim
    )


def plan_channel_attention_block(findings: Findings, *, gamma: float, dtype: str) -> Plan:
    _check(findings, {}, dtype, gamma=gamma)
    return {"gamma": Draft((1,), constant=gamma)}


def plan_non_local_block(
    findings: Findings,
    channels: int,
    *,
    inner: int | None,
    zero: bool,
    dtype: str,
    spatial_ndim: int,
) -> Plan:
    _check(findings, {"channels": channels, "inner": inner}, dtype, spatial_ndim)
    inner = max(channels // 2, 1) if inner is None else inner
    ones = [1] * spatial_ndim
    plan: Plan = {}
    for name in ("theta", "phi", "g"):
        plan |= _plan_convolution(name, inner, channels, ones)
    last = _plan_convolution("W", channels, inner, ones)
    return plan | ({name: Draft(draft.shape) for name, draft in last.items()} if zero else last)


def plan_rcca_head(
    findings: Findings,
    channels: int,
    *,
    classes: int,
    inner: int | None,
    outer: int,
    recurrence: int | None,
    norm: str | None,
    gamma: float,
    dtype: str,
    spatial_ndim: int,
) -> Plan:
    sizes = {"channels": channels, "classes": classes, "inner": inner, "outer": outer}
    sizes |= {"recurrence": recurrence}
    _check(findings, sizes, dtype, spatial_ndim, gamma, norm)
    inner = max(channels // 4, 1) if inner is None else inner
    ones, threes = [1] * spatial_ndim, [3] * spatial_ndim
    plan: Plan = {}
    for name, outputs, inputs in (
        ("conva", inner, channels),
        ("convb", inner, inner),
        ("bottleneck", outer, channels + inner),
    ):
        plan |= _plan_convolution(f"{name}.0", outputs, inputs, threes, bias=False)
        plan |= _plan_norm(f"{name}.1", outputs, norm)
    plan |= _plan_attention("cca.", inner, find_inner(None, inner), recurrence, gamma, ones)
    return plan | _plan_convolution("bottleneck.3", classes, outer, ones)


def _check(
    findings: Findings,
    sizes: Mapping[str, int | None],
    dtype: str,
    spatial_ndim: int = 2,
    gamma: float = 0.0,
    norm: str | None = None,
) -> None:
    for name, size in {**sizes, "spatial_ndim": spatial_ndim}.items():
        if size is not None or name not in _MAY_BE_NONE:
            findings.check_count(name, size)
    findings.check_real("gamma", gamma)
    findings.check_choice("norm", norm, NORMS)
    findings.check_choice("dtype", dtype, tuple(COMPUTE_DTYPES))
    findings.raise_if_any()


def _plan_convolution(
    name: str, outputs: int, inputs: int, sizes: list[int], bias: bool = True
) -> Plan:
    """Plan as PyTorch initialises its convolutions: uniform within 1/sqrt(inputs)."""
    bound = 1 / math.sqrt(max(inputs * math.prod(sizes), 1))
    plan = {f"{name}.weight": Draft((outputs, inputs, *sizes), bound)}
    return plan | {f"{name}.bias": Draft((outputs,), bound)} if bias else plan


def _plan_norm(name: str, channels: int, norm: str | None) -> Plan:
    numbers = {"weight": 1, "bias": 0} if norm is not None else {}
    if norm == "batch":
        numbers |= {"running_mean": 0, "running_var": 1}
    return {f"{name}.{part}": Draft((channels,), constant=x) for part, x in numbers.items()}


def _plan_attention(
    prefix: str,
    channels: int,
    inner: int,
    recurrence: int | None,
    gamma: float,
    ones: list[int],
) -> Plan:
    """Plan one set of parameters, or one for each recurrence."""
    numbers = [""] if recurrence is None else [f"{number}." for number in range(recurrence)]
    plan: Plan = {}
    for number in numbers:
        for name, outputs in (("query", inner), ("key", inner), ("value", channels)):
            plan |= _plan_convolution(f"{prefix}{number}{name}_conv", outputs, channels, ones)
        plan[f"{prefix}{number}gamma"] = Draft((1,), constant=gamma)
    return plan
