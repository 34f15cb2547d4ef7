"""Say what would run for a call, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crisscross import gpu
from crisscross.cpu.plan import describe_plan
from crisscross.dispatch import find_calls, library_of
from crisscross.ops.backends import Choice, choose_backend
from crisscross.ops.call import Call
from crisscross.ops.routing import Way
from crisscross.problem import AttentionProblem, attention_problem


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; print it, or read its fields.

    Attributes
    ----------
    backend
        The backend that would run.
    reason
        Why that one.
    refusals
        Pairs (backend, why not) for the others.
    algorithm
        What that backend does for this problem.
    precision
        What was asked for and what is delivered.
    library, device
        Whose arrays these are, and where; of traced ones of JAX, where it would put them.
    way
        How the call gets to the backend: directly, or by a library that differentiates or compiles.
    problem
        The validated problem.
    """

    backend: str
    reason: str
    refusals: tuple[tuple[str, str], ...]
    algorithm: str
    precision: str
    library: str
    device: str
    way: str
    problem: AttentionProblem

    def __str__(self) -> str:
        problem = self.problem
        sizes = "x".join(str(size) for size in problem.spatial)
        axes = ", ".join(str(axis) for axis in problem.axes)
        layout = "(N, C, *S)" if problem.channel_axis == 1 else "(N, *S, C)"
        rows = [
            (
                "problem",
                f"{problem.dtype} {sizes}, N = {problem.batch}, heads = {problem.heads}, "
                f"D_qk = {problem.head_size_qk}, D_v = {problem.head_size_v}",
            ),
            (
                "",
                f"{layout}, axes {axes}, scale {problem.scale:g}, "
                f"{'a' if problem.masked else 'no'} key mask",
            ),
            ("arrays", f"{self.library}, on {self.device}"),
            ("call", self.way),
            ("backend", f"{self.backend}: {self.reason}"),
            ("algorithm", self.algorithm),
            ("precision", self.precision),
            *((f"not {name}", reason) for name, reason in self.refusals),
        ]
        return "\n".join(f"{label:14} {text}" for label, text in rows)


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float = 1.0,
    heads: int = 1,
    axes: Iterable[int] | None = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
) -> Explanation:
    """Say which backend `criss_cross_attention` would run on these arrays, how, and why.

    Parameters
    ----------
    q, k, v, scale, heads, axes, key_mask, channel_axis, precision, backend
        As in `criss_cross_attention`; nothing is computed.

    Returns
    -------
    Explanation
        Its text is made for printing.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention` would.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q = k = v = np.ones((1, 8, 5, 7), np.float32)
    >>> crisscross.explain(q, k, v).backend
    'cpu'
    """
    call = Call("explain", backend, {"q": q, "k": k, "v": v}, {"key_mask": key_mask}, shares=False)
    problem = attention_problem(
        call.findings,
        call.specs,
        scale=scale,
        heads=heads,
        axes=axes,
        channel_axis=channel_axis,
        precision=precision,
    )
    arrays = [x for x in (q, k, v, key_mask) if x is not None]
    calls = find_calls(arrays)
    way = _DIRECTLY if calls is None else calls.find_way(arrays, problem, backend)
    device, library = way.device or call.device, library_of(q)
    choice = way.choice or choose_backend("explain", device, backend, library)
    return Explanation(
        backend=choice.backend,
        reason=choice.reason,
        refusals=choice.refusals,
        algorithm=_name_algorithm(choice, problem, device),
        precision=_name_precision(choice, problem, device),
        library=library,
        device=device,
        way=way.words,
        problem=problem,
    )


_DIRECTLY = Way("directly")


def _name_algorithm(choice: Choice, problem: AttentionProblem, device: str) -> str:
    if choice.backend == "gpu":
        with gpu.open_device(device, None, None) as backend:
            return gpu.describe_plan(problem, backend.engine.limits)
    if choice.backend == "reference":
        return "the definition, position by position; slow"
    if choice.backend == "xla":
        return "matrix products along strips that XLA compiles, merged by log-sum-exp"
    return describe_plan(problem)


def _name_precision(choice: Choice, problem: AttentionProblem, device: str) -> str:
    if choice.backend == "gpu":
        with gpu.open_device(device, None, None) as backend:
            delivered = gpu.name_precision(problem, backend.engine.limits)
    elif choice.backend == "reference":
        delivered = "float64" if problem.compute_dtype == "float32" else "long double"
    elif choice.backend == "xla":
        delivered = "XLA's products in three parts" if problem.precision == "tf32" else "XLA's best"
    else:
        delivered = f"IEEE {problem.compute_dtype}"
    return f"{problem.precision} asked for, {delivered} delivered"
