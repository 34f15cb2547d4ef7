"""Relatives of CCNet's module: Non-local, and DANet's attention over positions and channels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crisscross.nn.attending import attend_channels, attend_to_all, multiply_by_all
from crisscross.nn.relatives import MODES
from crisscross.problem import Findings
from crisscross.torch.layers import (
    CONVOLUTIONS,
    add_projections,
    add_scaled,
    check_input,
    check_ndim,
    check_where,
    project,
)


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
        findings.check_scale(scale, None)
        findings.check_flag("zero", zero)
        check_ndim(findings, spatial_ndim)
        check_where(findings, precision, backend)
        findings.raise_if_any()
        inner = max(in_channels // 2, 1) if inner is None else inner
        self.mode, self.spatial_ndim = mode, spatial_ndim
        self.options: dict[str, Any] = {"scale": scale, "channel_axis": 1}
        self.options |= {"precision": precision, "backend": backend}
        convolution = partial(CONVOLUTIONS[spatial_ndim], kernel_size=1)
        self.theta = convolution(in_channels, inner)
        self.phi = convolution(in_channels, inner)
        self.g = convolution(in_channels, inner)
        self.W = convolution(inner, in_channels)
        if zero:
            for parameter in self.W.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        check_input(type(self).__name__, x, self.spatial_ndim, self.theta)
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
        check_ndim(findings, spatial_ndim)
        check_where(findings, precision, backend)
        findings.raise_if_any()
        self.spatial_ndim = spatial_ndim
        self.options = {"channel_axis": 1, "precision": precision, "backend": backend}
        add_projections(self, in_dim, max(in_dim // reduction, 1), spatial_ndim)

    def forward(self, x: Tensor) -> Tensor:
        check_input(type(self).__name__, x, self.spatial_ndim, self.get_submodule("query_conv"))
        return add_scaled(self, attend_to_all(*project(self, x), self.options, None), x)


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
        findings = Findings("ChannelAttention")
        if in_dim is not None:
            findings.check_count("in_dim", in_dim)
        findings.raise_if_any()
        self.in_dim = in_dim
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return add_scaled(self, attend_channels(x, 1, None), x)
