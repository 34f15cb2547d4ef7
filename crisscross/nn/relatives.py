"""Relatives of CCNet's block: Non-local, and DANet's attention over positions and over channels."""

from __future__ import annotations

from typing import Any

from crisscross.nn.attending import attend_channels, attend_to_all, multiply_by_all
from crisscross.nn.criss_cross import project_all, read_step
from crisscross.nn.layers import add, add_scaled, project
from crisscross.nn.parameters import Parameters, Reader
from crisscross.nn.tape import Tape
from crisscross.problem.findings import describe_value

MODES = ("embedded_gaussian", "dot_product")


def non_local_block(
    parameters: Parameters,
    x: Any,
    *,
    mode: str = "embedded_gaussian",
    scale: float = 1.0,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    tape: Tape | None = None,
) -> Any:
    """Let every position attend to all: ``x + W(softmax(theta phi^T) g)`` (Wang et al., CVPR 2018).

    The positions are one strip of the strip kernels, so memory does not grow with their number
    squared.

    Parameters
    ----------
    parameters : mapping of str to array
        ``theta.weight`` (C', C), ``phi.weight`` (C', C), ``g.weight`` (C'', C), ``W.weight``
        (C, C''), and each one's ``.bias``, where there is one.
    x : array, (N, C, \\*S)
    mode : {"embedded_gaussian", "dot_product"}
        "dot_product" is ``theta (phi^T g) / positions``, without a softmax: linear in time too.
    scale : float
        Factor of the energies of "embedded_gaussian": 1 in the paper, C' to the -1/2 in others.
    channel_axis, precision, backend
        As for `criss_cross_attention`; the last two are None with "dot_product".
    tape : Tape, optional
        Where to record what gradients need.

    Returns
    -------
    array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> parameters = nn.init_non_local_block(64, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((1, 64, 9, 11), np.float32)
    >>> nn.non_local_block(parameters, x).shape
    (1, 64, 9, 11)
    """
    reader = Reader("non_local_block", parameters, x, channel_axis)
    rows, inner = reader.count_outputs("theta.weight"), reader.count_outputs("g.weight")
    sizes = {"theta": (rows, reader.channels), "phi": (rows, reader.channels)}
    sizes |= {"g": (inner, reader.channels), "W": (reader.channels, inner)}
    weights = {}
    for name, (outputs, inputs) in sizes.items():
        weight = reader.take_matrix(f"{name}.weight", outputs, inputs)
        weights[name] = weight, reader.take_optional_vector(f"{name}.bias", outputs)
    reader.findings.check_choice("mode", mode, MODES)
    options = {
        "scale": scale,
        "channel_axis": channel_axis,
        "precision": precision,
        "backend": backend,
    }
    if mode == "dot_product":
        for name, value, usual in (
            ("scale", scale, 1),
            ("precision", precision, None),
            ("backend", backend, None),
        ):
            if value != usual:
                expected = f"{usual} for 'dot_product', which is no attention"
                reader.findings.add(name, expected, describe_value(value))
    reader.finish_attention([rows], inner, options, tape)

    q, k, v = (project(x, *weights[name], channel_axis, tape) for name in ("theta", "phi", "g"))
    if mode == "dot_product":
        attended = multiply_by_all(q, k, v, channel_axis, tape)
    else:
        attended = attend_to_all(q, k, v, options, tape)
    return add(x, project(attended, *weights["W"], channel_axis, tape), tape)


def position_attention_block(
    parameters: Parameters,
    x: Any,
    *,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    tape: Tape | None = None,
) -> Any:
    """Let every position attend to all, with gamma and a residual (DANet, CVPR 2019, section 3.2).

    Parameters
    ----------
    parameters : mapping of str to array
        As for `criss_cross_block`, which has the same names.
    x : array, (N, C, \\*S)
    channel_axis, precision, backend
        As for `criss_cross_attention`.
    tape : Tape, optional
        Where to record what gradients need.

    Returns
    -------
    array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> parameters = nn.init_position_attention_block(64, seed=0, gamma=0.1)
    >>> x = np.random.default_rng(0).standard_normal((1, 64, 9, 11), np.float32)
    >>> nn.position_attention_block(parameters, x).shape
    (1, 64, 9, 11)
    """
    reader = Reader("position_attention_block", parameters, x, channel_axis)
    step = read_step(reader, reader.channels)
    options = {"channel_axis": channel_axis, "precision": precision, "backend": backend}
    rows = reader.count_outputs("query_conv.weight")
    reader.finish_attention([rows], reader.channels, options, tape)
    q, k, v = project_all(x, step, channel_axis, tape)
    return add_scaled(x, attend_to_all(q, k, v, options, tape), step["gamma"], tape)


def channel_attention_block(
    parameters: Parameters, x: Any, *, channel_axis: int = 1, tape: Tape | None = None
) -> Any:
    """Let channels attend to each other, with gamma and a residual (DANet, CVPR 2019, section 3.3).

    Energies are the products of channels, over all positions; the softmax is over max - energy, as
    in DANet's code: channels that are alike count little.

    Parameters
    ----------
    parameters : mapping of str to array
        ``gamma`` (1,) alone.
    x : array, (N, C, \\*S)
    channel_axis : 1 or -1
        1 for (N, C, \\*S), -1 for (N, \\*S, C).
    tape : Tape, optional
        Where to record what gradients need.

    Returns
    -------
    array, like x

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> x = np.random.default_rng(0).standard_normal((1, 64, 9, 11), np.float32)
    >>> nn.channel_attention_block({"gamma": np.float32([0.1])}, x).shape
    (1, 64, 9, 11)
    """
    reader = Reader("channel_attention_block", parameters, x, channel_axis)
    gamma = reader.take_scalar("gamma")
    reader.finish(tape)
    return add_scaled(x, attend_channels(x, channel_axis, tape), gamma, tape)
