"""The problem of merging parts of an attention by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crisscross.errors import Fault
from crisscross.problem.findings import (
    COMPUTE_DTYPES,
    ArraySpec,
    Findings,
    Shape,
    describe_value,
    format_shape,
)


@dataclass(frozen=True)
class MergeProblem:
    """`parts` pairs of (out, lse) over the same positions; sizes may be symbolic."""

    parts: int
    heads: Any
    channel_axis: int
    dtype: str
    out_shape: Shape
    lse_shape: Shape

    @property
    def compute_dtype(self) -> str:
        return COMPUTE_DTYPES[self.dtype]


def merge_problem(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    *,
    outs: object,
    lses: object,
    channel_axis: object,
) -> MergeProblem:
    """Validate the sequences `outs` and `lses` and describe their merge.

    `specs` holds their parts by the names ``outs[i]`` and ``lses[i]``.
    """
    channel_axis_ = findings.check_channel_axis(channel_axis)
    out_count = _count_parts(findings, "outs", outs)
    lse_count = _count_parts(findings, "lses", lses)
    if out_count == 0:
        findings.add("outs", "at least one part", "none")
    if None not in (out_count, lse_count) and out_count != lse_count:
        findings.add("lses", f"as many parts as outs: {out_count}", str(lse_count))

    out_names = [f"outs[{i}]" for i in range(out_count or 0)]
    lse_names = [f"lses[{i}]" for i in range(lse_count or 0)]
    first, first_lse = specs.get("outs[0]"), specs.get("lses[0]")
    dtype = findings.check_features(specs, out_names)
    lse_reason, lse_dtype = f"for {dtype} parts", COMPUTE_DTYPES.get(dtype or "")
    if lse_dtype is None and first_lse is not None:
        lse_reason, lse_dtype = "like lses[0]", first_lse.dtype
    lse_shape = None if first_lse is None else first_lse.shape
    shape_reason = "like lses[0]"
    if first is not None and first.ndim < 3:
        got = f"{first.ndim} axes: {format_shape(first.shape)}"
        findings.add("outs[0].shape", "at least 3 axes, (N, C, *S) or (N, *S, C)", got)
    elif first is not None:
        for name in out_names[1:]:
            findings.check_shape(name, specs[name], first.shape, "like outs[0]")
        lse_shape = _expect_lse(findings, first, first_lse, channel_axis_ or 1)
        shape_reason = "(N, heads, *S)"
    for name in lse_names:
        if lse_shape is not None:
            findings.check_shape(name, specs[name], lse_shape, shape_reason)
        if lse_dtype is not None:
            findings.check_dtype(name, specs[name], lse_dtype, lse_reason)
    findings.raise_if_any()

    assert first is not None and first_lse is not None
    assert channel_axis_ is not None and out_count is not None
    return MergeProblem(
        parts=out_count,
        heads=first_lse.shape[1],
        channel_axis=channel_axis_,
        dtype=first.dtype,
        out_shape=first.shape,
        lse_shape=first_lse.shape,
    )


def _expect_lse(
    findings: Findings, out: ArraySpec, lse: ArraySpec | None, channel_axis: int
) -> Shape:
    """Return the shape that every lse must have; the first one tells the number of heads."""
    heads: Any = "heads"
    if lse is not None and lse.ndim == out.ndim:
        heads = lse.shape[1]
        channels = out.shape[channel_axis]
        if heads < 1 or channels < heads or channels % heads != 0:
            findings.add(
                f"outs[0].shape[{channel_axis}]",
                f"a positive multiple of lses[0].shape[1] = {heads} heads",
                str(channels),
            )
    spatial = out.shape[2:] if channel_axis == 1 else out.shape[1:-1]
    return (out.shape[0], heads, *spatial)


def _count_parts(findings: Findings, name: str, parts: object) -> int | None:
    if isinstance(parts, tuple | list):
        return len(parts)
    findings.add(name, "a list or tuple of arrays", describe_value(parts), Fault.TYPE)
    return None
