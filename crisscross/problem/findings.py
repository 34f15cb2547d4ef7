"""Collect every mismatch of a call before raising one error."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any, NamedTuple

from crisscross.errors import Fault, Mismatch, raise_mismatches

#: The dtypes of q, k, v, out and their gradients, each with the dtype of energies, sums and lse.
COMPUTE_DTYPES = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}
PRECISIONS = ("ieee", "tf32", "tf32x3")
_LARGEST_INTEGER = 2**63 - 1
_LARGEST_FLOAT32 = 2.0**128 - 2.0**104

Shape = tuple[Any, ...]


class ArraySpec(NamedTuple):
    """What a problem needs to know of an array: its sizes (possibly symbolic) and its dtype."""

    shape: Shape
    dtype: str

    @property
    def ndim(self) -> int:
        return len(self.shape)


def format_shape(shape: Iterable[Any]) -> str:
    """Write a shape as Python does, also when a size is symbolic or a name."""
    sizes = [str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def describe_value(value: object) -> str:
    """Say what came: the value where it is short, its type otherwise."""
    kind = type(value).__name__
    try:
        text = repr(value)
    except Exception:  # a broken repr, or an int of more digits than Python writes
        return kind
    if len(text) > 40:
        return kind
    plain = value is None or type(value) in (bool, int, float, str)
    return text if plain else f"{kind} {text}"


class Findings:
    """The mismatches of one call to `function`, in the order they were found."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.mismatches: list[Mismatch] = []

    def add(self, argument: str, expected: str, got: str, fault: Fault = Fault.VALUE) -> None:
        self.mismatches.append(Mismatch(argument, expected, got, fault))

    def raise_if_any(self) -> None:
        raise_mismatches(self.function, self.mismatches)

    # Arrays

    def check_shape(self, name: str, spec: ArraySpec | None, expected: Shape, reason: str) -> None:
        """Hold `spec` to `expected`; a string in `expected` names a size that is free."""
        if spec is None:
            return
        fits = spec.ndim == len(expected) and all(
            isinstance(wanted, str) or size == wanted
            for size, wanted in zip(spec.shape, expected, strict=True)
        )
        if not fits:
            self.add(
                f"{name}.shape", f"{format_shape(expected)} {reason}", format_shape(spec.shape)
            )

    def check_dtype(self, name: str, spec: ArraySpec | None, expected: str, reason: str) -> None:
        if spec is not None and spec.dtype != expected:
            self.add(f"{name}.dtype", f"{expected} {reason}", spec.dtype, Fault.TYPE)

    def check_features(
        self, specs: Mapping[str, ArraySpec | None], names: Iterable[str]
    ) -> str | None:
        """Hold arrays to one supported dtype and return it: that of the first that has one.

        None, where there is no such array.
        """
        # Not by an assignment within: PyTorch's compiler does not follow one.
        found = [(name, specs.get(name)) for name in names]
        given = [(name, spec) for name, spec in found if spec is not None]
        leader = next(((n, s.dtype) for n, s in given if s.dtype in COMPUTE_DTYPES), None)
        for name, spec in given:
            if spec.dtype not in COMPUTE_DTYPES:
                expected = f"one of {', '.join(COMPUTE_DTYPES)}"
                self.add(f"{name}.dtype", expected, spec.dtype, Fault.TYPE)
            elif leader is not None:
                self.check_dtype(name, spec, leader[1], f"like {leader[0]}")
        return None if leader is None else leader[1]

    # Options

    def check_real(self, name: str, value: object) -> float:
        """Return a real number, NaN where it is none and has been reported."""
        if isinstance(value, bool) or not isinstance(value, Real):
            self.add(name, "a real number", describe_value(value), Fault.TYPE)
            return math.nan
        try:
            return float(value)
        except OverflowError:
            self.add(name, "a number that float64 holds", describe_value(value))
            return math.nan

    def check_scale(self, scale: object, compute_dtype: str | None) -> float:
        reported = len(self.mismatches)
        value = self.check_real("scale", scale)
        if len(self.mismatches) > reported:
            return value
        if not math.isfinite(value):
            self.add("scale", "a finite number", describe_value(scale))
        else:
            self.check_holds("scale", value, compute_dtype)
        return value

    def check_holds(self, name: str, value: float, compute_dtype: str | None) -> None:
        """Report a finite number that would be infinite in the dtype of the computation."""
        if compute_dtype == "float32" and _LARGEST_FLOAT32 < abs(value) < math.inf:
            self.add(name, "a number that float32 holds", describe_value(value))

    def check_flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            self.add(name, "True or False", describe_value(value), Fault.TYPE)
        return bool(value is True)

    def check_integer(self, name: str, value: object) -> int | None:
        is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
        try:
            index = None if is_bool else operator.index(value)  # type: ignore[arg-type]
        except Exception:  # arrays have a say here, and raise what they like
            index = None
        if index is None:
            self.add(name, "an integer", describe_value(value), Fault.TYPE)
        elif abs(index) > _LARGEST_INTEGER:
            self.add(name, "an integer of 64 bits", describe_value(value))
            return None
        return index

    def check_count(self, name: str, value: object, least: int = 1) -> int | None:
        count = self.check_integer(name, value)
        if count is not None and count < least:
            self.add(name, f"at least {least}", str(count))
            return None
        return count

    def check_choice(self, name: str, value: object, choices: tuple[str | None, ...]) -> None:
        is_word = value is None or isinstance(value, str)
        if not is_word or value not in choices:
            fault = Fault.VALUE if is_word else Fault.TYPE
            self.add(name, f"one of {choices}", describe_value(value), fault)

    def check_heads(self, heads: object) -> int | None:
        return self.check_count("heads", heads)

    def check_channel_axis(self, channel_axis: object) -> int | None:
        axis = self.check_integer("channel_axis", channel_axis)
        if axis is not None and axis not in (1, -1):
            self.add("channel_axis", "1 (N, C, *S) or -1 (N, *S, C)", str(axis))
            return None
        return axis

    def check_precision(self, precision: object) -> str:
        if precision is None:
            return "ieee"
        if not isinstance(precision, str):
            self.add(
                "precision",
                f"None or one of {PRECISIONS}",
                describe_value(precision),
                Fault.TYPE,
            )
        elif precision not in PRECISIONS:
            expected = f"None or one of {PRECISIONS}"
            self.add("precision", expected, describe_value(precision))
        else:
            return precision
        return "ieee"

    def check_axes(self, axes: object, spatial_ndim: int | None) -> tuple[int, ...] | None:
        """Normalise `axes` to ascending spatial indices; None means all of them."""
        if axes is None:
            return None if spatial_ndim is None else tuple(range(spatial_ndim))
        given: Any = axes
        walked: tuple[object, ...] | None = None
        # Text and mappings can be walked through, but that is not what is meant.
        if not isinstance(given, str | bytes | Mapping):
            with suppress(Exception):  # arrays have a say here, and raise what they like
                walked = tuple(given)
        if walked is None:
            self.add(
                "axes",
                "None or a tuple of integers, such as (0,)",
                describe_value(given),
                Fault.TYPE,
            )
            return None
        if not walked:
            self.add("axes", "at least one spatial axis", "none: ()")
            return None
        found = [self._check_spatial_axis("axes", axis, spatial_ndim) for axis in walked]
        known = [axis for axis in found if axis is not None]
        if len(set(known)) < len(known):
            self.add("axes", "each spatial axis once", describe_value(walked))
            return None
        complete = len(known) == len(found) and spatial_ndim is not None
        return tuple(sorted(known)) if complete else None

    def check_one_axis(self, axis: object, spatial_ndim: int | None) -> tuple[int, ...] | None:
        """Normalise `axis`, a single spatial axis."""
        index = self._check_spatial_axis("axis", axis, spatial_ndim)
        return None if index is None or spatial_ndim is None else (index,)

    def _check_spatial_axis(self, name: str, axis: object, spatial_ndim: int | None) -> int | None:
        """Return the spatial axis from the front; as given, if `spatial_ndim` is unknown."""
        index = self.check_integer(name, axis)
        if index is None or spatial_ndim is None:
            return index
        if not -spatial_ndim <= index < spatial_ndim:
            self.add(name, f"a spatial axis in [{-spatial_ndim}, {spatial_ndim})", str(index))
            return None
        return index % spatial_ndim
