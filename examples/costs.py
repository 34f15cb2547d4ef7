"""What CCNet's block costs beside the block that attends to all positions: the paper's claim.

    python examples/costs.py

prints the table of docs/blocks.md: arithmetic by formula, and the most memory that NumPy holds
while a block runs on the CPU, beyond its input and parameters, its result included; with gradients
that includes the tape and all gradients. "With the map" is the plain form, which holds the weights
of all positions.
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


def measure_peak(run: Callable[[], Any]) -> float:
    """Return the MiB that a call holds at most."""
    crisscross.clear_workspace()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def run_with_gradients(
    block: Callable[..., Any], parameters: Any, x: np.ndarray, **options: Any
) -> None:
    tape = nn.Tape()
    out = block(parameters, x, tape=tape, **options)
    tape.pull(out, out, (parameters, x))


def attend_with_map(parameters: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Attend to all positions as ports do: energies, their softmax, its product with the values."""
    flat = x.reshape(*x.shape[:2], -1)
    q, k, v = (
        parameters[f"{name}_conv.weight"][..., 0, 0] @ flat
        + parameters[f"{name}_conv.bias"][:, None]
        for name in ("query", "key", "value")
    )
    weights = q.swapaxes(1, 2) @ k
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(-1, keepdims=True)
    return (parameters["gamma"] * (v @ weights.swapaxes(1, 2)) + flat).reshape(x.shape)


def list_rows() -> list[tuple[str, nn.Cost, float, float | None]]:
    """Name, cost, peak of the forward, and of the forward with gradients."""
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    parameters = nn.init_criss_cross_block(SHAPE[1], gamma=0.5)
    rows: list[tuple[str, nn.Cost, float, float | None]] = []
    for recurrence in (1, 2, 3):
        options = {"recurrence": recurrence}
        rows.append(
            (
                f"criss-cross, R = {recurrence}",
                nn.count_criss_cross_block(SHAPE[2:], SHAPE[1], recurrence=recurrence),
                measure_peak(lambda o=options: nn.criss_cross_block(parameters, x, **o)),
                measure_peak(
                    lambda o=options: run_with_gradients(nn.criss_cross_block, parameters, x, **o)
                ),
            )
        )
    cost = nn.count_position_attention_block(SHAPE[2:], SHAPE[1])
    block = nn.position_attention_block
    rows.append(
        (
            "all positions",
            cost,
            measure_peak(lambda: block(parameters, x)),
            measure_peak(lambda: run_with_gradients(block, parameters, x)),
        )
    )
    plain = measure_peak(lambda: attend_with_map(parameters, x))
    rows.append(("all positions, with the map", cost, plain, None))
    return rows


def main() -> None:
    print("| block | published | products | weights, if stored | forward | with gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, cost, forward, backward in list_rows():
        gradients = "-" if backward is None else f"{backward:.0f} MiB"
        print(
            f"| {name} | {cost.published_flops / 1e9:.2f} G | {cost.flops / 1e9:.2f} G "
            f"| {cost.map_bytes / MIB:.1f} MiB | {forward:.0f} MiB | {gradients} |"
        )


if __name__ == "__main__":
    main()
