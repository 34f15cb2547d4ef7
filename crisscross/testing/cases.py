"""One attention problem with its arrays, and what the oracle and the baseline make of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from crisscross import reference
from crisscross.bridge import from_dlpack
from crisscross.problem import AttentionProblem
from crisscross.testing.baseline import compute_baselines
from crisscross.testing.tolerance import measure


@dataclass(frozen=True, eq=False, repr=False)
class AttentionCase:
    """A problem with NumPy arrays that fit it.

    Attributes
    ----------
    problem : AttentionProblem
    q, k, v, dout : ndarray
        In the problem's dtype and layout.
    dlse : ndarray, (N, heads, *S), or None
    key_mask : ndarray of bool, (N, *S), or None
    story : str
        The call that makes the case again, for messages.
    """

    problem: AttentionProblem
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    dlse: np.ndarray | None = None
    key_mask: np.ndarray | None = None
    story: str = ""

    def __repr__(self) -> str:
        return self.story or f"AttentionCase({self.problem}, ...)"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `criss_cross_attention` and its backward.

        scale, heads, axes, key_mask, channel_axis and precision.
        """
        problem = self.problem
        return {
            "scale": problem.scale,
            "heads": problem.heads,
            "axes": problem.axes,
            "key_mask": self.key_mask,
            "channel_axis": problem.channel_axis,
            "precision": problem.precision,
        }

    @property
    def axial_options(self) -> dict[str, Any]:
        """Keyword arguments for `axial_attention` and its backward; the problem has one axis."""
        (axis,) = self.problem.axes
        options = {name: value for name, value in self.options.items() if name != "axes"}
        return {**options, "axis": axis, "include_self": self.problem.include_self}

    @cached_property
    def exact(self) -> dict[str, np.ndarray]:
        """out, lse, dq, dk and dv of the oracle, in the wider dtype it computes in."""
        problem = self.problem
        wide: Any = np.longdouble if problem.dtype == "float64" else np.float64
        out, lse = np.empty(problem.v_shape, wide), np.empty(problem.lse_shape, wide)
        dq, dk = np.empty(problem.q_shape, wide), np.empty(problem.q_shape, wide)
        dv = np.empty(problem.v_shape, wide)
        inputs: dict[str, Any] = {"q": self.q, "k": self.k, "v": self.v, "key_mask": self.key_mask}
        reference.attention_forward(problem, **inputs, out=out, lse=lse)
        reference.attention_backward(
            problem,
            dout=self.dout,
            **inputs,
            out=out,
            lse=lse,
            dlse=self.dlse,
            dq=dq,
            dk=dk,
            dv=dv,
        )
        return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}

    @cached_property
    def baselines(self) -> list[dict[str, np.ndarray]]:
        """The evaluations of the plain formula that the tolerance is derived from."""
        names = ("q", "k", "v", "dout", "dlse", "key_mask")
        return compute_baselines(self.problem, {name: getattr(self, name) for name in names})


def assert_matches_reference(case: AttentionCase, **results: Any) -> None:
    """Hold results to the oracle, within the tolerance derived from the plain formula's error.

    Parameters
    ----------
    case : AttentionCase
        What the results were computed from.
    **results : array
        Any of out, lse, dq, dk and dv, of any library: shape and dtype must fit too.

    Raises
    ------
    AssertionError
        If any is outside the tolerance; the message gives the figures of all of them. NaN fails,
        and so does any dk or dv but zero where the key is masked.

    Notes
    -----
    With the oracle x64 in float64 (long double for float64 inputs) and the plain formula's result
    b: ``rms(x - x64) <= 2 rms(b - x64) + ulp rms(x64)`` and
    ``max |x - x64| <= 4 max |b - x64| + 2 ulp max |x64|``, ulp being that of the dtype at 1.

    Examples
    --------
    >>> import crisscross
    >>> from crisscross.testing import assert_matches_reference, make_case
    >>> case = make_case((5, 7), head_size_qk=8, head_size_v=16)
    >>> out = crisscross.criss_cross_attention(case.q, case.k, case.v, **case.options)
    >>> assert_matches_reference(case, out=out)
    >>> assert_matches_reference(case, out=out * 1.001)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: out: FAILS, rms error ...
    """
    unknown = set(results) - set(case.exact)
    if unknown or not results:
        got = sorted(unknown) or "none"
        raise TypeError(f"results: expected some of {list(case.exact)}, got {got}")
    found = [
        measure(
            name,
            from_dlpack(result),
            case.exact[name],
            [baseline[name] for baseline in case.baselines],
        )
        for name, result in results.items()
    ]
    lines = [str(discrepancy) for discrepancy in found]
    lines += _find_masked_gradients(case, results)
    if len(lines) > len(found) or not all(discrepancy.passes for discrepancy in found):
        raise AssertionError("\n".join([*lines, repr(case)]))


def _find_masked_gradients(case: AttentionCase, results: dict[str, Any]) -> list[str]:
    """Name the gradients that are not exactly zero where the mask hides the key."""
    if case.key_mask is None:
        return []
    found = []
    for name in ("dk", "dv"):
        if name in results and results[name].shape == case.exact[name].shape:
            gradient = np.moveaxis(from_dlpack(results[name]), case.problem.channel_axis, -1)
            if (gradient[~case.key_mask] != 0).any():
                found.append(f"{name}: FAILS, not exactly zero at masked positions")
    return found
