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
    dtype = findings.check_features(specs, features)
    for name in maps:
        if dtype is not None:
            reason = f"for {dtype} {features[0]}"
            findings.check_dtype(name, specs[name], COMPUTE_DTYPES[dtype], reason)
        elif (spec := specs[name]) is not None:
            _check_map_dtype(findings, name, spec)
    leader: tuple[str, Shape] | None = None
    for name in features:
        spec = specs[name]
        if spec is None or not _check_four_axes(findings, name, spec, FEATURES):
            continue
        if leader is not None:
            findings.check_shape(name, spec, leader[1], f"like {leader[0]}")
        elif any(size < 1 for size in spec.shape[1:]):
            expected = f"C, H and W of at least 1, {FEATURES}"
            findings.add(f"{name}.shape", expected, format_shape(spec.shape))
        else:
            leader = name, spec.shape
    for name in maps:
        spec = specs[name]
        if spec is None:
            continue
        if leader is None:
            _check_four_axes(findings, name, spec, MAP)
        else:
            batch, _, height, width = leader[1]
            shape = (batch, height + width - 1, height, width)
            findings.check_shape(name, spec, shape, MAP)
    findings.raise_if_any()
    first = specs[features[0]]
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
    layout = PORT_MAP if ports else MAP
    leader: tuple[str, ArraySpec] | None = None
    for name in maps:
        spec = specs[name]
        if spec is None:
            continue
        if leader is None:
            leader = name, spec
            _check_map_dtype(findings, name, spec)
            _check_map_shape(findings, name, spec, layout)
        else:
            findings.check_dtype(name, spec, leader[1].dtype, f"like {leader[0]}")
            findings.check_shape(name, spec, leader[1].shape, f"like {leader[0]}")
    findings.raise_if_any()
    assert leader is not None
    first = leader[1]
    height, width = first.shape[1:3] if ports else first.shape[2:]
    return MapProblem(first.shape[0], height, width, first.dtype)


def _check_map_dtype(findings: Findings, name: str, spec: ArraySpec) -> None:
    if spec.dtype not in COMPUTE_DTYPES.values():
        expected = "float32 (also for 16-bit features) or float64"
        findings.add(f"{name}.dtype", expected, spec.dtype, Fault.TYPE)


def _check_map_shape(findings: Findings, name: str, spec: ArraySpec, layout: str) -> None:
    if not _check_four_axes(findings, name, spec, layout):
        return
    if layout == PORT_MAP:
        batch, height, width, _ = spec.shape
        expected = (batch, height, width, height + width)
    else:
        batch, _, height, width = spec.shape
        expected = (batch, height + width - 1, height, width)
    if height < 1 or width < 1:
        got = format_shape(spec.shape)
        findings.add(f"{name}.shape", f"H and W of at least 1, {layout}", got)
    else:
        findings.check_shape(name, spec, expected, layout)


def _check_four_axes(findings: Findings, name: str, spec: ArraySpec, layout: str) -> bool:
    if spec.ndim == 4:
        return True
    findings.add(
        f"{name}.shape", f"4 axes, {layout}", f"{spec.ndim} axes: {format_shape(spec.shape)}"
    )
    return False
