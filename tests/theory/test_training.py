"""Predictions of training: the identity of the variance, limits that are solved by hand, and trained networks."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy.linalg import expm

from mftadv.spec import NetworkSpec
from mftadv.theory import adversarial_rate, predict_training, training_curve, variance_from_losses
from tests.reference import cotangents, draw, forward

SPEC = NetworkSpec(30, 1, 4000, 2)


def test_variance_from_losses():
    t = np.array([0.0, 1, 3, 4])
    found = variance_from_losses(2.0, 10, t, np.stack([1 + t, 3 - t]), -np.ones(4))
    np.testing.assert_allclose(found, [2 - 0.1 * t**2, 2 - 0.2 * (2 * t - t**2 / 2)], rtol=1e-14)
    np.testing.assert_allclose(variance_from_losses(np.array([1.0, 2.0]), 10, t, 3.0, 2.0), [1 - t, 2 - t], atol=1e-14)
    assert found.dtype == np.float64


@pytest.mark.slow
def test_variance_from_losses_of_a_trained_network():
    """Gradient descent in NumPy at fixed perturbations; the identity holds but for the square of a step."""
    spec, lr, steps = NetworkSpec(5, 1, 12, 3, 1.7, negative_slope=0.2), 2e-4, 60
    nets = draw(np.random.default_rng(0), spec, 1)
    x = np.random.default_rng(1).standard_normal(5)
    eta, target = 0.4 * np.eye(5)[0], 1.0

    def gradients(nets, point):
        output, slopes, hidden = forward(nets, point)
        rows = cotangents(nets, slopes)[0]
        return output[0, 0], [row[0, 0][:, None] * h[0] for row, h in zip(rows, hidden[:-1], strict=True)]

    losses, products, sizes = [], [], []
    for _ in range(steps + 1):
        (f, at_x), (g, at_x_perturbed) = gradients(nets, x), gradients(nets, x + eta)
        losses.append(abs(g - f))
        products.append(f * (f - target))
        sizes.append([np.sum(w**2) / spec.width for w in nets.weights])
        sign = np.sign(g - f)
        steepest = [sign * (b - a) + (f - target) * a for a, b in zip(at_x, at_x_perturbed, strict=True)]
        nets = nets._replace(weights=[w - lr * z for w, z in zip(nets.weights, steepest, strict=True)])
    sizes = np.array(sizes)
    found = variance_from_losses(sizes[0], 12, lr * np.arange(steps + 1), np.array(losses), np.array(products))
    change = sizes - sizes[0]
    np.testing.assert_allclose((found - sizes[0][:, None]).T[1:], change[1:], rtol=0.02)
    assert not np.allclose(1.05 * change[1:], (found - sizes[0][:, None]).T[1:], rtol=0.02)


@pytest.mark.slow
def test_one_input_without_a_standard_loss():
    """L_adv follows the curve, and s its integral."""
    x, eps = np.full((1, 30), 1.0), 0.3
    with jax.enable_x64(True):
        rate, time = map(float, adversarial_rate(SPEC, 30**0.5, eps))
    found = predict_training(x, np.zeros(1), spec=SPEC, eps=eps, horizon=3 * time, num_times=301)
    for roughness, loss, variance in zip((False, True), found.adversarial_loss, found.weight_variance, strict=True):
        curve = training_curve(2, float(f"{eps / 30**0.5:.2g}"), roughness=roughness)
        np.testing.assert_allclose(loss[:, 0], rate * time * curve(found.t / time), rtol=1e-9)
        by_identity = variance_from_losses(2.0, 4000, found.t, loss[:, 0], 0.0)
        np.testing.assert_allclose(variance - 2, by_identity - 2, rtol=3e-4, atol=1e-12)
    late = slice(50, None)
    assert np.all(found.adversarial_loss[1, late] > found.adversarial_loss[0, late])
    assert np.all(found.weight_variance[1, late] < found.weight_variance[0, late])


@pytest.mark.slow
def test_a_small_attack_leaves_the_fit_to_the_kernel():
    """At eps -> 0 the outputs obey a linear equation in the tangent kernel, of one layer in closed form."""
    spec, rng = dataclasses.replace(SPEC, depth=1), np.random.default_rng(0)
    points, target = rng.standard_normal((4, 30)), np.array([1.0, -1, 2, 0])
    start = rng.standard_normal(4)
    norms = np.linalg.norm(points, axis=1)
    cosine = np.clip(points @ points.T / norms[:, None] / norms, -1, 1)
    kernel = spec.width / 30 * points @ points.T * (1 - np.arccos(cosine) / math.pi) / 2
    horizon = 2 * 4 / kernel[0, 0]
    found = predict_training(
        points, start, spec=spec, eps=1e-6, horizon=horizon, dloss=lambda f: f - target, num_times=5
    )
    for t, f in zip(found.t, found.f[0], strict=True):
        np.testing.assert_allclose(f, target + expm(-kernel * t / 4) @ (start - target), atol=1e-4)


@pytest.mark.slow
def test_a_measured_loss_sets_the_start():
    points, start = np.random.default_rng(0).standard_normal((2, 30)), np.array([0.5, -1.0])
    known = np.array([0.2, 0.4])
    found = predict_training(points, start, spec=SPEC, eps=0.2, horizon=1e-3, adversarial_loss=known, num_times=3)
    np.testing.assert_allclose(found.adversarial_loss[:, 0], [known, known], rtol=1e-9)
    assert [x.shape for x in found] == [(3,), (2, 3, 2), (2, 3, 2), (2, 3)]


def test_a_loss_that_is_known_at_all_times_takes_the_place_of_the_curve():
    """Without a standard loss s is its integral, for as long as one likes."""
    points, horizon = np.random.default_rng(0).standard_normal((2, 30)), 10.0
    found = predict_training(
        points, np.zeros(2), spec=SPEC, eps=0.2, horizon=horizon, adversarial_loss=lambda t: [1.0, math.exp(-t)],
        num_times=6,
    )  # fmt: skip
    np.testing.assert_allclose(found.adversarial_loss[1], np.stack([np.ones(6), np.exp(-found.t)], axis=1), rtol=1e-12)
    for variance in found.weight_variance:
        np.testing.assert_allclose(2 - variance, (found.t + 1 - np.exp(-found.t)) / 4000, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": dataclasses.replace(SPEC, block="signed")}, "block: expected vanilla"),
        ({"spec": dataclasses.replace(SPEC, bias_variance=0.1)}, "bias_variance: expected 0"),
        ({"spec": dataclasses.replace(SPEC, output_dim=2)}, "output_dim: expected 1"),
        ({"inputs": np.ones(30)}, r"inputs: expected \[B, 30\]"),
        ({"inputs": np.zeros((2, 30))}, r"inputs: expected \[B, 30\] without zeros"),
        ({"f0": np.zeros(3)}, r"f0: expected \[2\] for the inputs, got \[3\]"),
        ({"eps": 0.0}, "eps: expected a finite number > 0"),
        ({"eps": 6.0}, r"eps: expected at most the least \|x_b\|, 5.477, got 6.0"),
        ({"horizon": -1.0}, "horizon: expected a finite number > 0"),
        ({"horizon": 1e9}, r"horizon: expected at most 8 B t\* = "),
        ({"num_times": 1}, "num_times: expected an integer >= 2, got 1"),
        ({"adversarial_loss": np.zeros(2)}, r"adversarial_loss: expected more than theta \|f0\|"),
    ],
)
def test_rejects(changes, message):
    arguments = {"inputs": np.ones((2, 30)), "f0": np.zeros(2), "spec": SPEC, "eps": 0.1, "horizon": 1.0}
    with pytest.raises(ValueError, match=message):
        predict_training(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.0, 0, np.arange(3.0), 1.0, 0.0), "width: expected a positive integer, got 0"),
        ((2.0, 5, np.zeros(3), 1.0, 0.0), "t: expected increasing times"),
        ((2.0, 5, np.arange(3.0), np.ones(2), 0.0), r"adversarial_loss: expected \[..., 3\]"),
        ((2.0, 5, np.arange(3.0), np.ones(3), np.ones((2, 4))), r"f_dloss: expected \[..., 3\]"),
    ],
)
def test_variance_from_losses_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        variance_from_losses(*arguments)
