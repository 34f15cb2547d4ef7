"""Peer files for the tests, and the folder of the real ones."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crisscross.bench.process import Worker

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

WritePeer = Callable[..., Path]

#: Criss-cross attention in NumPy, with a blank where the diagonal is hidden.
PEER = """
import numpy as np
from crisscross.bench.peer import Calls, Form

PACKAGES = ("numpy",)


def prepare(inputs):
    q, k, v = inputs.q, inputs.k, inputs.v
    height = q.shape[2]

    def forward():
        column = np.einsum("nchw,nciw->nhwi", q, k)
        {hide}
        row = np.einsum("nchw,nchj->nhwj", q, k)
        energies = np.concatenate((column, row), axis=-1)
        weights = np.exp(energies - energies.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = np.einsum("nhwi,nciw->nchw", weights[..., :height], v)
        out += np.einsum("nhwj,nchj->nchw", weights[..., height:], v)
        {spoil}
        return {{"out": out}}

    return Calls(forward, None, dict)


FORMS = {{"planted": Form(prepare, passes=("forward",))}}
"""
HIDE = "column[:, np.arange(height), :, np.arange(height)] = -np.inf"


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A folder with our own file alone."""
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "ours.py").write_text((BENCHMARKS / "ours.py").read_text())
    return folder


@pytest.fixture
def write_peer(peers: Path) -> WritePeer:
    def write(code: str = PEER, *, hide: str = HIDE, spoil: str = "pass") -> Path:
        path = peers / "planted.py"
        code = code.format(hide=hide, spoil=spoil) if code is PEER else textwrap.dedent(code)
        path.write_text(code)
        return path

    return write


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """Start workers that the test need not end; with what each says of its file."""
    workers: list[Worker] = []

    def start_worker(path: Path, **options: float) -> tuple[Worker, dict[str, Any]]:
        workers.append(Worker(path, 1, **options))
        return workers[-1], workers[-1].receive()

    yield start_worker
    for worker in workers:
        worker.kill()
