"""Operator norms |M|_{p->q}: by formula, by enumeration of signs, or between two bounds."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mftadv.matrices import matmul_precision
from mftadv.norms._vectors import dual_vector, in_single, vector_norm
from mftadv.spec import check_exponent, check_positive, dual_exponent, key_for

ENUMERATION_LIMIT = 14  # signs: 2^13 vectors, for -s gives what s gives
POWER_STEPS = 64
_CHUNK_ENTRIES = 2**21  # of the products of an enumeration that are held at once


class OperatorNorm(NamedTuple):
    """lower <= |M|_{p->q} <= upper, each [*batch]; where `exact`, a Python bool even out of jit, they are equal."""

    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    exact: bool


jax.tree_util.register_pytree_node(
    OperatorNorm,
    lambda norm: ((norm.lower, norm.upper), norm.exact),
    lambda exact, bounds: OperatorNorm(*bounds, exact),
)


def has_exact_operator_norm(p: float, q: float, shape: tuple[int, int]) -> bool:
    """Whether |M|_{p->q} of a matrix [K, d] has a formula: p = 1, q = inf, p = q = 2, K = 1 or d = 1."""
    p, q = check_exponent("p", p), check_exponent("q", q)
    return p == 1 or q == math.inf or p == q == 2 or min(shape) == 1


@in_single
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
    return _largest_singular_value(matrix)


@in_single
def operator_norm(
    matrix: Float[Array, "*batch K d"], p: float, q: float, key: Key[Array, ""] | None = None, *, restarts: int = 64
) -> OperatorNorm:
    """|M|_{p->q} = max |M eta|_q over |eta|_p <= 1 for every p and q: exactly where that can be had, else bounded.

    Exact by `exact_operator_norm`, or by enumeration where p = inf and d <= 14 (the maximum of |M s|_q over sign
    vectors s) or q = 1 and K <= 14 (that of |M^T s|_{p*}). Else

        lower = |M v|_q / |v|_p for the best v of many ascents v <- dual_vector(M^T dual_vector(M v, q*), p), started
                at random and at the largest rows and columns;
        upper = min over (r, t) of d^max(0, 1/r - 1/p) |M|_{r->t} K^max(0, 1/q - 1/t), where |M|_{r->t} is exact or
                itself bounded, for r <= t, by |M|_{2->2}^(1-w) |M|_{u->v}^w: (1/r, 1/t) lies at the fraction w of the
                segment from (1/2, 1/2) to (1/u, 1/v), which has u = 1 or v = inf.

    Args:
        matrix: M [K, d], or a batch of them.
        p: exponent of the norm of eta, in [1, inf].
        q: exponent of the norm of M eta, in [1, inf].
        key: draws the random starts, the same for every matrix of a batch; None is `jax.random.key(0)`.
        restarts: how many ascents start at random; rows and columns start up to half as many more.

    Returns:
        An `OperatorNorm`; the bounds hold up to rounding. Both are nan for a matrix with a nan, and inf for one that
        is not finite otherwise.

    Raises:
        ValueError: an exponent is below 1, `matrix` is not [..., K, d] with K, d >= 1, or restarts < 1, or
            `key` is not one JAX key.

    Source: the ascent is that of Boyd 1974 and Higham 1992, along which |M v|_q never falls; the powers of d and K are
        Hoelder's inequality; the interpolation is the theorem of Riesz and Thorin, for complex norms, which bound the
        real ones and equal them at the ends used here (extreme points of the ball, dual vectors, singular vectors).
    """
    p, q = check_exponent("p", p), check_exponent("q", q)
    if matrix.ndim < 2 or min(matrix.shape[-2:]) < 1:
        raise ValueError(f"matrix: expected [..., K, d] with K, d >= 1, got shape {matrix.shape}")
    check_positive("restarts", restarts)
    key = key_for("operator_norm", jax.random.key(0) if key is None else key)
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    matrix = matrix / unit[..., None, None]
    K, d = matrix.shape[-2:]
    exact = _is_computable(p, q, (K, d))
    if exact:
        lower = upper = _compute(matrix, p, q)
    else:
        random = jax.random.normal(key, (restarts, d), matrix.dtype)
        v = maximising_vector(matrix, p, q, _starts(matrix, p, q, random))
        image = jnp.squeeze(jnp.matmul(matrix, v[..., None], precision=matmul_precision()), -1)
        norm = vector_norm(v, p)
        lower = vector_norm(image, q) / jnp.where(norm == 0, 1, norm)
        # Where the bounds meet, rounding could make them cross.
        upper = jnp.maximum(_bound(matrix, p, q), lower)
    finite = jnp.isfinite(largest)
    return OperatorNorm(jnp.where(finite, unit * lower, largest), jnp.where(finite, unit * upper, largest), exact)


def _largest_singular_value(matrix: Array) -> Array:
    """Of each matrix of a batch, on processors one after the other, under a vmap too.

    LAPACK as called by jaxlib before 0.11 divides a batch among the threads of the process and waits for them. Where
    each of these threads waits, since several devices call it at once, nothing goes on any more.
    """
    if matrix.ndim == 2:
        return _of_one(matrix)
    one_by_one = lambda flat: jax.lax.map(_of_one, flat)  # noqa: E731
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return jax.lax.platform_dependent(flat, cpu=one_by_one, default=_at_once).reshape(matrix.shape[:-2])


def _at_once(matrix: Array) -> Array:
    return jnp.linalg.norm(matrix, 2, axis=(-2, -1))


@jax.custom_jvp
def _of_one(matrix: Array) -> Array:
    return _of_one_or_mapped(matrix)


@_of_one.defjvp
def _(matrix, change):  # that of JAX, which has all derivatives; those of a custom vmap end with the first
    return jax.jvp(_at_once, matrix, change)


@jax.custom_batching.custom_vmap
def _of_one_or_mapped(matrix: Array) -> Array:
    return _at_once(matrix)


@_of_one_or_mapped.def_vmap
def _(size, batched, matrix):
    return _largest_singular_value(matrix), True


def _is_computable(p: float, q: float, shape: tuple[int, int]) -> bool:
    K, d = shape
    by_signs = (p == math.inf and d <= ENUMERATION_LIMIT) or (q == 1 and K <= ENUMERATION_LIMIT)
    return by_signs or has_exact_operator_norm(p, q, shape)


def _compute(matrix: Array, p: float, q: float) -> Array:
    K, d = matrix.shape[-2:]
    if has_exact_operator_norm(p, q, (K, d)):
        return exact_operator_norm(matrix, p, q)
    if p == math.inf and (d <= K or q != 1):
        return _enumerate(matrix, q)
    return _enumerate(matrix.mT, dual_exponent(p))


def _enumerate(matrix: Array, q: float) -> Array:
    """|M|_{inf->q}: the maximum of a convex function over a cube, at one of its vertices."""
    *batch, K, d = matrix.shape
    count = 2 ** (d - 1)  # the last sign is +1
    most = max(1, _CHUNK_ENTRIES // max(1, math.prod(batch) * K))
    chunk = min(count, 1 << (most.bit_length() - 1))

    def step(best, first):
        bits = (first + jnp.arange(chunk, dtype=jnp.int32))[:, None] >> jnp.arange(d, dtype=jnp.int32)[None] & 1
        signs = 1 - 2 * bits.astype(matrix.dtype)
        images = jnp.einsum("sd,...kd->...sk", signs, matrix, precision=matmul_precision())
        return jnp.maximum(best, jnp.max(vector_norm(images, q), axis=-1)), None

    return jax.lax.scan(step, jnp.zeros(batch, matrix.dtype), jnp.arange(0, count, chunk, dtype=jnp.int32))[0]


@in_single
def maximising_vector(
    matrix: Float[Array, "*batch K d"], p: float, q: float, starts: Float[Array, "*batch R d"]
) -> Float[Array, "*batch d"]:
    """The v with |v|_p = 1 of the largest |M v|_q: by formula, or the best of POWER_STEPS power steps from each start.

    0 where M = 0.
    """
    if p == 1:
        return dual_vector(vector_norm(matrix.mT, q), 1)
    if q == math.inf or matrix.shape[-2] == 1:
        longest = jnp.argmax(vector_norm(matrix, dual_exponent(p)), axis=-1)[..., None, None]
        return dual_vector(jnp.take_along_axis(matrix, longest, axis=-2)[..., 0, :], p)
    precision = matmul_precision()

    def step(_, v):
        w = dual_vector(jnp.matmul(v, matrix.mT, precision=precision), dual_exponent(q))
        return dual_vector(jnp.matmul(w, matrix, precision=precision), p)

    v = jax.lax.fori_loop(0, POWER_STEPS, step, starts)  # no step depends on the length of v
    best = jnp.argmax(vector_norm(jnp.matmul(v, matrix.mT, precision=precision), q), axis=-1, keepdims=True)
    chosen = jax.lax.broadcasted_iota(best.dtype, v.shape, v.ndim - 2) == best[..., None]
    return jnp.sum(jnp.where(chosen, v, 0), axis=-2)  # to a compiler less than a gather


def _starts(matrix: Array, p: float, q: float, random: Array) -> Array:
    """The random vectors, and half as many of the largest rows and columns."""
    (K, d), count = matrix.shape[-2:], max(1, len(random) // 4)
    rows = jax.lax.top_k(vector_norm(matrix, dual_exponent(p)), min(K, count))[1]
    columns = jax.lax.top_k(vector_norm(matrix.mT, q), min(d, count))[1]
    starts = [
        jnp.broadcast_to(random, (*matrix.shape[:-2], *random.shape)),
        jnp.take_along_axis(matrix, rows[..., None], axis=-2),
        jax.nn.one_hot(columns, d, dtype=matrix.dtype),
    ]
    return jnp.concatenate(starts, axis=-2)


def _bound(matrix: Array, p: float, q: float) -> Array:
    """An upper bound, by Hoelder's inequality from norms that can be computed or interpolated."""
    K, d = matrix.shape[-2:]
    pairs = ((1.0, q), (p, math.inf), (2.0, 2.0), (math.inf, q), (p, 1.0))
    norms = {(r, t): _compute(matrix, r, t) for r, t in pairs if _is_computable(r, t, (K, d))}
    for r, t in [(p, q)] if p <= q else [(p, p), (q, q)]:
        # On the ray from (1/2, 1/2) through (1/r, 1/t) to 1/r = 1 or 1/t = 0, where norms have a formula.
        w = max(2 / r - 1, 1 - 2 / t)
        if w > 0:
            edge = _compute(matrix, _reciprocal(0.5 + (1 / r - 0.5) / w), _reciprocal(0.5 + (1 / t - 0.5) / w))
            norms[r, t] = norms[2.0, 2.0] ** (1 - w) * edge**w
    bounds = [d ** max(0.0, 1 / r - 1 / p) * K ** max(0.0, 1 / q - 1 / t) * norm for (r, t), norm in norms.items()]
    return jnp.min(jnp.stack(bounds), axis=0)


def _reciprocal(x: float) -> float:
    """The exponent 1/x of an x in [0, 1] that rounding may have moved a little."""
    return math.inf if x < 1e-12 else 1 / min(x, 1.0)
