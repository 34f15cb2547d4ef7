"""How long queries and keys are: no energy is larger than the product of two lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from crisscross.cpu.copies import Place, convert, take_features
from crisscross.cpu.crew import Crew
from crisscross.cpu.powers import Judgement, choose_power, spread
from crisscross.cpu.strips import cut
from crisscross.cpu.weights import GENTLE_ENERGY, TAME_ENERGY, may_be_tame
from crisscross.cpu.workspace import Workspace
from crisscross.problem import AttentionProblem

#: Fewest keys for each channel of the queries, if those are to be scaled and not the energies.
_KEYS_OF_CHANNEL = 4
#: Fewest keys for each channel of the values, if sums are to be divided and not the weights.
_KEYS_OF_SUM = 3
#: Largest scale of queries, and of the inverse. A scaled query that is finite and has tame energies
#: is far from the largest float, as no length of a key counts as nothing.
_LARGEST_SCALE = 1e30
#: Bytes that are scaled at a time.
_CHUNK_BYTES = 1 << 20


def convert_and_judge(
    features: Mapping[str, np.ndarray],
    problem: AttentionProblem,
    dtype: np.dtype[Any],
    crew: Crew,
    key_mask: np.ndarray | None,
) -> tuple[list[np.ndarray], Judgement]:
    """Convert "q", "k" and what else there is, (N, heads, *S, D), and judge their energies."""
    keys = [problem.spatial[axis] for axis in problem.axes]
    # A mask hides what would have to be looked at.
    if key_mask is not None or not may_be_tame(min(keys)):
        return convert(features, dtype, crew, key_mask), Judgement()
    found: dict[str, list[tuple[Place, float]]] = {"q": [], "k": []}
    looks = {name: partial(_look, seen) for name, seen in found.items()}
    converted = convert(features, dtype, crew, looks=looks)
    longest = {name: np.zeros(features[name].shape[:2]) for name in found}
    for name, seen in found.items():
        for place, length in seen:
            longest[name][place] = max(longest[name][place], length)
    scale = abs(problem.scale)
    bound = longest["q"] * scale * longest["k"]
    tame = bound <= TAME_ENERGY
    gentle = bound <= GENTLE_ENERGY
    summed = sum(keys) >= _KEYS_OF_SUM * problem.head_size_v and gentle.any()
    judgement = Judgement(tame, gentle=gentle if summed else None)
    worth = sum(keys) >= _KEYS_OF_CHANNEL * problem.head_size_qk
    if not worth or not 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE or not tame.any():
        return converted, judgement
    power = choose_power(dtype)
    factor = np.where(tame, problem.scale * power.unit, 1)
    scaled = dict(zip(features, converted, strict=True))
    scaled["q"] = _scale(features["q"], scaled["q"], factor, crew)
    return [*scaled.values()], judgement._replace(power=power)


def _scale(given: np.ndarray, q: np.ndarray, factor: np.ndarray, crew: Crew) -> np.ndarray:
    """Multiply q (N, heads, ...) by a factor (N, heads): in its memory, unless that is `given`."""
    if (factor == 1).all():
        return q
    scaled = q
    if q is given:
        scaled = take_features(crew.workspace, "q copy", q.shape, q.dtype)
    factors = spread(factor.astype(q.dtype), q.shape)

    def scale(rows: slice, _: Workspace) -> None:
        part, by = q[:, :, rows], factors[:, :, rows]
        if not np.isfinite(part).all():
            # Beside what is not finite, which has no length, what is finite is to stay so.
            limit = np.finfo(q.dtype).max / 2 / np.abs(by)
            part = np.where(np.isfinite(part), np.clip(part, -limit, limit), part)
        np.multiply(part, by, out=scaled[:, :, rows])

    count = q.shape[2]
    crew.run(cut(count, max(1, _CHUNK_BYTES * count // q.nbytes)), scale)
    return scaled


def _look(found: list[tuple[Place, float]], place: Place, vectors: np.ndarray) -> None:
    # From several threads, in any order.
    found.append((place, measure_longest(vectors)))


def measure_longest(vectors: np.ndarray) -> float:
    """Measure the longest of (..., D); vectors that are not finite do not count."""
    squares = np.einsum("...d,...d->...", vectors, vectors)
    longest = squares.max(initial=0)
    if not math.isfinite(longest):
        finite = np.isfinite(vectors).all(axis=-1)
        longest = squares.max(initial=0, where=finite)
    # What a square loses below the smallest float counts as that.
    return math.sqrt(longest + vectors.shape[-1] * np.finfo(squares.dtype).tiny)
