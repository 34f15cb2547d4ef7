"""How long queries and keys are: no energy is larger than the product of two lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from crisscross.cpu.copies import Place, convert
from crisscross.cpu.crew import Crew
from crisscross.cpu.weights import TAME_ENERGY, may_be_tame
from crisscross.problem import AttentionProblem


def convert_and_judge(
    features: Mapping[str, np.ndarray],
    problem: AttentionProblem,
    dtype: np.dtype[Any],
    crew: Crew,
    key_mask: np.ndarray | None,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Convert "q", "k" and what else there is, (N, heads, *S, D); find out which energies are tame.

    Those need no shift: True for each image and head, (N, heads), that has no others. Energies of
    vectors that are not finite have to be found out later. None, if all are to be shifted.
    """
    shortest = min(problem.spatial[axis] for axis in problem.axes)
    # A mask hides what would have to be looked at.
    if key_mask is not None or not may_be_tame(shortest):
        return convert(features, dtype, crew, key_mask), None
    lengths: dict[str, list[tuple[Place, float]]] = {"q": [], "k": []}
    looks = {name: partial(_look, found) for name, found in lengths.items()}
    converted = convert(features, dtype, crew, looks=looks)
    bound = np.full(features["q"].shape[:2], abs(problem.scale))
    for found in lengths.values():
        longest = np.zeros(bound.shape)
        for place, length in found:
            longest[place] = max(longest[place], length)
        bound *= longest
    return converted, bound <= TAME_ENERGY


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


def spread(tame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """View what is said of images and heads, (N, heads), as said of strips, (N, heads, *others)."""
    ones = [1] * (len(shape) - tame.ndim)
    return np.broadcast_to(tame.reshape(*tame.shape, *ones), shape)
