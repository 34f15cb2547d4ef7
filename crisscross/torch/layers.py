"""What the modules are made of, and what they check."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crisscross.errors import Fault
from crisscross.ops.backends import check_backend
from crisscross.problem import Findings
from crisscross.problem.findings import COMPUTE_DTYPES, format_shape

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DROPOUTS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
_DTYPES = tuple(getattr(torch, name) for name in COMPUTE_DTYPES)


def check_ndim(findings: Findings, spatial_ndim: object) -> int | None:
    ndim = findings.check_integer("spatial_ndim", spatial_ndim)
    if ndim is not None and ndim not in CONVOLUTIONS:
        findings.add("spatial_ndim", "1, 2 or 3, as PyTorch's convolutions", str(ndim))
        return None
    return ndim


def check_where(findings: Findings, precision: object, backend: object) -> None:
    findings.check_precision(precision)
    check_backend(findings, backend)


def check_attention(
    findings: Findings,
    channels: int | None,
    reduction: object,
    recurrence: object,
    shared: object,
    scale: object,
    heads: object,
    axes: object,
    spatial_ndim: object,
) -> tuple[int, ...] | None:
    """Report what does not fit, and return the axes."""
    ratio = findings.check_count("reduction", reduction)
    findings.check_count("recurrence", recurrence, 0)
    findings.check_flag("shared", shared)
    findings.check_scale(scale, None)
    count = findings.check_heads(heads)
    if channels is not None and ratio is not None and count is not None:
        for size in (max(channels // ratio, 1), channels):
            if size % count:
                expected = f"a divisor of {size}, the channels of queries or values"
                findings.add("heads", expected, str(count))
                break
    return findings.check_axes(axes, check_ndim(findings, spatial_ndim))


def check_input(
    function: str, x: object, spatial_ndim: int, first: nn.Module | None, pairs: object = None
) -> None:
    """Refuse what does not fit `first`, the convolution that x goes to, all of it at once.

    An image without a batch too, whose channels would be taken for images. Who puts a module of
    another kind there answers for its channels; and for dtypes, autocast has a say.
    """
    findings = Findings(function)
    if isinstance(x, Tensor):
        # While torch.jit traces, a size is a tensor: to compare it would be to fix it.
        is_traced = not torch.compiler.is_compiling() and torch._C._is_tracing()
        channels = None if is_traced else getattr(first, "in_channels", None)
        fits = x.ndim == spatial_ndim + 2
        if not fits or (channels is not None and x.shape[1] != channels):
            sizes = ", ".join("DHW"[-spatial_ndim:])
            expected = f"(N, {'C' if channels is None else channels}, {sizes})"
            # Numbers, for a compiler does not write symbols.
            findings.add("x.shape", expected, format_shape(map(operator.index, x.shape)))
        if x.dtype not in _DTYPES:
            got = str(x.dtype).removeprefix("torch.")
            findings.add("x.dtype", f"one of {', '.join(COMPUTE_DTYPES)}", got, Fault.TYPE)
    else:
        findings.add("x", "a tensor", type(x).__name__, Fault.TYPE)
    if pairs is not None and not isinstance(pairs, list):
        findings.add("pairs", "None or a list", type(pairs).__name__, Fault.TYPE)
    if torch.compiler.is_dynamo_compiling() and findings.mismatches:
        # Within an error of the compiler's, which does not follow how ours are made.
        raise ValueError("; ".join([str(mismatch) for mismatch in findings.mismatches]))
    findings.raise_if_any()


def add_projections(module: nn.Module, channels: int, inner: int, spatial_ndim: int) -> None:
    for name, outputs in (("query", inner), ("key", inner), ("value", channels)):
        module.add_module(f"{name}_conv", CONVOLUTIONS[spatial_ndim](channels, outputs, 1))
    module.register_parameter("gamma", nn.Parameter(torch.zeros(1)))


def project(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make q, k and v of x."""
    children: Any = module
    return children.query_conv(x), children.key_conv(x), children.value_conv(x)


def add_scaled(module: nn.Module, attended: Tensor, x: Tensor) -> Tensor:
    parameters: Any = module
    result: Tensor = x + parameters.gamma * attended  # in this order: the layout is that of x
    return result


def rectify(x: Tensor, slope: float | None) -> Tensor:
    if slope is None:
        return x
    # Leaky ReLU without a slope would make NaN of -inf.
    return functional.leaky_relu(x, slope) if slope else functional.relu(x)
