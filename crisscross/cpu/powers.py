"""What is known of energies before there is one, and powers that are faster for it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.introspect import opt_func_info

from crisscross.cpu.strips import Block


class Power(NamedTuple):
    """Powers of a base.

    Attributes
    ----------
    compute
        NumPy's function.
    unit
        What an energy is multiplied by to make it an exponent: the log of e to the base.
    """

    compute: Callable[..., np.ndarray]
    unit: float


POWER_OF_E = Power(np.exp, 1.0)
POWER_OF_2 = Power(np.exp2, math.log2(math.e))


@cache
def choose_power(dtype: np.dtype[Any]) -> Power:
    """Choose the faster power, if exponents are small.

    With AVX-512, on Linux, NumPy takes exp2 of float32 from Intel's library: half as long as its
    own exp, and with half the error. But powers below the smallest normal float, and that of -inf,
    take ten to a hundred times as long.
    """
    if dtype != np.float32 or sys.platform != "linux":
        return POWER_OF_E
    loops = opt_func_info(func_name="^exp2$", signature="^float32$").get("exp2", {})
    targets = [str(loop["current"]) for loop in loops.values()]
    fast = any(target.startswith(("AVX512", "X86_V4")) for target in targets)
    return POWER_OF_2 if fast else POWER_OF_E


class Judgement(NamedTuple):
    """What is known of the energies of each image and head, (N, heads), or of strips, (...).

    Attributes
    ----------
    tame
        Where none needs a shift. Energies of vectors that are not finite have to be found out
        later. None, if all are to be shifted.
    power
        Where energies are tame, the queries are scaled so that these come as exponents of it. None,
        if no query is.
    gentle
        Where they are so small that sums of weighted values are not infinite, unless values are
        large. None, if nothing is gained by sums.
    """

    tame: np.ndarray | None = None
    power: Power | None = None
    gentle: np.ndarray | None = None

    def lay(self, shape: tuple[int, ...]) -> Judgement:
        """Say the same of strips, (N, heads, *others), instead of images and heads."""
        return self._map(lambda said: spread(said, shape))

    def of(self, block: Block) -> Judgement:
        """Take the part of a block."""
        return self._map(block.of)

    def _map(self, change: Callable[[np.ndarray], np.ndarray]) -> Judgement:
        tame, gentle = (None if said is None else change(said) for said in (self.tame, self.gentle))
        return Judgement(tame, self.power, gentle)

    def choose(self, scaled: float, other: float) -> float | np.ndarray:
        """Choose one of two numbers, for queries that are scaled and others; for each, or all."""
        if self.power is None or self.tame is None:
            return other
        return scaled if self.tame.all() else np.where(self.tame, scaled, other)

    def raise_powers(self, exponents: np.ndarray) -> None:
        """Replace exponents by their powers, energies by those of e."""
        if self.power is None or self.power is POWER_OF_E or self.tame is None:
            np.exp(exponents, out=exponents)
        elif self.tame.all():
            self.power.compute(exponents, out=exponents)
        else:
            powers = self.power.compute(exponents[self.tame])
            np.exp(exponents, out=exponents)
            exponents[self.tame] = powers


def multiply_by(array: np.ndarray, factor: float | np.ndarray) -> None:
    """Multiply in place by one number, or by one for each of the outer axes."""
    if isinstance(factor, np.ndarray):
        array *= spread(factor.astype(array.dtype), array.shape)
    elif factor != 1.0:
        array *= array.dtype.type(factor)


def spread(said: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """View what is said of images and heads, (N, heads), as said of (N, heads, ...)."""
    ones = [1] * (len(shape) - said.ndim)
    return np.broadcast_to(said.reshape(*said.shape, *ones), shape)
