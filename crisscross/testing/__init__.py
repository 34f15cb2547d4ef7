"""Property tests for any implementation of the operation: ours and yours.

`attention_cases` draws problems with their arrays, `assert_matches_reference` holds results to the
oracle within a tolerance derived from the plain formula's own error.
"""

from crisscross.bridge import numpy_dtype
from crisscross.testing.arrays import LAYOUTS, fill_case, lay_out, make_case
from crisscross.testing.cases import AttentionCase, assert_matches_reference
from crisscross.testing.strategies import attention_cases, attention_problems

__all__ = [
    "LAYOUTS",
    "AttentionCase",
    "assert_matches_reference",
    "attention_cases",
    "attention_problems",
    "fill_case",
    "lay_out",
    "make_case",
    "numpy_dtype",
]
