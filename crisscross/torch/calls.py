"""Calls of public functions on tensors, by the way that their derivatives or a tracer ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from crisscross import ops
from crisscross.ops.merge import check_merge
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value
from crisscross.torch import composite
from crisscross.torch.adapter import find_lasting_obstacle
from crisscross.torch.checks import check
from crisscross.torch.operations import OPERATIONS, Operation
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
        levels = torch._C._functorch.get_interpreter_stack() or []
        pushes = sum(x.key() == torch._C._functorch.TransformType.Jvp for x in levels)
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


def call(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Call a public function of that kind; `function` itself knows plain arrays alone."""
    name = function.__name__
    if name == "merge_attentions":
        return _merge(function, args, given)
    operation = OPERATIONS[name]
    values = {**_DEFAULTS[name], **dict(zip(_POSITIONAL[name], args, strict=False)), **given}
    tensors = [values[each] for each in operation.tensors]
    known = [x for x in tensors if isinstance(x, Tensor)]
    options = _convert(operation, values) if _fits(name, args, given, tensors) else None
    route = Route.REFUSED if options is None else find_route(known)
    if options is None or route is Route.REFUSED:
        return _refuse(function, args, given)
    tensors = _cast(operation, tensors, known[0])
    if route is Route.PLAIN:
        values.update(zip(operation.tensors, tensors, strict=True))
        values.update(zip(operation.options, options, strict=True))  # iterators have been used up
        return function(**values)
    if route is Route.COMPOSITE:
        check(operation, {**values, **dict(zip(operation.tensors, tensors, strict=True))})
        results = call_composite(operation, *tensors, *options)
        result: Any = results if len(results) > 1 else results[0]
    else:
        run = call_function if route is Route.FUNCTION else call_operator
        result = run(operation, *tensors, *options)
    if "lse" in operation.outputs and not values["return_lse"]:
        return result[0]
    return result


def _fits(
    name: str, args: tuple[Any, ...], given: Mapping[str, Any], tensors: Sequence[Any]
) -> bool:
    """Whether there are no more, no fewer and no other arguments than there are to be."""
    positional = _POSITIONAL[name]
    return (
        len(args) <= len(positional)
        and not any(each in given for each in positional[: len(args)])
        and all(each in _DEFAULTS[name] for each in given)
        and all(x is None or isinstance(x, Tensor) for x in tensors)
        and isinstance(given.get("return_lse", False), bool)
    )


def _refuse(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Let the function name what is wrong: of that derivatives are no part."""
    return function(*map(_make_plain, args), **{each: _make_plain(x) for each, x in given.items()})


def _make_plain(value: Any) -> Any:
    """Take tensors out of autograd; out of a transform their shape must do."""
    if isinstance(value, list | tuple):
        return [_make_plain(each) for each in value]
    if not isinstance(value, Tensor) or find_lasting_obstacle(value) is not None:
        return value
    if not torch._C._functorch.is_functorch_wrapped_tensor(value):
        return value.detach()
    with torch._C._DisableFuncTorch(), FakeTensorMode():
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _convert(operation: Operation, values: Mapping[str, Any]) -> list[Any] | None:
    """Return the options as the operator wants them; None if the function would refuse one."""
    findings = Findings(operation.name)
    options = [_READERS[name](findings, name, values[name]) for name in operation.options]
    return None if findings.mismatches else options


def _read_axes(findings: Findings, name: str, axes: Any) -> list[int | None] | None:
    if axes is None:
        return None
    if isinstance(axes, str | bytes | Mapping) or not isinstance(axes, Iterable):
        findings.add(name, "None or a tuple of integers", describe_value(axes))
        return None
    return [findings.check_integer(name, axis) for axis in axes]


def _read_word(findings: Findings, name: str, word: Any) -> str | None:
    if word is None or isinstance(word, str):
        return word
    findings.add(name, "None or a word", describe_value(word))
    return None


#: By the checks of the functions themselves, so that what these take is not refused, nor otherwise.
_READERS: Mapping[str, Callable[[Findings, str, Any], Any]] = {
    "scale": Findings.check_real,
    "self_value": Findings.check_real,
    "heads": Findings.check_integer,
    "axis": Findings.check_integer,
    "channel_axis": Findings.check_integer,
    "axes": _read_axes,
    "include_self": Findings.check_flag,
    "precision": _read_word,
    "backend": _read_word,
}


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
    signature = {"outs": None, "lses": None, "channel_axis": 1, "backend": None}
    values = {**signature, **dict(zip(signature, args, strict=False)), **given}
    lists = [values[name] for name in ("outs", "lses")]
    fits = len(args) <= 2 and values.keys() == signature.keys()
    if not fits or not all(isinstance(each, list | tuple) for each in lists):
        return function(*args, **given)  # which names it
    parts = [x for each in lists for x in each]
    route = find_route(parts) if all(isinstance(x, Tensor) for x in parts) else Route.REFUSED
    if route is Route.REFUSED:
        return _refuse(function, args, given)
    if route is Route.PLAIN:
        return function(*args, **given)
    check_merge(**values, shares=False)
    return composite.merge_attentions(*lists, values["channel_axis"])
