"""Arguments of a call that the arrays' library makes: put in order, and checked as ever."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from crisscross.ops import attention, ccnet, merge
from crisscross.ops.call import Call
from crisscross.ops.operations import OPERATIONS, Operation, is_optional
from crisscross.problem import (
    AttentionProblem,
    Findings,
    MapProblem,
    attention_problem,
    features_problem,
    map_problem,
)
from crisscross.problem.findings import describe_value

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    name: getattr(attention, name, None) or getattr(ccnet, name) for name in OPERATIONS
}
_SIGNATURES = {
    each.__name__: inspect.signature(each).parameters
    for each in (*FUNCTIONS.values(), merge.merge_attentions)
}
_DEFAULTS = {
    name: {each.name: each.default for each in parameters.values()}
    for name, parameters in _SIGNATURES.items()
}
_POSITIONAL = {
    name: [each.name for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    for name, parameters in _SIGNATURES.items()
}


def bind(
    operation: Operation, args: tuple[Any, ...], given: Mapping[str, Any], array_type: type
) -> dict[str, Any] | None:
    """Return all arguments by name, options read; None if the function would refuse one unread.

    What they are in themselves is asked here alone: whether arrays fit each other is not.
    """
    values = order(operation.name, args, given)
    if values is None or not isinstance(values.get("return_lse", False), bool):
        return None
    if not all(_may_be(values[each], array_type) for each in operation.tensors):
        return None
    findings = Findings(operation.name)
    for each in operation.options:
        values[each] = _READERS[each](findings, each, values[each])
    return None if findings.mismatches else values


def order(name: str, args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all arguments by name; None if there are more, fewer or others than are to be."""
    positional, defaults = _POSITIONAL[name], _DEFAULTS[name]
    values = {**defaults, **dict(zip(positional, args, strict=False)), **given}
    fits = (
        len(args) <= len(positional)
        and not any(each in given for each in positional[: len(args)])
        and all(each in defaults for each in given)
        and not any(value is inspect.Parameter.empty for value in values.values())
    )
    return values if fits else None


def refuse(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> Any:
    """Raise what is wrong with a call that was not to be made; that it is traced is not."""
    name = function.__name__
    values = order(name, args, given)
    if values is not None and name in OPERATIONS:
        check(OPERATIONS[name], values)
    elif values is not None:
        merge.check_merge(**values, shares=False)
    return function(*args, **given)


def bind_merge(
    args: tuple[Any, ...], given: Mapping[str, Any], array_type: type
) -> tuple[dict[str, Any], list[Any]] | None:
    """Return the arguments of `merge_attentions` by name, and its parts; None as `bind` does."""
    values = order("merge_attentions", args, given)
    lists = [] if values is None else [values["outs"], values["lses"]]
    parts = [x for each in lists if isinstance(each, list | tuple) for x in each]
    if values is None or not parts or not all(isinstance(x, array_type) for x in parts):
        return None
    values["channel_axis"] = _find_number(values["channel_axis"])
    return values, parts


def _may_be(value: Any, array_type: type) -> bool:
    return value is None or isinstance(value, array_type)


def _read_axes(findings: Findings, name: str, axes: Any) -> list[int | None] | None:
    if axes is None:
        return None
    if isinstance(axes, str | bytes | Mapping) or not isinstance(axes, Iterable):
        findings.add(name, "None or a tuple of integers", describe_value(axes))
        return None
    return [_read_integer(findings, name, axis) for axis in axes]


def _read_integer(findings: Findings, name: str, value: Any) -> int | None:
    return findings.check_integer(name, _find_number(value))


def _find_number(value: Any) -> Any:
    """Return the number that a compiler's symbol stands for now: options are no sizes."""
    return operator.index(value) if type(value) is int else value


def _read_word(findings: Findings, name: str, word: Any) -> str | None:
    if word is None or isinstance(word, str):
        return word
    findings.add(name, "None or a word", describe_value(word))
    return None


#: By the checks of the functions themselves, so that what these take is not refused, nor otherwise.
_READERS: Mapping[str, Callable[[Findings, str, Any], Any]] = {
    "scale": Findings.check_real,
    "self_value": Findings.check_real,
    "heads": _read_integer,
    "axis": _read_integer,
    "channel_axis": _read_integer,
    "axes": _read_axes,
    "include_self": Findings.check_flag,
    "precision": _read_word,
    "backend": _read_word,
}

#: Of CCNet's operators: which tensors are features, and which are maps.
_CCNET: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ca_weight": (("q", "k"), ()),
    "ca_weight_backward": (("q", "k"), ("denergy",)),
    "ca_softmax": ((), ("energy",)),
    "ca_softmax_backward": ((), ("attention", "dattention")),
    "ca_map": (("v",), ("attention",)),
    "ca_map_backward": (("v", "dout"), ("attention",)),
    "to_port_layout": ((), ("weights",)),
    "from_port_layout": ((), ("ported",)),
}


def check(operation: Operation, values: Mapping[str, Any]) -> AttentionProblem | MapProblem:
    """Raise what the function itself would raise for these arguments; else describe its problem.

    No memory is asked for: arrays may be such as a library traces.
    """
    required = {name: values[name] for name in operation.tensors if not is_optional(name)}
    optional = {name: values[name] for name in operation.tensors if is_optional(name)}
    call = Call(operation.name, values["backend"], required, optional, shares=False)
    if "return_lse" in values:
        call.findings.check_flag("return_lse", values["return_lse"])
    if operation.name in _CCNET:
        features, maps = _CCNET[operation.name]
        if features:
            return features_problem(call.findings, call.specs, features=features, maps=maps)
        if "self_value" in operation.options:
            number = call.findings.check_real("self_value", values["self_value"])
            spec = call.specs["weights"]
            call.findings.check_holds("self_value", number, None if spec is None else spec.dtype)
        is_port = operation.name == "from_port_layout"
        return map_problem(call.findings, call.specs, maps=maps, ports=is_port)
    is_axial = "axis" in operation.options
    return attention_problem(
        call.findings,
        call.specs,
        scale=values["scale"],
        heads=values["heads"],
        axes=values["axis"] if is_axial else values["axes"],
        one_axis=is_axial,
        include_self=values["include_self"] if is_axial else True,
        channel_axis=values["channel_axis"],
        precision=values["precision"],
        remembered=False,
    )
