"""Norms of vectors, the lp ball as attacks see it, and operator norms."""

from mftadv.norms._operator import (
    OperatorNorm,
    exact_operator_norm,
    has_exact_operator_norm,
    maximising_vector,
    operator_norm,
)
from mftadv.norms._projection import project
from mftadv.norms._vectors import dual_vector, maximise_linear, vector_norm

__all__ = [
    "OperatorNorm",
    "dual_vector",
    "exact_operator_norm",
    "has_exact_operator_norm",
    "maximise_linear",
    "maximising_vector",
    "operator_norm",
    "project",
    "vector_norm",
]
