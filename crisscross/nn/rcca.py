"""CCNet's head: convolutions around the recurrent attention, and a classifier of every pixel."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple, Protocol

import numpy as np

from crisscross.arithmetic import cast, place, widen
from crisscross.errors import Fault
from crisscross.nn.criss_cross import Pairs, list_rows, read_recurrence, repeat
from crisscross.nn.layers import (
    convolve,
    join_channels,
    keep_channels,
    normalise,
    project,
    rectify,
    shift_and_scale,
    standardise,
)
from crisscross.nn.parameters import Parameters, Reader, Size
from crisscross.nn.tape import Tape
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value, format_shape

NORMS = ("batch", "group", None)
SLOPES = {"leaky_relu": 0.01, "relu": 0.0, None: None}
ACTIVATIONS = tuple(SLOPES)


class _Unit(NamedTuple):
    """A convolution with its normalisation and activation."""

    name: str
    weight: Any
    norm: dict[str, Any]
    slope: float | None


class Draws(Protocol):
    """What draws numbers, uniform in [0, 1), as a generator of NumPy's does."""

    def random(self, shape: Any, /) -> Any:
        """Return an array of this shape."""


class Training(NamedTuple):
    """What `rcca_head` does otherwise while training.

    Attributes
    ----------
    generator : numpy.random.Generator or None
        Draws which channels are dropped, by ``random(shape)``, and may be anything that has that;
        None drops none. While JAX traces, NumPy's is refused: `crisscross.jax.rcca_head` has keys.
    dropout : float
        The share of channels that are dropped before the classifier; 0.1, as in CCNet.
    momentum : float
        The share of new statistics in the running ones.
    """

    generator: Draws | None = None
    dropout: float = 0.1
    momentum: float = 0.1


def rcca_head(
    parameters: Parameters,
    x: Any,
    *,
    recurrence: int | None = None,
    norm: str | None = "batch",
    groups: int = 32,
    epsilon: float = 1e-5,
    activation: str | None = "leaky_relu",
    last_activation: str | None = "same",
    training: Training | None = None,
    channel_axis: int = 1,
    precision: str | None = None,
    backend: str | None = None,
    tape: Tape | None = None,
    pairs: Pairs | None = None,
) -> Any:
    """Classify every position: CCNet's head without its backbone (ICCV 2019, section 3.1).

    ``conva`` reduces the channels, ``cca`` attends R times, ``convb`` follows; its result is put
    beside x, and ``bottleneck`` makes logits of both.

    Parameters
    ----------
    parameters : mapping of str to array
        CCNet's names: ``conva.0.weight`` (M, C, 3, 3), ``cca.*`` as for `criss_cross_block`,
        ``convb.0.weight`` (M, M, 3, 3), ``bottleneck.0.weight`` (B, C + M, 3, 3),
        ``bottleneck.3.weight`` (classes, B) and ``.bias``; and of each norm, ``conva.1``,
        ``convb.1`` and ``bottleneck.1``, ``.weight``, ``.bias``, and for "batch" ``.running_mean``
        and ``.running_var``, which may be float32 where x has 16 bits. Widths are the arrays'.
    x : array, (N, C, \\*S)
        Features of the backbone. In d dimensions kernels have d sizes.
    recurrence : int, optional
        R. By default 2, as in the paper, or as many as `parameters` has sets of ``cca`` for.
    norm : {"batch", "group", None}
        "batch" takes the running statistics, but for `training`.
    groups : int
        Of "group".
    epsilon : float
        Added to variances.
    activation : {"leaky_relu", "relu", None}
        "leaky_relu" has the slope 0.01 of CCNet's checkpoints; ports have "relu".
    last_activation : {"same", "leaky_relu", "relu", None}
        Of ``bottleneck``, where it differs: PaddleSeg's is "relu".
    training : Training, optional
        With it, "batch" takes the statistics of x, channels are dropped, and the running statistics
        that follow are returned too.
    channel_axis, precision, backend
        As for `criss_cross_attention`.
    tape : Tape, optional
        Where to record what gradients need.
    pairs : list, optional
        Where to append (q, k) of each recurrence.

    Returns
    -------
    logits : array, (N, classes, \\*S)
    statistics : dict of str to array
        Only with `training`: ``running_mean`` and ``running_var`` by name, to be put in the place
        of those in `parameters`.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every parameter and argument that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> parameters = nn.init_rcca_head(64, classes=19, inner=16, outer=32, seed=0, gamma=0.1)
    >>> x = np.random.default_rng(0).standard_normal((1, 64, 9, 11), np.float32)
    >>> nn.rcca_head(parameters, x, recurrence=2).shape
    (1, 19, 9, 11)
    """
    reader = Reader("rcca_head", parameters, x, channel_axis)
    activations = [activation] if last_activation == "same" else [activation, last_activation]
    head = _read(reader, recurrence, norm, groups, epsilon, activations, training)
    options = {"channel_axis": channel_axis, "precision": precision, "backend": backend}
    cca = reader.within("cca.")
    inner = reader.count_outputs("conva.0.weight")
    reader.finish_attention(list_rows(cca), inner, options, tape, pairs)
    statistics: dict[str, Any] = {}
    details = _Details(norm, groups, epsilon, channel_axis, training, statistics, tape)

    features = _apply(head.before, x, details)
    features = repeat(head.steps, features, options, tape, pairs)
    features = _apply(head.after, features, details)
    features = join_channels(x, features, channel_axis, tape)
    features = _apply(head.bottleneck, features, details)
    if training is not None and training.generator is not None:
        kept = _draw_kept(training, features, channel_axis)
        features = keep_channels(features, kept, channel_axis, tape)
    logits = project(features, *head.classifier, channel_axis, tape)
    return logits if training is None else (logits, statistics)


class _Head(NamedTuple):
    before: _Unit
    steps: list[Parameters]
    after: _Unit
    bottleneck: _Unit
    classifier: tuple[Any, Any]


class _Details(NamedTuple):
    norm: str | None
    groups: int
    epsilon: float
    channel_axis: int
    training: Training | None
    statistics: dict[str, Any]
    tape: Tape | None


def _read(
    reader: Reader,
    recurrence: int | None,
    norm: str | None,
    groups: object,
    epsilon: object,
    activations: list[str | None],
    training: Any,
) -> _Head:
    findings = reader.findings
    findings.check_choice("norm", norm, NORMS)
    names = ("activation", "last_activation")
    for name, activation in zip(names, activations, strict=False):
        findings.check_choice(name, activation, ACTIVATIONS)
    _check_training(findings, training)
    if not findings.check_real("epsilon", epsilon) > 0:
        findings.add("epsilon", "a positive number", describe_value(epsilon))
    findings.raise_if_any()  # which parameters there are to be follows from the norm
    if training is not None and norm == "batch" and not math.prod(reader.shape):
        findings.add("x.shape", "positions to take statistics of", format_shape(reader.shape))
    slopes = [SLOPES[activation] for activation in activations]

    inner, outer = (reader.count_outputs(f"{name}.0.weight") for name in ("conva", "bottleneck"))
    classes = reader.count_outputs("bottleneck.3.weight")

    def read(name: str, outputs: Size, inputs: Size, slope: float | None) -> _Unit:
        weight = reader.take_kernel(f"{name}.0.weight", outputs, inputs)
        found = {}
        if norm is not None:
            for part in ("weight", "bias"):
                found[part] = reader.take_vector(f"{name}.1.{part}", outputs, may_be_wide=True)
        if norm == "batch":
            for part in ("running_mean", "running_var"):
                found[part] = reader.take_vector(f"{name}.1.{part}", outputs, may_be_wide=True)
        if norm == "group":
            count = findings.check_integer("groups", groups)
            if count is not None and outputs is not None and (count < 1 or outputs % count):
                expected = f"a divisor of {outputs}, the channels of {name}"
                findings.add("groups", expected, str(count))
        return _Unit(name, weight, found, slope)

    before = read("conva", inner, reader.channels, slopes[0])
    within = reader.within("cca.")
    steps = read_recurrence(within, inner, recurrence, 2)
    after = read("convb", inner, inner, slopes[0])
    joined = None if inner is None else reader.channels + inner
    bottleneck = read("bottleneck", outer, joined, slopes[-1])
    classifier = (
        reader.take_matrix("bottleneck.3.weight", classes, outer),
        reader.take_vector("bottleneck.3.bias", classes),
    )
    if training is not None and reader.is_traced:
        _check_traced(findings, training)
    return _Head(before, steps, after, bottleneck, classifier)


def _check_training(findings: Findings, training: Any) -> None:
    if training is None:
        return
    if not isinstance(training, Training):
        findings.add("training", "None or a Training", describe_value(training), Fault.TYPE)
        return
    if training.generator is not None:
        draw = getattr(training.generator, "random", None)
        # Python's own has one too, which knows no shapes.
        if not callable(draw) or isinstance(getattr(draw, "__self__", None), random.Random):
            expected = "None or a numpy Generator, or what has random(shape) like it"
            got = describe_value(training.generator)
            findings.add("training.generator", expected, got, Fault.TYPE)
    for name in ("dropout", "momentum"):
        share = findings.check_real(f"training.{name}", getattr(training, name))
        if not 0 <= share <= 1 or (name == "dropout" and share == 1):
            findings.add(f"training.{name}", "a share, dropout below 1", str(share))


def _check_traced(findings: Findings, training: Training) -> None:
    """Refuse numbers that a trace would keep, so that the same channels are dropped ever after."""
    if isinstance(training.generator, np.random.Generator | np.random.RandomState):
        expected = "what draws while JAX traces: a key, given to crisscross.jax.rcca_head"
        findings.add("training.generator", expected, "a generator of NumPy", Fault.TYPE)


def _apply(unit: _Unit, x: Any, details: _Details) -> Any:
    """Convolve, normalise and activate."""
    axis, tape = details.channel_axis, details.tape
    x = convolve(x, unit.weight, axis, tape)
    if details.norm == "batch" and details.training is None:
        mean, variance = unit.norm["running_mean"], unit.norm["running_var"]
        x = normalise(x, mean, variance, details.epsilon, axis, tape)
    elif details.norm is not None:
        groups = details.groups if details.norm == "group" else None
        x, mean, variance = standardise(x, groups, details.epsilon, axis, tape)
        if details.training is not None and groups is None:
            _follow(unit, mean, variance, x, details)
    if details.norm is not None:
        x = shift_and_scale(x, unit.norm["weight"], unit.norm["bias"], axis, tape)
    return x if unit.slope is None else rectify(x, unit.slope, tape)


def _follow(unit: _Unit, mean: Any, variance: Any, x: Any, details: _Details) -> None:
    """Move the running statistics towards those of a batch; the variance without bias."""
    assert details.training is not None
    share = details.training.momentum
    count = np.prod(
        [size for axis, size in enumerate(x.shape) if axis != details.channel_axis % x.ndim]
    )
    unbiased = variance * (float(count) / max(float(count) - 1, 1))
    for part, new in (("running_mean", mean), ("running_var", unbiased)):
        old = unit.norm[part]
        moved = (1 - share) * widen(old) + share * new
        details.statistics[f"{unit.name}.1.{part}"] = cast(moved, old.dtype)


def _draw_kept(training: Training, x: Any, channel_axis: int) -> Any:
    """Draw, for each image, which channels are kept: 0, or what makes up for those dropped."""
    assert training.generator is not None
    drawn = training.generator.random((x.shape[0], x.shape[channel_axis]))
    kept = (drawn >= training.dropout) / (1 - training.dropout)
    return cast(place(kept, x), x.dtype)
