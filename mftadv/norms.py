"""Norms of vectors and the operator norms that have a formula."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from mftadv.spec import check_exponent, dual_exponent

__all__ = ["exact_operator_norm", "has_exact_operator_norm", "vector_norm"]


def vector_norm(x: Float[Array, "*rows n"], p: float) -> Float[Array, "*rows"]:
    """|x|_p = (sum_j |x_j|^p)^(1/p) along the last axis, scaled by the largest entry so that no power overflows.

    Args:
        x: a vector [n], or rows of them.
        p: the exponent, in [1, inf].

    Returns:
        The norm of each row.

    Raises:
        ValueError: `p` is not a number in [1, inf].

    Source: definition.
    """
    p, x = check_exponent("p", p), jnp.abs(x)
    largest = jnp.max(x, axis=-1)
    if p == math.inf:
        return largest
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sum((x / unit[..., None]) ** p, axis=-1) ** (1 / p)


def has_exact_operator_norm(p: float, q: float, shape: tuple[int, int]) -> bool:
    """Whether |M|_{p->q} of a matrix [K, d] has a formula: p = 1, q = inf, p = q = 2, K = 1 or d = 1."""
    p, q = check_exponent("p", p), check_exponent("q", q)
    return p == 1 or q == math.inf or p == q == 2 or min(shape) == 1


def exact_operator_norm(matrix: Float[Array, "*batch K d"], p: float, q: float) -> Float[Array, "*batch"]:
    """|M|_{p->q} = max |M eta|_q over |eta|_p <= 1, by formula.

    p = 1: the longest column, max_j |M e_j|_q. q = inf: the longest row, max_i |M_i|_{p*}. p = q = 2: the largest
    singular value. K = 1: |M|_{p*}. d = 1: |M|_q.

    Args:
        matrix: M [K, d], or a batch of them.
        p: exponent of the norm of eta, in [1, inf].
        q: exponent of the norm of M eta, in [1, inf].

    Returns:
        The norm of each matrix.

    Raises:
        ValueError: an exponent is below 1, or this norm has no formula.

    Source: standard; for other p and q the norm is NP-hard (Steinberg 2005).
    """
    K, d = matrix.shape[-2:]
    if not has_exact_operator_norm(p, q, (K, d)):
        raise ValueError(f"p, q: expected p = 1, q = inf, p = q = 2, K = 1 or d = 1, got {p}, {q} with K={K}, d={d}")
    if q == math.inf or K == 1:
        return jnp.max(vector_norm(matrix, dual_exponent(p)), axis=-1)
    if p == 1 or d == 1:
        return jnp.max(vector_norm(jnp.swapaxes(matrix, -1, -2), q), axis=-1)
    return jnp.linalg.norm(matrix, 2, axis=(-2, -1))
