"""Norms, maximisers and projections against NumPy, SciPy's solvers, optax, and the conditions of optimality."""

import functools
import math

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax.projections
import pytest
from hypothesis import given
from scipy.optimize import linprog, minimize

from mftadv.norms import dual_vector, maximise_linear, project, vector_norm

INF = math.inf
EXPONENTS = (1, 1.01, 1.5, 2, 3.7, 100, INF)
UNBOUNDED = (-np.full(6, INF), np.full(6, INF))
# one side of the box closed, another open, and one coordinate without a box
BOX = (-np.array([0.3, INF, 0.0, 0.2, INF, 0.5]), np.array([0.1, 0.4, 0.3, 0.0, INF, 0.02]))


def dual(p):
    return {1: INF, INF: 1}[p] if p in (1, INF) else p / (p - 1)


@functools.cache
def jitted(function, p):
    """An eager loop compiles at every call."""
    return jax.jit(lambda x, radius, lower=None, upper=None: function(x, radius, p, lower, upper))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def nearest_or_best(objective, gradient, radius, p, box):
    """SciPy's solution in the ball and the box, from several starts."""
    constraint = {
        "type": "ineq",
        "fun": lambda eta: 1 - np.sum(np.abs(eta / radius) ** p),
        "jac": lambda eta: -p * np.sign(eta) * np.abs(eta / radius) ** (p - 1) / radius,
    }
    bounds = list(zip(np.maximum(box[0], -radius), np.minimum(box[1], radius), strict=True))
    options = {"ftol": 1e-14, "maxiter": 1000}
    starts = [np.clip(0.3 * radius * draw(len(box[0]), seed=seed), *box) for seed in range(5)]
    runs = [
        minimize(objective, start, jac=gradient, bounds=bounds, constraints=constraint, method="SLSQP", options=options)
        for start in starts
    ]
    return min((run for run in runs if constraint["fun"](run.x) > -1e-9), key=lambda run: run.fun)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.slow
def test_vector_norm(p):
    x = draw(4, 7)
    np.testing.assert_allclose(vector_norm(jnp.asarray(x), p), np.linalg.norm(x, p, axis=1), rtol=1e-5)
    np.testing.assert_allclose(vector_norm(jnp.asarray(1e30 * x), p), 1e30 * np.linalg.norm(x, p, axis=1), rtol=1e-5)
    assert vector_norm(jnp.zeros(3), p) == 0
    assert np.isnan(vector_norm(jnp.array([1.0, jnp.nan]), p))
    assert vector_norm(jnp.array([1.0, jnp.inf]), p) == INF


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.slow
def test_derivative_of_the_norm_is_the_dual_vector_and_0_at_0(p):
    gradient = jax.jit(jax.grad(lambda x: vector_norm(x, p)))
    for scale in (1, 1e-12, 1e12):
        x = jnp.asarray(scale * np.array([0.7, -2.0, 0.0, 1.1]), jnp.float32)
        np.testing.assert_allclose(gradient(x), dual_vector(x, dual(p)), rtol=1e-5)
    assert jnp.all(gradient(jnp.zeros(4)) == 0)
    if p < INF:  # two largest: a derivative that took the unit for a variable would share between them
        np.testing.assert_allclose(gradient(jnp.array([1.0, -1.0])), 2 ** (1 / p - 1) * np.array([1, -1]), rtol=1e-6)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.slow
def test_dual_vector_reaches_the_dual_norm(p):
    g = draw(50, 5)
    eta = np.asarray(dual_vector(jnp.asarray(g), p), float)
    np.testing.assert_allclose(np.linalg.norm(eta, p, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(g * eta, axis=1), np.linalg.norm(g, dual(p), axis=1), rtol=2e-6)
    others = draw(1000, 5, seed=1)
    others /= np.linalg.norm(others, p, axis=1, keepdims=True)
    assert np.all(np.max(g @ others.T, axis=1) <= np.sum(g * eta, axis=1) * (1 + 1e-6))


@pytest.mark.parametrize("p", [*EXPONENTS, 1 + 1e-9, 1e9])
@pytest.mark.slow
def test_dual_vector_at_every_magnitude(p):
    assert jnp.all(dual_vector(jnp.zeros((2, 3)), p) == 0)
    for g in ([1e-30, -3e-30, 2e-30], [1e30, -3e30, 2e30], [1e30, -1e-30, 0.0], [0.0, -1e-30, 0.0]):
        eta = np.asarray(dual_vector(jnp.array(g), p), float)
        assert np.all(np.isfinite(eta))
        assert np.all(eta * np.array(g) >= 0)
        assert np.linalg.norm(eta, p) == pytest.approx(1, rel=1e-6)
    assert jnp.all(dual_vector(jnp.array([1.0, -2.0, 2.0]), 1) == jnp.array([0.0, -1.0, 0.0]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_maximiser_in_a_box_against_linear_programming(seed):
    g, radius = draw(6, seed=seed), (0.25, 0.6, 1.0, 3.0)[seed]
    eta = jitted(maximise_linear, INF)(g, radius, *BOX)
    known = linprog(-g, bounds=list(zip(np.maximum(BOX[0], -radius), np.minimum(BOX[1], radius), strict=True)))
    np.testing.assert_allclose(eta, known.x, rtol=1e-6, atol=1e-7)
    eta = jitted(maximise_linear, 1)(g, radius, *BOX)
    split = [*zip(np.zeros(6), BOX[1], strict=True), *zip(np.zeros(6), -BOX[0], strict=True)]
    known = linprog(np.concatenate([-g, g]), A_ub=np.ones((1, 12)), b_ub=[radius], bounds=split)
    np.testing.assert_allclose(eta, known.x[:6] - known.x[6:], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("box", [UNBOUNDED, BOX], ids=["ball", "box"])
@pytest.mark.parametrize("p", [1.5, 2, 3.7])
@pytest.mark.parametrize("radius", [0.2, 0.9, 4.0])
@pytest.mark.slow
def test_maximiser_against_scipy(p, radius, box):
    g = draw(6, seed=3)
    known = nearest_or_best(lambda eta: -g @ eta, lambda eta: -g, radius, p, box)
    eta = jitted(maximise_linear, p)(g, radius, *box)
    np.testing.assert_allclose(eta, known.x, rtol=1e-3, atol=1e-3 * radius)
    assert float(g @ np.asarray(eta)) == pytest.approx(-known.fun, rel=1e-6)
    assert float(vector_norm(eta, p)) <= radius * (1 + 1e-6)


@pytest.mark.slow
def test_maximiser_goes_on_where_rooms_are_full():
    # |g_j|^(p*-1) of the second is 1e-100 of that of the first
    np.testing.assert_allclose(
        maximise_linear(jnp.array([1.0, -0.1]), 1.0, 1.01, upper=0.1),
        [0.1, -((1 - 0.1**1.01) ** (1 / 1.01))],
        rtol=1e-6,
    )
    for p in EXPONENTS:  # a box inside the ball: its corner, but 0 where g is
        g = jnp.array([1.0, -2.0, 0.0, 1e-20])
        best = jitted(maximise_linear, p)
        np.testing.assert_allclose(best(g, 10.0, -0.1, 0.2), [0.2, -0.1, 0.0, 0.2], rtol=1e-6)
        assert jnp.all(best(g, 0.0, -0.1, 0.2) == 0)
        np.testing.assert_allclose(best(g, 1.0, -INF, INF), dual_vector(g, p), rtol=1e-6, atol=1e-30)
    one_sided = maximise_linear(g, 1.0, 1.5, lower=-INF)
    np.testing.assert_allclose(one_sided, dual_vector(g, 1.5), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.slow
def test_projections_of_optax(scale):
    for seed, radius in enumerate((0.01, 0.3, 1.0, 5.0, 30.0)):
        x = jnp.asarray(scale * draw(20, seed=seed), jnp.float32)
        radius = radius * scale
        for p, theirs in (
            (1, optax.projections.projection_l1_ball),
            (2, optax.projections.projection_l2_ball),
            (INF, optax.projections.projection_linf_ball),
        ):
            ours = jitted(project, p)(x, radius)
            with jax.numpy_dtype_promotion("standard"):
                theirs = theirs(x / scale, radius / scale)  # in numbers near 1
            # they subtract from |x|, whose rounding is all that they can keep of a small radius
            atol = 1e-6 * radius + 2e-7 * scale * (p == 1)
            np.testing.assert_allclose(ours, scale * theirs, rtol=1e-6, atol=atol, err_msg=f"p={p} radius={radius}")


@pytest.mark.parametrize("box", [UNBOUNDED, BOX], ids=["ball", "box"])
@pytest.mark.parametrize("p", [1.5, 2, 3.7])
@pytest.mark.parametrize("radius", [0.2, 0.9, 2.5])
@pytest.mark.slow
def test_projection_against_scipy(p, radius, box):
    x = 2 * draw(6, seed=5)
    known = nearest_or_best(lambda eta: np.sum((eta - x) ** 2) / 2, lambda eta: eta - x, radius, p, box)
    with jax.enable_x64(True):
        eta = np.asarray(jitted(project, p)(x, radius, *box))
    np.testing.assert_allclose(eta, known.x, rtol=1e-3, atol=1e-3 * radius)
    assert np.sum((eta - x) ** 2) / 2 == pytest.approx(known.fun, rel=1e-7)
    # in single precision, what is left is the rounding of eta
    single = np.asarray(jitted(project, p)(x, radius, *box), float)
    np.testing.assert_allclose(single, eta, rtol=2e-6)


@pytest.mark.parametrize("box", [UNBOUNDED, BOX], ids=["ball", "box"])
@pytest.mark.parametrize("p", EXPONENTS[:-1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.slow
def test_projection_satisfies_its_conditions(p, dtype, box):
    """One lambda serves all free coordinates; one at the box wants out; one at 0 (p = 1) wants no more than it."""
    eps = float(np.finfo(dtype).eps)
    with jax.enable_x64(dtype == "float64"):
        for seed, radius in enumerate((1e-3, 0.05, 0.17, 0.37)):
            x = draw(6, seed=seed).astype(dtype)
            room = np.where(x < 0, -box[0], box[1])
            eta = np.asarray(jitted(project, p)(x, radius, *box))
            assert eta.dtype == dtype
            assert np.all(eta * x >= 0)
            size, target = np.abs(eta.astype(float)), np.abs(x.astype(float))
            norm = np.linalg.norm(size / radius, p)
            assert norm == pytest.approx(1, abs=300 * eps)
            assert norm <= 1 + 2 * eps
            slope = p * (size / radius) ** (p - 1)
            moved = size > 0
            at_box = moved & (size >= room * (1 - 4 * eps))
            free = moved & ~at_box & (slope > 1e-3)
            price = (target - size)[free] / slope[free]
            best = np.median(price)
            tolerance = 2000 * eps * (best + radius) * max(1, 1 / (p - 1) if p > 1 else 1)
            np.testing.assert_allclose(price, best, rtol=2000 * eps * max(1, p), atol=tolerance)
            assert np.all((target - size)[at_box] >= best * slope[at_box] * (1 - 1e-3) - tolerance)
            if p == 1:
                assert np.all(target[~moved & (room > 0)] <= best + tolerance)


NUMBERS = st.floats(-1000, 1000, width=32, allow_subnormal=False)


@given(
    data=st.data(),
    p=st.sampled_from((1, 1.01, 1.5, 2, 3.7, 100, INF)),
    n=st.sampled_from((1, 2, 9)),
    radius=st.floats(0, 1000, width=32, allow_subnormal=False),
    boxed=st.booleans(),
)
@pytest.mark.slow
def test_projection_properties(data, p, n, radius, boxed):
    x, y = (np.array(data.draw(st.lists(NUMBERS, min_size=n, max_size=n)), np.float32) for _ in range(2))
    upper = np.abs(np.array(data.draw(st.lists(NUMBERS, min_size=n, max_size=n)), np.float32)) if boxed else INF
    lower, upper = np.broadcast_to(np.float32(-upper), n), np.broadcast_to(np.float32(upper), n)
    to_ball = lambda x: np.asarray(jitted(project, p)(x, np.float32(radius), lower, upper))  # noqa: E731
    eta, other = to_ball(x), to_ball(y)
    assert np.all((lower <= eta) & (eta <= upper))
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.linalg.norm(eta.astype(float) / radius, p) * radius if radius else np.linalg.norm(eta, INF)
    assert norm <= radius * (1 + 1e-6)
    np.testing.assert_allclose(to_ball(eta), eta, rtol=1e-6)
    inside = np.clip(x, lower, upper)
    if float(vector_norm(jnp.asarray(inside), p)) <= radius * (1 - 1e-6):
        assert np.all(eta == inside)
    rounding = 1e-5 * max(np.abs(x).max(), np.abs(y).max())
    assert np.linalg.norm(eta - other) <= np.linalg.norm(x - y) + rounding
    best = np.asarray(jitted(maximise_linear, p)(x, np.float32(radius), lower, upper))
    assert np.all((lower <= best) & (best <= upper))
    assert float(vector_norm(jnp.asarray(best), p)) <= radius * (1 + 1e-6)
    assert x.astype(float) @ best >= x.astype(float) @ eta - rounding * radius


@pytest.mark.parametrize("function", [project, maximise_linear])
@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
@pytest.mark.slow
def test_transformations(function, p):
    """Rows, vmap, a loop and no jit agree; radii do not recompile; the dtype is kept."""
    x, radii = np.asarray(draw(4, 6), np.float32), np.float32([0.1, 0.5, 2.0, 100.0])
    lower, upper = (np.asarray(bound, np.float32) for bound in BOX)
    for box, by_row in (((), ()), ((np.outer(radii, lower), upper), (0, None))):

        def one(x, radius, *box):
            return function(x, radius, p, *box)

        rows, mapped = jax.jit(lambda *x: (one(*x), jax.vmap(one, (0, 0, *by_row))(*x)))(x, radii, *box)  # noqa: B023
        assert rows.dtype == x.dtype
        close = functools.partial(np.testing.assert_allclose, desired=rows, rtol=1e-5, atol=1e-6)
        close(mapped)
        chex.clear_trace_counter()
        alone = jax.jit(chex.assert_max_traces(one, n=1))
        boxes = [
            [bound if axis is None else bound[i] for bound, axis in zip(box, by_row, strict=True)] for i in range(4)
        ]
        close(np.stack([alone(x[i], radii[i], *boxes[i]) for i in range(4)]))
    close(function(jnp.asarray(x), radii, p, *box))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.slow
def test_projection_is_free_of_scale(p):
    x, radius = draw(6), 0.3
    nearest = jitted(project, p)
    at_one = nearest(x, radius, *BOX)
    for scale in (1e-12, 1e12, 1e-30, 1e30):
        scaled = nearest(scale * x, scale * radius, scale * BOX[0], scale * BOX[1])
        np.testing.assert_allclose(scaled / scale, at_one, rtol=2e-5, atol=2e-6 * radius)
    far = nearest(1e12 * x, 1e-12)
    assert 0.99 < float(vector_norm(far, p)) / 1e-12 <= 1 + 1e-6
    assert jnp.all(nearest(x, 0.0) == 0)
    assert jnp.all(nearest(0 * x, 1.0) == 0)
    assert jnp.any(jnp.isnan(nearest(np.where(x > 0, np.nan, x), 1.0)))


@pytest.mark.parametrize("function", [project, maximise_linear])
def test_errors(function, unchecked):
    x = jnp.ones(3)
    for p in (0.5, math.nan, "2"):
        with pytest.raises(ValueError, match=r"p: expected a number in \[1, inf\]"):
            function(x, 1.0, p)
    with pytest.raises(ValueError, match="p: expected"):
        dual_vector(x, 0.5)
    with pytest.raises(ValueError, match=r"radius: expected a number >= 0, got -1\.0"):
        function(x, -1.0, 2)
    with pytest.raises(ValueError, match="lower: expected a box around 0"):
        function(x, 1.0, 2, lower=0.1)
    with pytest.raises(ValueError, match="upper: expected a box around 0"):
        function(x, 1.0, 2, upper=np.array([1.0, -0.1, 1.0]))
