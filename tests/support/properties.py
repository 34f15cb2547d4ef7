"""Laws: property tests whose examples are counted, so that the run can say how many it tried."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given

#: Examples that ran to their end, by law.
EXAMPLES: Counter[str] = Counter()

FEWEST_A_LAW = 100
FEWEST_A_RUN = 2000


def law(*strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a test into a property over Hypothesis strategies, counted by name."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        name = f"{test.__module__}.{test.__qualname__}"

        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            test(*args, **kwargs)
            EXAMPLES[name] += 1

        return given(*strategies, **named)(counted)

    return decorate
