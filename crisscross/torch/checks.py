"""Arguments of a call by plain PyTorch, which would make something of wrong ones too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crisscross.ops.call import Call
from crisscross.problem import attention_problem, features_problem, map_problem
from crisscross.torch.operations import Operation, is_optional

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


def check(operation: Operation, values: Mapping[str, Any]) -> None:
    """Raise what the function itself would raise for these arguments."""
    required = {name: values[name] for name in operation.tensors if not is_optional(name)}
    optional = {name: values[name] for name in operation.tensors if is_optional(name)}
    call = Call(operation.name, values["backend"], required, optional, shares=False)
    if operation.name in _CCNET:
        features, maps = _CCNET[operation.name]
        if features:
            features_problem(call.findings, call.specs, features=features, maps=maps)
        else:
            is_port = operation.name == "from_port_layout"
            map_problem(call.findings, call.specs, maps=maps, ports=is_port)
        return
    is_axial = "axis" in operation.options
    attention_problem(
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
