"""Every configuration that the library can come to: what tests and compilers are to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from crisscross.kernels import ccnet
from crisscross.kernels.candidates import list_rows
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.layout import configure_copy
from crisscross.kernels.merge import configure_merge
from crisscross.kernels.select import configure_backward, configure_forward
from crisscross.kernels.tables import TABLES, find_dtype
from crisscross.problem.findings import COMPUTE_DTYPES


def all_configurations() -> Iterator[Configuration]:
    """List every configuration, each once."""
    found = dict.fromkeys(
        configuration
        for arithmetic in TABLES["forward"]
        for configuration in (*_list_strips(arithmetic), *_list_copies(find_dtype(arithmetic)))
    )
    yield from found
    yield from ccnet.list_configurations()


def list_targets(dtype: str) -> tuple[str, ...]:
    """List the dtypes of sums of gradients, and merges of many: some are kept as computed."""
    return tuple(dict.fromkeys((dtype, COMPUTE_DTYPES[dtype])))


def _list_strips(arithmetic: str) -> Iterator[Configuration]:
    for row in list_rows("forward", arithmetic):
        for is_aligned, is_across in product((True, False), repeat=2):
            yield configure_forward(
                arithmetic, row.tile, is_aligned=is_aligned, is_across=is_across
            )
    targets = list_targets(find_dtype(arithmetic))
    for row in list_rows("backward", arithmetic):
        for target, is_aligned, adds in product(targets, (True, False), (False, True)):
            yield from configure_backward(
                arithmetic, row.tile, partial_dtype=target, is_aligned=is_aligned, adds=adds
            )


def _list_copies(dtype: str) -> Iterator[Configuration]:
    for target in list_targets(dtype):
        yield configure_copy(target, dtype)
        yield configure_merge(dtype, target)
