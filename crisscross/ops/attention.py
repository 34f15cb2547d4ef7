"""Fused attention over strips: forward and explicit backward, whole or one axis at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crisscross.ops.call import Call, Output
from crisscross.ops.routing import differentiable
from crisscross.problem import AttentionProblem, attention_problem

Axes = Iterable[int] | None


@differentiable
def criss_cross_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Let every position attend to its row and its column (CCNet, ICCV 2019, section 3.2).

    In d spatial axes the keys of a position are the union of its strips along `axes`, itself
    counted once: ``out(p) = sum_x softmax_x(scale * <q_p, k_x>) v_x``. No attention map is kept.

    Parameters
    ----------
    q, k : array, (N, heads * D_qk, \\*S)
        Queries and keys: float16, bfloat16, float32 or float64, with d >= 1 spatial axes S.
    v : array, (N, heads * D_v, \\*S)
        Values, in the dtype of q. Channel = head * D + d; D_v and D_qk differ freely.
    scale : float
        Factor of the energies; 1, as in CCNet, by default.
    heads : int
        Heads that attend independently.
    axes : tuple of int, optional
        Spatial axes (0..d-1, negatives allowed) whose strips take part; all by default. One axis
        is axial attention, two are CCNet's cross, three its form for video.
    key_mask : array of bool, (N, \\*S), optional
        True where a position takes part as a key. k and v are never read where it is False.
    channel_axis : 1 or -1
        1 for (N, C, \\*S), -1 for (N, \\*S, C).
    precision : {None, "ieee", "tf32", "tf32x3"}
        The least the result must have for float32; None means "ieee". A backend may do better.
    return_lse : bool
        Also return the log-sum-exp, which the backward needs.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        None chooses by where the arrays are; see `explain`.

    Returns
    -------
    out : array, like v
        In the caller's kind of array, in the shape, dtype and memory format of v.
    lse : array, (N, heads, \\*S)
        Only with `return_lse`: log of the sum over x of exp of the energies, natural logarithm;
        float32, or float64 for float64. -inf, with out = 0, where a position has no key left.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError
        Naming every argument that does not fit, what was expected and what came.
    BackendError
        If no backend, or not the one asked for, can serve these arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 8, 5, 7), np.float32)
    >>> v = rng.standard_normal((1, 16, 5, 7), np.float32)
    >>> out, lse = crisscross.criss_cross_attention(q, k, v, heads=2, return_lse=True)
    >>> out.shape, lse.shape
    ((1, 16, 5, 7), (1, 2, 5, 7))
    """
    call = Call("criss_cross_attention", backend, {"q": q, "k": k, "v": v}, {"key_mask": key_mask})
    call.findings.check_flag("return_lse", return_lse)
    problem = attention_problem(
        call.findings,
        call.specs,
        scale=scale,
        heads=heads,
        axes=axes,
        channel_axis=channel_axis,
        precision=precision,
    )
    return _run_forward(call, problem, return_lse)


@differentiable
def axial_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    axis: int,
    include_self: bool = True,
    scale: float = 1.0,
    heads: int = 1,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Let every position attend along one spatial axis: one part of a criss-cross attention.

    The parts of several axes, one with `include_self` and the others without, merge to the whole:
    see `merge_attentions`.

    Parameters
    ----------
    q, k : array, (N, heads * D_qk, \\*S)
        Queries and keys.
    v : array, (N, heads * D_v, \\*S)
        Values.
    axis : int
        The spatial axis, 0..d-1 or negative.
    include_self : bool
        Whether a position is one of its own keys.
    scale, heads, key_mask, channel_axis, precision, return_lse, backend
        As in `criss_cross_attention`.

    Returns
    -------
    out : array, like v
    lse : array, (N, heads, \\*S)
        Only with `return_lse`. -inf, with out = 0, where a strip holds no key.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q = k = v = np.ones((1, 4, 3), np.float32)
    >>> crisscross.axial_attention(q, k, v, axis=0)[0, 0]
    array([1., 1., 1.], dtype=float32)
    """
    call = Call("axial_attention", backend, {"q": q, "k": k, "v": v}, {"key_mask": key_mask})
    call.findings.check_flag("return_lse", return_lse)
    problem = attention_problem(
        call.findings,
        call.specs,
        scale=scale,
        heads=heads,
        axes=axis,
        one_axis=True,
        include_self=include_self,
        channel_axis=channel_axis,
        precision=precision,
    )
    return _run_forward(call, problem, return_lse)


def _run_forward(call: Call, problem: AttentionProblem, return_lse: bool) -> Any:
    outputs = (
        Output("out", problem.v_shape, problem.dtype, like="v"),
        Output("lse", problem.lse_shape, problem.compute_dtype),
    )
    out, lse = call.fill(
        outputs,
        lambda backend, x: backend.attention_forward(
            problem,
            q=x["q"],
            k=x["k"],
            v=x["v"],
            key_mask=x.get("key_mask"),
            out=x["out"],
            lse=x["lse"],
        ),
    )
    return (out, lse) if return_lse else out


@differentiable
def criss_cross_attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    dlse: Any = None,
    scale: float = 1.0,
    heads: int = 1,
    axes: Axes = None,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
) -> tuple[Any, Any, Any]:
    """Gradients of `criss_cross_attention` with respect to q, k and v.

    The weights are recomputed from q, k and lse; nothing but out and lse is kept from the forward.

    Parameters
    ----------
    dout : array, like v
        Gradient of out.
    q, k, v : array
        As given to the forward.
    out, lse : array
        As returned by it with ``return_lse=True``.
    dlse : array, (N, heads, \\*S), optional
        Gradient of lse, in its dtype; zero by default.
    scale, heads, axes, key_mask, channel_axis, precision, backend
        As given to the forward.

    Returns
    -------
    dq, dk, dv : array
        Like q, k and v. dk and dv are exactly zero where `key_mask` is False.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    The values' gradients share out what arrives, for the weights of a position sum to one:

    >>> import numpy as np
    >>> import crisscross
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, dout = rng.standard_normal((4, 1, 8, 5, 7))
    >>> out, lse = crisscross.criss_cross_attention(q, k, v, return_lse=True)
    >>> dq, dk, dv = crisscross.criss_cross_attention_backward(dout, q, k, v, out, lse)
    >>> bool(np.allclose(dv.sum((2, 3)), dout.sum((2, 3))))
    True
    """
    call = Call(
        "criss_cross_attention_backward",
        backend,
        {"q": q, "k": k, "v": v, "out": out, "lse": lse, "dout": dout},
        {"dlse": dlse, "key_mask": key_mask},
    )
    problem = attention_problem(
        call.findings,
        call.specs,
        scale=scale,
        heads=heads,
        axes=axes,
        channel_axis=channel_axis,
        precision=precision,
    )
    return _run_backward(call, problem)


@differentiable
def axial_attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    axis: int,
    include_self: bool = True,
    dlse: Any = None,
    scale: float = 1.0,
    heads: int = 1,
    key_mask: Any = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
) -> tuple[Any, Any, Any]:
    """One axis's share of the gradients with respect to q, k and v.

    With the *merged* out, lse, dout and dlse of several parts, the result is this part's share of
    the gradients of the whole, and the shares add: merging needs no backward of its own.

    Parameters
    ----------
    dout : array, like v
        Gradient of out.
    q, k, v : array
        As given to the forward.
    out, lse : array
        Of this part alone, or of the union it is a part of.
    axis, include_self
        The part.
    dlse : array, (N, heads, \\*S), optional
        Gradient of lse, in its dtype; zero by default.
    scale, heads, key_mask, channel_axis, precision, backend
        As given to the forward.

    Returns
    -------
    dq, dk, dv : array
        Like q, k and v.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, dout = rng.standard_normal((4, 1, 8, 5, 7))
    >>> out, lse = crisscross.criss_cross_attention(q, k, v, return_lse=True)
    >>> whole = crisscross.criss_cross_attention_backward(dout, q, k, v, out, lse)
    >>> rows = crisscross.axial_attention_backward(dout, q, k, v, out, lse, axis=1)
    >>> columns = crisscross.axial_attention_backward(
    ...     dout, q, k, v, out, lse, axis=0, include_self=False
    ... )
    >>> all(np.allclose(w, r + c) for w, r, c in zip(whole, rows, columns))
    True
    """
    call = Call(
        "axial_attention_backward",
        backend,
        {"q": q, "k": k, "v": v, "out": out, "lse": lse, "dout": dout},
        {"dlse": dlse, "key_mask": key_mask},
    )
    problem = attention_problem(
        call.findings,
        call.specs,
        scale=scale,
        heads=heads,
        axes=axis,
        one_axis=True,
        include_self=include_self,
        channel_axis=channel_axis,
        precision=precision,
    )
    return _run_backward(call, problem)


def _run_backward(call: Call, problem: AttentionProblem) -> tuple[Any, Any, Any]:
    outputs = (
        Output("dq", problem.q_shape, problem.dtype, like="q"),
        Output("dk", problem.q_shape, problem.dtype, like="k"),
        Output("dv", problem.v_shape, problem.dtype, like="v"),
    )
    dq, dk, dv = call.fill(
        outputs,
        lambda backend, x: backend.attention_backward(
            problem,
            dout=x["dout"],
            q=x["q"],
            k=x["k"],
            v=x["v"],
            out=x["out"],
            lse=x["lse"],
            dlse=x.get("dlse"),
            key_mask=x.get("key_mask"),
            dq=x["dq"],
            dk=x["dk"],
            dv=x["dv"],
        ),
    )
    return dq, dk, dv
