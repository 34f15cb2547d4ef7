"""Laws: property tests whose examples are counted, so that the run can say how many it tried.

A law that is tried in another place as well, on a device for instance, is counted there once more.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given

#: Examples that ran to their end, by law.
EXAMPLES: Counter[str] = Counter()

FEWEST_A_LAW = 100
FEWEST_A_RUN = 2000

#: The fewest examples asked for of a law, by the name it is counted under.
ASKED_FOR: dict[str, int] = {}


@dataclass
class Place:
    """Where laws are being tried, and how many examples each test is to have there."""

    suffix: str = ""
    examples: int = FEWEST_A_LAW
    tried: Counter[int] = field(default_factory=Counter)  # by law
    failing: bool = False


_place = Place()


@contextmanager
def counted_as(place: str, examples: int) -> Iterator[None]:
    """Try the laws of a test in another place, with so many examples each, counted by its name.

    Hypothesis settles the number when a law is defined; further ones are drawn, and pass.
    """
    global _place
    before, _place = _place, Place(f" {place}", examples)
    try:
        yield
    finally:
        _place = before


def law(*strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a test into a property over Hypothesis strategies, counted by name."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        name = f"{test.__module__}.{test.__qualname__}"

        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            place = _place
            ASKED_FOR[name + place.suffix] = place.examples
            EXAMPLES[name + place.suffix] += 0
            enough = place.tried[id(counted)] >= place.examples < FEWEST_A_LAW
            if enough and not place.failing:
                return
            try:
                test(*args, **kwargs)
            except BaseException:
                place.failing = True  # Hypothesis looks for a smaller example
                raise
            place.tried[id(counted)] += 1
            EXAMPLES[name + place.suffix] += 1

        return given(*strategies, **named)(counted)

    return decorate
