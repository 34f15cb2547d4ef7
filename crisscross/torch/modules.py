"""CCNet's attention module and its head, by the names that their checkpoints have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crisscross.nn.attending import attend
from crisscross.nn.criss_cross import Pairs
from crisscross.nn.rcca import ACTIVATIONS, NORMS, SLOPES
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value
from crisscross.torch.layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    DROPOUTS,
    add_projections,
    add_scaled,
    check_attention,
    check_input,
    check_where,
    project,
    rectify,
)


class CrissCrossAttention(nn.Module):
    """CCNet's attention module, R times: ``x = gamma * attention(q, k, v) + x``.

    State dicts of CCNet's own ``CrissCrossAttention`` load into it; those of mmcv and PaddleSeg by
    `crisscross.nn.from_mmcv` and `from_paddleseg`.

    Parameters
    ----------
    in_dim : int
        Channels of x.
    reduction : int
        Queries and keys have ``in_dim // reduction`` channels, at least one.
    recurrence : int
        R; 2 lets every position see all, 0 returns x.
    shared : bool
        Whether all recurrences have the same parameters; else they are ``0.*``, ``1.*``, ...
    scale, heads, axes, precision, backend
        As for `criss_cross_attention`.
    spatial_ndim : {2, 1, 3}
        Spatial axes of x.

    Examples
    --------
    >>> import torch
    >>> from crisscross.torch import CrissCrossAttention
    >>> module = CrissCrossAttention(64, recurrence=2)
    >>> module(torch.randn(1, 64, 9, 11)).shape
    torch.Size([1, 64, 9, 11])
    """

    def __init__(
        self,
        in_dim: int,
        reduction: int = 8,
        recurrence: int = 1,
        *,
        shared: bool = True,
        scale: float = 1.0,
        heads: int = 1,
        axes: Iterable[int] | None = None,
        spatial_ndim: int = 2,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        findings = Findings("CrissCrossAttention")
        channels = findings.check_count("in_dim", in_dim)
        axes = check_attention(
            findings, channels, reduction, recurrence, shared, scale, heads, axes, spatial_ndim
        )
        check_where(findings, precision, backend)
        findings.raise_if_any()
        self.recurrence, self.shared, self.spatial_ndim = recurrence, shared, spatial_ndim
        self.options: dict[str, Any] = {"scale": scale, "heads": heads, "axes": axes}
        self.options |= {"channel_axis": 1, "precision": precision, "backend": backend}
        if shared:
            add_projections(self, in_dim, max(in_dim // reduction, 1), spatial_ndim)
        else:
            for number in range(recurrence):
                step = nn.Module()
                add_projections(step, in_dim, max(in_dim // reduction, 1), spatial_ndim)
                self.add_module(str(number), step)

    def forward(
        self, x: Tensor, key_mask: Tensor | None = None, *, pairs: Pairs | None = None
    ) -> Tensor:
        """Return what x becomes; `key_mask`, (N, \\*S), is True for what may be attended to.

        q and k of each recurrence are appended to `pairs`, for `compose_attention`.
        """
        options = {**self.options, "key_mask": key_mask}
        modules = [
            self if self.shared else self.get_submodule(str(number))
            for number in range(self.recurrence)
        ]
        first = modules[0].get_submodule("query_conv") if modules else None
        check_input(type(self).__name__, x, self.spatial_ndim, first, pairs)
        for module in modules:
            q, k, v = project(module, x)
            if pairs is not None:
                pairs.append((q, k))
            x = add_scaled(module, attend(q, k, v, options, None), x)
        return x

    def extra_repr(self) -> str:
        return f"recurrence={self.recurrence}, heads={self.options['heads']}"


class RCCA(nn.Module):
    """CCNet's head without its backbone: convolutions around the attention, and a classifier.

    Its parameters have the names of CCNet's ``RCCAModule``: `crisscross.nn.from_ccnet`, `from_mmcv`
    and `from_paddleseg` give such state dicts.

    Parameters
    ----------
    in_channels, out_channels, num_classes : int
        Channels of the backbone's features, of the bottleneck, and of the logits.
    inner : int, optional
        Channels of the attention, ``in_channels // 4`` by default.
    recurrence : int
        R of the attention.
    norm : {"batch", "group", None}
        Behind each convolution of size 3.
    groups : int
        Of "group".
    activation, last_activation : {"leaky_relu", "relu", None}
        Behind each norm, and behind that of the bottleneck, where it differs: PaddleSeg's is
        "relu". "leaky_relu" has the slope of CCNet's checkpoints, 0.01.
    dropout : float
        The share of channels that are dropped before the classifier while training.
    spatial_ndim : {2, 1, 3}
        Spatial axes of x.
    reduction, shared, scale, heads, axes, precision, backend
        As for `CrissCrossAttention`.

    Examples
    --------
    >>> import torch
    >>> from crisscross.torch import RCCA
    >>> head = RCCA(64, 32, num_classes=19)
    >>> head(torch.randn(2, 64, 9, 11)).shape
    torch.Size([2, 19, 9, 11])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int,
        *,
        inner: int | None = None,
        recurrence: int = 2,
        norm: str | None = "batch",
        groups: int = 32,
        activation: str | None = "leaky_relu",
        last_activation: str | None = "same",
        dropout: float = 0.1,
        spatial_ndim: int = 2,
        reduction: int = 8,
        shared: bool = True,
        scale: float = 1.0,
        heads: int = 1,
        axes: Iterable[int] | None = None,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        findings = Findings("RCCA")
        channels = findings.check_count("in_channels", in_channels)
        outputs = findings.check_count("out_channels", out_channels)
        findings.check_count("num_classes", num_classes)
        if inner is None:
            width = None if channels is None else max(channels // 4, 1)
        else:
            width = findings.check_count("inner", inner)
        count = findings.check_count("groups", groups)
        if norm == "group" and count is not None:
            for name, size in {"inner": width, "out_channels": outputs}.items():
                if size is not None and size % count:
                    findings.add("groups", f"a divisor of {name} = {size}", str(count))
                    break
        reported = len(findings.mismatches)
        share = findings.check_real("dropout", dropout)
        if len(findings.mismatches) == reported and not 0 <= share <= 1:
            findings.add("dropout", "a share", describe_value(dropout))
        axes = check_attention(
            findings, width, reduction, recurrence, shared, scale, heads, axes, spatial_ndim
        )
        check_where(findings, precision, backend)
        findings.check_choice("norm", norm, NORMS)
        findings.check_choice("activation", activation, ACTIVATIONS)
        if last_activation != "same":
            findings.check_choice("last_activation", last_activation, ACTIVATIONS)
        findings.raise_if_any()
        inner = max(in_channels // 4, 1) if inner is None else inner
        self.spatial_ndim = spatial_ndim
        last = activation if last_activation == "same" else last_activation
        self.slope = SLOPES[activation]

        def convolve(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = CONVOLUTIONS[spatial_ndim](inputs, outputs, 3, padding=1, bias=False)
            if norm == "batch":
                return [convolution, BATCH_NORMS[spatial_ndim](outputs)]
            return [convolution, nn.GroupNorm(groups, outputs) if norm else nn.Identity()]

        self.conva = nn.Sequential(*convolve(in_channels, inner))
        self.cca = CrissCrossAttention(
            inner,
            reduction,
            recurrence,
            shared=shared,
            scale=scale,
            heads=heads,
            axes=axes,
            spatial_ndim=spatial_ndim,
            precision=precision,
            backend=backend,
        )
        self.convb = nn.Sequential(*convolve(inner, inner))
        self.bottleneck = _Bottleneck(
            *convolve(in_channels + inner, out_channels),
            DROPOUTS[spatial_ndim](dropout),
            CONVOLUTIONS[spatial_ndim](out_channels, num_classes, 1),
        )
        self.bottleneck.slope = SLOPES[last]

    def forward(self, x: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return logits; q and k of each recurrence are appended to `pairs`."""
        check_input(type(self).__name__, x, self.spatial_ndim, self.conva[0], pairs)
        features = rectify(self.conva(x), self.slope)
        features = rectify(self.convb(self.cca(features, pairs=pairs)), self.slope)
        logits: Tensor = self.bottleneck(torch.cat([x, features], 1))
        return logits


class _Bottleneck(nn.Sequential):
    """CCNet's, whose activation is a part of its norm and has no place of its own."""

    slope: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, module in enumerate(self):
            x = module(x)
            if number == 1:
                x = rectify(x, self.slope)
        return x
