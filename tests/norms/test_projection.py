"""Projections onto lp balls with p near 1 against 30 digits, and derivatives of projections against differences."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from mftadv.norms import project

EXPONENTS = (1, 1.3, 1.5, 2, 3, 10, math.inf)
BOX = (-np.array([0.3, math.inf, 0.1, 0.2, math.inf]), np.array([0.1, 0.4, 0.3, 0.15, 0.05]))
# the first and the last are beyond the box, and only the last stays there in every ball
X = np.array([0.126, -0.132, 0.64, 0.105, 0.36])


@functools.cache
def derivatives(p, boxed):
    """The projection and its derivatives in all arguments by both modes, compiled for rows of x and radius."""
    function = lambda x, radius, *box: project(x, radius, p, *box)  # noqa: E731
    arguments = (0, 1, 2, 3) if boxed else (0, 1)
    both = [mode(function, arguments) for mode in (jax.jacfwd, jax.jacrev)]
    axes = (0, 0, None, None)[: 2 + 2 * boxed]
    return jax.jit(function), jax.jit(jax.vmap(lambda *args: [each(*args) for each in both], axes))


def differences(function, operands, i):
    """Central differences in the i-th operand, one column for each of its entries."""
    columns, step = [], 1e-6
    for unit in np.eye(np.size(operands[i])).reshape(-1, *np.shape(operands[i])):
        ends = [function(*operands[:i], operands[i] + side * unit, *operands[i + 1 :]) for side in (step, -step)]
        columns.append((np.asarray(ends[0]) - np.asarray(ends[1])) / (2 * step))
    return np.stack(columns, axis=-1).reshape(-1, *np.shape(operands[i]))


@pytest.mark.parametrize("boxed", [False, True], ids=["ball", "box"])
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.slow
def test_derivatives_are_those_of_differences(p, boxed):
    """Inside the ball and outside; in x, in the radius and in the sides of the box, by both modes and by vmap."""
    radii = np.array([0.07, 0.33, 50.0])
    with jax.enable_x64(True):
        function, both = derivatives(p, boxed)
        operands = (np.stack([X] * 3), radii, *(BOX if boxed else ()))
        modes = [[np.asarray(each) for each in mode] for mode in both(*operands)]
        for row, radius in enumerate(radii):
            one = (X, radius, *operands[2:])
            for i in range(len(one)):
                expected = differences(function, one, i)
                expected = np.where(np.isnan(expected), 0, expected)  # a side at infinity
                for mode in modes:
                    np.testing.assert_allclose(mode[i][row], expected, atol=1e-8, err_msg=f"radius={radius}, {i}")
        if not boxed:
            np.testing.assert_array_equal(modes[0][0][2], np.eye(5))
            assert np.all(modes[0][1][2] == 0)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.slow
def test_derivatives_at_zeros(p):
    """An entry 0 stays for p < 2, shrinks as all do for p = 2, and moves freely for p > 2; radius 0 holds all."""
    x = jnp.array([0.0, 1.0, -2.0])
    jacobian = jax.jit(jax.jacrev(lambda x, radius: project(x, radius, p)))
    entry = jacobian(x, 0.5)[0, 0]
    assert entry == pytest.approx({1: 0, 1.5: 0, 2: 0.5 / math.sqrt(5), 3: 1}[p], rel=1e-6)
    assert jnp.all(jacobian(x, 0.0) == 0)
    assert jnp.all(jnp.isfinite(jacobian(0 * x, 0.5)))


@pytest.mark.parametrize("p", [1, 1.5, 3])
@pytest.mark.slow
def test_second_derivatives(p):
    x = np.array([0.5, -0.3, 1.2])
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(project(x, 0.4, p) * np.array([1.0, 2.0, -0.5]))))
        hessian = jax.jit(jax.jacfwd(gradient))(x)
        np.testing.assert_allclose(hessian, differences(gradient, (x,), 0), atol=1e-8)


@functools.cache
def exact_projection(x, radius, p):
    """From y + mu y^(p-1) = a to 30 digits, by bisection of mu and Newton's method for ln y."""
    with mpmath.workdps(60):
        p, radius, target = mpmath.mpf(p), mpmath.mpf(radius), [mpmath.mpf(abs(each)) for each in x]

        def size(mu, a):
            v = a and min(mpmath.log(a), (mpmath.log(a) - mpmath.log(mu)) / (p - 1))
            change = a
            while abs(change) > mpmath.mpf(10) ** -35 * (1 + abs(v)):
                terms = mpmath.exp(v), mu * mpmath.exp((p - 1) * v)
                change = (mpmath.log(sum(terms)) - mpmath.log(a)) * sum(terms) / (terms[0] + (p - 1) * terms[1])
                v -= change
            return a and mpmath.exp(v)

        # the largest, which is at most the radius, and the mu that belongs to it
        low, high, mu = radius / len(x), min(radius, max(target)), mpmath.mpf(0)
        for _ in range(80):
            k = (low + high) / 2
            mu = (max(target) - k) / k ** (p - 1)
            fits = mpmath.fsum(size(mu, a) ** p for a in target) <= radius**p
            low, high = (k, high) if fits else (low, k)
        return np.array([float(size(mu, a)) for a in target]) * np.sign(x)


@pytest.mark.parametrize("k", range(2, 8))
@pytest.mark.parametrize("far", [1.5, 1e3, 1e6])
@pytest.mark.slow
def test_projection_for_p_near_1(k, far):
    """On the sphere, and at the point nearest to x, also where the differences of the largest are within the radius."""
    p = 1 + 10.0**-k
    x = np.array([2**20, -(2**20) + 0.25, 2**20 - 0.75, 5.0, 0.0, -(2.0**19)])
    if far < 1e6:
        x = np.random.default_rng(k).standard_normal(6)
    x = x.astype(np.float32)
    radius = np.float32(np.linalg.norm(x.astype(float), p) / far)
    expected = exact_projection(tuple(x.tolist()), float(radius), p)
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            eta = np.asarray(compiled(p)(x.astype(dtype), radius.astype(dtype)))
        eps = float(np.finfo(dtype).eps)
        assert eta.dtype == dtype
        assert np.linalg.norm(eta.astype(float) / radius, p) == pytest.approx(1, abs=8 * eps)
        np.testing.assert_allclose(eta, expected, rtol=0, atol=8 * eps * float(radius))


@functools.cache
def compiled(p):
    return jax.jit(lambda x, radius: project(x, radius, p))
