"""The functions as operations of a library that differentiates: tensors, options and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_OPTIONAL = ("key_mask", "dlse")


class Operation(NamedTuple):
    """A public function as an operation of a library's own: an operator of PyTorch, say.

    Attributes
    ----------
    name
        Of the function, of the operation, and of what does the same in the library's own words.
    tensors
        Its tensors by name, in order; `key_mask` and `dlse` may be None.
    options
        What else it takes, in order, each with its type in the words of PyTorch's schemas.
    outputs
        What it returns.
    wrt
        The tensors that have gradients.
    gradients
        The function that gives them. It takes tensors, outputs, and gradients of outputs, which
        have a d in front. None where what does the same is differentiated.
    cast
        Tensors that autocast casts.
    method
        The function of a backend that fills the outputs.
    """

    name: str
    tensors: tuple[str, ...]
    options: Mapping[str, str]
    outputs: tuple[str, ...]
    wrt: tuple[str, ...]
    gradients: str | None = None
    cast: tuple[str, ...] = ()
    method: str = ""


def is_optional(name: str) -> bool:
    return name in _OPTIONAL


_ATTENTION = {"scale": "float", "heads": "int", "channel_axis": "int"}
_WHERE = {"precision": "str?", "backend": "str?"}
_CRISS_CROSS = {**_ATTENTION, "axes": "int[]?", **_WHERE}
_AXIAL = {**_ATTENTION, "axis": "int", "include_self": "bool", **_WHERE}
_BACKEND = {"backend": "str?"}


def _describe_attention(name: str, options: Mapping[str, str]) -> tuple[Operation, Operation]:
    """Describe a form of attention, and its backward."""
    qkv = ("q", "k", "v")
    given = ("dout", *qkv, "out", "lse", "dlse")
    backward = f"{name}_backward"
    return (
        Operation(
            name,
            (*qkv, "key_mask"),
            options,
            ("out", "lse"),
            qkv,
            backward,
            qkv,
            method="attention_forward",
        ),
        Operation(
            backward,
            (*given, "key_mask"),
            options,
            ("dq", "dk", "dv"),
            given,
            method="attention_backward",
        ),
    )


def _describe_ccnet(
    name: str,
    tensors: tuple[str, ...],
    output: str,
    backward: tuple[str, ...],
    cast: tuple[str, ...],
) -> tuple[Operation, Operation]:
    """Describe one of CCNet's operators, and its backward, of so many tensors."""
    gradients = tuple(f"d{each}" for each in tensors)
    pull = f"{name}_backward"
    return (
        Operation(name, tensors, _BACKEND, (output,), tensors, pull, cast, method=name),
        Operation(pull, backward, _BACKEND, gradients, backward, method=pull),
    )


OPERATIONS = {
    operation.name: operation
    for operation in (
        *_describe_attention("criss_cross_attention", _CRISS_CROSS),
        *_describe_attention("axial_attention", _AXIAL),
        *_describe_ccnet("ca_weight", ("q", "k"), "energy", ("denergy", "q", "k"), ("q", "k")),
        *_describe_ccnet("ca_softmax", ("energy",), "attention", ("dattention", "attention"), ()),
        *_describe_ccnet("ca_map", ("attention", "v"), "out", ("dout", "attention", "v"), ("v",)),
        Operation(
            "to_port_layout",
            ("weights",),
            {"self_value": "float", **_BACKEND},
            ("ported",),
            ("weights",),
            method="to_port_layout",
        ),
        Operation(
            "from_port_layout",
            ("ported",),
            _BACKEND,
            ("weights",),
            ("ported",),
            method="from_port_layout",
        ),
    )
}
