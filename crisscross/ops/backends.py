"""The backends, their one contract, and the predicate that chooses among them and explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Protocol, cast

import numpy as np

from crisscross.errors import BackendError, Fault
from crisscross.problem import AttentionProblem, Findings, MapProblem, MergeProblem
from crisscross.problem.findings import describe_value

#: Backends in the order in which they are tried. The oracle serves only when asked for by name;
#: "xla" is what JAX compiles by itself, and serves arrays of JAX.
BACKENDS = ("gpu", "cpu", "xla", "reference")
_AUTOMATIC = ("gpu", "cpu", "xla")


class Backend(Protocol):
    """Fill the outputs from the inputs; everything has been checked and allocated.

    Inputs are never written to. Outputs come uninitialised and may have any strides. The arrays of
    the CUDA backend are `View`s.
    """

    def attention_forward(
        self,
        problem: AttentionProblem,
        *,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        key_mask: np.ndarray | None,
        out: np.ndarray,
        lse: np.ndarray,
    ) -> None: ...

    def attention_backward(
        self,
        problem: AttentionProblem,
        *,
        dout: np.ndarray,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        dlse: np.ndarray | None,
        key_mask: np.ndarray | None,
        dq: np.ndarray,
        dk: np.ndarray,
        dv: np.ndarray,
    ) -> None: ...

    def merge(
        self,
        problem: MergeProblem,
        *,
        outs: Sequence[np.ndarray],
        lses: Sequence[np.ndarray],
        out: np.ndarray,
        lse: np.ndarray,
    ) -> None: ...

    def ca_weight(
        self, problem: MapProblem, *, q: np.ndarray, k: np.ndarray, energy: np.ndarray
    ) -> None: ...

    def ca_weight_backward(
        self,
        problem: MapProblem,
        *,
        denergy: np.ndarray,
        q: np.ndarray,
        k: np.ndarray,
        dq: np.ndarray,
        dk: np.ndarray,
    ) -> None: ...

    def ca_softmax(
        self, problem: MapProblem, *, energy: np.ndarray, attention: np.ndarray
    ) -> None: ...

    def ca_softmax_backward(
        self,
        problem: MapProblem,
        *,
        dattention: np.ndarray,
        attention: np.ndarray,
        denergy: np.ndarray,
    ) -> None: ...

    def ca_map(
        self, problem: MapProblem, *, attention: np.ndarray, v: np.ndarray, out: np.ndarray
    ) -> None: ...

    def ca_map_backward(
        self,
        problem: MapProblem,
        *,
        dout: np.ndarray,
        attention: np.ndarray,
        v: np.ndarray,
        dattention: np.ndarray,
        dv: np.ndarray,
    ) -> None: ...

    def to_port_layout(
        self,
        problem: MapProblem,
        *,
        weights: np.ndarray,
        self_value: float,
        ported: np.ndarray,
    ) -> None: ...

    def from_port_layout(
        self, problem: MapProblem, *, ported: np.ndarray, weights: np.ndarray
    ) -> None: ...


@dataclass(frozen=True)
class Choice:
    """The backend that serves a call, and why each of the others does not."""

    backend: str
    reason: str
    refusals: tuple[tuple[str, str], ...]


def find_refusal(backend: str, device: str, library: str) -> str | None:
    """Say why `backend` cannot serve a library's arrays on `device`, or None if it can."""
    if backend == "xla":
        return None if library == "jax" else f"it serves arrays of JAX, and these are of {library}"
    if backend == "gpu":
        if not device.startswith("cuda"):
            return f"it serves arrays in CUDA memory, and these are on {device}"
        from crisscross.gpu import find_unavailability

        return find_unavailability(device)
    if device != "cpu":
        return f"it serves arrays in CPU memory, and these are on {device}"
    return None


def check_backend(findings: Findings, backend: object) -> None:
    """Report a `backend` that is neither None nor the name of one."""
    if backend is not None and not (isinstance(backend, str) and backend in BACKENDS):
        fault = Fault.VALUE if isinstance(backend, str) else Fault.TYPE
        findings.add("backend", f"None or one of {BACKENDS}", describe_value(backend), fault)


def choose_backend(function: str, device: str, backend: str | None, library: str) -> Choice:
    """Choose the backend for a library's arrays on `device`.

    `backend` names the only one allowed, or is None.

    Raises
    ------
    BackendError
        If the backend asked for, or every one that could be chosen, refuses; says why.
    """
    candidates = _AUTOMATIC if backend is None else (backend,)
    refusals: list[tuple[str, str]] = []
    chosen: str | None = None
    for name in BACKENDS:
        if name == "xla" and library != "jax" and backend != name:
            continue
        if name not in candidates:
            asked_for = "it serves only when asked for by name: backend='reference'"
            reason = asked_for if backend is None else f"backend={backend!r} was asked for"
        elif chosen is not None:
            reason = f"{chosen} comes first"
        else:
            refusal = find_refusal(name, device, library)
            if refusal is None:
                chosen = name
                continue
            reason = refusal
        refusals.append((name, reason))
    if chosen is None:
        told = [f"{name}: {reason}" for name, reason in refusals if name in candidates]
        raise BackendError(f"{function}: no backend can serve\n  " + "\n  ".join(told))
    reason = (
        "asked for by name" if backend is not None else f"the first that serves {device} memory"
    )
    return Choice(chosen, reason, tuple(refusals))


def recall_choice(function: str, device: str, backend: str | None, library: str) -> Choice:
    """Choose as `choose_backend`; on the CPU once, for what serves its arrays stays the same."""
    choose = _choose_once if device == "cpu" else choose_backend
    return choose(function, device, backend, library)


#: Not in `choose_backend`: `explain` calls that, and compilers that trace it do not follow a cache.
_choose_once = lru_cache(choose_backend)


@cache
def load_backend(name: str) -> Backend:
    """Import a backend."""
    return cast(Backend, import_module(f"crisscross.{name}"))
