"""The fused attention problem: one frozen description of what a backend must compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from crisscross.problem.findings import COMPUTE_DTYPES, ArraySpec, Findings, Shape, format_shape


@dataclass(frozen=True)
class AttentionProblem:
    """Attention of every position to a union of strips; sizes may be symbolic.

    Attributes
    ----------
    batch, heads, head_size_qk, head_size_v
        N, heads, D_qk and D_v.
    spatial
        The sizes of the d >= 1 spatial axes, *S.
    axes
        The spatial axes whose strips make up the neighbourhood, ascending, each once.
    include_self
        Whether a position is one of its own keys. It is counted once either way.
    scale
        Factor of the energies.
    channel_axis
        1 for (N, C, *S), -1 for (N, *S, C).
    dtype
        Of q, k, v, out and their gradients: a name of `COMPUTE_DTYPES`.
    precision
        The least a backend must deliver: "ieee", "tf32" or "tf32x3".
    masked
        Whether a key mask comes with the arrays.
    """

    batch: Any
    heads: int
    head_size_qk: Any
    head_size_v: Any
    spatial: Shape
    axes: tuple[int, ...]
    include_self: bool
    scale: float
    channel_axis: int
    dtype: str
    precision: str
    masked: bool

    @property
    def compute_dtype(self) -> str:
        """The dtype of energies, sums and lse."""
        return COMPUTE_DTYPES[self.dtype]

    @property
    def q_shape(self) -> Shape:
        return self._array_shape(self.heads * self.head_size_qk)

    @property
    def v_shape(self) -> Shape:
        return self._array_shape(self.heads * self.head_size_v)

    @property
    def lse_shape(self) -> Shape:
        return (self.batch, self.heads, *self.spatial)

    @property
    def mask_shape(self) -> Shape:
        return (self.batch, *self.spatial)

    def _array_shape(self, channels: Any) -> Shape:
        if self.channel_axis == 1:
            return (self.batch, channels, *self.spatial)
        return (self.batch, *self.spatial, channels)


def split_heads(array: Any, heads: int, channel_axis: int) -> Any:
    """View (N, C, *S) or (N, *S, C) as (N, heads, *S, D), whatever the strides.

    Writing to the view writes to the array: splitting one axis never needs a copy.
    """
    spatial_ndim = array.ndim - 2
    if heads == 1:
        last = array if channel_axis == -1 else array.transpose(_order_channels_last(array.ndim))
        return last[:, None]
    head_size = array.shape[channel_axis] // heads
    if channel_axis == 1:
        split = array.reshape((array.shape[0], heads, head_size, *array.shape[2:]), copy=False)
        return split.transpose(0, 1, *range(3, 3 + spatial_ndim), 2)
    split = array.reshape((*array.shape[:-1], heads, head_size), copy=False)
    return split.transpose(0, spatial_ndim + 1, *range(1, spatial_ndim + 1), spatial_ndim + 2)


@cache
def _order_channels_last(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)


#: Problems made before, by all that went into them: checking a small problem takes as long as
#: solving it.
_known: dict[tuple[Any, ...], AttentionProblem] = {}
_MOST_KNOWN = 256
_PLAIN = {bool, float, int, str, tuple, type(None)}


def attention_problem(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    *,
    scale: object,
    heads: object,
    axes: object,
    one_axis: bool = False,
    include_self: object = True,
    channel_axis: object,
    precision: object,
    remembered: bool = True,
) -> AttentionProblem:
    """Validate one call of the fused operation and describe it.

    `specs` holds q, k and, where they take part, v, key_mask, out, lse, dout and dlse; a value of
    None marks an argument that is no array and has been reported already. Without v, D_v is D_qk.
    With `one_axis`, `axes` is the single integer that the caller knows as `axis`. What is traced is
    not to be `remembered`: a trace would hold only for what is known at the time.

    Raises
    ------
    ArgumentError, ArgumentTypeError, BridgeError
        With every mismatch in `findings`, those found before included.
    """
    options = (scale, heads, axes, one_axis, include_self, channel_axis, precision)
    # What is equal is not the same: True and 1, and with two signs, 0.0.
    listed = (*options, *axes) if type(axes) is tuple else options
    if not remembered or findings.mismatches or not _is_plain(specs, listed) or scale == 0:
        return _check_problem(findings, specs, *options)
    key = (*specs.items(), *listed, *map(type, listed))
    problem = _known.get(key)
    if problem is None:
        problem = _check_problem(findings, specs, *options)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = problem
    return problem


def _is_plain(specs: Mapping[str, ArraySpec | None], options: tuple[object, ...]) -> bool:
    """Whether all can be looked up: symbolic sizes and arrays, for instance, cannot."""
    return _PLAIN.issuperset(map(type, options)) and all(
        spec is not None and {int}.issuperset(map(type, spec.shape)) for spec in specs.values()
    )


def _check_problem(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    scale: object,
    heads: object,
    axes: object,
    one_axis: bool,
    include_self: object,
    channel_axis: object,
    precision: object,
) -> AttentionProblem:
    heads_ = findings.check_heads(heads)
    channel_axis_ = findings.check_channel_axis(channel_axis)
    precision_ = findings.check_precision(precision)
    include_self_ = findings.check_flag("include_self", include_self)
    dtype = findings.check_features(specs, ("q", "k", "v", "out", "dout"))
    compute_dtype = None if dtype is None else COMPUTE_DTYPES[dtype]
    scale_ = findings.check_scale(scale, compute_dtype)
    for name in ("lse", "dlse"):
        if compute_dtype is not None:
            findings.check_dtype(name, specs.get(name), compute_dtype, f"for {dtype} inputs")
    if "key_mask" in specs:
        findings.check_dtype("key_mask", specs["key_mask"], "bool", "(True = takes part as a key)")

    spatial_ndim = _check_shapes(findings, specs, heads_, channel_axis_)
    if one_axis:
        axes_ = findings.check_one_axis(axes, spatial_ndim)
    else:
        axes_ = findings.check_axes(axes, spatial_ndim)
    findings.raise_if_any()

    # Nothing was found, so everything is there; the assertions tell the type checker.
    q, v = specs["q"], specs.get("v", specs["q"])
    assert q is not None and v is not None
    assert heads_ is not None and channel_axis_ is not None and axes_ is not None
    return AttentionProblem(
        batch=q.shape[0],
        heads=heads_,
        head_size_qk=q.shape[channel_axis_] // heads_,
        head_size_v=v.shape[channel_axis_] // heads_,
        spatial=q.shape[2:] if channel_axis_ == 1 else q.shape[1:-1],
        axes=axes_,
        include_self=include_self_,
        scale=scale_,
        channel_axis=channel_axis_,
        dtype=q.dtype,
        precision=precision_,
        masked="key_mask" in specs,
    )


def _check_shapes(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    heads: int | None,
    channel_axis: int | None,
) -> int | None:
    """Hold all shapes to those of the first array that has one; return the number of spatial axes.

    None, where no array tells it.
    """
    named = {name: spec for name, spec in specs.items() if spec is not None}
    layout = "(N, *S, C)" if channel_axis == -1 else "(N, C, *S)"
    for name in ("q", "k", "v"):
        if name in named and named[name].ndim < 3:
            spec = named.pop(name)
            got = f"{spec.ndim} axes: {format_shape(spec.shape)}"
            findings.add(f"{name}.shape", f"at least 3 axes, {layout}", got)
    leaders = [name for name in ("q", "k", "v") if name in named]
    if not leaders:
        return None
    leader = leaders[0]
    axis = 1 if channel_axis is None else channel_axis
    shape = named[leader].shape
    spatial = shape[2:] if axis == 1 else shape[1:-1]
    free: Shape = ("channels", *spatial) if axis == 1 else (*spatial, "channels")

    if leader == "q":
        findings.check_shape("k", named.get("k"), shape, "like q")
    if leader != "v":
        reason = f"like {leader} but for the channels"
        findings.check_shape("v", named.get("v"), (shape[0], *free), reason)
    for name in ("q", "v"):
        if heads is not None and name in named:
            _check_channels(findings, name, named[name], heads, axis)
    for name in ("out", "dout"):
        if "v" in named:
            findings.check_shape(name, named.get(name), named["v"].shape, "like v")
        else:
            findings.check_shape(name, named.get(name), (shape[0], *free), f"like {leader}")
    lse_shape = (shape[0], "heads" if heads is None else heads, *spatial)
    for name in ("lse", "dlse"):
        findings.check_shape(name, named.get(name), lse_shape, "(N, heads, *S)")
    findings.check_shape("key_mask", named.get("key_mask"), (shape[0], *spatial), "(N, *S)")
    return len(spatial)


def _check_channels(
    findings: Findings, name: str, spec: ArraySpec, heads: int, channel_axis: int
) -> None:
    channels = spec.shape[channel_axis]
    if channels < heads or channels % heads != 0:
        expected = f"a positive multiple of heads = {heads}"
        findings.add(f"{name}.shape[{channel_axis}]", expected, str(channels))
