"""CCNet's own operators, which keep the attention map, and its converter to the ports' layout."""

from __future__ import annotations

from typing import Any

from crisscross.ops.call import Call, Output
from crisscross.ops.routing import differentiable
from crisscross.problem import features_problem, map_problem


@differentiable
def ca_weight(q: Any, k: Any, *, backend: str | None = None) -> Any:
    """Energies of every pixel with its row and column, in CCNet's order.

    Channels 0..W-1 are the row, self included; channels W..W+H-2 the column without self, from
    top to bottom. There is no scale (CCNet, ICCV 2019, section 3.2, "affinity").

    Parameters
    ----------
    q, k : array, (N, C, H, W)
        Float16, bfloat16, float32 or float64.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    energy : array, (N, H+W-1, H, W)
        Float32, or float64 for float64.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q = k = np.ones((1, 8, 5, 7), np.float32)
    >>> crisscross.ca_weight(q, k).shape
    (1, 11, 5, 7)
    """
    call = Call("ca_weight", backend, {"q": q, "k": k})
    problem = features_problem(call.findings, call.specs, features=("q", "k"))
    (energy,) = call.fill(
        [Output("energy", problem.map_shape, problem.compute_dtype)],
        lambda backend, x: backend.ca_weight(problem, **x),
    )
    return energy


@differentiable
def ca_weight_backward(
    denergy: Any, q: Any, k: Any, *, backend: str | None = None
) -> tuple[Any, Any]:
    """Gradients of `ca_weight` with respect to q and k.

    Parameters
    ----------
    denergy : array, (N, H+W-1, H, W)
        Gradient of the energies, in their dtype.
    q, k : array, (N, C, H, W)
        As given to the forward.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    dq, dk : array
        Like q and k.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> q = k = np.ones((1, 8, 5, 7), np.float32)
    >>> dq, dk = crisscross.ca_weight_backward(np.ones((1, 11, 5, 7), np.float32), q, k)
    >>> float(dq[0, 0, 0, 0])
    11.0
    """
    call = Call("ca_weight_backward", backend, {"q": q, "k": k, "denergy": denergy})
    problem = features_problem(call.findings, call.specs, features=("q", "k"), maps=("denergy",))
    dq, dk = call.fill(
        [
            Output("dq", call.shape_of("q"), problem.dtype, like="q"),
            Output("dk", call.shape_of("k"), problem.dtype, like="k"),
        ],
        lambda backend, x: backend.ca_weight_backward(problem, **x),
    )
    return dq, dk


@differentiable
def ca_softmax(energy: Any, *, backend: str | None = None) -> Any:
    """Softmax over the H+W-1 keys of each pixel.

    Parameters
    ----------
    energy : array, (N, H+W-1, H, W)
        Float32 or float64, as `ca_weight` returns it.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    attention : array, like energy

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> attention = crisscross.ca_softmax(np.zeros((1, 4, 3, 2), np.float32))
    >>> float(attention[0, 0, 0, 0])
    0.25
    """
    call = Call("ca_softmax", backend, {"energy": energy})
    problem = map_problem(call.findings, call.specs, maps=("energy",))
    (attention,) = call.fill(
        [Output("attention", problem.map_shape, problem.dtype, like="energy")],
        lambda backend, x: backend.ca_softmax(problem, **x),
    )
    return attention


@differentiable
def ca_softmax_backward(dattention: Any, attention: Any, *, backend: str | None = None) -> Any:
    """Gradient of `ca_softmax`: attention * (dattention - <dattention, attention>).

    Parameters
    ----------
    dattention : array, (N, H+W-1, H, W)
        Gradient of the attention, in its dtype.
    attention : array, (N, H+W-1, H, W)
        As returned by the forward.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    denergy : array, like attention

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    Adding a constant to the gradient changes nothing, for the weights sum to one:

    >>> import numpy as np
    >>> import crisscross
    >>> attention = crisscross.ca_softmax(np.zeros((1, 4, 3, 2), np.float32))
    >>> bool((crisscross.ca_softmax_backward(np.ones_like(attention), attention) == 0).all())
    True
    """
    arrays = {"attention": attention, "dattention": dattention}
    call = Call("ca_softmax_backward", backend, arrays)
    problem = map_problem(call.findings, call.specs, maps=("attention", "dattention"))
    (denergy,) = call.fill(
        [Output("denergy", problem.map_shape, problem.dtype, like="attention")],
        lambda backend, x: backend.ca_softmax_backward(problem, **x),
    )
    return denergy


@differentiable
def ca_map(attention: Any, v: Any, *, backend: str | None = None) -> Any:
    """Weighted sum of each pixel's row and column (CCNet, ICCV 2019, "aggregation").

    Parameters
    ----------
    attention : array, (N, H+W-1, H, W)
        In CCNet's order; float32, or float64 for float64 values.
    v : array, (N, C, H, W)
        Values: float16, bfloat16, float32 or float64.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    out : array, like v

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
    >>> out = crisscross.ca_map(crisscross.ca_softmax(crisscross.ca_weight(q, k)), v)
    >>> bool(np.allclose(out, crisscross.criss_cross_attention(q, k, v)))
    True
    """
    call = Call("ca_map", backend, {"v": v, "attention": attention})
    problem = features_problem(call.findings, call.specs, features=("v",), maps=("attention",))
    (out,) = call.fill(
        [Output("out", call.shape_of("v"), problem.dtype, like="v")],
        lambda backend, x: backend.ca_map(problem, **x),
    )
    return out


@differentiable
def ca_map_backward(
    dout: Any, attention: Any, v: Any, *, backend: str | None = None
) -> tuple[Any, Any]:
    """Gradients of `ca_map` with respect to attention and v.

    Parameters
    ----------
    dout : array, (N, C, H, W)
        Gradient of out, in the dtype of v.
    attention : array, (N, H+W-1, H, W)
    v : array, (N, C, H, W)
        As given to the forward.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    dattention, dv : array
        Like attention and v.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> v = dout = np.ones((1, 8, 5, 7), np.float32)
    >>> attention = np.full((1, 11, 5, 7), 1 / 11, np.float32)
    >>> dattention, dv = crisscross.ca_map_backward(dout, attention, v)
    >>> float(dattention[0, 0, 0, 0])
    8.0
    """
    call = Call("ca_map_backward", backend, {"v": v, "dout": dout, "attention": attention})
    problem = features_problem(
        call.findings, call.specs, features=("v", "dout"), maps=("attention",)
    )
    dattention, dv = call.fill(
        [
            Output("dattention", problem.map_shape, problem.compute_dtype, like="attention"),
            Output("dv", call.shape_of("v"), problem.dtype, like="v"),
        ],
        lambda backend, x: backend.ca_map_backward(problem, **x),
    )
    return dattention, dv


@differentiable
def to_port_layout(weights: Any, *, self_value: float = 0.0, backend: str | None = None) -> Any:
    """Convert a map from CCNet's layout to that of its PyTorch ports.

    The ports (CCNet's master branch, mmcv) keep (N, H, W, H+W): the column first, H entries with
    a placeholder at self, then the row, W entries with self. The function computed is the same.

    Parameters
    ----------
    weights : array, (N, H+W-1, H, W)
        Energies or attention, float32 or float64.
    self_value : float
        What to put at the column's entry for self: 0 for attention, ``-math.inf`` for energies.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    ported : array, (N, H, W, H+W)

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> weights = np.arange(1.0, 4.0).reshape(1, 3, 1, 1).repeat(2, 2).repeat(2, 3)
    >>> crisscross.to_port_layout(weights)[0, 0, 0]
    array([0., 3., 1., 2.])
    """
    call = Call("to_port_layout", backend, {"weights": weights})
    self_value_ = call.findings.check_real("self_value", self_value)
    spec = call.specs["weights"]
    call.findings.check_holds("self_value", self_value_, None if spec is None else spec.dtype)
    problem = map_problem(call.findings, call.specs, maps=("weights",))
    (ported,) = call.fill(
        [Output("ported", problem.port_shape, problem.dtype)],
        lambda backend, x: backend.to_port_layout(problem, self_value=self_value_, **x),
    )
    return ported


@differentiable
def from_port_layout(ported: Any, *, backend: str | None = None) -> Any:
    """Convert a map from the layout of CCNet's ports to CCNet's own: undo `to_port_layout`.

    Parameters
    ----------
    ported : array, (N, H, W, H+W)
        Energies or attention, float32 or float64. The column's entries for self are dropped.
    backend : {None, "gpu", "cpu", "xla", "reference"}
        As in `criss_cross_attention`.

    Returns
    -------
    weights : array, (N, H+W-1, H, W)

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError, BackendError
        As `criss_cross_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import crisscross
    >>> weights = np.arange(12.0).reshape(1, 3, 2, 2)
    >>> ported = crisscross.to_port_layout(weights)
    >>> bool((crisscross.from_port_layout(ported) == weights).all())
    True
    """
    call = Call("from_port_layout", backend, {"ported": ported})
    problem = map_problem(call.findings, call.specs, maps=("ported",), ports=True)
    (weights,) = call.fill(
        [Output("weights", problem.map_shape, problem.dtype)],
        lambda backend, x: backend.from_port_layout(problem, **x),
    )
    return weights
