"""Seeded parameters to begin with, by the names of the originals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from crisscross.bridge import numpy_dtype
from crisscross.nn.rcca import NORMS
from crisscross.problem import COMPUTE_DTYPES, Findings

#: Sizes that None stands for a default of.
_MAY_BE_NONE = ("inner", "recurrence")


class _Maker:
    """Draws parameters as PyTorch initialises its convolutions: uniform within 1/sqrt(inputs)."""

    def __init__(
        self,
        function: str,
        sizes: Mapping[str, int | None],
        *,
        seed: int = 0,
        dtype: str,
        spatial_ndim: int = 2,
        gamma: float = 0.0,
        norm: str | None = None,
    ) -> None:
        """Check what `function` was given."""
        findings = Findings(function)
        for name, size in {**sizes, "spatial_ndim": spatial_ndim}.items():
            if size is not None or name not in _MAY_BE_NONE:
                findings.check_count(name, size)
        findings.check_count("seed", seed, 0)
        findings.check_real("gamma", gamma)
        findings.check_choice("norm", norm, NORMS)
        findings.check_choice("dtype", dtype, tuple(COMPUTE_DTYPES))
        findings.raise_if_any()
        self._generator = np.random.default_rng(seed)
        self._dtype = numpy_dtype(dtype)
        self._ndim = spatial_ndim
        self.made: dict[str, np.ndarray] = {}

    def convolution(
        self, name: str, outputs: int, inputs: int, size: int = 1, bias: bool = True
    ) -> None:
        shape = (outputs, inputs, *[size] * self._ndim)
        bound = 1 / math.sqrt(max(inputs * size**self._ndim, 1))
        self.made[f"{name}.weight"] = self._draw(bound, shape)
        if bias:
            self.made[f"{name}.bias"] = self._draw(bound, (outputs,))

    def norm(self, name: str, channels: int, norm: str | None) -> None:
        if norm is not None:
            self.constant(f"{name}.weight", channels, 1)
            self.constant(f"{name}.bias", channels, 0)
        if norm == "batch":
            self.constant(f"{name}.running_mean", channels, 0)
            self.constant(f"{name}.running_var", channels, 1)

    def constant(self, name: str, count: int, value: float) -> None:
        self.made[name] = np.full(count, value, self._dtype)

    def attention(
        self, prefix: str, channels: int, inner: int, recurrence: int | None, gamma: float
    ) -> None:
        """Draw one set of parameters, or one for each recurrence."""
        numbers = [""] if recurrence is None else [f"{number}." for number in range(recurrence)]
        for number in numbers:
            for name, outputs in (("query", inner), ("key", inner), ("value", channels)):
                self.convolution(f"{prefix}{number}{name}_conv", outputs, channels)
            self.constant(f"{prefix}{number}gamma", 1, gamma)

    def _draw(self, bound: float, shape: tuple[int, ...]) -> np.ndarray:
        return self._generator.uniform(-bound, bound, shape).astype(self._dtype)


def init_criss_cross_block(
    channels: int,
    *,
    inner: int | None = None,
    recurrence: int | None = None,
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `criss_cross_block`.

    Parameters
    ----------
    channels : int
        C.
    inner : int, optional
        Channels of queries and keys, C / 8 by default.
    recurrence : int, optional
        How many sets of parameters to draw, one for each recurrence; by default one for all.
    gamma : float
        0 in CCNet: then the block returns its input until it is trained.
    seed : int
        The same parameters each time.
    dtype : str
        float16, bfloat16, float32 or float64.
    spatial_ndim : int
        Number of spatial axes: how many sizes of 1 the weights have.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    ArgumentError, ArgumentTypeError
        Naming every argument that does not fit.
    """
    sizes = {"channels": channels, "inner": inner, "recurrence": recurrence}
    options: dict[str, Any] = {
        "seed": seed,
        "dtype": dtype,
        "spatial_ndim": spatial_ndim,
        "gamma": gamma,
    }
    maker = _Maker("init_criss_cross_block", sizes, **options)
    maker.attention("", channels, find_inner(inner, channels), recurrence, gamma)
    return maker.made


def find_inner(inner: int | None, channels: int) -> int:
    """Return the channels of queries and keys, as in CCNet where nobody says."""
    return max(channels // 8, 1) if inner is None else inner


def init_position_attention_block(
    channels: int,
    *,
    inner: int | None = None,
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `position_attention_block`: as `init_criss_cross_block` does."""
    sizes = {"channels": channels, "inner": inner}
    options: dict[str, Any] = {
        "seed": seed,
        "dtype": dtype,
        "spatial_ndim": spatial_ndim,
        "gamma": gamma,
    }
    maker = _Maker("init_position_attention_block", sizes, **options)
    maker.attention("", channels, find_inner(inner, channels), None, gamma)
    return maker.made


def init_channel_attention_block(
    *, gamma: float = 0.0, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Make the one parameter of `channel_attention_block`."""
    maker = _Maker("init_channel_attention_block", {}, dtype=dtype, gamma=gamma)
    maker.constant("gamma", 1, gamma)
    return maker.made


def init_non_local_block(
    channels: int,
    *,
    inner: int | None = None,
    zero: bool = True,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `non_local_block`.

    Parameters
    ----------
    channels : int
        C.
    inner : int, optional
        Channels of theta, phi and g, C / 2 by default.
    zero : bool
        Whether ``W`` is zero, as in the paper: then the block returns its input until it is
        trained.
    seed, dtype, spatial_ndim
        As for `init_criss_cross_block`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    sizes = {"channels": channels, "inner": inner}
    options: dict[str, Any] = {"seed": seed, "dtype": dtype, "spatial_ndim": spatial_ndim}
    maker = _Maker("init_non_local_block", sizes, **options)
    inner = max(channels // 2, 1) if inner is None else inner
    for name in ("theta", "phi", "g"):
        maker.convolution(name, inner, channels)
    maker.convolution("W", channels, inner)
    if zero:
        for name in ("W.weight", "W.bias"):
            maker.made[name][...] = 0
    return maker.made


def init_rcca_head(
    channels: int = 2048,
    *,
    classes: int,
    inner: int | None = None,
    outer: int = 512,
    recurrence: int | None = None,
    norm: str | None = "batch",
    gamma: float = 0.0,
    seed: int = 0,
    dtype: str = "float32",
    spatial_ndim: int = 2,
) -> dict[str, np.ndarray]:
    """Draw parameters for `rcca_head`.

    Parameters
    ----------
    channels : int
        Of the backbone's features.
    classes : int
        Of the logits.
    inner : int, optional
        Channels of the attention, ``channels / 4`` by default; queries and keys have an eighth.
    outer : int
        Channels of the bottleneck.
    recurrence : int, optional
        How many sets of parameters of ``cca`` to draw; by default one for all recurrences.
    norm : {"batch", "group", None}
        As for `rcca_head`.
    gamma, seed, dtype, spatial_ndim
        As for `init_criss_cross_block`.

    Returns
    -------
    dict of str to numpy.ndarray
    """
    sizes = {"channels": channels, "classes": classes, "inner": inner, "outer": outer}
    sizes |= {"recurrence": recurrence}
    options: dict[str, Any] = {
        "seed": seed,
        "dtype": dtype,
        "spatial_ndim": spatial_ndim,
        "gamma": gamma,
    }
    maker = _Maker("init_rcca_head", sizes, norm=norm, **options)
    inner = max(channels // 4, 1) if inner is None else inner
    for name, outputs, inputs in (
        ("conva", inner, channels),
        ("convb", inner, inner),
        ("bottleneck", outer, channels + inner),
    ):
        maker.convolution(f"{name}.0", outputs, inputs, size=3, bias=False)
        maker.norm(f"{name}.1", outputs, norm)
    maker.attention("cca.", inner, find_inner(None, inner), recurrence, gamma)
    maker.convolution("bottleneck.3", classes, outer)
    return maker.made
