"""The problem of CCNet's own operators, which keep the attention map (ICCV 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crisscross.errors import Fault
from crisscross.problem.findings import COMPUTE_DTYPES, ArraySpec, Findings, Shape, format_shape

#: The shapes the operators take, as messages and documentation write them.
FEATURES = "(N, C, H, W)"
MAP = "(N, H+W-1, H, W)"
PORT_MAP = "(N, H, W, H+W)"


@dataclass(frozen=True)
class MapProblem:
    """Feature maps (N, C, H, W) and attention maps (N, H+W-1, H, W); sizes may be symbolic."""

    batch: Any
    height: Any
    width: Any
    dtype: str

    @property
    def compute_dtype(self) -> str:
        """The dtype of energies and attention."""
        return COMPUTE_DTYPES[self.dtype]

    @property
    def map_shape(self) -> Shape:
        return (self.batch, self.height + self.width - 1, self.height, self.width)

    @property
    def port_shape(self) -> Shape:
        return (self.batch, self.height, self.width, self.height + self.width)


def features_problem(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    *,
    features: tuple[str, ...],
    maps: tuple[str, ...] = (),
) -> MapProblem:
    """Describe a call whose sizes and dtype come from the first of `features`.

    All of `features` share one shape and dtype; all of `maps` are attention maps over it.
    """
    leader = features[0]
    first = specs[leader]
    if first is not None:
        dtype = findings.check_float_dtype(leader, first)
        fits = _check_four_axes(findings, leader, first, FEATURES)
        if fits and any(size < 1 for size in first.shape[1:]):
            got = format_shape(first.shape)
            findings.add(f"{leader}.shape", f"C, H and W of at least 1, {FEATURES}", got)
            fits = False
        for name in features[1:]:
            findings.check_same_dtype(name, specs[name], dtype, f"like {leader}")
            if fits:
                findings.check_shape(name, specs[name], first.shape, f"like {leader}")
        for name in maps:
            if dtype is not None:
                expected = COMPUTE_DTYPES[dtype]
                findings.check_dtype(name, specs[name], expected, f"for {dtype} {leader}")
            if fits:
                batch, _, height, width = first.shape
                shape = (batch, height + width - 1, height, width)
                findings.check_shape(name, specs[name], shape, MAP)
    findings.raise_if_any()
    assert first is not None
    batch, _, height, width = first.shape
    return MapProblem(batch, height, width, first.dtype)


def map_problem(
    findings: Findings,
    specs: Mapping[str, ArraySpec | None],
    *,
    maps: tuple[str, ...],
    ports: bool = False,
) -> MapProblem:
    """Describe a call whose sizes and dtype come from the first of `maps`, all of one shape.

    With `ports` the maps are in the ports' layout (N, H, W, H+W).
    """
    leader = maps[0]
    first = specs[leader]
    if first is not None:
        if first.dtype not in COMPUTE_DTYPES.values():
            expected = "float32 (also for 16-bit features) or float64"
            findings.add(f"{leader}.dtype", expected, first.dtype, Fault.TYPE)
        layout = PORT_MAP if ports else MAP
        if _check_four_axes(findings, leader, first, layout):
            height, width = first.shape[1:3] if ports else first.shape[2:]
            keys_axis = 3 if ports else 1
            expected_shape = list(first.shape)
            expected_shape[keys_axis] = height + width if ports else height + width - 1
            if height < 1 or width < 1:
                got = format_shape(first.shape)
                findings.add(f"{leader}.shape", f"H and W of at least 1, {layout}", got)
            else:
                findings.check_shape(leader, first, tuple(expected_shape), layout)
            for name in maps[1:]:
                findings.check_shape(name, specs[name], first.shape, f"like {leader}")
        for name in maps[1:]:
            findings.check_dtype(name, specs[name], first.dtype, f"like {leader}")
    findings.raise_if_any()
    assert first is not None
    height, width = first.shape[1:3] if ports else first.shape[2:]
    return MapProblem(first.shape[0], height, width, first.dtype)


def _check_four_axes(findings: Findings, name: str, spec: ArraySpec, layout: str) -> bool:
    if spec.ndim == 4:
        return True
    findings.add(f"{name}.shape", f"4 axes, {layout}", f"{spec.ndim} axes: {spec.shape}")
    return False
