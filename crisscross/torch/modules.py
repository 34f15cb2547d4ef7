"""CCNet's modules and their relatives, by the names that their checkpoints have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crisscross.nn.attending import attend, attend_channels, attend_to_all, multiply_by_all
from crisscross.nn.rcca import ACTIVATIONS, NORMS, SLOPES
from crisscross.nn.relatives import MODES
from crisscross.problem import Findings

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_DROPOUTS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


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
        findings = Findings(type(self).__name__)
        for name, value in {"in_dim": in_dim, "reduction": reduction, "heads": heads}.items():
            findings.check_count(name, value)
        findings.check_count("recurrence", recurrence, 0)
        _check_ndim(findings, spatial_ndim)
        findings.check_axes(axes, spatial_ndim if spatial_ndim in _CONVOLUTIONS else None)
        findings.raise_if_any()
        axes = None if axes is None else tuple(axes)
        self.recurrence, self.shared = recurrence, shared
        self.options: dict[str, Any] = {"scale": scale, "heads": heads, "axes": axes}
        self.options |= {"channel_axis": 1, "precision": precision, "backend": backend}
        if shared:
            _add_projections(self, in_dim, max(in_dim // reduction, 1), spatial_ndim)
        else:
            for number in range(recurrence):
                step = nn.Module()
                _add_projections(step, in_dim, max(in_dim // reduction, 1), spatial_ndim)
                self.add_module(str(number), step)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return what x becomes; `key_mask`, (N, \\*S), is True for what may be attended to."""
        options = {**self.options, "key_mask": key_mask}
        for number in range(self.recurrence):
            step = self if self.shared else self.get_submodule(str(number))
            x = _add(step, attend(*_project(step, x), options, None), x)
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
    **options
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
        **options: Any,
    ) -> None:
        super().__init__()
        findings = Findings("RCCA")
        sizes = {"in_channels": in_channels, "out_channels": out_channels}
        for name, value in {**sizes, "num_classes": num_classes, "groups": groups}.items():
            findings.check_count(name, value)
        if inner is not None:
            findings.check_count("inner", inner)
        findings.check_choice("norm", norm, NORMS)
        findings.check_choice("activation", activation, ACTIVATIONS)
        if last_activation != "same":
            findings.check_choice("last_activation", last_activation, ACTIVATIONS)
        _check_ndim(findings, spatial_ndim)
        findings.raise_if_any()
        inner = max(in_channels // 4, 1) if inner is None else inner
        last = activation if last_activation == "same" else last_activation
        self.slopes = SLOPES[activation], SLOPES[last]

        def convolve(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = _CONVOLUTIONS[spatial_ndim](inputs, outputs, 3, padding=1, bias=False)
            if norm == "batch":
                return [convolution, _BATCH_NORMS[spatial_ndim](outputs)]
            return [convolution, nn.GroupNorm(groups, outputs) if norm else nn.Identity()]

        self.conva = nn.Sequential(*convolve(in_channels, inner))
        self.cca = CrissCrossAttention(
            inner, recurrence=recurrence, spatial_ndim=spatial_ndim, **options
        )
        self.convb = nn.Sequential(*convolve(inner, inner))
        self.bottleneck = nn.Sequential(
            *convolve(in_channels + inner, out_channels),
            _DROPOUTS[spatial_ndim](dropout),
            _CONVOLUTIONS[spatial_ndim](out_channels, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        slope, last = self.slopes
        features = _rectify(self.conva(x), slope)
        features = _rectify(self.convb(self.cca(features)), slope)
        features = self.bottleneck[:2](torch.cat([x, features], 1))
        logits: Tensor = self.bottleneck[2:](_rectify(features, last))
        return logits


class NonLocalBlock(nn.Module):
    """Every position attends to all: ``x + W(softmax(theta phi^T) g)`` (Wang et al., CVPR 2018).

    Parameters
    ----------
    in_channels : int
        Channels of x.
    inner : int, optional
        Channels of theta, phi and g, half as many by default.
    mode : {"embedded_gaussian", "dot_product"}
        As for `crisscross.nn.non_local_block`.
    scale : float
        Factor of the energies; mmcv's is ``inner ** -0.5``.
    zero : bool
        Whether ``W`` is zero in the beginning, as in the paper.
    spatial_ndim : {2, 1, 3}
        Spatial axes of x.
    precision, backend
        As for `criss_cross_attention`.

    Examples
    --------
    >>> import torch
    >>> from crisscross.torch import NonLocalBlock
    >>> NonLocalBlock(64)(torch.randn(1, 64, 9, 11)).shape
    torch.Size([1, 64, 9, 11])
    """

    def __init__(
        self,
        in_channels: int,
        inner: int | None = None,
        *,
        mode: str = "embedded_gaussian",
        scale: float = 1.0,
        zero: bool = True,
        spatial_ndim: int = 2,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        findings = Findings("NonLocalBlock")
        findings.check_count("in_channels", in_channels)
        if inner is not None:
            findings.check_count("inner", inner)
        findings.check_choice("mode", mode, MODES)
        _check_ndim(findings, spatial_ndim)
        findings.raise_if_any()
        inner = max(in_channels // 2, 1) if inner is None else inner
        self.mode = mode
        self.options: dict[str, Any] = {"scale": scale, "channel_axis": 1}
        self.options |= {"precision": precision, "backend": backend}
        convolution = partial(_CONVOLUTIONS[spatial_ndim], kernel_size=1)
        self.theta = convolution(in_channels, inner)
        self.phi = convolution(in_channels, inner)
        self.g = convolution(in_channels, inner)
        self.W = convolution(inner, in_channels)
        if zero:
            for parameter in self.W.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x), self.phi(x), self.g(x)
        if self.mode == "dot_product":
            attended = multiply_by_all(theta, phi, g, 1, None)
        else:
            attended = attend_to_all(theta, phi, g, self.options, None)
        result: Tensor = x + self.W(attended)
        return result


class PositionAttention(nn.Module):
    """DANet's position attention: every position attends to all (CVPR 2019, section 3.2).

    Parameters
    ----------
    in_dim, reduction, spatial_ndim, precision, backend
        As for `CrissCrossAttention`, whose parameters have the same names.

    Examples
    --------
    >>> import torch
    >>> from crisscross.torch import PositionAttention
    >>> PositionAttention(64)(torch.randn(1, 64, 9, 11)).shape
    torch.Size([1, 64, 9, 11])
    """

    def __init__(
        self,
        in_dim: int,
        reduction: int = 8,
        *,
        spatial_ndim: int = 2,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        findings = Findings("PositionAttention")
        findings.check_count("in_dim", in_dim)
        findings.check_count("reduction", reduction)
        _check_ndim(findings, spatial_ndim)
        findings.raise_if_any()
        self.options = {"channel_axis": 1, "precision": precision, "backend": backend}
        _add_projections(self, in_dim, max(in_dim // reduction, 1), spatial_ndim)

    def forward(self, x: Tensor) -> Tensor:
        return _add(self, attend_to_all(*_project(self, x), self.options, None), x)


class ChannelAttention(nn.Module):
    """DANet's channel attention: channels attend to each other (CVPR 2019, section 3.3).

    Parameters
    ----------
    in_dim : int, optional
        As DANet's module takes it; nothing depends on it.

    Examples
    --------
    >>> import torch
    >>> from crisscross.torch import ChannelAttention
    >>> ChannelAttention()(torch.randn(1, 64, 9, 11)).shape
    torch.Size([1, 64, 9, 11])
    """

    def __init__(self, in_dim: int | None = None) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return _add(self, attend_channels(x, 1, None), x)


def _check_ndim(findings: Findings, spatial_ndim: object) -> None:
    if spatial_ndim not in _CONVOLUTIONS:
        findings.add("spatial_ndim", "1, 2 or 3, as PyTorch's convolutions", str(spatial_ndim))


def _add_projections(module: nn.Module, channels: int, inner: int, spatial_ndim: int) -> None:
    for name, outputs in (("query", inner), ("key", inner), ("value", channels)):
        module.add_module(f"{name}_conv", _CONVOLUTIONS[spatial_ndim](channels, outputs, 1))
    module.register_parameter("gamma", nn.Parameter(torch.zeros(1)))


def _project(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make q, k and v of x."""
    children: Any = module
    return children.query_conv(x), children.key_conv(x), children.value_conv(x)


def _add(module: nn.Module, attended: Tensor, x: Tensor) -> Tensor:
    parameters: Any = module
    result: Tensor = parameters.gamma * attended + x
    return result


def _rectify(x: Tensor, slope: float | None) -> Tensor:
    return x if slope is None else functional.leaky_relu(x, slope)
