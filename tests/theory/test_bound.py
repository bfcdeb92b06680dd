"""The bound on the adversarial loss: accuracy, derivatives, and its coverage over simulated networks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import special

from mftadv.spec import NetworkSpec
from mftadv.theory._bound import (
    adversarial_loss_bound,
    chevet_excess,
    finite_width_bound,
    norm_correction,
    width_mean,
    width_quantile,
)
from mftadv.theory._coefficients import operator_norm_coefficient, operator_norm_deviation
from mftadv.theory._gaussian_norms import expected_norm
from tests import reference

INF = math.inf


def log_width_factor(spec, dtype=float):
    """w in 40 digits, from the kurtosis of a Jacobian entry as printed."""
    s, _, u, v = (mp.mpf(float(dtype(x))) for x in jax.tree.leaves(spec))
    c = 6 * (u**4 + v**4) / (u**2 + v**2) ** 2 - 1
    n, gain = spec.width, s * (u**2 + v**2) / 2
    rate = 1 + c / n
    if spec.block == "signed":
        rate = (1 + 2 * gain + 4 * gain / n + gain**2 * (1 + c / n)) / (1 + gain) ** 2
    return mp.log((1 + mp.mpf(2) / n) * rate**spec.depth)


def exact(spec, eps, p, q, kind, confidence, dtype):
    """The bound in 40 digits at the leaves as `dtype` holds them."""
    s, _, u, v = (mp.mpf(float(dtype(x))) for x in jax.tree.leaves(spec))
    d, k = spec.input_dim, spec.output_dim
    omega = s * (u**2 + v**2) / 2 + (spec.block != "vanilla")
    value = mp.mpf(float(dtype(eps))) * omega ** (mp.mpf(spec.depth) / 2)
    beta = mp.mpf(operator_norm_coefficient(p, q, d, k, kind))
    if confidence is None:
        return value * beta
    z = mp.mpf(float(special.ndtri((1 + confidence) / 2)))
    w = log_width_factor(spec, dtype)
    m = 0
    if k > 1:
        edge = 2 * mp.mpf(expected_norm(k - 1, 2.0))
        m = min(edge * mp.sqrt(w / 2), edge * mp.sqrt(6 * mp.expm1(k * w / 12) / k) - (k - 1) * w / 4)
    deviation = operator_norm_deviation(p, q, d, k, (1 + confidence) / 2)
    return value * (beta + deviation) * mp.exp((m - w / 2 + mp.sqrt(w) * z) / 2)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("block", ["vanilla", "residual", "signed"])
@pytest.mark.slow
def test_accuracy(block, x64):
    dtype, unit = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    with jax.enable_x64(x64), mp.workdps(40):
        for depth, width, outputs, s in [(1, 30, 1, 0.7), (8, 10**8, 3, 2.3), (400, 10**4, 1, 1.9), (301, 50, 2, 2.0)]:
            spec = NetworkSpec(40, outputs, width, depth, s, 0.1, 1.0, 0.2, block)
            for kind, confidence in [("chevet", None), ("published", None), ("chevet", 0.9), ("sharp", 0.99)]:
                if block == "residual" and confidence:
                    continue
                value = adversarial_loss_bound(spec, 1e-12, 2, 2, kind, confidence)
                expected = exact(spec, 1e-12, 2, 2, kind, confidence, dtype)
                assert value.dtype == dtype
                if expected > np.finfo(dtype).max:
                    assert value == INF
                else:
                    assert abs(float(value) / expected - 1) < (1 + depth) * unit, (depth, width, kind, confidence)


def test_infinite_width_and_confidence():
    spec = NetworkSpec(40, 3, 10**9, 6, 1.7)
    for kind in ("chevet", "sharp"):
        mean = adversarial_loss_bound(spec, 0.3, 2, 2, kind)
        bounds = [adversarial_loss_bound(spec, 0.3, 2, 2, kind, c) for c in (0.01, 0.5, 0.9, 0.999)]
        assert np.all(np.diff([mean, *bounds]) > 0)
        deviation = operator_norm_deviation(2, 2, 40, 3, 0.95)
        ratio = 1 + deviation / operator_norm_coefficient(2, 2, 40, 3, kind)
        assert float(bounds[2] / mean) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize(("block", "outputs"), [("vanilla", 1), ("signed", 4)])
@pytest.mark.slow
def test_derivatives(block, outputs, confidence):
    with jax.enable_x64(True):
        spec = NetworkSpec(30, outputs, 50, 5, 1.7, 0.1, 1.1, -0.3, block)

        def bound(spec, eps):
            return adversarial_loss_bound(spec, eps, INF, 2, confidence=confidence)

        by_spec, by_eps = jax.jit(jax.grad(bound, argnums=(0, 1)))(spec, 0.2)
        assert float(by_eps) == pytest.approx(float(bound(spec, 1.0)), rel=1e-12)
        for name in ("weight_variance", "bias_variance", "positive_slope", "negative_slope"):
            value, h = getattr(spec, name), 1e-5
            high, low = (float(bound(dataclasses.replace(spec, **{name: value + t}), 0.2)) for t in (h, -h))
            assert float(getattr(by_spec, name)) == pytest.approx((high - low) / (2 * h), rel=1e-7, abs=1e-9)


@pytest.mark.slow
def test_sweep_over_leaves_and_eps():
    spec = NetworkSpec(30, 2, 50, 5, np.linspace(0.5, 2, 4, dtype=np.float32), block="signed")
    eps = np.geomspace(0.1, 1, 4).astype(np.float32)
    whole = adversarial_loss_bound(spec, eps, 2, 2, confidence=0.9)
    axes = NetworkSpec.tree_unflatten(jax.tree.structure(spec).node_data()[1], (0, None, None, None))
    mapped = jax.vmap(lambda spec, eps: adversarial_loss_bound(spec, eps, 2, 2, confidence=0.9), (axes, 0))(spec, eps)
    each = [
        adversarial_loss_bound(NetworkSpec(30, 2, 50, 5, float(s), block="signed"), float(e), 2, 2, confidence=0.9)
        for s, e in zip(spec.weight_variance, eps, strict=True)
    ]
    np.testing.assert_allclose(whole, each, rtol=1e-5)
    np.testing.assert_allclose(mapped, each, rtol=1e-5)


@pytest.mark.slow
def test_edges():
    def bound(spec, eps, kind="chevet"):
        return adversarial_loss_bound(spec, eps, 2, 2, kind)

    deep = NetworkSpec(30, 1, 50, 1000, 4.0)
    assert bound(deep, 0.1) == INF
    assert bound(deep, 0.0) == 0
    assert jax.grad(bound)(deep, 0.1).weight_variance == INF
    assert jax.grad(bound)(deep, 0.0).weight_variance == 0
    assert jax.grad(bound, argnums=1)(NetworkSpec(30, 1, 50, 6, 2.0), 0.0) == bound(NetworkSpec(30, 1, 50, 6, 2.0), 1.0)
    # omega^(L/2) = 2^130 overflows, the bound does not
    tall = float(bound(NetworkSpec(30, 1, 50, 260, 4.0), 2.0**-30))
    assert tall == pytest.approx(2.0**100 * float(bound(deep_unit(), 1.0)), rel=1e-4)
    # no weights, no loss; omega^(L/2) has the slope alpha at 0 for two layers and none beyond
    for depth, slope in [(2, 0.5), (3, 0.0), (8, 0.0)]:
        dead = NetworkSpec(30, 1, 50, depth, 0.0)
        assert bound(dead, 0.1) == 0
        gradient = jax.grad(bound)(dead, 0.1)
        assert gradient.weight_variance == pytest.approx(slope * float(bound(deep_unit(), 0.1)), rel=1e-6)
        assert gradient.positive_slope == 0
    assert adversarial_loss_bound(deep_unit(), 0.1, INF, 2, "published") == 0


def deep_unit():
    """A network of omega = 1."""
    return NetworkSpec(30, 1, 50, 2, 2.0)


def coverage(samples, bound):
    return np.mean(samples <= bound)


def split(spec, p, q, confidence):
    """The bound at eps = 1, and the part of it that bounds the layers' product alone, at (1 + confidence)/2."""
    bound = float(adversarial_loss_bound(spec, 1.0, p, q, "sharp", confidence))
    dims = spec.input_dim, spec.output_dim
    deviation = operator_norm_deviation(p, q, *dims, (1 + confidence) / 2)
    return bound, bound / (operator_norm_coefficient(p, q, *dims, "sharp") + deviation)


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(100, 1, 60, 3, 1.6, 0.2),
        NetworkSpec(100, 1, 60, 6, 1.6, 0.0, 1.0, 0.3, "signed"),
    ],
)
@pytest.mark.law
def test_coverage_of_one_output(spec):
    x, m, confidence = np.linspace(-1, 1, 100), 4000, 0.5
    samples = reference.simulate(lambda nets: reference.linear_representation(nets, x)[0][:, 0], 1, spec, m)
    for p in (2, INF):
        norms = np.linalg.norm(samples, 1 if p == INF else 2, axis=1)
        bound, factor = split(spec, p, 2, confidence)
        # delta is spent twice, so the whole covers more than is asked; its factor for the width is an exact quantile,
        # up to the spread of the Gaussian part, 1/2d to 0.6/d against w/4, and the skewness of its logarithm
        assert coverage(norms, bound) > 0.8
        norms = norms / operator_norm_coefficient(p, 2, 100, 1, "sharp")
        tolerance = 3 * math.sqrt(0.75 * 0.25 / m) + 0.015
        assert abs(coverage(norms, factor) - 0.75) < tolerance
        assert abs(coverage(norms, factor / 1.05) - 0.75) > tolerance
        assert abs(coverage(norms, factor * 1.05) - 0.75) > tolerance


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(200, 5, 30, 4, 1.6, 0.2),
        NetworkSpec(200, 5, 60, 10, 1.6),
        NetworkSpec(200, 5, 30, 4, 1.6, 0.2, 1.0, 0.3, "signed"),
    ],
)
@pytest.mark.law
def test_coverage_of_several_outputs(spec):
    x, m = np.linspace(-1, 1, 200), 1000

    def norms(nets):
        rows = reference.cotangents(nets, reference.forward(nets, x)[1])[1]
        jacobians = rows @ nets.p_in
        largest = [np.linalg.svd(matrix, compute_uv=False)[:, 0] for matrix in (rows, jacobians)]
        return np.stack([*largest, np.abs(jacobians).sum(axis=2).max(axis=1)], axis=1)

    product, two_to_two, inf_to_inf = reference.simulate(norms, 2, spec, m).T
    w, scale = float(log_width_factor(spec)), float(adversarial_loss_bound(spec, 1.0, 2, 2, "published"))
    for confidence in (0.5, 0.9, 0.99):
        tolerance = 3 * math.sqrt(confidence * (1 - confidence) / m)
        for samples, p, q in [(two_to_two, 2, 2), (inf_to_inf, INF, INF)]:
            assert coverage(samples, split(spec, p, q, confidence)[0]) > confidence - tolerance
        # the factor for the width is a bound on a quantile: not far from it, and needed
        factor = split(spec, 2, 2, confidence)[1]
        each = (1 + confidence) / 2
        assert coverage(product, factor) > each - tolerance
        assert factor < 1.75 * np.quantile(product, each)
        without_spread = math.exp(-w / 4 + math.sqrt(w) * special.ndtri(each) / 2) * scale
        assert coverage(product, without_spread) < each - tolerance


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        (NetworkSpec(64, 16, 100, 5, 2.0), [1.3, 1.5, 1.9, 1.7, 1.6, 1.6]),
        (NetworkSpec(200, 5, 30, 4, 1.6, 0.2), [1.3, 1.5, 1.9, 1.7, 1.6, 1.6]),
        (NetworkSpec(64, 5, 30, 8, 1.6, 0.2, 1.0, 0.3, "signed"), [1.3, 1.5, 1.9, 1.7, 1.6, 1.6]),
        (NetworkSpec(100, 30, 50, 10, 2.0), [1.4, 1.6, 2.1, 1.8, 1.8, 1.8]),
    ],
)
@pytest.mark.law
def test_mean_norms_at_finite_width(spec, most):
    """Above the means of simulated networks, where Chevet's bound of infinite width is not, and not far above."""
    x = np.linspace(-1, 1, spec.input_dim)

    def norms(nets):
        rows = reference.cotangents(nets, reference.forward(nets, x)[1])[1]
        J = rows @ nets.p_in
        largest = [np.linalg.svd(matrix, compute_uv=False)[:, 0] for matrix in (rows, J)]
        columns = [np.linalg.norm(J, q, axis=1).max(axis=1) for q in (1, 2)]
        return np.stack([*largest, *columns, *(np.linalg.norm(J, p, axis=2).max(axis=1) for p in (1, 2))], axis=1)

    samples = reference.simulate(norms, 4, spec, 500, 100)
    means, errors = samples.mean(axis=0), samples.std(axis=0) / math.sqrt(len(samples))
    scale = float(adversarial_loss_bound(spec, 1.0, 2, 2, "published"))
    pairs = (2, 2), (1, 1), (1, 2), (INF, INF), (2, INF)
    bounds = np.array([width_mean(spec) * scale, *(finite_width_bound(spec, 1.0, *pair) for pair in pairs)])
    infinite = np.array([scale, *(adversarial_loss_bound(spec, 1.0, *pair) for pair in pairs)])
    assert np.all(means + 3 * errors < bounds)
    assert np.all(bounds < most * means)
    assert means[1] - 3 * errors[1] > infinite[1]
    assert np.all(bounds < float(width_mean(spec)) * infinite * (1 + 1e-6))


@pytest.mark.slow
def test_finite_width_bound_limits_and_refusals():
    wide, narrow = (NetworkSpec(30, 3, width, 4, 1.7) for width in (10**8, 20))
    for p, q in ((2, 2), (1.5, 1), (INF, 2)):
        chevet = float(adversarial_loss_bound(wide, 0.3, p, q))
        assert float(finite_width_bound(wide, 0.3, p, q)) == pytest.approx(chevet, rel=1e-3)
        assert float(finite_width_bound(narrow, 0.3, p, q)) > 1.1 * chevet
    one = NetworkSpec(30, 1, 20, 4, 1.7)
    assert finite_width_bound(one, 0.3, 2, 2) == adversarial_loss_bound(one, 0.3, 2, 2)
    # K = 1: the mean of a log-normal variable
    w = float(log_width_factor(one))
    assert float(width_mean(one)) == pytest.approx(math.exp(-w / 8), rel=1e-5)
    gradient = jax.grad(lambda spec: finite_width_bound(spec, 0.3, 2, INF))(one)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(width_mean(dataclasses.replace(one, width=10**12)))
    # many outputs of a narrow deep network: the bound by the Frobenius norm
    assert float(width_mean(NetworkSpec(8, 40, 40, 8, 2.0))) == pytest.approx(math.sqrt(40))
    for arguments, match in (((one, -1.0, 2, 2), "eps: expected"), ((one, 1.0, 0.5, 2), "p: expected")):
        with pytest.raises(ValueError, match=match):
            finite_width_bound(*arguments)
    with pytest.raises(ValueError, match="block: expected vanilla or signed"):
        width_mean(dataclasses.replace(one, block="residual"))


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 2), (INF, 3), (2, INF), (1, INF)])
def test_the_excess_of_chevets_bound_is_a_ratio_of_bounds(p, q):
    several = NetworkSpec(30, 5, 100, 5, 2.0)
    ratio = finite_width_bound(several, 0.3, p, q) / adversarial_loss_bound(several, 0.3, p, q)
    assert float(chevet_excess(several, p, q)) == pytest.approx(float(ratio) - 1, rel=1e-4)
    vanishing = several.replace(weight_variance=1e-30)  # where both bounds underflow
    assert chevet_excess(vanishing, p, q) == chevet_excess(several, p, q) > 0
    assert chevet_excess(several.replace(output_dim=1), p, q) == 0
    shortcut = several.replace(block="residual", weight_variance=0.5)
    assert chevet_excess(shortcut, p, q) == chevet_excess(shortcut.replace(block="signed"), p, q)


@pytest.mark.parametrize(("width", "depth"), [(250, 10), (60, 3)])
def test_the_mean_norm_of_one_output_is_lowered_to_first_order(width, depth):
    """By the exact law of a ReLU network's scale; a factor 5% off, or none at all, is outside the error."""
    scales = np.sqrt(reference.relu_scales(np.random.default_rng(6), 40_000, width, depth))
    factor, error = (float(x) for x in norm_correction(NetworkSpec(10, 1, width, depth)))
    assert error == pytest.approx(float(log_width_factor(NetworkSpec(10, 1, width, depth))) ** 2 / 8, rel=1e-4)
    assert reference.agrees(scales, factor, error)
    assert not reference.agrees(scales, 1.05 * factor, error)
    assert not reference.agrees(scales, 1.0, error)


def test_the_mean_norm_of_several_outputs_is_at_most_raised():
    several = NetworkSpec(10, 5, 100, 5)
    factor, error = norm_correction(several)
    assert (float(factor), float(error)) == (1.0, pytest.approx(float(width_mean(several)) - 1, rel=1e-5))
    shortcut = several.replace(block="residual", weight_variance=0.5)
    assert norm_correction(shortcut) == norm_correction(shortcut.replace(block="signed"))


@pytest.mark.law
def test_low_quantiles_of_several_outputs_are_bounded():
    """At K = 20, N = 200, L = 4, where the formula of the upper quantiles is too low at a probability of .01."""
    spec, m = NetworkSpec(100, 20, 200, 4, 2.0), 16_000
    rng, largest = np.random.default_rng(5), []
    for _ in range(16):
        rows = rng.standard_normal((m // 16, 20, 200), np.float32) / math.sqrt(200)
        for _ in range(4):  # given the rows after fair coins for gates, their products with W_l are Gaussian
            rows *= rng.integers(0, 2, (m // 16, 1, 200), dtype=np.int8)
            factor = np.linalg.cholesky(2 / 200 * rows @ rows.swapaxes(1, 2))
            rows = factor @ rng.standard_normal(rows.shape, np.float32)
        largest.append(np.sqrt(np.linalg.eigvalsh(rows @ rows.swapaxes(1, 2))[:, -1]))
    product = np.concatenate(largest)
    for probability in (0.001, 0.01, 0.1, 0.4, 0.5):
        least = probability - 3 * math.sqrt(probability / m)
        assert coverage(product, float(width_quantile(spec, probability))) >= least
    w, e = float(log_width_factor(spec)), 2 * expected_norm(19, 2.0)
    mean = min(e * math.sqrt(w / 2), e * math.sqrt(6 / 20 * math.expm1(20 * w / 12)) - 19 * w / 4) - w / 2
    unclipped = math.exp((mean + math.sqrt(w) * float(special.ndtri(0.01))) / 2)
    assert coverage(product, unclipped) < 0.01 - 3 * math.sqrt(0.01 / m)
    assert width_quantile(spec, 0.01) == width_quantile(spec, 0.5) < width_quantile(spec, 0.6)
    one = NetworkSpec(100, 1, 200, 4, 2.0)
    assert width_quantile(one, 0.01) < width_quantile(one, 0.5)
    with pytest.raises(ValueError, match=r"probability: expected a number in \(0, 1\), got 1\.5"):
        width_quantile(one, 1.5)


def test_mean_largest_eigenvalue_is_bounded():
    rng = np.random.default_rng(0)
    for k, count in [(2, 4000), (3, 4000), (10, 1000), (60, 100)]:
        matrices = rng.standard_normal((count, k, k)) / math.sqrt(2)
        largest = np.linalg.eigvalsh(matrices + matrices.swapaxes(1, 2))[:, -1]
        assert largest.mean() + 4 * largest.std() / math.sqrt(count) < 2 * expected_norm(k - 1, 2.0)


@pytest.mark.law
def test_several_outputs_exceed_the_bound_of_infinite_width():
    spec, x = NetworkSpec(60, 5, 100, 5, 2.0), np.ones(60)
    jacobians = reference.simulate(lambda nets: reference.linear_representation(nets, x)[0], 3, spec, 500, 250)
    samples = np.linalg.svd(jacobians, compute_uv=False)[:, 0]
    expected = 1.26 * float(adversarial_loss_bound(spec, 1.0, 2, 2, "sharp"))
    assert reference.agrees(samples, expected, 0.005, 3)
    assert not reference.agrees(samples, expected / 1.05, 0.005, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"eps": -0.1}, r"eps: expected .*got -0\.1"),
        ({"eps": np.array([0.1, math.nan])}, "eps: expected"),
        ({"p": 0.9}, "p: expected"),
        ({"kind": "best"}, "kind: expected one of"),
        ({"kind": "published", "confidence": 0.9}, "kind: expected one of chevet, sharp with a confidence, got 'publ"),
        (
            {"kind": "leading", "confidence": 0.9},
            "kind: expected one of chevet, sharp with a confidence, got 'leading'",
        ),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1\.0"),
        ({"spec": NetworkSpec(30, 1, 50, 3, block="residual"), "confidence": 0.9}, "block: expected vanilla or signed"),
    ],
)
def test_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        adversarial_loss_bound(**({"spec": deep_unit(), "eps": 0.1, "p": 2, "q": 2} | arguments))


def test_a_traced_eps_is_not_checked():
    bound = jax.jit(lambda eps: adversarial_loss_bound(deep_unit(), eps, 2, 2))
    assert bound(jnp.float32(0.5)) == adversarial_loss_bound(deep_unit(), 0.5, 2, 2)
