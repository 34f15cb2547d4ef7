"""What comes of trying tiles: who is wrong, who is fastest, and what is chosen.

A candidate gets a number if each of its results x agrees with that of the table's own, y:
rms(x - y) <= share rms(y), and max |x - y| <= `PEAK` share max |y|. The share, in `SHARES`, is 4
units in the last place for results in 16 bits and for tf32, which are off by a rounding or two.
Others are off by the roundings of energies, which exp makes more of: it is 64, and 32 for tf32x3,
whose unit is 2^-20. One key left out of 300 is beyond all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crisscross.bench.shapes import Shape
from crisscross.kernels.choices import Choice
from crisscross.kernels.tables import TERMS, Direction, Strip
from crisscross.kernels.tiles import Tile

__all__ = ["MARGIN", "PEAK", "SHARES", "Finding", "Trial", "choose", "find_disagreement"]

#: A candidate is chosen if it takes less time than the table's own by more than this share.
MARGIN = 0.03
#: How far results may be off, by an arithmetic of tensor cores for float32, or else by their dtype.
SHARES = {
    "float16": 2.0**-8,
    "bfloat16": 2.0**-5,
    "tf32": 2.0**-8,
    "tf32x3": 2.0**-15,
    "float32": 2.0**-17,
    "float64": 2.0**-46,
}
PEAK = 4


@dataclass(frozen=True)
class Trial:
    """A tile that was tried.

    Attributes
    ----------
    tile : Tile
    seconds : float or None
        Of a call, the median of the rounds.
    ratio : float or None
        The time of the table's own over it, taken round by round, the median.
    reason : str or None
        Why there is no number.
    """

    tile: Tile
    seconds: float | None = None
    ratio: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Finding:
    """What was found for a direction and a strip; the first of the trials is the table's own."""

    shape: Shape
    direction: Direction
    strip: Strip
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial | None:
        return choose(self.trials)

    @property
    def choice(self) -> Choice | None:
        """What to store: nothing if the table's own is as good."""
        own, chosen = self.trials[0], self.chosen
        if chosen is None or chosen is own or chosen.seconds is None or own.seconds is None:
            return None
        return Choice(chosen.tile, chosen.seconds, own.seconds)


def choose(trials: Sequence[Trial]) -> Trial | None:
    """Choose the fastest, or the table's own, if none is faster by more than `MARGIN`.

    None if the table's own has no number.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from crisscross.kernels.tables import TABLES
    >>> tiles = [row.tile for row in TABLES["forward"]["float64"]]
    >>> own, faster = Trial(tiles[0], 1.0, 1.0), Trial(tiles[1], 0.9, 1 / 0.9)
    >>> choose([own, faster]) is faster, choose([own, replace(faster, ratio=1.02)]) is own
    (True, True)
    """
    own = trials[0]
    if own.ratio is None:
        return None
    best = max(trials, key=lambda trial: trial.ratio or 0.0)
    return best if best.ratio is not None and best.ratio * (1 - MARGIN) > 1 else own


def find_disagreement(
    arithmetic: str, results: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> str | None:
    """Say where results differ from those of the table's own by more than they may, if they do.

    Parameters
    ----------
    arithmetic : str
        Of the strip.
    results, own : mapping of ndarray
        By name; all those of `own` are compared.
    """
    for name, expected in own.items():
        y = expected.astype(np.float64)
        error = np.abs(results[name].astype(np.float64) - y)
        share = SHARES[arithmetic if arithmetic in TERMS else expected.dtype.name]
        rms, rms_bound = _rms(error), share * _rms(y)
        peak, peak_bound = error.max(), PEAK * share * np.abs(y).max()
        # Written so that NaN fails.
        if not (rms <= rms_bound and peak <= peak_bound):
            return (
                f"disagrees with the table's own: {name}, rms {rms:.2g} (allowed {rms_bound:.2g}), "
                f"largest {peak:.2g} (allowed {peak_bound:.2g})"
            )
    return None


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
