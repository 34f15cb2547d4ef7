"""Problems: frozen descriptions of a call, validated once, made of shapes and dtypes only.

Nothing here knows an array library. Sizes may be symbolic: they are compared, multiplied and
divided, never hashed or turned into an `int`.
"""

from crisscross.problem.attention import AttentionProblem, attention_problem, split_heads
from crisscross.problem.ccnet import MapProblem, features_problem, map_problem
from crisscross.problem.findings import COMPUTE_DTYPES, PRECISIONS, ArraySpec, Findings
from crisscross.problem.merge import MergeProblem, merge_problem

__all__ = [
    "COMPUTE_DTYPES",
    "PRECISIONS",
    "ArraySpec",
    "AttentionProblem",
    "Findings",
    "MapProblem",
    "MergeProblem",
    "attention_problem",
    "features_problem",
    "map_problem",
    "merge_problem",
    "split_heads",
]
