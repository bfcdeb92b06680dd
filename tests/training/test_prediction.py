"""Trained networks against the prediction of their training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import theory

KEY = jax.random.key(3, impl="threefry4x32")


@pytest.mark.law
def test_the_band_has_the_variance_of_a_trained_network():
    """With a squared loss beside L_adv: to 5% at every time, up to 2 B t*."""
    spec, eps = mf.NetworkSpec(30, 1, 2000, 1), 0.1 * 30**0.5
    x = np.random.default_rng(3).standard_normal((2, 30))
    x *= (30 / np.sum(x**2, axis=1, keepdims=True)) ** 0.5
    points, target = jnp.asarray(x, jnp.float32), np.array([-1.0, 1.0])
    network = mf.init(KEY, spec)
    start = np.asarray(mf.apply(network, points), np.float64)[:, 0]
    gradient = np.asarray(mf.linear_representation(network, points).jacobian, np.float64)[:, 0]
    horizon, steps = 4 * float(theory.adversarial_rate(spec, 30**0.5, eps).time), 60
    predicted = theory.predict_training(
        x,
        start,
        spec=spec,
        eps=eps,
        horizon=horizon,
        dloss=lambda f: f - target,
        adversarial_loss=np.hypot(eps * np.linalg.norm(gradient, axis=1), 0.1 * start),
        num_times=5,
    )
    config = mf.TrainingConfig(
        steps, horizon / steps, eps, standard_loss="squared", evaluate_every=steps // 4, attack="fast",
        trained=("weights",),
    )  # fmt: skip
    record = jax.jit(mf.train)(KEY, spec, (points, jnp.asarray([0, 1])), config)
    change = np.asarray(record.norm_change)[1:, 0] / spec.width
    low, high = np.sort(predicted.weight_variance[:, 1:] - 2, axis=0)
    assert np.all(1.05 * low < change)
    assert np.all(change < 0.95 * high)
