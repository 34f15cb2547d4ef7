"""What holds for every test: reproducible examples, poisoned outputs, and the count of examples."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import crisscross.ops.call
from crisscross.bridge import allocate
from crisscross.cpu.plan import recall_plan
from crisscross.gpu.tuned import VARIABLE
from tests.support.properties import ASKED_FOR, EXAMPLES, FEWEST_A_LAW, FEWEST_A_RUN

# Tiles are those of the tables, whatever was measured on the machine that runs the tests.
os.environ[VARIABLE] = ""

# The fixture that poisons outputs is set up once per test, not per example; that is what it is for.
settings.register_profile(
    "seeded",
    max_examples=FEWEST_A_LAW,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("seeded"), max_examples=2000, derandomize=False
)
settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand backends outputs full of NaN: what they do not write shows."""

    def allocate_poisoned(*args: object, **kwargs: object) -> np.ndarray:
        array = allocate(*args, **kwargs)  # type: ignore[arg-type]
        array[...] = np.nan
        return array

    monkeypatch.setattr(crisscross.ops.call, "allocate", allocate_poisoned)


@pytest.fixture(autouse=True)
def forgotten_plans() -> None:
    """Let no test meet a plan, or a kit, that was made under limits another one had changed."""
    recall_plan.cache_clear()
    crisscross.clear_workspace()


def _runs_everything(config: pytest.Config) -> bool:
    chosen = config.option.keyword or config.option.markexpr or config.option.collectonly
    return not chosen and config.args == config.getini("testpaths")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that passed with too few examples; one of several processes only tells its own."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["examples"], told["asked_for"] = dict(EXAMPLES), ASKED_FOR
    elif exitstatus == pytest.ExitCode.OK and _find_shortfalls(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Add up the examples of the processes of pytest-xdist."""
    if error is None:
        EXAMPLES.update(node.workeroutput["examples"])
        ASKED_FOR.update(node.workeroutput["asked_for"])


def _find_shortfalls(config: pytest.Config) -> list[str]:
    short = [
        f"{name}: {count} examples, at least {ASKED_FOR[name]} are asked for"
        for name, count in EXAMPLES.items()
        if count < ASKED_FOR[name]
    ]
    total = EXAMPLES.total()
    if _runs_everything(config) and total < FEWEST_A_RUN:
        short.append(f"{total} examples in all, at least {FEWEST_A_RUN} are asked for")
    return short


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not EXAMPLES:
        return
    fewest = min(EXAMPLES, key=EXAMPLES.__getitem__)
    terminalreporter.section("properties")
    terminalreporter.line(
        f"{len(EXAMPLES)} laws, {EXAMPLES.total():,} examples; "
        f"fewest {EXAMPLES[fewest]} ({fewest.rpartition('.')[2]})"
    )
    for line in _find_shortfalls(config):
        terminalreporter.line(f"FAILED {line}", red=True)


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter and return what it prints."""

    def run(code: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
