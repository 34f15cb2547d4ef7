"""The run: every shape in turn, and what it depends on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace

from crisscross.bench.case import Case
from crisscross.bench.environment import (
    ask_nvidia_smi,
    describe_blas,
    find_commit,
    name_cpu,
    tell_date,
)
from crisscross.bench.gate import PEER_ULPS
from crisscross.bench.process import WorkerError, count_usable_cpus, find_unsettled
from crisscross.bench.records import Environment, Gpu, Report
from crisscross.bench.settings import Settings
from crisscross.bench.shapes import CUDA, PASSES
from crisscross.bench.team import BenchError, Team
from crisscross.gpu import find_unavailability

__all__ = ["run_bench"]

#: Called with the steps done, their number, and what comes next.
OnStep = Callable[[int, int, str], None]


def run_bench(settings: Settings, on_step: OnStep = lambda *_: None) -> Report:
    """Measure every form on every shape.

    Parameters
    ----------
    settings : Settings
    on_step : callable, optional
        Told of the progress.

    Returns
    -------
    Report

    Raises
    ------
    BenchError
        If our own file is missing or fails to load, `settings.only` fits nothing, or the device
        cannot be used.
    """
    if settings.device == CUDA:
        _require_gpu()
    with Team(settings.peers, settings.threads) as team:
        on_step(0, 1, "starting the libraries")
        team.gather(settings.only, settings.device)
        gpu = _describe_gpu(team) if settings.device == CUDA else None
        forms = sum(len(kept) for kept in team.forms.values())
        steps = forms + settings.processes + len(PASSES) * settings.rounds
        step = _count_steps(on_step, len(settings.shapes) * steps)
        cases = tuple(Case(settings, team, shape, step, gpu).run() for shape in settings.shapes)
        if gpu is not None:
            # While its clocks are still those of the measurements.
            gpu = replace(gpu, state=ask_nvidia_smi(gpu.bus_id))
        return Report(
            environment=_describe(settings, team.packages, gpu),
            dtype=settings.dtype,
            device=settings.device,
            layout=settings.layout,
            seed=settings.seed,
            rounds=settings.rounds,
            processes=settings.processes,
            peer_ulps=PEER_ULPS,
            ours=team.first_form,
            cases=cases,
            missing=team.missing,
        )


def _require_gpu() -> None:
    problem = find_unavailability("cuda:0")
    if problem is not None:
        raise BenchError(f"there is no GPU to measure on: {problem}")


def _describe_gpu(team: Team) -> Gpu:
    try:
        return Gpu(**team.workers[team.home].ask("describe_device"))
    except WorkerError as error:
        raise BenchError(f"cannot run {team.home}: {error}") from error


def _count_steps(on_step: OnStep, total: int) -> Callable[[str], None]:
    numbers = iter(range(total + 1))
    return lambda text: on_step(next(numbers), total, text)


def _describe(settings: Settings, packages: dict[str, str], gpu: Gpu | None) -> Environment:
    commit, dirty = find_commit()
    usable = count_usable_cpus()
    return Environment(
        command=settings.command,
        date=tell_date(),
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        system=platform.platform(),
        cpu=name_cpu(),
        usable_cpus=usable,
        threads=settings.threads,
        blas=describe_blas(),
        packages=packages,
        unsettled=find_unsettled(settings.threads),
        gpu=gpu,
    )
