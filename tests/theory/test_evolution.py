"""Weight variance under adversarial training against an ODE solver, elementary forms and simulated networks."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mftadv.spec import NetworkSpec
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._evolution import weight_variance, weight_variance_rate
from mftadv.theory._laws import finite_width_factor
from tests.reference import agrees, cotangents, draw, forward, simulate

EPS = 0.3
SLOPES = {"positive_slope": 1.0, "negative_slope": 0.1}
ALPHA = (1 + 0.1**2) / 2
DEPTHS = (1, 2, 3, 4, 5, 6, 7, 20, 101, 1000, 10000)


def law(depth, gain=1.0, block="signed", **changes):
    return NetworkSpec(10, 3, 50, depth, weight_variance=gain / ALPHA, block=block, **{**SLOPES, **changes})


def kappa(spec):
    """kappa = 2 eps beta alpha / N of `law`, for p = q = 2."""
    beta = operator_norm_coefficient(2, 2, spec.input_dim, spec.output_dim)
    return 2 * EPS * beta * ALPHA / spec.width


def grid(depth, block):
    """Gains, each with times of .1, 1 and 10 of its own time scale, and s(t) there by Runge-Kutta in ln A."""
    m, shortcut = depth / 2 - 1, block != "vanilla"
    moderate = np.array([0.3, 1.0, 3.0])
    gains = moderate / max(1, depth / 4) if shortcut else moderate if depth < 8 else 1 + (moderate - 1) / depth

    def log_omega(y):
        return np.logaddexp(0, y) if shortcut else y

    def slope(_, y):
        return -np.exp(m * log_omega(y))

    elapsed = np.outer(np.exp(-m * log_omega(np.log(gains))), [0.1, 1.0, 10.0])
    if depth == 1 and not shortcut:  # extinct at 2 sqrt(omega_0)
        elapsed = np.minimum(elapsed, 1.5 * np.sqrt(gains)[:, None])
    expected = np.empty_like(elapsed)
    for i, gain in enumerate(gains):
        y, before = [np.log(gain)], 0.0
        for j, time in enumerate(elapsed[i]):
            if time > before:
                y = solve_ivp(slope, (before, time), y, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
            expected[i, j], before = np.exp(y[0]) / ALPHA, time
    return gains, elapsed / kappa(law(depth, block=block)), expected


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_matches_runge_kutta(block, depth):
    gains, times, expected = grid(depth, block)

    def trajectory(gain, t):
        return weight_variance(law(depth, gain, block), t, EPS, 2, 2)

    for x64, tolerance in ((True, 1e-8), (False, (1 + depth) * 1e-6)):
        if not x64 and depth not in (1, 2, 3, 20, 1000, 10000):
            continue
        with jax.enable_x64(x64):
            dtype = jnp.zeros(()).dtype
            actual = jax.jit(jax.vmap(trajectory))(jnp.asarray(gains, dtype), jnp.asarray(times, dtype))
            assert actual.dtype == dtype
            np.testing.assert_allclose(actual, expected, rtol=tolerance)


@pytest.mark.parametrize(("depth", "gain", "elapsed"), [(3, 1e6, 1e-4), (101, 3.0, 1e-20), (1000, 2.0, 1.0)])
def test_root_where_the_decay_is_stiff(depth, gain, elapsed):
    """Against int_y^inf (1 + e^z)^{-m} dz = w^m 2F1(m, 1; m + 1; w) / m, w = 1 / (1 + e^y), in 40 digits."""
    with jax.enable_x64(True), mpmath.workdps(40):
        spec, m = law(depth, gain), mpmath.mpf(depth) / 2 - 1
        final = mpmath.mpf(float(weight_variance(spec, elapsed / kappa(spec), EPS, 2, 2))) * ALPHA

        def age(a):
            w = 1 / (1 + a)
            return w**m * mpmath.hyp2f1(m, 1, m + 1, w) / m

        # the error of ln s is the mismatch over omega^{-m}
        mismatch = (age(final) - age(mpmath.mpf(spec.weight_variance) * ALPHA) - elapsed) * (1 + final) ** m
        assert abs(mismatch) < (1 + depth) * 1e-14


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 11, 12])
def test_elementary_forms_of_the_shortcut(depth):
    with jax.enable_x64(True):
        spec = law(depth, 1.5, "residual")
        t = 0.2 / kappa(spec)
        omegas = 2.5, 1 + ALPHA * float(weight_variance(spec, t, EPS, 2, 2))

    def primitive(omega):
        y = math.sqrt(omega)
        if depth % 2 == 0:
            powers = sum(omega ** (1 - k) / (k - 1) for k in range(2, depth // 2))
            return math.log((omega - 1) / omega) + powers if depth > 2 else math.log(omega - 1)
        if depth == 1:
            return 2 * y + math.log((y - 1) / (y + 1))
        powers = 2 * sum(y ** (1 - 2 * i) / (2 * i - 1) for i in range(1, (depth - 3) // 2 + 1))
        return math.log((y - 1) / (y + 1)) + powers

    assert primitive(omegas[0]) - primitive(omegas[1]) == pytest.approx(0.2, rel=1e-11)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.parametrize("depth", [1, 2, 20])
@pytest.mark.slow
def test_derivatives(block, depth):
    """Gradient and Hessian in s, u, v, t and eps by central differences; the rate is the slope at t = 0."""

    def function(point):
        s, u, v, t, eps = point
        spec = NetworkSpec(10, 3, 50, depth, s, positive_slope=u, negative_slope=v, block=block)
        return weight_variance(spec, t, eps, 2, 2), weight_variance_rate(spec, eps, 2, 2)

    with jax.enable_x64(True):
        value = jax.jit(lambda point: function(point)[0])
        gradient, hessian = jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
        point = np.array([1.3, 1.0, 0.4, 3.0, EPS])
        steps = 1e-5 * np.eye(5)
        for derivative, original in ((gradient, value), (hessian, gradient)):
            expected = [(original(point + h) - original(point - h)) / 2e-5 for h in steps]
            np.testing.assert_allclose(derivative(point), expected, rtol=1e-6, atol=1e-9)
        start = np.array([1.3, 1.0, 0.4, 0.0, EPS])
        rate, omega = function(start)[1], 0.58 * 1.3 + (block == "signed")
        np.testing.assert_allclose(gradient(start)[3], rate, rtol=1e-13)
        beta = operator_norm_coefficient(2, 2, 10, 3)
        branch = 0.58 * 1.3 / omega
        np.testing.assert_allclose(rate, -2 * EPS * beta / 50 * omega ** (depth / 2) * branch, rtol=1e-13)


@pytest.mark.slow
def test_gradient_keeps_its_relative_accuracy():
    """ds/ds_0 = (s/s_0) (omega/omega_0)^m is tiny once the start is forgotten, not rounding noise."""
    with jax.enable_x64(True):
        spec = law(101, 1.5)
        t = 1.0 / kappa(spec)
        final = ALPHA * float(weight_variance(spec, t, EPS, 2, 2))
        actual = jax.grad(lambda s: weight_variance(dataclasses.replace(spec, weight_variance=s), t, EPS, 2, 2))
        expected = final / 1.5 * ((1 + final) / 2.5) ** 49.5
        assert expected < 1e-15
        np.testing.assert_allclose(actual(spec.weight_variance), expected, rtol=1e-11)


@pytest.mark.parametrize(("depth", "x64"), [(1, False), (2, False), (3, False), (3, True), (1000, False)])
@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_edges(block, depth, x64):
    """t = 0, eps = 0, s_0 = 0, a power that overflows and a far future: values and derivatives stay finite."""

    @jax.jit
    def value_and_gradients(s, t, eps):
        spec = NetworkSpec(10, 3, 50, depth, weight_variance=s, block=block)
        return jax.value_and_grad(lambda *args: weight_variance(*args, 2, 2), argnums=(0, 1, 2))(spec, t, eps)

    with jax.enable_x64(x64):
        # sqrt(tiny) stands for a vanishing gain
        for start in (0.0, 1e-6, 1.0, 50.0):
            for t, eps in ((0.0, 0.1), (1.0, 0.0), (2.0, 0.1), (1e5, 0.1)):
                final, gradients = value_and_gradients(start, t, eps)
                assert np.all(np.isfinite(jax.tree.leaves(gradients)))
                assert 0 <= final <= start * (1 + (1 + depth) * 1e-6)
                if t * eps == 0:
                    np.testing.assert_allclose(final, start, rtol=(1 + depth) * (1e-14 if x64 else 1e-6))
        kept = value_and_gradients(0.0, 2.0, 0.1)[1][0].weight_variance
        rate = 0.5 * 2 * 0.1 * operator_norm_coefficient(2, 2, 10, 3) / 50
        decays = depth == 2 or block == "signed"
        np.testing.assert_allclose(kept, math.exp(-2 * rate) if decays else depth > 1, rtol=1e-5)
        deep = NetworkSpec(10, 3, 50, 2000, weight_variance=50.0, block=block)
        assert weight_variance_rate(deep, 0.1, 2, 2) == -math.inf
        assert weight_variance_rate(deep, 0.0, 2, 2) == 0
        empty = NetworkSpec(10, 3, 50, depth, weight_variance=0.0, block=block)
        assert weight_variance_rate(empty, 0.1, 2, 2) == 0


def test_one_layer_dies_out():
    """Vanilla L = 1: s_0 (1 - kappa t / (2 sqrt(omega_0)))^2 until 2 sqrt(omega_0) / kappa, 0 from then on."""
    with jax.enable_x64(True):
        spec = law(1, 1.0, "vanilla")
        times = np.array([0.0, 0.5, 1.0, 1.999, 2.0, 5.0])
        expected = spec.weight_variance * np.maximum(0, 1 - times / 2) ** 2
        actual = weight_variance(spec, jnp.asarray(times / kappa(spec)), EPS, 2, 2)
        np.testing.assert_allclose(actual, expected, atol=1e-14)
        assert np.all(np.diff(actual) <= 0)


@pytest.mark.slow
def test_limits():
    """Deep vanilla networks from omega_0 = 1; a shortcut of small gain; time counts as t / N."""
    with jax.enable_x64(True):
        deep = law(10**6, 1.0, "vanilla")
        times = jnp.array([0.1, 1.0, 10.0])
        omega = ALPHA * np.asarray(weight_variance(deep, times * 2e-6 / kappa(deep), EPS, 2, 2))
        np.testing.assert_allclose(omega**deep.depth, (1 + times) ** -2.0, rtol=3e-5)
        weak = law(5, 1e-9)
        kept = weight_variance(weak, times / kappa(weak), EPS, 2, 2) / weak.weight_variance
        np.testing.assert_allclose(kept, np.exp(-times), rtol=1e-8)
        wide = dataclasses.replace(law(5), width=100)
        np.testing.assert_array_equal(
            weight_variance(law(5), times, EPS, 2, 2), weight_variance(wide, 2 * times, EPS, 2, 2)
        )


@pytest.mark.slow
def test_blocks_with_a_shortcut_agree():
    np.testing.assert_array_equal(*(weight_variance(law(7, 1.0, b), 5.0, EPS, 2, 2) for b in ("residual", "signed")))


@pytest.mark.parametrize(("argument", "value"), [("t", -1.0), ("eps", -0.1), ("eps", np.inf), ("p", 0.5)])
def test_rejects(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected .*, got {value}"):
        weight_variance(law(3), **{"t": 1.0, "eps": EPS, "p": 2, "q": 2, argument: value})


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_vmap_jit_and_recompilation(block):
    def function(spec, t, eps):
        return weight_variance(spec, t, eps, 2, 2), weight_variance_rate(spec, eps, 2, 2)

    specs = [law(7, gain, block, negative_slope=v) for gain, v in ((0.5, 0.1), (1.5, 0.4))]
    t, eps = jnp.array([1.0, 20.0]), jnp.array([0.1, 0.2])
    once = jax.jit(chex.assert_max_traces(function, n=1))
    singles = [once(spec, *point) for spec, *point in zip(specs, t, eps, strict=True)]
    batch = jax.tree.map(lambda *values: jnp.array(values), *specs)
    np.testing.assert_allclose(np.transpose(jax.vmap(function)(batch, t, eps)), singles, rtol=1e-5)
    path = np.asarray(weight_variance(law(7, 1.0, block), jnp.linspace(0.0, 100.0, 500), EPS, 2, 2))
    assert np.all(np.diff(path) <= 1e-6 * path[0])
    assert path[-1] < 0.9 * path[0]


def shares(nets):
    """<W_l, dL/dW_l> per network, averaged over the layers: L = |J eta|, eta = J / |J| held fixed, gates too."""
    x = np.full(nets.spec.input_dim, 1.0)
    _, slopes, _ = forward(nets, x)
    at_preactivation, row = cotangents(nets, slopes)
    jacobian = (row @ nets.p_in)[:, 0]
    moved = np.einsum("mnd,md->mn", nets.p_in, jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True))
    total = 0.0
    for weight, slope, sign, cotangent in zip(nets.weights, slopes, nets.signs, at_preactivation, strict=True):
        image = np.einsum("mij,mj->mi", weight, moved)
        total = total + np.einsum("mi,mi->m", cotangent[:, 0], image)
        moved = (nets.spec.block != "vanilla") * moved + sign * slope * image
    return total / nets.spec.depth


@pytest.mark.parametrize(("block", "variance"), [("vanilla", 2.0), ("signed", 0.7)])
@pytest.mark.law
def test_initial_slope_of_simulated_networks(block, variance):
    """d|W_l|_F^2/dt = -2 <W_l, dL/dW_l> with |W_l|_F^2 = N s; |J| is exp(-w/8) short of its limit at finite N."""
    spec = NetworkSpec(60, 1, 60, 3, weight_variance=variance, block=block)
    slopes = -2 / spec.width * EPS * simulate(shares, 0, spec, 2500, batch=500)
    narrow = math.exp(-math.log(finite_width_factor(spec)) / 8)
    expected = float(weight_variance_rate(spec, EPS, 2, 2, kind="sharp")) * narrow
    assert agrees(slopes, expected, allowance=0.01)
    assert not agrees(slopes, 1.05 * expected, allowance=0.01)
    assert not agrees(slopes, 0.95 * expected, allowance=0.01)


@pytest.mark.parametrize("q", [1, 2, np.inf])
@pytest.mark.slow
def test_homogeneity_identity(q):
    """<W_l, d(L_std + L_adv)/dW_l> = <f, dL_std/df> + L_adv in every layer, at any width, perturbation and q."""
    spec = NetworkSpec(5, 3, 7, 4, negative_slope=0.2)
    nets = draw(np.random.default_rng(0), spec, 1)
    rng = np.random.default_rng(1)
    x, perturbed = rng.standard_normal(5), rng.standard_normal(5)

    def std_loss(f):
        return jax.nn.logsumexp(f) - f[0]

    def output(weights, x, shortcut):
        h = nets.p_in[0] @ x
        for weight in weights:
            z = weight @ h
            h = shortcut * h + jnp.where(z >= 0, 1.0, 0.2) * z
        return nets.p_out[0] @ h

    def adversarial_loss(weights, shortcut):
        return jnp.linalg.norm(output(weights, perturbed, shortcut) - output(weights, x, shortcut), q)

    def products(shortcut):
        gradients = jax.grad(lambda w: std_loss(output(w, x, shortcut)) + adversarial_loss(w, shortcut))(weights)
        f = output(weights, x, shortcut)
        expected = jnp.vdot(f, jax.grad(std_loss)(f)) + adversarial_loss(weights, shortcut)
        return np.array([jnp.vdot(w, g) for w, g in zip(weights, gradients, strict=True)]), expected

    with jax.enable_x64(True):
        weights = [jnp.asarray(weight[0]) for weight in nets.weights]
        actual, expected = products(0.0)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        # a shortcut is not homogeneous in W_l: its branch carries a share only
        actual, expected = products(1.0)
        assert np.all(np.abs(actual / expected - 1) > 0.01)
