"""Calls of public functions on tensors, by the way that their derivatives or a tracer ask for."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crisscross import ops
from crisscross.torch import composite
from crisscross.torch.adapter import find_lasting_obstacle
from crisscross.torch.operations import OPERATIONS, Operation
from crisscross.torch.operators import call_composite, call_function, call_operator


class Route(Enum):
    """How a call is made.

    PLAIN has nothing to differentiate. OPERATOR serves autograd, compilation and export; FUNCTION
    what `torch.func` and forward mode do; COMPOSITE both at once, for the compiler would leave
    derivatives of a FUNCTION out. REFUSED goes to who names what is wrong.
    """

    PLAIN = auto()
    OPERATOR = auto()
    FUNCTION = auto()
    COMPOSITE = auto()
    REFUSED = auto()


def find_route(tensors: Sequence[Tensor]) -> Route:
    """Say how to call with these tensors. All questions to PyTorch's private API are asked here."""
    transforms = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch.onnx.is_in_onnx_export():
        return Route.COMPOSITE
    if torch.compiler.is_compiling():
        return Route.COMPOSITE if transforms else Route.OPERATOR
    if transforms:
        return Route.FUNCTION
    if any(find_lasting_obstacle(x) is not None for x in tensors):
        return Route.REFUSED
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return Route.OPERATOR
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return Route.OPERATOR
    # An operator resolves a lazy sign, and knows of tensors without memory and of subclasses.
    plain = (Tensor, torch.nn.Parameter)
    if any(type(x) not in plain or x.is_neg() or x.is_conj() for x in tensors):
        return Route.OPERATOR
    return Route.PLAIN


_SIGNATURES = {name: inspect.signature(getattr(ops, name)).parameters for name in OPERATIONS}
_DEFAULTS = {
    name: {each.name: each.default for each in parameters.values()}
    for name, parameters in _SIGNATURES.items()
}
_POSITIONAL = {
    name: [each.name for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    for name, parameters in _SIGNATURES.items()
}
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "scale": float,
    "self_value": float,
    "heads": operator.index,
    "axis": operator.index,
    "channel_axis": operator.index,
    "axes": lambda axes: None if axes is None else [operator.index(axis) for axis in axes],
}


def call(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Call a public function of that kind; `function` itself knows plain arrays alone."""
    name = function.__name__
    if name == "merge_attentions":
        return _merge(function, args, given)
    operation = OPERATIONS[name]
    values = {**_DEFAULTS[name], **dict(zip(_POSITIONAL[name], args, strict=False)), **given}
    tensors = [values[each] for each in operation.tensors]
    known = [x for x in tensors if isinstance(x, Tensor)]
    missing = sum(x is None for each, x in zip(operation.tensors, tensors, strict=True))
    fits = len(known) + missing == len(tensors) and values.keys() == _DEFAULTS[name].keys()
    options = _convert(operation, values) if fits else None
    route = Route.REFUSED if options is None else find_route(known)
    if options is None or route is Route.REFUSED:
        # It is wrong, and names what is; derivatives are none of it.
        return function(*map(_detach, args), **{each: _detach(x) for each, x in given.items()})
    tensors = _cast(operation, tensors, known[0])
    if route is Route.PLAIN:
        values.update(zip(operation.tensors, tensors, strict=True))
        return function(**values)
    if route is Route.COMPOSITE:
        results = call_composite(operation, *tensors, *options)
        result: Any = results if len(results) > 1 else results[0]
    else:
        run = call_function if route is Route.FUNCTION else call_operator
        result = run(operation, *tensors, *options)
    if "lse" in operation.outputs and not values["return_lse"]:
        return result[0]
    return result


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _convert(operation: Operation, values: Mapping[str, Any]) -> list[Any] | None:
    """Return the options as the operator wants them; None if one is nothing of that kind."""
    options = []
    for name in operation.options:
        value = values[name]
        convert = _CONVERSIONS.get(name)
        if convert is not None:
            try:
                value = convert(value)
            except (TypeError, ValueError):
                return None
        options.append(value)
    return options


def _cast(operation: Operation, tensors: list[Any], first: Tensor) -> list[Any]:
    """Do as autocast asks: float64 stays."""
    kind = first.device.type
    if not operation.cast or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [
        x.to(dtype) if name in operation.cast and x.dtype is not torch.float64 else x
        for name, x in zip(operation.tensors, tensors, strict=True)
    ]


def _merge(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    values = {"channel_axis": 1, **dict(zip(("outs", "lses"), args, strict=False)), **given}
    parts = [*values["outs"], *values["lses"]]
    if not all(isinstance(x, Tensor) for x in parts) or find_route(parts) is Route.PLAIN:
        return function(*args, **given)
    return composite.merge_attentions(values["outs"], values["lses"], values["channel_axis"])
