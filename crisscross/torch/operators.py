"""The operations as operators of PyTorch: kernels, shapes for tracing, and gradients.

And as functions of `torch.autograd`, which are what function transforms and forward-mode
differentiation take; these call the operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crisscross.ops.arguments import FUNCTIONS
from crisscross.ops.operations import OPERATIONS, Operation, is_optional
from crisscross.torch import composite

_library = torch.library.Library("crisscross", "DEF")  # type: ignore[no-untyped-call]


def _write_schema(operation: Operation) -> str:
    tensors = [f"Tensor{'?' * is_optional(name)} {name}" for name in operation.tensors]
    options = [f"{kind} {name}" for name, kind in operation.options.items()]
    returns = ", ".join(["Tensor"] * len(operation.outputs))
    returns = f"({returns})" if len(operation.outputs) > 1 else returns
    return f"{operation.name}({', '.join([*tensors, *options])}) -> {returns}"


def _define(operation: Operation) -> None:
    """Define the operator: CPU and CUDA, and on tensors without memory, by the public function."""
    function: Any = FUNCTIONS[operation.name]
    function = function.__wrapped__
    returns_lse = {"return_lse": True} if "lse" in operation.outputs else {}
    count = len(operation.tensors)

    def run(*inputs: Any) -> Any:
        tensors = [None if x is None else x.detach() for x in inputs[:count]]
        named = dict(zip(operation.tensors, tensors, strict=True))
        options = dict(zip(operation.options, inputs[count:], strict=True))
        return function(**named, **options, **returns_lse)

    tags = (torch.Tag.pt2_compliant_tag,)
    _library.define(_write_schema(operation), tags=tags)  # type: ignore[no-untyped-call]
    for device in ("CPU", "CUDA"):
        _library.impl(operation.name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"crisscross::{operation.name}", run, lib=_library)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, operation, inputs, output)

    def pull(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _pull(ctx, operation, gradients, call_operator)

    torch.library.register_autograd(
        f"crisscross::{operation.name}", pull, setup_context=keep, lib=_library
    )


def call_operator(operation: Operation, *inputs: Any) -> Any:
    return getattr(torch.ops.crisscross, operation.name)(*inputs)


def call_composite(operation: Operation, *inputs: Any) -> tuple[Tensor, ...]:
    """Return the outputs as a tuple, also a single one."""
    count = len(operation.tensors)
    options = dict(zip(operation.options, inputs[count:], strict=True))
    result = getattr(composite, operation.name)(*inputs[:count], **options)
    return result if isinstance(result, tuple) else (result,)


def _keep(ctx: Any, operation: Operation, inputs: tuple[Any, ...], output: Any) -> None:
    count = len(operation.tensors)
    outputs = output if isinstance(output, tuple) else (output,)
    names = (*operation.tensors, *operation.outputs)
    named = dict(zip(names, (*inputs[:count], *outputs), strict=True))
    if operation.gradients is None:
        wanted: Sequence[str] = operation.tensors
    else:
        wanted = OPERATIONS[operation.gradients].tensors
    ctx.save_for_backward(*(x if name in wanted else None for name, x in named.items()))
    ctx.options = inputs[count:]
    ctx.set_materialize_grads(False)
    ctx.like = [(x.shape, x.dtype, x.device) for x in outputs]


def _pull(
    ctx: Any, operation: Operation, gradients: Sequence[Tensor | None], call: Any
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all inputs."""
    saved = ctx.saved_tensors
    count = len(operation.tensors)
    if operation.gradients is None:
        found = pull_composite(operation, saved[:count], ctx.options, gradients, ctx.like)
    else:
        named = dict(zip((*operation.tensors, *operation.outputs), saved, strict=True))
        for name, gradient, like in zip(operation.outputs, gradients, ctx.like, strict=True):
            may_be_none = is_optional(f"d{name}")
            named[f"d{name}"] = gradient if may_be_none else _fill(gradient, like)
        backward = OPERATIONS[operation.gradients]
        result = call(backward, *(named.get(name) for name in backward.tensors), *ctx.options)
        results = result if isinstance(result, tuple) else (result,)
        found = dict(zip(operation.wrt, results, strict=True))
    return (
        *(found.get(name) for name in operation.tensors),
        *(None for _ in operation.options),
    )


def pull_composite(
    operation: Operation,
    tensors: Sequence[Tensor | None],
    options: Sequence[Any],
    gradients: Sequence[Tensor | None],
    like: Sequence[Any],
) -> dict[str, Tensor]:
    run, active = _close(operation, tensors, options)
    names = [name for name, _ in active]
    with torch.autocast(active[0][1].device.type, enabled=False):
        _, pull, *_ = torch.func.vjp(run, *(x for _, x in active))
        whole = tuple(map(_fill, gradients, like))
        return dict(zip(names, pull(whole), strict=True))


def _fill(gradient: Tensor | None, like: tuple[Any, torch.dtype, torch.device]) -> Tensor:
    """Make zeros where there is no gradient of an output."""
    if gradient is not None:
        return gradient
    shape, dtype, device = like
    return torch.zeros(shape, dtype=dtype, device=device)


def push_composite(
    operation: Operation,
    tensors: Sequence[Tensor | None],
    options: Sequence[Any],
    tangents: Sequence[Tensor | None],
) -> Any:
    """Return the tangents of the outputs.

    By reverse mode twice, for `torch.func.jvp` does not go within a level of dual numbers:
    gradients are linear in what is pulled back, and the gradients of that are tangents.
    """
    run, active = _close(operation, tensors, options)
    given = dict(zip(operation.tensors, tangents[: len(operation.tensors)], strict=True))
    whole = [torch.zeros_like(x) if given[name] is None else given[name] for name, x in active]
    with torch.autocast(active[0][1].device.type, enabled=False):
        outputs, pull, *_ = torch.func.vjp(run, *(x for _, x in active))
        _, push, *_ = torch.func.vjp(lambda *up: pull(up), *map(torch.zeros_like, outputs))
        found = push(tuple(whole))
    return found if len(operation.outputs) > 1 else found[0]


def _close(
    operation: Operation, tensors: Sequence[Tensor | None], options: Sequence[Any]
) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Return the composite as a function of what it is differentiated by, and that."""
    named = dict(zip(operation.tensors, tensors, strict=True))
    active = [(name, x) for name in operation.wrt if (x := named[name]) is not None]

    def run(*moved: Tensor) -> tuple[Tensor, ...]:
        replaced = {**named, **dict(zip((name for name, _ in active), moved, strict=True))}
        return call_composite(operation, *(replaced[name] for name in operation.tensors), *options)

    return run, active


def _make_function(operation: Operation) -> type[torch.autograd.Function]:
    count = len(operation.tensors)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return call_operator(operation, *inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _keep(ctx, operation, inputs, output)
            ctx.save_for_forward(*inputs[:count])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            return _pull(ctx, operation, gradients, call_function)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            return push_composite(operation, ctx.saved_tensors[:count], ctx.options, tangents)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
            """Make more images of what is mapped over: operations know nothing but them."""
            folded = [
                _fold(x, dim, info.batch_size)
                for x, dim in zip(inputs[:count], in_dims[:count], strict=True)
            ]
            result = call_function(operation, *folded, *inputs[count:])
            results = result if isinstance(result, tuple) else (result,)
            images = inputs[0].shape[0] if in_dims[0] is None else inputs[0].shape[in_dims[0] == 0]
            unfolded = tuple(x.unflatten(0, (info.batch_size, images)) for x in results)
            if len(unfolded) == 1:
                return unfolded[0], 0
            return unfolded, (0,) * len(unfolded)

    Function.__name__ = Function.__qualname__ = operation.name
    return Function


def _fold(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if x is None:
        return None
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return mapped.flatten(0, 1)


for _operation in OPERATIONS.values():
    _define(_operation)
_FUNCTIONS = {name: _make_function(operation) for name, operation in OPERATIONS.items()}


# PyTorch runs the rules below a transform, where its compiler would look.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_function(operation: Operation, *inputs: Any) -> Any:
    return _FUNCTIONS[operation.name].apply(*inputs)  # type: ignore[no-untyped-call]
