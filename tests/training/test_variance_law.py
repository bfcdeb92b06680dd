"""The slope of the weight variance at the start of adversarial training against the closed form, at finite width."""

import math

import jax
import jax.numpy as jnp
import pytest

import mftadv as mf
from mftadv import theory, training
from mftadv.spec import dual_exponent
from mftadv.theory import relative_spread
from tests.training.attacks import EXACT

NORMS = {"1": 1, "2": 2, "inf": math.inf}
RATE, EPS = 1e-3, 1e-6  # the rate is small against the jump of the gradient where a gate flips
KEY = jax.random.key(5, impl="threefry4x32")


def spec_of(block, width, depth):
    # A gain of branches at which the deepest network does not explode.
    return mf.NetworkSpec(100, 1, width, depth, 2.0 if block == "vanilla" else 0.5, block=block)


def slopes_of_training(key, spec, x, configs):
    """The change of the weight variance in one step of plain gradient descent on L_adv over the time, by p."""
    network = mf.init(key, spec)
    changes = {
        p: training.step(key, training.init(network, config), (x[None], None), config).norm_change
        for p, config in configs.items()
    }
    return {p: jnp.mean(change) / (RATE * spec.width * EPS) for p, change in changes.items()}


def slopes_of_losses(key, spec, x):
    """The same by the identity ds/dt = -(2/N) L_adv, without matrices."""
    network = mf.init(key, spec, "matrix_free", mf.capacity_for(spec, linear_representation=1))
    jacobian = mf.linear_representation(network, x).jacobian[0]
    return {p: -2 / spec.width * mf.vector_norm(jacobian, dual_exponent(norm)) for p, norm in NORMS.items()}


def assert_is_the_closed_form(spec, moments, constant=1.0):
    """To 4 standard errors, the second order of finite width, and for shortcuts the first of a branch's share."""
    with jax.enable_x64(True):
        factor, error = (float(number) for number in theory.norm_correction(spec))
        share = float(theory.propagation_factor(spec) - 1) / float(theory.propagation_factor(spec))
    if spec.has_shortcut:  # Skip and branch have a cosine of variance 1/N + 1/d.
        error += (1 - share) * abs(1 - 2 * share) * (1 / spec.width + 1 / spec.input_dim)
    for p in moments:
        expected = constant * factor * float(theory.weight_variance_rate(spec, 1.0, NORMS[p], 2, "sharp"))
        assert moments[p].standard_error <= 0.01 * abs(expected)
        assert abs(moments[p].mean - expected) <= 4 * moments[p].standard_error + error * abs(expected)


def assert_only_the_right_constant(spec, moments):
    assert_is_the_closed_form(spec, moments)
    for p in moments:
        with pytest.raises(AssertionError):
            assert_is_the_closed_form(spec, {p: moments[p]}, 1.05)


def networks_for(spec, norms, error=0.01):
    """How many networks give this standard error, relative to the mean."""
    variance = max(relative_spread(spec, "operator_norm", p=NORMS[p]) for p in norms) ** 2
    if spec.has_shortcut:
        gain = float(theory.propagation_factor(spec)) - 1
        variance += (1 / spec.width + 1 / spec.input_dim) / (gain * spec.depth)  # of a branch's share, in the 2-norm
    return math.ceil(variance / error**2)


@pytest.mark.usefixtures("optimised")
@pytest.mark.law
@pytest.mark.parametrize(("block", "depth", "norms"), [("vanilla", 2, ("1", "2", "inf")), ("signed", 5, ("inf",))])
def test_the_slope_of_one_step(block, depth, norms):
    spec = spec_of(block, 125, depth)
    with jax.enable_x64(True):
        configs = {
            p: training.TrainingConfig(1, RATE, EPS, NORMS[p], standard_loss=None, attack=EXACT, trained=("weights",))
            for p in norms
        }
        x = jax.random.normal(jax.random.key(1), (100,))
        count = networks_for(spec, norms, 0.01 if depth == 2 else 0.008)
        moments = mf.monte_carlo(slopes_of_training, KEY, spec, x, configs, num_networks=count)
    assert_only_the_right_constant(spec, moments)


@pytest.mark.law
@pytest.mark.parametrize(("width", "depth"), [(250, 10), (1000, 2), (2000, 5)])
def test_the_slope_falls_with_the_width(width, depth):
    """Where matrices would take too long: |J| alone, since the change of every network is exactly its loss."""
    spec = spec_of("vanilla", width, depth)
    x = jax.random.normal(jax.random.key(1), (100,))
    moments = mf.monte_carlo(slopes_of_losses, KEY, spec, x, num_networks=networks_for(spec, NORMS))
    assert_only_the_right_constant(spec, moments)
