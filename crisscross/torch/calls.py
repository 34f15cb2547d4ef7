"""Calls of public functions on tensors, by the way that their derivatives or a tracer ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crisscross.ops.arguments import bind, bind_merge, check, refuse
from crisscross.ops.merge import check_merge
from crisscross.ops.operations import OPERATIONS, Operation
from crisscross.ops.routing import Way
from crisscross.problem import AttentionProblem
from crisscross.torch import composite
from crisscross.torch.adapter import find_lasting_obstacle
from crisscross.torch.operators import call_composite, call_function, call_operator


class Route(Enum):
    """How a call is made.

    PLAIN has nothing to differentiate. OPERATOR serves autograd, compilation and export; FUNCTION
    what `torch.func` and forward mode do; COMPOSITE what neither does: both at once, for the
    compiler would leave derivatives of a FUNCTION out, forward mode within forward mode, and ONNX.
    REFUSED goes to who names what is wrong.
    """

    PLAIN = auto()
    OPERATOR = auto()
    FUNCTION = auto()
    COMPOSITE = auto()
    REFUSED = auto()


_WORDS = {
    Route.PLAIN: "directly: there is nothing to differentiate",
    Route.OPERATOR: "by torch.ops.crisscross: autograd records, or somebody traces",
    Route.FUNCTION: "by a torch.autograd.Function: a transform, or forward mode, is at work",
    Route.COMPOSITE: "in plain PyTorch, which makes the map, and has no backend: two at once of "
    "transforms, compiler and forward mode, or an export to ONNX",
    Route.REFUSED: "refused",
}
_CAST = (torch.float16, torch.bfloat16, torch.float32)


def find_route(tensors: Sequence[Tensor]) -> Route:
    """Say how to call with these tensors. What of it PyTorch keeps private is asked here alone."""
    transforms = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch.onnx.is_in_onnx_export():
        return Route.COMPOSITE
    if torch.compiler.is_compiling():
        return Route.COMPOSITE if transforms else Route.OPERATOR
    if any(find_lasting_obstacle(x) is not None for x in tensors):
        return Route.REFUSED
    if transforms:
        levels = [x.key() for x in torch._C._functorch.get_interpreter_stack() or []]
        functional = levels.count(torch._C._functorch.TransformType.Functionalize)
        if functional:  # which has no rule for a FUNCTION, and asks for none
            return Route.OPERATOR if functional == len(levels) else Route.COMPOSITE
        pushes = levels.count(torch._C._functorch.TransformType.Jvp)
        proxy = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
        is_pushed = pushes > 0 or forward_ad._current_level >= 0
        # A rule for forward mode loses the tangents of outer levels, and is not to be recorded.
        beyond = pushes > 1 or (is_pushed and proxy is not None)
        return Route.COMPOSITE if beyond else Route.FUNCTION
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return Route.OPERATOR
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return Route.OPERATOR
    # An operator resolves a lazy sign, and knows of tensors without memory and of subclasses.
    plain = (Tensor, torch.nn.Parameter)
    if any(type(x) not in plain or x.is_neg() for x in tensors):
        return Route.OPERATOR
    return Route.PLAIN


def call(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Call a public function of that kind; `function` itself knows plain arrays alone."""
    name = function.__name__
    if name == "merge_attentions":
        return _merge(function, args, given)
    operation = OPERATIONS[name]
    if torch.SymFloat in map(type, given.values()):  # a tracer's: options are numbers
        given = {each: float(x) if type(x) is torch.SymFloat else x for each, x in given.items()}
    values = bind(operation, args, given, Tensor)
    if values is None:
        return refuse(function, args, given)
    tensors = [values[each] for each in operation.tensors]
    known = [x for x in tensors if x is not None]
    route = find_route(known)
    if route is Route.REFUSED or not known:
        return refuse(function, args, given)
    tensors = _cast(operation, tensors, known[0])
    options = [values[each] for each in operation.options]
    values.update(zip(operation.tensors, tensors, strict=True))
    if route is Route.PLAIN:
        return _run_plain(function, values)
    if route is Route.COMPOSITE:
        check(operation, values)
        results = call_composite(operation, *tensors, *options)
        result: Any = results if len(results) > 1 else results[0]
    else:
        run = call_function if route is Route.FUNCTION else call_operator
        result = run(operation, *tensors, *options)
    if "lse" in operation.outputs and not values["return_lse"]:
        return result[0]
    return result


def find_way(arrays: Sequence[Any], _: AttentionProblem, __: str | None) -> Way:
    """Say how `criss_cross_attention` would be called with these tensors."""
    return Way(_WORDS[find_route(arrays)])


# The compiler takes function by function where it has given up one that calls us.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run_plain(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return function(**values)


def _cast(operation: Operation, tensors: list[Any], first: Tensor) -> list[Any]:
    """Do as autocast asks: float64 stays, and what is no floating-point number."""
    kind = first.device.type
    if not operation.cast or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [
        x.to(dtype) if name in operation.cast and x.dtype in _CAST else x
        for name, x in zip(operation.tensors, tensors, strict=True)
    ]


def _merge(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    bound = bind_merge(args, given, Tensor)
    if bound is None:
        return refuse(function, args, given)
    values, parts = bound
    route = find_route(parts)
    if route is Route.REFUSED:
        return refuse(function, args, given)
    if route is Route.PLAIN:
        return _run_plain(function, values)
    check_merge(**values, shares=False)
    return composite.merge_attentions(values["outs"], values["lses"], values["channel_axis"])
