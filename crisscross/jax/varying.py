"""Axes of a mesh over which arrays differ, within `jax.shard_map`: JAX wants to be told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax import Array, lax

T = TypeVar("T", bound=Sequence[Any])


def vary_alike(arrays: Sequence[Array | None]) -> list[Array | None]:
    """Let all arrays differ over all axes over which one does: gradients sum over the others."""
    axes = find_axes(arrays)
    return [None if x is None else _vary(x, axes) for x in arrays]


def vary_like(results: tuple[Array, ...], arrays: Sequence[Array | None]) -> tuple[Array, ...]:
    """Let what was made of arrays differ where these do; of a callback JAX does not know it."""
    axes = find_axes(arrays)
    return tuple(_vary(x, axes) for x in results)


def find_axes(arrays: Sequence[Array | None]) -> frozenset[Any]:
    found = [_list_axes(x) for x in arrays if x is not None]
    return frozenset().union(*found)


def _list_axes(array: Array) -> frozenset[Any]:
    described: Any = jax.typeof(array)
    kind = getattr(described, "manual_axis_type", None)  # of JAX 0.10
    axes: frozenset[Any] = described.vma if kind is None else kind.varying
    return axes


def _vary(array: Array, axes: frozenset[Any]) -> Array:
    missing = tuple(axes - _list_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array
