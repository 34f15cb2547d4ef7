"""PyTorch tensors as NumPy arrays and back, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.forward_ad import unpack_dual

from crisscross.bridge.capsule import numpy_bfloat16
from crisscross.dispatch import Description, Held, Make, Obstacle, ObstacleError
from crisscross.problem import ArraySpec
from crisscross.view import View, find_strides


def describe(array: Any) -> Description | None:
    if not isinstance(array, torch.Tensor):
        return None
    if isinstance(array, FakeTensor):
        spec = ArraySpec(tuple(array.shape), _name_dtype(array))
        obstacle = find_lasting_obstacle(array)
        return Description(spec, _name_device(array), obstacle, is_fake=True)
    if torch.compiler.is_compiling():
        # Dynamo would trace on into NumPy, and fail there in words of its own.
        expected = "a tensor outside of torch.compile; wrap the call with torch.compiler.disable"
        obstacle = Obstacle(expected, "a tensor being traced", in_sharing=True)
        spec = ArraySpec(tuple(array.shape), _name_dtype(array))
        return Description(spec, _name_device(array), obstacle)
    if array.is_nested or torch.nn.parameter.is_lazy(array):
        # It has no sizes to be told.
        spec = ArraySpec((), _name_dtype(array))
        return Description(spec, None, find_lasting_obstacle(array))
    spec = ArraySpec(tuple(array.shape), _name_dtype(array))
    return Description(spec, _name_device(array), _find_obstacle(array))


def _name_device(tensor: torch.Tensor) -> str:
    return "cpu" if tensor.device.type == "cpu" else str(tensor.device)


def _name_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _find_obstacle(tensor: torch.Tensor) -> Obstacle | None:
    lasting = find_lasting_obstacle(tensor)
    if lasting is not None:
        return lasting
    words = _find_obstacle_in_sharing(tensor)
    return None if words is None else Obstacle(*words, in_sharing=True)


def _find_obstacle_in_sharing(tensor: torch.Tensor) -> tuple[str, str] | None:
    """Say why memory cannot be shared: what was expected, and what came."""
    proxy_mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    if torch._C._is_tracing() or proxy_mode is not None:
        # What is computed outside of the tracer's sight would become a constant of the graph.
        return "a tensor outside of torch.jit.trace and make_fx", "a tensor being traced"
    if unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return "a tensor without tangent; unpack it and pass on its primal", "a dual tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a plain tensor; call outside of torch.func", "a torch.func wrapper"
    if tensor.requires_grad and torch.is_grad_enabled():
        return "a tensor outside of autograd; call x.detach()", "a tensor that requires grad"
    if tensor.numel() and _find_end(tensor) > tensor.untyped_storage().nbytes():
        return "a tensor with memory; gather or materialise it first", "freed storage"
    # A lazily conjugated or negated tensor shares memory that holds the other sign.
    if tensor.is_conj():
        return "a resolved tensor; call x.resolve_conj()", "the conjugate bit set"
    if tensor.is_neg():
        return "a resolved tensor; call x.resolve_neg()", "the negative bit set"
    return None


def find_lasting_obstacle(tensor: torch.Tensor) -> Obstacle | None:
    """Say why nothing can be computed with a tensor, now or when a graph runs."""
    if tensor.is_nested:
        return Obstacle("a plain tensor; call x.to_padded_tensor(0.0)", "a nested tensor")
    if torch.nn.parameter.is_lazy(tensor):
        return Obstacle("a tensor with memory; run the lazy module once", "a lazy parameter")
    if tensor.layout is not torch.strided:
        return Obstacle("a strided tensor; call x.to_dense()", f"layout {tensor.layout}")
    if tensor.device.type == "meta":
        return Obstacle("a tensor with memory; call x.to_empty(device='cpu')", "a meta tensor")
    if tensor.dtype.is_floating_point and tensor.element_size() == 1:
        return Obstacle("a dtype that NumPy has; call x.to(torch.float16)", str(tensor.dtype))
    if tensor.is_quantized:
        return Obstacle("a plain tensor; call x.dequantize()", "a quantized tensor")
    return None


def _find_end(tensor: torch.Tensor) -> int:
    """Return the offset of the byte after the last element; strides of tensors are not negative."""
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + reach + 1) * tensor.element_size()


def to_numpy(array: torch.Tensor) -> np.ndarray:
    if isinstance(array, FakeTensor):
        raise ObstacleError("a tensor with memory, outside of tracing", "a FakeTensor")
    tensor = array.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(numpy_bfloat16())
    view: np.ndarray = tensor.numpy()
    return view


def from_numpy(array: np.ndarray, _like: Any) -> torch.Tensor:
    if any(stride < 0 for stride in array.strides):
        # torch.from_dlpack aborts the process on these.
        raise ObstacleError("strides >= 0, or copy=True", f"strides {array.strides}")
    if not array.flags.writeable:
        raise ObstacleError(
            "writable memory, or copy=True: PyTorch would make it writable", "read-only memory"
        )
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def find_stream(array: torch.Tensor) -> int:
    stream: int = torch.cuda.current_stream(array.device).cuda_stream
    return stream


def hold(array: torch.Tensor, _stream: int) -> Held:
    return Held(_view(array), array)


def _view(tensor: torch.Tensor) -> View:
    shape, strides = tuple(tensor.shape), tensor.stride()
    return View(tensor.data_ptr(), shape, strides, _name_dtype(tensor))


def find_maker(like: torch.Tensor) -> Make:
    def make(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Held:
        made = torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=like.device)
        return Held(_view(made), made)

    return make


def take(owner: torch.Tensor, _like: Any) -> torch.Tensor:
    return owner


def imitate(
    shape: tuple[Any, ...], dtype: str, like: torch.Tensor, is_in_order: bool
) -> torch.Tensor:
    view = View(0, tuple(like.shape), like.stride(), _name_dtype(like)) if is_in_order else None
    strides = find_strides(shape, view)
    return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=like.device)
