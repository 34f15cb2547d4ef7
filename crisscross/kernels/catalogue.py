"""Every configuration that the library can come to: what tests and compilers are to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from crisscross.kernels import ccnet
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.layout import configure_copy
from crisscross.kernels.merge import configure_merge
from crisscross.kernels.select import TABLES, configure_backward, configure_forward
from crisscross.problem.findings import COMPUTE_DTYPES


def all_configurations() -> Iterator[Configuration]:
    """List every configuration, each once."""
    found = dict.fromkeys(
        configuration
        for dtype in COMPUTE_DTYPES
        for configuration in (*_list_strips(dtype), *_list_copies(dtype))
    )
    yield from found
    yield from ccnet.list_configurations()


def list_targets(dtype: str) -> tuple[str, ...]:
    """List the dtypes of sums of gradients, and merges of many: some are kept as computed."""
    return tuple(dict.fromkeys((dtype, COMPUTE_DTYPES[dtype])))


def _list_strips(dtype: str) -> Iterator[Configuration]:
    for row in TABLES["forward"][dtype]:
        for is_aligned, is_across in product((True, False), repeat=2):
            yield configure_forward(dtype, row.tile, is_aligned=is_aligned, is_across=is_across)
    for row in TABLES["backward"][dtype]:
        for target, is_aligned, adds in product(list_targets(dtype), (True, False), (False, True)):
            yield from configure_backward(
                dtype, row.tile, partial_dtype=target, is_aligned=is_aligned, adds=adds
            )


def _list_copies(dtype: str) -> Iterator[Configuration]:
    for target in list_targets(dtype):
        yield configure_copy(target, dtype)
        yield configure_merge(dtype, target)
