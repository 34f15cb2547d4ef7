"""The operations as plain PyTorch: with every derivative, and with the map in memory.

What the derivatives of derivatives are made of, and what is traced where function transforms and
compilation meet. Sums of 16-bit numbers are those of float32, as everywhere; under autocast those
of float64, which is what autocast leaves alone: it would round what is multiplied, and what PyTorch
multiplies to differentiate it, after the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    *,
    scale: float,
    heads: int,
    axes: Sequence[int] | None,
    include_self: bool,
    channel_axis: int,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return out and lse."""
    spatial_axes = _list_axes(axes, q.ndim - 2)
    q_, k_, v_ = (_split(_widen(x), heads, channel_axis) for x in (q, k, v))
    k_, v_ = _hide(k_, key_mask), _hide(v_, key_mask)
    energies = [
        _find_energies(q_, k_, key_mask, scale, axis, include_self and number == 0)
        for number, axis in enumerate(spatial_axes)
    ]
    if 0 in q.shape[1:]:  # there is no largest of nothing
        return v * 1.0, _narrow(q_.sum(-1), q)
    peaks = [_back(e.amax(-1), axis) for e, axis in zip(energies, spatial_axes, strict=True)]
    peak = torch.stack(peaks).amax(0).detach()
    peak = torch.where(torch.isneginf(peak), 0.0, peak)
    total, out = torch.zeros_like(peak), torch.zeros_like(v_)
    for energy, axis in zip(energies, spatial_axes, strict=True):
        weights = (energy - _to_strips(peak, axis)[..., None]).exp()
        total = total + _back(weights.sum(-1), axis)
        out = out + _back(weights @ _to_rows(v_, axis), axis, -2)
    has_keys = total > 0
    # Where there are none, the derivative of what is not chosen is to be a number too.
    safe = torch.where(has_keys | total.isnan(), total, 1.0)
    lse = torch.where(has_keys | total.isnan(), peak + safe.log(), -torch.inf)
    return _lay_out(_join(out / safe[..., None], channel_axis).to(v.dtype), v), _narrow(lse, q)


def _attend_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    key_mask: Tensor | None,
    *,
    scale: float,
    heads: int,
    axes: Sequence[int] | None,
    include_self: bool,
    channel_axis: int,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk and dv, as functions of all that is given: of out and lse, too."""
    wide = (_widen(x) for x in (q, k, v, out, dout))
    q_, k_, v_, out_, dout_ = (_split(x, heads, channel_axis) for x in wide)
    k_, v_ = _hide(k_, key_mask), _hide(v_, key_mask)
    # What saw no key adds nothing, whatever its gradients are: NaN, as of the square of -inf.
    has_keys = ~torch.isneginf(lse)
    dout_ = torch.where(has_keys[..., None], dout_, 0.0)
    delta = (dout_ * out_).sum(-1)
    if dlse is not None:
        delta = delta - torch.where(has_keys, dlse, 0.0)
    dq, dk, dv = torch.zeros_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
    lse = torch.where(torch.isneginf(lse), 0.0, lse)
    for number, axis in enumerate(_list_axes(axes, q.ndim - 2)):
        includes_self = include_self and number == 0
        energies = _find_energies(q_, k_, key_mask, scale, axis, includes_self)
        weights = (energies - _to_strips(lse, axis)[..., None]).exp()
        rows = [_to_rows(x, axis) for x in (q_, k_, v_, dout_)]
        dweights = rows[3] @ rows[2].mT
        denergies = scale * weights * (dweights - _to_strips(delta, axis)[..., None])
        dq = dq + _back(denergies @ rows[1], axis, -2)
        dk = dk + _back(denergies.mT @ rows[0], axis, -2)
        dv = dv + _back(weights.mT @ rows[3], axis, -2)
    dk, dv = _hide(dk, key_mask), _hide(dv, key_mask)
    dq, dk, dv = (_join(x, channel_axis) for x in (dq, dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def criss_cross_attention(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = _attend(*tensors, include_self=True, **options)
    return out, lse


def axial_attention(*tensors: Any, axis: int, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = _attend(*tensors, axes=[axis], **options)
    return out, lse


def criss_cross_attention_backward(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _attend_backward(*tensors, include_self=True, **options)
    return dq, dk, dv


def axial_attention_backward(
    *tensors: Any, axis: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _attend_backward(*tensors, axes=[axis], **options)
    return dq, dk, dv


def merge_attentions(
    outs: Sequence[Tensor], lses: Sequence[Tensor], channel_axis: int
) -> tuple[Tensor, Tensor]:
    """Return out and lse of the union of disjoint sets of keys."""
    peak = torch.stack(list(lses)).amax(0).detach()
    peak = torch.where(torch.isneginf(peak), 0.0, peak)
    shares = [(lse - peak).exp() for lse in lses]
    total = torch.stack(shares).sum(0)
    has_keys = (total > 0) | total.isnan()
    safe = torch.where(has_keys, total, 1.0)
    heads = lses[0].shape[1]
    # A part without any key has no share, whatever it holds.
    weighted = [
        torch.where((share == 0)[..., None], 0.0, _split(_narrow(part, part), heads, channel_axis))
        * (share / safe)[..., None]
        for part, share in zip(outs, shares, strict=True)
    ]
    out = torch.stack(weighted).sum(0)
    lse = torch.where(has_keys, peak + safe.log(), -torch.inf)
    return _lay_out(_join(out, channel_axis).to(outs[0].dtype), outs[0]), lse


def ca_weight(q: Tensor, k: Tensor, **_: Any) -> Tensor:
    wide_q, wide_k = _widen(q), _widen(k)
    row = torch.einsum("ncyx,ncyi->niyx", wide_q, wide_k)
    column = torch.einsum("ncyx,ncjx->njyx", wide_q, wide_k)
    return _narrow(torch.cat([row, _drop_self(column)], 1), q)


def ca_weight_backward(denergy: Tensor, q: Tensor, k: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    row, column = _take_apart(denergy)
    wide_q, wide_k = _widen(q), _widen(k)
    dq = _sum_keys(row, column, wide_k)
    return dq.to(q.dtype), _sum_queries(row, column, wide_q).to(k.dtype)


def ca_softmax(energy: Tensor, **_: Any) -> Tensor:
    return energy.softmax(1)


def ca_softmax_backward(dattention: Tensor, attention: Tensor, **_: Any) -> Tensor:
    return attention * (dattention - (dattention * attention).sum(1, keepdim=True))


def ca_map(attention: Tensor, v: Tensor, **_: Any) -> Tensor:
    return _lay_out(_sum_keys(*_take_apart(attention), _widen(v)).to(v.dtype), v)


def ca_map_backward(dout: Tensor, attention: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    dv = _sum_queries(*_take_apart(attention), _widen(dout)).to(v.dtype)
    return ca_weight(dout, v), dv


def to_port_layout(weights: Tensor, *, self_value: float, **_: Any) -> Tensor:
    height, width = weights.shape[2:]
    row, column = torch.split(weights, [width, height - 1], 1)
    whole = _insert_self(column, height, self_value)
    return torch.cat([whole, row], 1).permute(0, 2, 3, 1)


def from_port_layout(ported: Tensor, **_: Any) -> Tensor:
    height = ported.shape[1]
    column, row = torch.split(ported.permute(0, 3, 1, 2), [height, ported.shape[2]], 1)
    return torch.cat([row, _drop_self(column)], 1)


def _widen(x: Tensor) -> Tensor:
    return x.double() if torch.is_autocast_enabled(x.device.type) else _narrow(x, x)


def _narrow(x: Tensor, like: Tensor) -> Tensor:
    """Make x what the operators compute in."""
    return x.double() if like.dtype is torch.float64 else x.float()


def _lay_out(x: Tensor, like: Tensor) -> Tensor:
    """Put x in memory in the order of `like`, as operators do; compilers do not sort strides."""
    if torch.onnx.is_in_onnx_export():
        return x
    for source, target in ((1, 1), (1, -1), (-1, 1)):
        if like.movedim(source, target).is_contiguous():
            return x.movedim(source, target).contiguous().movedim(target, source)
    return x


# Attention: (N, heads, *S, D)


def _split(x: Tensor, heads: int, channel_axis: int) -> Tensor:
    channels_last = x.movedim(channel_axis, -1)
    # A size in place of -1: without any element that would be no number.
    head_size = x.shape[channel_axis] // heads
    return channels_last.reshape(*channels_last.shape[:-1], heads, head_size).movedim(-2, 1)


def _join(x: Tensor, channel_axis: int) -> Tensor:
    return x.movedim(1, -2).flatten(-2).movedim(-1, channel_axis)


def _list_axes(axes: Sequence[int] | None, spatial_ndim: int) -> list[int]:
    if axes is None:
        return list(range(spatial_ndim))
    return sorted(axis % spatial_ndim for axis in axes)


def _hide(x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Put zeros for keys that take no part: whatever is there is not to be multiplied by zero."""
    return x if key_mask is None else torch.where(key_mask[:, None, ..., None], x, 0.0)


def _to_rows(x: Tensor, axis: int) -> Tensor:
    """View the strips along a spatial axis as matrices: (N, heads, others, L, D)."""
    return x.movedim(2 + axis, -2)


def _to_strips(x: Tensor, axis: int) -> Tensor:
    """View one number a position by strips: (N, heads, others, L)."""
    return x.movedim(2 + axis, -1)


def _back(x: Tensor, axis: int, last: int = -1) -> Tensor:
    return x.movedim(last, 2 + axis)


def _find_energies(
    q: Tensor, k: Tensor, key_mask: Tensor | None, scale: float, axis: int, includes_self: bool
) -> Tensor:
    """Return (N, heads, others, L, L), -inf for what is no key."""
    energies = scale * (_to_rows(q, axis) @ _to_rows(k, axis).mT)
    length = energies.shape[-1]
    if not includes_self:
        number = torch.arange(length, device=q.device)
        energies = torch.where(number[:, None] == number, -torch.inf, energies)
    if key_mask is not None:
        keys = key_mask.movedim(1 + axis, -1)[:, None, ..., None, :]
        energies = torch.where(keys, energies, -torch.inf)
    return energies


# CCNet's maps: (N, W + H - 1, H, W), the row of each pixel, and its column without itself


def _list_others(height: int, device: torch.device) -> Tensor:
    """Return (H - 1, H): the rows that are not y, from the top."""
    number = torch.arange(height - 1, device=device)[:, None]
    y = torch.arange(height, device=device)
    return number + (number >= y)


def _drop_self(column: Tensor) -> Tensor:
    """Take (N, H, H, W), by key and pixel, to (N, H - 1, H, W)."""
    n, height, _, width = column.shape
    others = _list_others(height, column.device)[None, :, :, None]
    return column.gather(1, others.expand(n, -1, -1, width))


def _insert_self(column: Tensor, height: int, value: float) -> Tensor:
    n, _, _, width = column.shape
    others = _list_others(height, column.device)[None, :, :, None].expand(n, -1, -1, width)
    empty = torch.full((n, height, height, width), value, dtype=column.dtype, device=column.device)
    return empty.scatter(1, others, column)


def _take_apart(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the column, zero at itself."""
    height, width = weights.shape[2:]
    row, column = torch.split(_widen(weights), [width, height - 1], 1)
    return row, _insert_self(column, height, 0.0)


def _sum_keys(row: Tensor, column: Tensor, features: Tensor) -> Tensor:
    along_row = torch.einsum("niyx,ncyi->ncyx", row, features)
    return along_row + torch.einsum("njyx,ncjx->ncyx", column, features)


def _sum_queries(row: Tensor, column: Tensor, features: Tensor) -> Tensor:
    along_row = torch.einsum("niyx,ncyx->ncyi", row, features)
    return along_row + torch.einsum("njyx,ncyx->ncjx", column, features)
