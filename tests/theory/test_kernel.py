"""The decay rate of the adversarial loss against 60-digit kernels, its asymptote and simulated gradients."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from mftadv.spec import NetworkSpec
from mftadv.theory._correlation import gate_correlation, kappa
from mftadv.theory._kernel import adversarial_loss_decay_rate, adversarial_rate, kernel_regime, validity_horizon
from mftadv.theory._kernel import alignment_factor as alignment
from mftadv.theory._training_curve import training_curve
from tests.reference import agrees, cotangents, forward, linear_representation, simulate

# of ReLU, d = 100, N = 800, L = 5
ALIGNMENT = sum(k * (1 + k / 4) ** 0.5 for k in range(1, 6)) / 15
SLOPES = [(1.0, 0.0), (1.0, 0.3), (1.0, 1.0), (1.0, -1.0), (-0.5, 2.0)]


def law(depth=5, **changes):
    return NetworkSpec(**{"input_dim": 100, "output_dim": 1, "width": 800, "depth": depth, **changes})


def kernel_rate(spec, eps, norm):
    """Theta(x, x) + Theta(x', x') - 2 Theta(x, x') as defined, in 60 digits."""
    u, v, s, eps, norm = (
        mp.mpf(z) for z in (spec.positive_slope, spec.negative_slope, spec.weight_variance, eps, norm)
    )
    alpha, shortcut = (u**2 + v**2) / 2, int(spec.block == "signed")
    omega = shortcut + alpha * s

    def moments(angle):
        arc = mp.sin(angle) + (mp.pi - angle) * mp.cos(angle)
        value = ((u - v) ** 2 * arc / mp.pi + 2 * u * v * mp.cos(angle)) / 2
        return value, alpha * (1 - angle / mp.pi) + u * v * angle / mp.pi

    def theta(size, angle):
        angles = [angle]
        for _ in range(spec.depth - 1):
            angles.append(mp.acos((shortcut * mp.cos(angles[-1]) + s * moments(angles[-1])[0]) / omega))
        total, product = mp.mpf(0), mp.mpf(1)
        for layer in range(spec.depth, 0, -1):
            gate = moments(angles[layer - 1])[1]
            total += omega ** (layer - 1) * size * mp.cos(angles[layer - 1]) * gate * product
            product *= shortcut + s * gate
        return spec.width * total

    q, q_perturbed = norm**2 / spec.input_dim, (norm**2 + eps**2) / spec.input_dim
    joint = theta(mp.sqrt(q * q_perturbed), mp.atan(eps / norm))
    return float(theta(q, mp.mpf(0)) + theta(q_perturbed, mp.mpf(0)) - 2 * joint)


@pytest.mark.parametrize(("depth", "block"), [(1, "vanilla"), (5, "vanilla"), (50, "vanilla"), (5, "signed")])
@pytest.mark.slow
def test_against_many_digits(depth, block):
    def from_slopes(u, v):
        return law(depth, weight_variance=1.375, positive_slope=u, negative_slope=v, block=block)

    sizes, slopes = np.array([1e-5, 1e-3, 0.1, 1.0, 10.0, 1000.0]), np.array(SLOPES)
    with mp.workdps(60):
        expected = [[kernel_rate(from_slopes(*pair), eps, 10.0) for eps in sizes] for pair in SLOPES]
    for x64, unit in ((True, 1e-14), (False, 1e-6)):
        with jax.enable_x64(x64):
            rates = jax.jit(jax.vmap(lambda u, v: adversarial_loss_decay_rate(from_slopes(u, v), sizes, 10.0)))
            np.testing.assert_allclose(rates(*slopes.T), expected, rtol=(1 + depth) * unit)


@pytest.mark.slow
def test_against_the_correlation_maps():
    """The definition again, through the package's own kappa and g, at an angle where differences do no harm."""
    with jax.enable_x64(True):
        spec = law(4, weight_variance=1.3, negative_slope=0.2)

        def theta(size, c):
            correlations = [c]
            for _ in range(3):
                correlations.append(kappa(spec, correlations[-1]) / kappa(spec, 1.0))
            gates = np.array([1.3 * gate_correlation(spec, c) for c in correlations])
            omega = 1.3 * float(kappa(spec, 1.0))
            terms = [omega**k * size * c * np.prod(gates[k:]) for k, c in enumerate(correlations)]
            return 800 / 1.3 * sum(terms)

        expected = theta(1.0, 1.0) + theta(1.25, 1.0) - 2 * theta(1.25**0.5, 1 / 1.25**0.5)
        np.testing.assert_allclose(adversarial_loss_decay_rate(spec, 5.0, 10.0), expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 5, 1000])
@pytest.mark.slow
def test_small_angle(depth):
    """In float32: omega^L rho N sqrt(q) eps L (L + 1) / (pi s sqrt(d)); without a cusp N L omega^L eps^2 / (s d)."""
    rate = jax.jit(adversarial_loss_decay_rate)
    spec, linear = (
        law(depth, weight_variance=2 / 1.04, negative_slope=0.2),
        law(depth, weight_variance=1.0, negative_slope=1.0),
    )
    for ratio in (1e-6, 1e-9):
        eps = ratio * 10
        cusp = 800 * 1.04 / 2 * 0.64 / 1.04 * eps * depth * (depth + 1) / (np.pi * 10)
        # the next order is of relative size L theta
        tolerance = (1 + depth) * 1e-6 + 4 * depth * ratio
        np.testing.assert_allclose(rate(spec, eps, 10.0), cusp, rtol=tolerance)
        np.testing.assert_allclose(rate(linear, eps, 10.0), 8 * depth * eps**2, rtol=(1 + depth) * 1e-6)


@pytest.mark.slow
def test_horizon():
    """4 fraction B t* at small eps, t* = beta pi s sqrt(d) / (N sqrt(q) L (L + 1)) over the alignment; see also l."""
    spec = law(5)
    time = np.pi * 2 * 10 / (800 * 30) * 0.9975031 / ALIGNMENT  # E|g_100| / 10
    np.testing.assert_allclose(adversarial_rate(spec, 10.0, 1e-5).time, time, rtol=2e-5)
    np.testing.assert_allclose(validity_horizon(spec, 1e-5, 10.0, num_inputs=8, fraction=0.3), 9.6 * time, rtol=4e-5)
    rate, time = adversarial_rate(spec, 10.0, 0.5)
    np.testing.assert_allclose(rate * time, 0.5 * 0.9975031, rtol=1e-6)
    np.testing.assert_allclose(rate, ALIGNMENT * adversarial_loss_decay_rate(spec, 0.5, 10.0), rtol=1e-6)
    bare = adversarial_rate(spec, 10.0, 0.5, aligned=False)
    np.testing.assert_allclose(bare, (rate / ALIGNMENT, time * ALIGNMENT), rtol=1e-6)
    # without gates that flip the kernel at eta and -eta is minus that at eta: two signs are no slower than one
    linear = law(5, weight_variance=1.0, negative_slope=1.0)
    once = adversarial_rate(linear, 10.0, 0.5).time
    np.testing.assert_allclose(validity_horizon(linear, 0.5, 10.0), 0.2 * once, rtol=1e-5)


@pytest.mark.slow
def test_the_horizon_is_where_the_closed_form_is_off_by_the_fraction():
    """To first order: the closed form keeps L_adv, which falls by l."""
    spec, fraction = law(3), 0.04
    for eps in (0.05, 2.0):
        curve = training_curve(3, eps / 10, roughness=False)
        tau = float(validity_horizon(spec, eps, 10.0, fraction=fraction) / adversarial_rate(spec, 10.0, eps).time)
        short = np.mean(1 - curve(np.linspace(0, tau, 401)))
        assert abs(short / fraction - 1) < 0.03, eps


def test_alignment():
    """Beside factors measured on networks, to twice their standard errors."""
    for spec, measured, error in (
        (law(width=200), 2.17, 0.28),
        (law(width=400), 1.67, 0.2),
        (law(width=800), 1.41, 0.2),
        (law(2, width=400), 1.55, 0.26),
        (law(3, width=400, negative_slope=0.3), 1.56, 0.22),
    ):
        assert abs(float(alignment(spec)) - measured) < error
    np.testing.assert_allclose(alignment(law()), ALIGNMENT, rtol=1e-6)


def test_kernel_regime():
    spec = law(2, width=10**7)
    found = kernel_regime(spec, 0.1)
    np.testing.assert_allclose(found.gate_shift, np.pi * 200**0.5 * 5 / (18 * 0.1 * 1e7**0.5), rtol=1e-12)
    np.testing.assert_allclose(found[1:3], (1e7 * 0.1 / np.pi / 100, 0.2 / np.pi), rtol=1e-12)
    np.testing.assert_allclose(found.alignment, (1 + 1e-5 + 2 * (1 + 2e-5)) / 3, rtol=1e-9)
    # the shares of a gate's effect on the layers below: 1, 1 + r with r = 1/4
    signed = kernel_regime(spec.replace(block="signed", weight_variance=2 / 3), 0.1)
    shift, gates = np.pi * 200**0.5 * (1 + 1.25**2) / 2.25**2 / (0.1 * 1e7**0.5), 1 + 2 * 0.25 * 0.75 + 2 / 16
    np.testing.assert_allclose(signed.gate_shift, shift, rtol=1e-6)
    np.testing.assert_allclose(signed.delta, 0.05 / np.pi, rtol=1e-6)
    np.testing.assert_allclose(signed.alignment - 1, 0.5e-5 * (2 + 1.25 / 2.25 * (gates - 1)), rtol=1e-4)
    # a unit of weight or of phi changes no ratio of lengths
    for changes in ({"weight_variance": 0.3}, {"positive_slope": -0.5}):
        np.testing.assert_allclose(kernel_regime(spec.replace(**changes), 0.1), found, rtol=1e-12)
    for changes, theta, text in (
        ({"width": 3000}, 0.1, "lambda = "),
        ({"width": 10000}, 0.01, "n / d = 0.318"),
        ({"depth": 5}, 0.3, r"sqrt\(delta\) = 0.774"),
    ):
        with pytest.warns(UserWarning, match=text):
            kernel_regime(spec.replace(**changes), theta)
    for changes, theta, text in (
        ({}, 0.0, "theta: expected a finite number > 0, got 0.0"),
        ({"negative_slope": 1.0}, 0.1, "positive_slope, negative_slope: expected two values"),
        ({"bias_variance": 0.1}, 0.1, "bias_variance: expected 0, got 0.1"),
        ({"block": "signed", "weight_variance": 0.0}, 0.1, "weight_variance: expected s > 0 .*, got 0.0"),
    ):
        with pytest.raises(ValueError, match=text):
            kernel_regime(spec.replace(**changes), theta)


@pytest.mark.slow
def test_transformations():
    """One compilation for all leaves, eps and norms; vmap; derivatives by central differences."""

    def function(spec, eps, norm):
        return jnp.log(adversarial_loss_decay_rate(spec, eps, norm)), jnp.log(validity_horizon(spec, eps, norm, 8))

    with jax.enable_x64(True):
        specs = [law(4, weight_variance=s, negative_slope=v) for s, v in ((1.5, 0.2), (2.5, -0.4))]
        eps, norm = np.array([0.1, 3.0]), np.array([10.0, 5.0])
        once = jax.jit(chex.assert_max_traces(function, n=1))
        singles = [once(spec, *point) for spec, *point in zip(specs, eps, norm, strict=True)]
        batch = jax.tree.map(lambda *values: np.array(values), *specs)
        mapped = jax.jit(jax.vmap(function))(batch, eps, norm)
        np.testing.assert_allclose(np.transpose(mapped), singles, rtol=1e-13)

        point, step = np.array([1.5, 1.0, 0.2, 0.3, 10.0]), 1e-5 * np.eye(5)

        def value(point):
            s, u, v, eps, norm = point
            return jnp.stack(function(NetworkSpec(100, 1, 800, 4, s, 0.0, u, v), eps, norm))

        ahead, behind = np.split(jax.jit(jax.vmap(value))(np.concatenate([point + step, point - step])), 2)
        np.testing.assert_allclose(jax.jit(jax.jacrev(value))(point), np.transpose(ahead - behind) / 2e-5, rtol=1e-7)


@pytest.mark.slow
def test_overflow_and_zero():
    deep = law(2000, weight_variance=8.0)
    assert adversarial_loss_decay_rate(deep, 0.1, 10.0) == np.inf
    assert validity_horizon(deep, 0.1, 10.0) == 0
    empty = law(3, weight_variance=0.0)
    assert adversarial_loss_decay_rate(empty, 0.1, 10.0) == 0
    assert validity_horizon(empty, 0.1, 10.0) == np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "residual"}, "block: expected vanilla or signed .*, got 'residual'"),
        ({"output_dim": 2}, "output_dim: expected 1, got 2"),
        ({"bias_variance": 0.1}, "bias_variance: expected 0, got 0.1"),
        ({"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
        ({"input_norm": -1.0}, "input_norm: expected a finite number > 0, got -1.0"),
    ],
)
@pytest.mark.parametrize("function", [adversarial_loss_decay_rate, adversarial_rate, validity_horizon])
def test_rejects(function, changes, message):
    arguments = {"eps": 0.1, "input_norm": 10.0}
    arguments |= {name: changes[name] for name in arguments.keys() & changes}
    spec = law(**{name: value for name, value in changes.items() if name not in arguments})
    with pytest.raises(ValueError, match=message):
        function(spec, **arguments)


def test_the_horizon_of_a_shortcut_is_refused():
    with pytest.raises(ValueError, match=r"block: expected vanilla, got 'signed' .*share of L_adv"):
        validity_horizon(law(block="signed"), 0.1, 10.0)


def gradient_distance(nets, x, perturbed):
    """|d(f(x') - f(x))/dW|^2 over all layers, per network and output, [M, K]."""
    total = 0.0
    (rows, hidden), (rows_p, hidden_p) = (
        (cotangents(nets, slopes)[0], hidden) for _, slopes, hidden in (forward(nets, z) for z in (x, perturbed))
    )
    for a, b, h, g in zip(rows, rows_p, hidden[:-1], hidden_p[:-1], strict=True):
        squares = [
            np.sum(r * t, axis=-1) * np.sum(y * z, axis=-1)[:, None]
            for r, t, y, z in ((a, a, h, h), (b, b, g, g), (a, b, h, g))
        ]
        total = total + squares[0] + squares[1] - 2 * squares[2]
    return total


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.law
def test_simulated_gradients(block):
    """A fixed x': the mean over networks is 1 to 3 parts in N below the limit, measured at N = 100 and 200."""
    spec = law(3, width=200, negative_slope=0.2, weight_variance=2 / 1.04, block=block)
    axes = np.eye(100)

    def mean_rate(nets):  # over outputs, and pairs of orthogonal x and eta
        pairs = [(10 * axes[k], 10 * axes[k] + axes[k + 1]) for k in (0, 2, 4, 6)]
        return np.mean([gradient_distance(nets, *pair) for pair in pairs], axis=(0, 2))

    rates = simulate(mean_rate, 0, dataclasses.replace(spec, output_dim=8), 1000, batch=1)
    expected = float(adversarial_loss_decay_rate(spec, 1.0, 10.0))
    assert agrees(rates, expected, allowance=3 / 200)
    assert not agrees(rates, 1.05 * expected, allowance=3 / 200)
    assert not agrees(rates, 0.95 * expected, allowance=3 / 200)


@pytest.mark.law
def test_the_worst_perturbation_decays_faster():
    """One step along J: an excess over a fixed x' of 1.1, .70, .42, .26 at N = 200, 400, 800, 1600 (+-.03)."""
    x = np.full(100, 1.0)

    def rate(nets):
        jacobian = linear_representation(nets, x)[0][:, 0]
        return gradient_distance(nets, x, x + jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True))[:, 0]

    for width, count, block in ((100, 300, "vanilla"), (400, 60, "vanilla"), (100, 300, "signed")):
        spec = law(width=width, block=block)
        expected = float(adversarial_rate(spec, 10.0, 1.0).rate)
        ratio = simulate(rate, 0, spec, count, batch=20).mean() / expected
        assert abs(ratio - 1) < 0.1, (width, ratio)
