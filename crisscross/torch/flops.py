"""What the operators cost, for `torch.utils.flop_counter.FlopCounterMode`.

Counted as PyTorch counts its own: two for a multiplication and an addition, of the products alone,
what a mask hides included, and in a backward of attention the energies, which it computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import crisscross.torch.operators  # noqa: F401  (what is counted)
from crisscross.ops.operations import OPERATIONS, Operation

#: Arguments of a call by name, tensors as shapes.
Values = Mapping[str, Any]


def _count_pairs(values: Values) -> int:
    """Count queries with each of their keys, which are those of the strips, each once."""
    shape = values["q"]
    sizes = shape[2:] if values["channel_axis"] == 1 else shape[1:-1]
    if "axis" in values:
        lengths, includes_self = [sizes[values["axis"]]], values["include_self"]
    else:
        axes = values["axes"]
        lengths = sizes if axes is None else [sizes[axis] for axis in axes]
        includes_self = True
    keys = sum(lengths) - len(lengths) + includes_self
    return int(shape[0] * prod(sizes) * keys)


def _count_attention(values: Values, _: Any) -> int:
    """Energies, and what is summed with their weights."""
    of_qk, of_v = (values[name][values["channel_axis"]] for name in "qv")
    return int(2 * _count_pairs(values) * (of_qk + of_v))


def _count_attention_backward(values: Values, _: Any) -> int:
    """Energies, dq and dk; the gradients of the weights, and dv."""
    of_qk, of_v = (values[name][values["channel_axis"]] for name in "qv")
    return int(2 * _count_pairs(values) * (3 * of_qk + 2 * of_v))


def _count_ca_weight(values: Values, energy: Any) -> int:
    return int(2 * prod(energy) * values["q"][1])


def _count_ca_map(values: Values, _: Any) -> int:
    return int(2 * prod(values["attention"]) * values["v"][1])


def _count_ca_weight_backward(values: Values, _: Any) -> int:
    return 2 * _count_ca_weight(values, values["denergy"])


def _count_ca_map_backward(values: Values, outputs: Any) -> int:
    return 2 * _count_ca_map(values, outputs)


_COUNTS: Mapping[str, Callable[[Values, Any], int]] = {
    "criss_cross_attention": _count_attention,
    "criss_cross_attention_backward": _count_attention_backward,
    "axial_attention": _count_attention,
    "axial_attention_backward": _count_attention_backward,
    "ca_weight": _count_ca_weight,
    "ca_weight_backward": _count_ca_weight_backward,
    "ca_map": _count_ca_map,
    "ca_map_backward": _count_ca_map_backward,
}


def _register(operation: Operation, count: Callable[[Values, Any], int]) -> None:
    names = (*operation.tensors, *operation.options)

    def find_flops(*args: Any, out_shape: Any, **given: Any) -> int:
        return count({**dict(zip(names, args, strict=False)), **given}, out_shape)

    register_flop_formula(getattr(torch.ops.crisscross, operation.name))(find_flops)


for _name, _count in _COUNTS.items():
    _register(OPERATIONS[_name], _count)
