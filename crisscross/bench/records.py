"""What a run found, as frozen records, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from crisscross.bench.ratios import Spread
from crisscross.bench.shapes import Shape

__all__ = ["CaseRecord", "Environment", "Gpu", "PassRecord", "Report", "Row"]


@dataclass(frozen=True)
class Gpu:
    """The GPU of a run.

    Attributes
    ----------
    architecture : str
        Compute capability, "90" for 9.0.
    memory_bytes, cache_bytes : int
        Of the whole GPU, and of its L2 cache.
    bus_id : str
        Of PCI.
    driver_cuda, runtime_cuda : int
        The newest CUDA version of the driver, and that of CuPy's runtime; 12090 for 12.9.
    cupy : str
        Version.
    state : dict of str
        What `nvidia-smi` told when the run ended, by its own names: driver, clocks, power. Empty
        where there is none.
    """

    name: str
    architecture: str
    memory_bytes: int
    cache_bytes: int
    bus_id: str
    driver_cuda: int
    runtime_cuda: int
    cupy: str
    state: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """Where, when and how a run was made.

    Attributes
    ----------
    command, date : str
    commit : str or None
        Of git, where the package is a clone; `dirty` if it had changes.
    packages : dict of str
        Version of every package that a peer file named.
    unsettled : str or None
        What could not be made equal for all libraries.
    gpu : Gpu or None
        Where the run was on one.
    """

    command: str
    date: str
    commit: str | None
    dirty: bool
    python: str
    system: str
    cpu: str
    usable_cpus: int
    threads: int
    blas: str
    packages: dict[str, str]
    unsettled: str | None
    gpu: Gpu | None = None


@dataclass(frozen=True)
class PassRecord:
    """One pass of one form.

    Attributes
    ----------
    reason : str or None
        Why there is no time.
    errors : dict of float or None
        rms(x - exact) / rms(exact) by output; None where that is not finite.
    seconds : tuple of float
        Of a call, by round.
    time, ratio : Spread or None
        Of the rounds; the ratio is theirs / ours of the same round, None for ours.
    over_floor : float or None
        Median time over that of the floor.
    launch, latency : float or None
        Seconds of a call alone, on a GPU: until it returns, and until its results are complete;
        medians.
    extra_bytes : int or None
        Peak memory of a call beyond what was held before; `memory_reason` says why not known.
    """

    reason: str | None = None
    errors: dict[str, float | None] = dataclasses.field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    time: Spread | None = None
    ratio: Spread | None = None
    over_floor: float | None = None
    launch: float | None = None
    latency: float | None = None
    extra_bytes: int | None = None
    memory_reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One form on one shape: its name, what it computes, its passes by name.

    Attributes
    ----------
    algorithm : str or None
        How it computed, as the library told; of ours what `explain` says, tuned tiles included.
    """

    form: str
    function: str
    passes: dict[str, PassRecord]
    algorithm: str | None = None


@dataclass(frozen=True)
class CaseRecord:
    """One shape.

    Attributes
    ----------
    shape : Shape
    oracle : str
        How the exact results were computed.
    matmul_rate, copy_rate : float or None
        Operations, and bytes read and written, a second; the second on a GPU only.
    floors : dict of float
        Seconds that a pass cannot be faster than at these rates, by pass; empty if not known, for
        which `floor_reason` is the reason.
    sets : int
        Of inputs that were taken in turn.
    foreign_share : float or None
        Of the CPUs' time, what other processes took during the measurements.
    rows : tuple of Row
    """

    shape: Shape
    oracle: str
    matmul_rate: float | None
    copy_rate: float | None
    floors: dict[str, float]
    floor_reason: str | None
    sets: int
    foreign_share: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes
    ----------
    missing : dict of str
        What could not be measured at all, and why.
    """

    environment: Environment
    dtype: str
    device: str
    layout: str
    seed: int
    rounds: int
    processes: int
    peer_ulps: int
    ours: str
    cases: tuple[CaseRecord, ...]
    missing: dict[str, str]

    def to_json(self) -> str:
        """Write the report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote."""
        report = json.loads(text)
        environment = _read_environment(report.pop("environment"))
        cases = tuple(_read_case(case) for case in report.pop("cases"))
        return cls(environment=environment, cases=cases, **report)


def _read_environment(found: dict[str, Any]) -> Environment:
    gpu = found.pop("gpu")
    return Environment(**found, gpu=None if gpu is None else Gpu(**gpu))


def _read_case(case: dict[str, Any]) -> CaseRecord:
    shape = Shape(**case.pop("shape"))
    rows = tuple(
        Row(
            row["form"],
            row["function"],
            {name: _read_pass(found) for name, found in row["passes"].items()},
            row["algorithm"],
        )
        for row in case.pop("rows")
    )
    return CaseRecord(shape=shape, rows=rows, **case)


def _read_pass(found: dict[str, Any]) -> PassRecord:
    found["seconds"] = tuple(found["seconds"])
    for name in ("time", "ratio"):
        found[name] = None if found[name] is None else Spread(**found[name])
    return PassRecord(**found)
