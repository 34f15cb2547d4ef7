"""Every configuration that the library can come to: what tests and compilers are to be shown."""

from __future__ import annotations

from collections.abc import Iterator

from crisscross.kernels import ccnet
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.layout import configure_copy
from crisscross.kernels.merge import configure_merge
from crisscross.kernels.select import STRIP_KERNELS, TABLE, configure
from crisscross.problem.findings import COMPUTE_DTYPES


def all_configurations() -> Iterator[Configuration]:
    """List every configuration, each once."""
    for dtype, rows in TABLE.items():
        # Some targets are kept in the dtype that is computed in: sums of gradients, merges of many.
        targets = dict.fromkeys((dtype, COMPUTE_DTYPES[dtype]))
        for row in rows:
            yield configure("strip_forward", dtype, row.tile)
            for kernel in STRIP_KERNELS[1:]:
                for target in targets:
                    yield configure(kernel, dtype, row.tile, partial_dtype=target)
        for target in targets:
            yield configure_copy(target, dtype)
            yield configure_merge(dtype, target)
    yield from ccnet.list_configurations()
