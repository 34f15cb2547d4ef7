"""What happens to a tile of energies, (..., queries, keys): weights, their peaks and totals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from crisscross.cpu.powers import Judgement, multiply_by
from crisscross.cpu.strips import find_diagonal

#: Largest energies of which exp is taken as they are: the sum of 1e9 of them still is a float32.
TAME_ENERGY = 64.0
#: Largest of which weighted values are added up as they are, if the weights of the first axis add
#: up to 1 or more. So no more is lost below the smallest normal float than of a mean; where a sum
#: is infinite, it shows.
GENTLE_ENERGY = 16.0
#: Fewest keys for that: of one alone, log exp e has less digits than e.
_FEWEST_KEYS = 16


def compute_energies(
    q: np.ndarray,
    k: np.ndarray,
    scale: float | np.ndarray,
    mask: np.ndarray | None,
    energies: np.ndarray | None = None,
) -> np.ndarray:
    """Energies of queries (..., rows, D) and keys; -inf where `mask` (..., keys) hides a key.

    There may be a `scale` for each strip, (...).
    """
    energies = np.matmul(q, k.swapaxes(-1, -2), out=energies)
    multiply_by(energies, scale)
    if mask is not None:
        np.copyto(energies, -np.inf, where=~mask[..., None, :])
    return energies


def weigh_tile(
    q: np.ndarray,
    k: np.ndarray,
    scale: float,
    mask: np.ndarray | None,
    weights: np.ndarray,
    *,
    skipped: slice | None,
    judgement: Judgement,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Fill a tile (..., rows, L) with weights; return their peaks, as `exponentiate`, and totals.

    `skipped` are the keys that the rows are not to see, each one of them: themselves.
    """
    compute_energies(q, k, judgement.choose(1.0, scale), mask, weights)
    diagonals = []
    if skipped is not None:
        diagonals.append(find_diagonal(weights, skipped, slice(0, weights.shape[-1])))
    peak = exponentiate(weights, diagonals, judgement)
    return peak, sum_weights(weights, judgement.tame)


def exponentiate(
    energies: np.ndarray, diagonals: Sequence[np.ndarray], judgement: Judgement
) -> np.ndarray | None:
    """Turn energies into weights in place; return the peaks that they are relative to.

    `diagonals` are the views of those without a weight. Strips that are tame are not shifted: their
    peak is 0. None, if that is so of all.
    """
    tame = judgement.tame
    if tame is not None and tame.all():
        _exponentiate_unshifted(energies, diagonals, judgement)
        return None
    for diagonal in diagonals:
        diagonal[...] = -np.inf
    peak = np.asarray(energies.max(axis=-1))
    if tame is not None:
        peak[tame] = 0
    keyless = peak == -np.inf
    energies -= (np.where(keyless, 0, peak) if keyless.any() else peak)[..., None]
    judgement.raise_powers(energies)
    return peak


def _exponentiate_unshifted(
    energies: np.ndarray, diagonals: Sequence[np.ndarray], judgement: Judgement
) -> None:
    judgement.raise_powers(energies)
    for diagonal in diagonals:
        diagonal[...] = 0


def may_be_tame(keys: int) -> bool:
    """Whether so many keys may go without a shift, if their energies are small enough."""
    return keys >= _FEWEST_KEYS


def find_tame(energies: np.ndarray) -> np.ndarray:
    """Whether energies need no shift, of all of each image and head, (N, heads, ...), in C order.

    Where they are at hand as a whole, to look at them costs less than a shift of each row. Those
    that are not finite do not count: they have to be found out later.
    """
    flat = energies.reshape(*energies.shape[:2], -1, copy=False)
    highest, lowest = flat.max(axis=-1), flat.min(axis=-1)
    if not np.isfinite(highest - lowest).all():
        finite = np.where(np.isfinite(flat), flat, 0)
        highest, lowest = finite.max(axis=-1), finite.min(axis=-1)
    tame: np.ndarray = np.maximum(highest, -lowest) <= TAME_ENERGY
    return tame


def are_calm(energies: np.ndarray) -> bool:
    """Whether all energies are tame and finite, so that there is nothing to look after."""
    return bool(energies.max() <= TAME_ENERGY and energies.min() >= -TAME_ENERGY)


def sum_weights(weights: np.ndarray, tame: np.ndarray | None) -> np.ndarray:
    """Sum what `exponentiate` made of energies over the keys."""
    total: np.ndarray = weights @ _make_ones(weights.shape[-1], weights.dtype)
    if tame is not None and not np.isfinite(total.max()):
        # An infinite energy, which a shift by the peak would have made NaN.
        total[np.isinf(total)] = np.nan
    return total


@lru_cache
def _make_ones(count: int, dtype: np.dtype[Any]) -> np.ndarray:
    ones = np.ones(count, dtype)
    ones.setflags(write=False)
    return ones


def take_in(
    peak: np.ndarray,
    total: np.ndarray,
    part_peak: np.ndarray | None,
    part_total: np.ndarray,
    sums: np.ndarray | None,
    *,
    first: bool,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Write the `first` part to `peak` and `total`, or `join` another; return what that returns.

    Shares are None that are 1: of nothing there was before, and in rows whose `sums` are to be
    divided in the end.
    """
    rest: np.ndarray | None = None
    summed = sums is not None and sums.all()
    if first:
        peak[...], total[...] = 0 if part_peak is None else part_peak, part_total
        if summed:
            return None, None
        factor = invert(part_total)
    elif summed:
        total += part_total
        return None, None
    else:
        rest, factor = join(peak, total, part_peak, part_total)
    if sums is None:
        return rest, factor
    return None if rest is None else np.where(sums, 1, rest), np.where(sums, 1, factor)


def join(
    peak: np.ndarray,
    total: np.ndarray,
    part_peak: np.ndarray | None,
    part_total: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Add a part to `peak` and `total`; return the shares of what was there and of the part.

    The first is the share of the mean so far, the second that of each of the part's weights. With
    a `part_peak` of None all peaks are 0.
    """
    if part_peak is None:
        whole = total + part_total
        inverse = invert(whole)
        own = total * inverse
        total[...] = whole
        return own, inverse
    higher = np.maximum(peak, part_peak)
    own, scale = total * relate(peak, higher), relate(part_peak, higher)
    whole = own + part_total * scale
    inverse = invert(whole)
    peak[...], total[...] = higher, whole
    own *= inverse
    scale *= inverse
    return own, scale


def relate(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """exp(part - whole); zero for a part without keys."""
    share: np.ndarray = np.exp(part - whole)
    share[part == -np.inf] = 0
    return share


def invert(total: np.ndarray) -> np.ndarray:
    """1 / total; zero for a total of no keys."""
    inverse = np.asarray(np.reciprocal(total))
    if not total.all():
        inverse[total == 0] = 0
    return inverse


def normalise(
    energies: np.ndarray, diagonals: Sequence[np.ndarray], lse: np.ndarray, *, judged: bool
) -> np.ndarray | None:
    """Turn all energies of images into weights whose sum is 1, in place, and fill `lse`.

    Return which positions have no key; None if all have one. Unless the energies are `judged`, all
    are shifted.
    """
    tame = None
    if judged and may_be_tame(energies.shape[-1]):
        if are_calm(energies):
            _normalise_calm(energies, diagonals, lse)
            return None
        tame = find_tame(energies)
    peak = exponentiate(energies, diagonals, Judgement(tame))
    total = sum_weights(energies, tame)
    np.log(total, out=lse)
    if peak is not None:
        lse += peak
    energies *= invert(total)[..., None]
    keyless: np.ndarray = total == 0
    return keyless


def _normalise_calm(energies: np.ndarray, diagonals: Sequence[np.ndarray], lse: np.ndarray) -> None:
    """Turn energies into weights whose sum is 1, in place, and fill `lse`.

    These are the bits that other energies get, by half as many steps: no total of `_FEWEST_KEYS` is
    zero or infinite.
    """
    _exponentiate_unshifted(energies, diagonals, Judgement())
    total = energies @ _make_ones(energies.shape[-1], energies.dtype)
    np.log(total, out=lse)
    energies *= np.reciprocal(total)[..., None]


def clear(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return (..., D) with zeros at the positions (...)."""
    return np.where(positions[..., None], array.dtype.type(0), array)


def compute_delta(dout: np.ndarray, out: np.ndarray, dlse: np.ndarray | None) -> np.ndarray:
    """delta(p) = <dout_p, out_p> - dlse(p), of (..., *S, D) in the dtype of the computation.

    Fast if both have one layout, whichever.
    """
    delta: np.ndarray = np.einsum("...d,...d->...", dout, out)
    if dlse is not None:
        delta -= dlse
    return delta


def differentiate(
    weights: np.ndarray,
    denergies: np.ndarray,
    lse: np.ndarray,
    delta: np.ndarray,
    diagonals: Sequence[np.ndarray],
) -> None:
    """Turn energies into weights and their gradients dP into those of the energies, in place.

    ``P = exp(e - lse)`` and ``dS = P * (dP - delta)``; both are zero in the rows of positions
    without keys (lse is -inf) and on the `diagonals`, the views of those without a weight.
    """
    weights -= lse[..., None]
    np.exp(weights, out=weights)
    denergies -= delta[..., None]
    denergies *= weights
    keyless = lse == -np.inf
    if keyless.any():
        weights[keyless] = 0
        denergies[keyless] = 0
    for diagonal in diagonals:
        # A NaN in the query's lse or delta is not the excluded key's.
        diagonal[...] = 0
