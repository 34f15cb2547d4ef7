"""Merging attentions over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crisscross.ops.call import Call, Output
from crisscross.ops.routing import differentiable
from crisscross.problem import MergeProblem, merge_problem


@differentiable
def merge_attentions(
    outs: Sequence[Any],
    lses: Sequence[Any],
    *,
    channel_axis: int = 1,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Merge attentions over disjoint sets of keys into the attention over their union.

    ``lse = log sum_i exp lse_i`` and ``out = sum_i exp(lse_i - lse) out_i``.

    Parameters
    ----------
    outs : sequence of array, each (N, heads * D_v, \\*S)
        Parts, all of one shape and dtype.
    lses : sequence of array, each (N, heads, \\*S)
        Their log-sum-exps: float32, or float64 for float64 parts.
    channel_axis : 1 or -1
        1 for (N, C, \\*S), -1 for (N, \\*S, C).
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    out : array, like outs[0]
    lse : array, (N, heads, \\*S)

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 8, 5, 7))
    >>> row = crisscross.axial_attention(q, k, v, axis=1, return_lse=True)
    >>> column = crisscross.axial_attention(q, k, v, axis=0, include_self=False, return_lse=True)
    >>> out, lse = crisscross.merge_attentions([row[0], column[0]], [row[1], column[1]])
    >>> bool(np.allclose(out, crisscross.criss_cross_attention(q, k, v)))
    True
    """
    call, problem = check_merge(outs, lses, channel_axis, backend)
    outputs = (
        Output("out", problem.out_shape, problem.dtype, like="outs[0]"),
        Output("lse", problem.lse_shape, problem.compute_dtype),
    )
    out, lse = call.fill(
        outputs,
        lambda backend, x: backend.merge(
            problem,
            outs=[x[f"outs[{i}]"] for i in range(problem.parts)],
            lses=[x[f"lses[{i}]"] for i in range(problem.parts)],
            out=x["out"],
            lse=x["lse"],
        ),
    )
    return out, lse


def check_merge(
    outs: object, lses: object, channel_axis: object, backend: str | None, shares: bool = True
) -> tuple[Call, MergeProblem]:
    arrays = {**_name_parts("outs", outs), **_name_parts("lses", lses)}
    call = Call("merge_attentions", backend, arrays, shares=shares)
    problem = merge_problem(
        call.findings, call.specs, outs=outs, lses=lses, channel_axis=channel_axis
    )
    return call, problem


def _name_parts(name: str, parts: object) -> dict[str, Any]:
    if not isinstance(parts, tuple | list):
        return {}
    return {f"{name}[{i}]": part for i, part in enumerate(parts)}
