"""The two-input law against quadrature, arbitrary precision, finite differences and simulation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from mftadv.spec import NetworkSpec, dual_exponent
from mftadv.theory import _correlation as correlation
from mftadv.theory import _laws as laws
from mftadv.theory._coefficients import operator_norm_coefficient
from tests import reference

BLOCKS = ("vanilla", "residual", "signed")
SLOPES = ((1.0, 0.0), (1.0, 0.3), (0.7, 0.7), (1.0, -1.0), (-0.2, 0.5))


def spec_of(block, depth, bias_variance=0.0, slopes=(1.0, 0.0), dim=50, **shape):
    shape = {"output_dim": 1, "width": 10} | shape
    weight_variance = 2.0 if block == "vanilla" else 0.3
    return NetworkSpec(
        dim, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance,
        positive_slope=slopes[0], negative_slope=slopes[1], block=block, **shape,
    )  # fmt: skip


def direction_average(phi, theta):
    """E over directions psi of phi(cos psi) phi(cos(psi - theta)), split where either argument changes sign."""
    signs = sorted({0.0, np.pi / 2, 1.5 * np.pi, theta + np.pi / 2, (theta + 1.5 * np.pi) % (2 * np.pi), 2 * np.pi})
    nodes, weights = np.polynomial.legendre.leggauss(30)
    total = 0.0
    for a, b in itertools.pairwise(signs):
        psi = a + (b - a) * (nodes + 1) / 2
        total += (b - a) / 2 * np.sum(weights * phi(np.cos(psi)) * phi(np.cos(psi - theta)))
    return total / (2 * np.pi)


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.slow
def test_kappa_and_gate_against_quadrature(slopes):
    """A Gaussian pair in polar coordinates: the radius gives 2 for kappa and 1 for g, the direction an integral."""
    u, v = slopes
    cosines = np.array([-1.0, -0.9999, -0.6, 0.0, 0.5, 0.9999, 1.0])
    kappa = [2 * direction_average(lambda z: np.where(z >= 0, u, v) * z, theta) for theta in np.arccos(cosines)]
    gate = [direction_average(lambda z: np.where(z >= 0, u, v), theta) for theta in np.arccos(cosines)]
    spec = spec_of("vanilla", 1, slopes=slopes)
    with jax.enable_x64(True):
        np.testing.assert_allclose(correlation.kappa(spec, cosines), kappa, atol=1e-14)
        np.testing.assert_allclose(correlation.gate_correlation(spec, cosines), gate, atol=1e-14)
        # kappa' = g, also at the ends
        slope = jax.vmap(jax.grad(correlation.kappa, 1), (None, 0))(spec, cosines)
        np.testing.assert_allclose(slope, gate, atol=1e-13)
    np.testing.assert_allclose(correlation.kappa(spec, np.float32(cosines)), kappa, atol=1e-6)


def exact_correlation(spec, cosine, norms_squared):
    """In 40 digits, from second moments: q, k of hidden coordinates and their means."""
    s, b2, u, v = (mp.mpf(float(leaf)) for leaf in jax.tree.leaves(spec))
    q, r = (mp.mpf(n) / spec.input_dim for n in norms_squared)
    k, m, n, total = mp.sqrt(q * r) * mp.mpf(cosine), mp.mpf(0), mp.mpf(0), mp.mpf(1)
    alpha, e = (u**2 + v**2) / 2, int(spec.has_shortcut)
    angles = []
    for _ in range(spec.depth):
        a, b = mp.sqrt(s * q + b2), mp.sqrt(s * r + b2)
        c = max(mp.mpf(-1), min(mp.mpf(1), (s * k + b2) / (a * b)))
        theta = mp.acos(c)
        kappa = ((u - v) ** 2 * (mp.sin(theta) + (mp.pi - theta) * c) / mp.pi + 2 * u * v * c) / 2
        mu, nu = ((u - v) * x / mp.sqrt(2 * mp.pi) if spec.block == "residual" else 0 for x in (a, b))
        q, r = e * q + alpha * a**2 + 2 * m * mu, e * r + alpha * b**2 + 2 * n * nu
        k, m, n = e * k + a * b * kappa + m * nu + n * mu, m + mu, n + nu
        total *= e + s * (alpha * (1 - theta / mp.pi) + u * v * theta / mp.pi)
        angles.append(theta)
    return total, angles


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_accuracy(block, x64):
    """To (1 + L) units of omega^L for every angle, slope and pair of norms, at the cusp as elsewhere."""
    dtype, unit = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    cosines = np.array([1, 1 - 2e-7, 1 - 1e-4, 0.9, 0.0, -0.9, -1 + 1e-4, -1 + 2e-7, -1], dtype)
    cases = [(b2, *case) for b2 in (0.0, 0.3) for case in zip(SLOPES, ((50, 50), (5, 200), (50, 51)), strict=False)]
    with jax.enable_x64(x64), mp.workdps(40):
        function = jax.jit(jax.vmap(correlation.jacobian_correlation, (None, 0, None)))
        for bias_variance, slopes, norms in [*cases, (0.3, SLOPES[3], (50, 51))]:
            spec = jax.tree.map(dtype, spec_of(block, 15, bias_variance, slopes))
            values = function(spec, cosines, norms)
            assert values.dtype == dtype
            scale = 16 * unit * float(laws.propagation_factor(spec)) ** 15
            for cosine, value in zip(cosines, values, strict=True):
                assert abs(float(value) - exact_correlation(spec, float(cosine), norms)[0]) < scale, (slopes, cosine)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("angle", [1e-6, 1e-3, 1.0])
def test_small_angles_keep_their_relative_accuracy(block, angle):
    """In single precision, where the cosine of 1e-6 is 1."""
    spec = jax.tree.map(np.float32, spec_of(block, 20, 0.2))
    path = jax.jit(correlation.correlation_path)(spec, angle, (50.0**0.5, 50.0**0.5))
    with mp.workdps(40):
        total, angles = exact_correlation(spec, mp.cos(float(np.float32(angle))), (50, 50))
    # the lengths of residual networks' means round on their own
    atol = 1e-7 if block == "residual" else 0
    np.testing.assert_allclose(path.angle, np.array(angles, float), rtol=2e-5, atol=atol)
    np.testing.assert_allclose(path.product[-1], float(total), rtol=2e-5)


@pytest.mark.slow
def test_path_of_a_vanilla_network_without_bias_iterates_kappa():
    with jax.enable_x64(True):
        spec = spec_of("vanilla", 8, slopes=(1.0, 0.2))
        path = correlation.correlation_path(spec, 2.0, (3.0**0.5, 700.0**0.5))
        c = jnp.cos(2.0)
        for angle, gate in zip(path.angle, path.gate, strict=True):
            np.testing.assert_allclose(jnp.cos(angle), c, atol=1e-14)
            np.testing.assert_allclose(gate, correlation.gate_correlation(spec, c), rtol=1e-13)
            c = correlation.kappa(spec, c) / laws.alpha(spec)
        np.testing.assert_allclose(path.product, np.cumprod(2 * path.gate), rtol=1e-13)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_extremes_are_finite_or_inf_never_nan(block):
    function = jax.jit(correlation.jacobian_correlation)
    gradient = jax.jit(jax.grad(correlation.jacobian_correlation, (0, 1)))
    assert np.isinf(function(NetworkSpec(50, 1, 10, 10_000, 4.0, 0.1, block=block), 0.3))
    idle = NetworkSpec(50, 1, 10, 3, weight_variance=0.0, block=block)
    assert float(function(idle, 0.3)) == (0.0 if block == "vanilla" else 1.0)
    for bias_variance in (0.0, 0.2):
        spec = spec_of(block, 3, bias_variance)
        variance = 50 * float(laws.jacobian_variance(spec))
        for norms in ((50.0, 50.0), (1e-3, 1e12), (0.0, 0.0), (0.0, 50.0)):
            for cosine in (-1.0, 0.0, 1.0):
                assert 0 <= function(spec, cosine, norms) <= variance * (1 + 1e-5), (norms, cosine)
        # at x' = x it is the variance, and so are its derivatives in the law
        np.testing.assert_allclose(function(spec, 1.0), variance, rtol=1e-6)
        np.testing.assert_allclose(function(spec, 1.0, (50.0, 50.0)), variance, rtol=1e-6)
        law, cosine_slope = gradient(spec, 1.0)
        expected = jax.tree.map(lambda leaf: 50 * leaf, jax.jit(jax.grad(laws.jacobian_variance))(spec))
        np.testing.assert_allclose(jax.tree.leaves(law), jax.tree.leaves(expected), rtol=1e-5, atol=1e-5)
        assert np.isfinite(cosine_slope)
        assert np.all(np.isfinite(jax.tree.leaves(gradient(spec, -1.0))))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_gradients_against_differences(block):
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(spec_of(block, 4, 0.3, (1.0, 0.3)))

        def function(point):
            return correlation.jacobian_correlation(tree.unflatten(list(point[:4])), point[4], (point[5], point[6]))

        gradient, batched = jax.jit(jax.grad(function)), jax.jit(jax.vmap(function))
        point, step = jnp.array([*leaves, 0.6, 40.0, 70.0]), 1e-6 * jnp.eye(7)  # cosine, |x|^2, |x'|^2
        slope = (batched(point[None] + step) - batched(point[None] - step)) / 2e-6
        np.testing.assert_allclose(gradient(point), slope, rtol=1e-6, atol=1e-8)
        # without bias: one-sided, to second order
        point = point.at[1].set(0.0)
        ahead, further, here = (batched(point[None] + k * step) for k in (1, 2, 0))
        np.testing.assert_allclose(gradient(point), (4 * ahead - further - 3 * here) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_cosines_may_be_an_array():
    function = jax.jit(correlation.jacobian_correlation)
    cosines, spec = jnp.linspace(-1, 1, 5), spec_of("residual", 4, 0.1)
    np.testing.assert_allclose(function(spec, cosines), [function(spec, c) for c in cosines], rtol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.law
def test_correlation_of_simulated_jacobians(block):
    """Width 100, bias, unequal norms and slopes, to 1.5/N, the law's variance held; 5% off fails."""
    cosine, norms = 0.5, (10.0, 20.0)
    spec, num_networks = spec_of(block, 3, 0.2, (1.0, 0.2), dim=10, output_dim=10, width=100), 600
    if block == "vanilla":  # its correlation has the largest spread
        num_networks = 2500
    x, y = np.zeros((2, 10))
    x[0] = np.sqrt(norms[0])
    y[:2] = np.sqrt(norms[1]) * np.array([cosine, np.sqrt(1 - cosine**2)])
    law, variance = (
        float(correlation.jacobian_correlation(spec, cosine, norms)),
        10 * float(laws.jacobian_variance(spec)),
    )

    def statistic(nets):
        here, there = (reference.linear_representation(nets, z)[0][:, :, 2:] for z in (x, y))
        return 10 * np.stack([(here * there).mean((1, 2)), (here**2 + there**2).mean((1, 2)) / 2], axis=1)

    products, squares = reference.simulate(statistic, 5, spec, num_networks, batch=100).T
    for factor, right in ((1.0, True), (1.05, False), (0.95, False)):
        # E [J J' - squares law / variance] = 0, in units of the law: what the two share cancels in every network
        share = factor * law / variance
        assert reference.agrees((products - share * squares) / law + 1, 1.0, 1.5 / spec.width) is right


@pytest.mark.parametrize("p", [1.0, 1.3, 1.5, 2.0, 3.0, np.inf])
def test_length_of_the_best_perturbation(p):
    """Against the maximisers for random Gaussian gradients, known by attaining <g, eta> = |g|_p*."""
    dim = 400
    g = np.random.default_rng(0).standard_normal((500, dim))
    size = np.abs(g) / np.abs(g).max(1, keepdims=True)
    eta = np.sign(g) * size ** (dual_exponent(p) - 1)
    eta /= np.linalg.norm(eta, p, axis=1, keepdims=True)
    np.testing.assert_allclose((g * eta).sum(1), np.linalg.norm(g, dual_exponent(p), axis=1), rtol=1e-12)
    lengths = np.linalg.norm(eta, axis=1)
    np.testing.assert_allclose(correlation._best_perturbation_length(p, dim), lengths.mean(), rtol=0.02)


@pytest.mark.parametrize(
    ("block", "bias_variance", "p", "eps", "num_networks"),
    [("vanilla", 0.0, 2.0, 1.5, 300), ("vanilla", 0.3, np.inf, 0.4, 400), ("signed", 0.3, 2.0, 4.0, 160)],
)
@pytest.mark.law
def test_one_step_loss_in_simulation(block, bias_variance, p, eps, num_networks):
    """The share of J eta that the step keeps, at d = 25, N = 400, L = 2, to 6/N; 5% off fails."""
    spec = spec_of(block, 2, bias_variance, dim=25, width=400)
    inputs = np.random.default_rng(1).standard_normal((4, 25))
    inputs *= 5 / np.linalg.norm(inputs, axis=1, keepdims=True)

    def statistic(nets):
        gains = []
        for x in inputs:
            jacobian = reference.linear_representation(nets, x)[0][:, 0]
            eta = np.sign(jacobian) * np.abs(jacobian) ** (dual_exponent(p) - 1)
            eta *= eps / np.linalg.norm(eta, p, axis=1, keepdims=True)
            kept = reference.forward(nets, x + eta)[0] - reference.forward(nets, x)[0]
            gains.append((kept[:, 0], (jacobian * eta).sum(1)))
        return np.mean(gains, axis=0).T

    kept, promised = reference.simulate(statistic, 6, spec, num_networks, batch=20).T
    beta = operator_norm_coefficient(p, 2, 25, 1, kind="sharp")
    bound = eps * beta * float(laws.propagation_factor(spec)) ** (spec.depth / 2)
    share = float(correlation.one_step_loss(spec, eps, 5.0, p)) / bound
    for factor, right in ((1.0, True), (1.05, False), (0.95, False)):
        samples = (kept - factor * share * promised) / (share * promised.mean()) + 1
        assert reference.agrees(samples, 1.0, 6 / spec.width) is right


@pytest.mark.slow
def test_one_step_loss_limits_and_refusals():
    one_step_loss = jax.jit(correlation.one_step_loss, static_argnames=("p", "q"))
    spec = spec_of("vanilla", 4, 0.1, output_dim=10)
    for p, q in ((2.0, 2.0), (1.0, 2.0), (np.inf, np.inf)):
        beta = operator_norm_coefficient(p, q, 50, 10, kind="sharp")
        bound = beta * laws.propagation_factor(spec) ** 2
        tiny, large = (one_step_loss(spec, eps, 7.0, p=p, q=q) / (eps * bound) for eps in (1e-6, 0.5))
        assert abs(tiny - 1) < 1e-5
        assert 0.5 < large < 0.99
    # a linear network keeps everything
    linear = spec_of("signed", 3, slopes=(0.8, 0.8))
    bound = 5 * operator_norm_coefficient(2, 2, 50, 1, kind="sharp") * laws.propagation_factor(linear) ** 1.5
    np.testing.assert_allclose(one_step_loss(linear, 5.0, 1.0), bound, rtol=1e-5)
    deep = NetworkSpec(50, 1, 10, 10_000, 4.0)
    assert np.isinf(one_step_loss(deep, 0.1, 7.0))
    assert one_step_loss(deep, 0.0, 7.0) == 0
    assert one_step_loss(dataclasses.replace(deep, weight_variance=0.0), 0.1, 7.0) == 0
    with pytest.raises(ValueError, match="block: expected vanilla or signed"):
        one_step_loss(spec_of("residual", 2), 0.1, 7.0)
    with pytest.raises(ValueError, match="sharp"):
        one_step_loss(spec, 0.1, 7.0, p=np.inf, q=2.0)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(correlation.one_step_loss, 1))
        slope = (one_step_loss(spec, 0.5 + 1e-6, 7.0) - one_step_loss(spec, 0.5 - 1e-6, 7.0)) / 2e-6
        np.testing.assert_allclose(gradient(spec, 0.5, 7.0), slope, rtol=1e-7)
        assert np.isfinite(gradient(spec, 0.0, 7.0))
