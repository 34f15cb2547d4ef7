"""What CCNet's block costs beside the block that attends to all positions: the paper's claim.

    python examples/costs.py

prints the table of docs/blocks.md: arithmetic by formula, and the most memory that NumPy holds
while a block runs on the CPU, beyond its input and parameters, its result included; with gradients
that includes the tape and all gradients. "With the map" are the plain forms, which make the weights
of all positions, and keep them for their gradients.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import crisscross
from crisscross import nn

SHAPE = (1, 512, 97, 97)
MIB = 2**20
Parameters = dict[str, np.ndarray]


def measure_peak(run: Callable[[], Any]) -> float:
    """Return the MiB that a call holds at most."""
    crisscross.clear_workspace()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, tape: nn.Tape) -> np.ndarray:
    matrix, flat = weight[..., 0, 0], x.reshape(*x.shape[:2], -1)
    out = (matrix @ flat + bias[:, None]).reshape(len(x), -1, *x.shape[2:])

    def pull(dout: np.ndarray) -> tuple[np.ndarray, ...]:
        dflat = dout.reshape(*dout.shape[:2], -1)
        dweight = (dflat @ flat.swapaxes(1, 2)).sum(0).reshape(weight.shape)
        return (matrix.T @ dflat).reshape(x.shape), dweight, dflat.sum((0, 2))

    tape.record(out, (x, weight, bias), pull)
    return out


def attend_to_all(q: np.ndarray, k: np.ndarray, v: np.ndarray, tape: nn.Tape) -> np.ndarray:
    """Make energies, their softmax, and its product with the values, as ports do."""
    flat_q, flat_k, flat_v = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    weights = flat_q.swapaxes(1, 2) @ flat_k
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(-1, keepdims=True)
    out = (flat_v @ weights.swapaxes(1, 2)).reshape(v.shape)

    def pull(dout: np.ndarray) -> tuple[np.ndarray, ...]:
        dflat = dout.reshape(flat_v.shape)
        denergies = dflat.swapaxes(1, 2) @ flat_v
        denergies -= np.einsum("npx,npx->np", denergies, weights)[..., None]
        denergies *= weights
        dq = (flat_k @ denergies.swapaxes(1, 2)).reshape(q.shape)
        return dq, (flat_q @ denergies).reshape(k.shape), (dflat @ weights).reshape(v.shape)

    tape.record(out, (q, k, v), pull)
    return out


def attend_with_map(q: np.ndarray, k: np.ndarray, v: np.ndarray, tape: nn.Tape) -> np.ndarray:
    """Attend to rows and columns by CCNet's operators, which return the map."""
    weights = crisscross.ca_softmax(crisscross.ca_weight(q, k))
    out = crisscross.ca_map(weights, v)

    def pull(dout: np.ndarray) -> tuple[np.ndarray, ...]:
        dweights, dv = crisscross.ca_map_backward(dout, weights, v)
        denergies = crisscross.ca_softmax_backward(dweights, weights)
        return (*crisscross.ca_weight_backward(denergies, q, k), dv)

    tape.record(out, (q, k, v), pull)
    return out


def apply_with_map(
    attend: Callable[..., np.ndarray], recurrence: int, parameters: Parameters, x: np.ndarray
) -> tuple[np.ndarray, nn.Tape]:
    """Apply the block in its plain form; the tape keeps what gradients need."""
    tape = nn.Tape()
    for _ in range(recurrence):
        q, k, v = (
            project(x, parameters[f"{name}_conv.weight"], parameters[f"{name}_conv.bias"], tape)
            for name in ("query", "key", "value")
        )
        attended, before = attend(q, k, v, tape), x
        x = parameters["gamma"] * attended + before

        def pull(dout: np.ndarray, attended: np.ndarray = attended) -> tuple[np.ndarray, ...]:
            dgamma = np.sum(dout * attended, keepdims=True).reshape(1)
            return dout, parameters["gamma"] * dout, dgamma

        tape.record(x, (before, attended, parameters["gamma"]), pull)
    return x, tape


def apply_block(
    block: Callable[..., Any], options: dict[str, int], parameters: Parameters, x: np.ndarray
) -> tuple[np.ndarray, nn.Tape]:
    tape = nn.Tape()
    return block(parameters, x, tape=tape, **options), tape


def measure(
    apply: Callable[..., tuple[np.ndarray, nn.Tape]], parameters: Parameters, x: np.ndarray
) -> float:
    """Measure with gradients of all parameters and of x."""

    def run() -> None:
        out, tape = apply(parameters, x)
        tape.pull(out, out, (parameters, x))

    return measure_peak(run)


def list_rows() -> list[tuple[str, nn.Cost, float, float]]:
    """Name, cost, peak of the forward, and of the forward with gradients."""
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    parameters = nn.init_criss_cross_block(SHAPE[1], gamma=0.5)
    whole = nn.count_position_attention_block(SHAPE[2:], SHAPE[1])
    rows: list[tuple[str, nn.Cost, float, float]] = []

    def add(name: str, cost: nn.Cost, forward: Callable[[], Any], apply: Any) -> None:
        rows.append((name, cost, measure_peak(forward), measure(apply, parameters, x)))

    def add_plain(name: str, cost: nn.Cost, attend: Any, recurrence: int) -> None:
        def apply(parameters: Parameters, x: np.ndarray) -> Any:
            return apply_with_map(attend, recurrence, parameters, x)

        # Without gradients nothing need be kept from one recurrence to the next.
        def forward() -> np.ndarray:
            out = x
            for _ in range(recurrence):
                out = apply_with_map(attend, 1, parameters, out)[0]
            return out

        add(name, cost, forward, apply)

    for recurrence in (1, 2, 3):
        cost = nn.count_criss_cross_block(SHAPE[2:], SHAPE[1], recurrence=recurrence)
        options = {"recurrence": recurrence}

        def forward(options: dict[str, int] = options) -> Any:
            return nn.criss_cross_block(parameters, x, **options)

        def apply(parameters: Parameters, x: np.ndarray, options: Any = options) -> Any:
            return apply_block(nn.criss_cross_block, options, parameters, x)

        add(f"criss-cross, R = {recurrence}", cost, forward, apply)
        add_plain(f"criss-cross with the map, R = {recurrence}", cost, attend_with_map, recurrence)

    add(
        "all positions",
        whole,
        lambda: nn.position_attention_block(parameters, x),
        lambda parameters, x: apply_block(nn.position_attention_block, {}, parameters, x),
    )
    add_plain("all positions with the map", whole, attend_to_all, 1)
    return rows


def main() -> None:
    print("| block | published | products | weights, if stored | forward | with gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, cost, forward, backward in list_rows():
        assert cost.published_flops is not None
        print(
            f"| {name} | {cost.published_flops / 1e9:.2f} G | {cost.flops / 1e9:.2f} G "
            f"| {cost.map_bytes / MIB:.1f} MiB | {forward:.0f} MiB | {backward:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
