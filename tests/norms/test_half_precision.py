"""Half precision in many dimensions against NumPy in float64: right to the rounding of the result."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.norms import (
    dual_vector,
    exact_operator_norm,
    maximise_linear,
    maximising_vector,
    operator_norm,
    project,
    vector_norm,
)

INF = math.inf
HALVES = ("float16", "bfloat16")
DIMENSION = 67_500  # 150 x 150 x 3, more than the largest float16


@functools.cache
def draw(half, *shape):
    """Numbers of a half precision, and the same in float64."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), half)
    return x, np.asarray(x, np.float64)


def assert_rounded(result, expected, half):
    """`expected` to a unit in the last place of the half precision."""
    assert result.dtype == half
    limits = jnp.finfo(half)
    smallest = float(limits.smallest_subnormal)
    np.testing.assert_allclose(np.asarray(result, float), expected, rtol=float(limits.eps), atol=smallest)


def dual(p):
    return 1.0 if p == INF else p / (p - 1)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("p", [1.5, 2, 3, INF])
@pytest.mark.slow
def test_vectors_in_many_dimensions(half, p):
    x, wide = draw(half, DIMENSION)
    norm = np.linalg.norm(wide, p)
    assert_rounded(vector_norm(x, p), norm, half)
    power = np.abs(wide) ** (dual(p) - 1)
    unit = np.sign(wide) * power / np.linalg.norm(power, p)
    assert_rounded(dual_vector(x, p), unit, half)
    assert_rounded(maximise_linear(x, 3.0, p), 3 * unit, half)
    lower, upper = jnp.asarray(-0.01, half), jnp.asarray(0.01, half)
    small = 1.0 if p < INF else 0.005  # the box holds few entries or none
    boxed = np.asarray(maximise_linear(jnp.asarray(wide, "float32"), small, p, lower, upper))
    assert_rounded(maximise_linear(g=x, radius=small, p=p, lower=lower, upper=upper), boxed, half)
    radius = jnp.asarray(norm / 4, half)
    nearest = np.asarray(project(jnp.asarray(wide, "float32"), radius, p))
    if p in (2, INF):
        exact = np.clip(wide, -float(radius), float(radius)) if p == INF else wide * float(radius) / norm
        np.testing.assert_allclose(nearest, exact, rtol=1e-5)
    assert np.linalg.norm(nearest.astype(float), p) == pytest.approx(float(radius), rel=1e-5)
    assert_rounded(project(x, radius, p), nearest, half)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.slow
def test_p_1(half):
    x, wide = draw(half, DIMENSION)
    small = x * jnp.asarray(0.25, half)  # a norm of 13,000
    assert_rounded(vector_norm(small, 1), np.abs(wide).sum() / 4, half)
    threshold = 3.0  # where it is left to the 400 largest entries
    expected = np.sign(wide) * np.maximum(np.abs(wide) - threshold, 0)
    projected = project(x, np.abs(expected).sum(), 1)
    np.testing.assert_allclose(np.asarray(projected, float), expected, atol=float(jnp.finfo(half).eps))
    assert projected.dtype == half


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.slow
def test_derivatives_keep_the_precision(half):
    x, wide = draw(half, DIMENSION)
    gradient = jax.grad(lambda x: vector_norm(x, 3))(x)
    assert_rounded(gradient, np.sign(wide) * (np.abs(wide) / np.linalg.norm(wide, 3)) ** 2, half)
    assert jax.grad(lambda x: vector_norm(project(x, 1.0, 3), 2))(x).dtype == half


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("p", "q"), [(1, 2), (2, 2), (2, INF), (INF, 2), (3, 1.5)])
@pytest.mark.slow
def test_operator_norms(half, p, q):
    """Those of the same numbers in float32, rounded; the largest singular value is that of NumPy."""
    matrix, wide = draw(half, 2, 3, 400)
    single = jnp.asarray(wide, "float32")
    result, expected = operator_norm(matrix, p, q), operator_norm(single, p, q)
    assert result.exact is expected.exact
    assert_rounded(result.lower, np.asarray(expected.lower), half)
    assert_rounded(result.upper, np.asarray(expected.upper), half)
    if result.exact:
        assert_rounded(exact_operator_norm(matrix, p, q), np.asarray(expected.lower), half)
    if p == q == 2:
        assert_rounded(result.lower, np.linalg.svd(wide)[1][:, 0], half)
    starts = draw(half, 2, 5, 400)
    v = maximising_vector(matrix, p, q, starts[0])
    assert_rounded(v, np.asarray(maximising_vector(single, p, q, jnp.asarray(starts[1], "float32"))), half)


@pytest.mark.parametrize("function", [vector_norm, dual_vector])
def test_single_precision_gains_no_operation(function):
    both = function, function.__wrapped__
    program, plain = (str(jax.make_jaxpr(lambda x, f=f: f(x, 3))(jnp.ones(5))) for f in both)
    assert program == plain
