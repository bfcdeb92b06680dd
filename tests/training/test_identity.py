"""The exact identity of |W_l|^2 under a step of plain gradient descent, and its form with shortcuts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import training
from mftadv.attack import PowerMethod, RandomStarts
from mftadv.network import difference, forward
from mftadv.training import _step
from tests import reference
from tests.training.attacks import EXACT

INF = math.inf
# The identity holds at any perturbations, so that the attack that compiles fastest serves.
ATTACK = mf.Attack((RandomStarts(1),), (PowerMethod(1),))
KEY = jax.random.key(3)
# adversarial, standard_loss, p, q, output_dim, bias_variance: every pair of values is among them.
CASES = (
    ("paper", "cross_entropy", 1, 1, 1, 0.0),
    ("paper", "squared", 2, 2, 3, 0.3),
    ("paper", None, INF, INF, 3, 0.0),
    ("paper", None, 1, 2, 1, 0.3),
    ("paper", "cross_entropy", INF, INF, 3, 0.3),
    ("paper", "squared", INF, 1, 1, 0.3),
    ("madry", "cross_entropy", 2, INF, 3, 0.0),
    ("madry", "squared", 1, 1, 1, 0.3),
    (None, "cross_entropy", 1, 2, 3, 0.3),
    (None, "squared", INF, 2, 1, 0.0),
)


def data(output_dim):
    x = np.random.default_rng(0).standard_normal((4, 5))
    return jnp.asarray(x, float), jnp.array([0, 1, 1, min(2, output_dim - 1)], jnp.int32)


@jax.jit
def two_steps(spec, config):
    """The weights before and after two steps, and the state."""
    network = mf.init(KEY, spec)
    step = lambda _, state: training.step(KEY, state, data(spec.output_dim), config)  # noqa: E731
    state = jax.lax.fori_loop(0, 2, step, training.init(network, config))
    return _step.weights_of(network), _step.weights_of(state.network), state


def relative_difference(state):
    """Between the two sides of the identity, relative to the larger terms of either."""
    return np.max(np.abs(state.norm_change - state.norm_change_predicted)) / np.max(np.abs(state.norm_change))


def case(adversarial, standard_loss, p, q, output_dim, bias_variance, **changes):
    trained = ("weights", "biases") if bias_variance else ("weights",)
    weight = 0.7 if adversarial == "madry" else 1.3
    config = training.TrainingConfig(
        2, 1e-3, 0.4, p, q, standard_loss, adversarial, weight, attack=ATTACK, trained=trained, **changes
    )
    return mf.NetworkSpec(5, output_dim, 8, 2, 1.8, bias_variance, 1.0, 0.1), config


@pytest.mark.parametrize("which", CASES, ids=lambda which: "-".join(map(str, which)))
@pytest.mark.slow
def test_the_change_of_the_norms_is_exact(which):
    with jax.enable_x64(True):
        spec, config = case(*which)
        for rate in (1e-3, 0.5):
            before, after, state = two_steps(spec, jax.tree.unflatten(jax.tree.structure(config), [rate, 0.4, 0.7]))
            change = [np.sum(np.square(w)) - np.sum(np.square(v)) for v, w in zip(before, after, strict=True)]
            np.testing.assert_allclose(state.norm_change, change, rtol=1e-9)
            assert relative_difference(state) < 1e-10
            assert np.min(np.abs(state.norm_change)) > 1e-5


@pytest.mark.slow
def test_the_identity_with_a_wrong_constant_fails(monkeypatch):
    def wrong(*arguments):
        gradient, network = gradient_at(*arguments)
        return gradient._replace(homogeneous=1.05 * gradient.homogeneous), network

    gradient_at = _step.gradient_at
    monkeypatch.setattr(_step, "gradient_at", wrong)
    with jax.enable_x64(True):
        spec, config = case(*CASES[1])
        # a function of its own, since JAX remembers the trace of the right constant
        *_, state = jax.jit(lambda *arguments: two_steps.__wrapped__(*arguments))(spec, config)
        assert relative_difference(state) > 1e-2


@pytest.mark.slow
def test_the_record_holds_the_identity_at_every_evaluation():
    """With a bias that is not trained, batches, and an optimizer, of which nothing is predicted."""
    spec, _ = case(*CASES[1])
    with jax.enable_x64(True):
        config = training.TrainingConfig(
            7, 0.05, 0.4, batch_size=3, evaluate_every=3, attack=ATTACK, trained=("weights", "readout")
        )
        record = jax.jit(training.train)(KEY, spec, data(3), config)
        np.testing.assert_allclose(record.norm_change, record.norm_change_predicted, rtol=1e-10)
        assert np.all(record.norm_change[0] == 0)
        expected = spec.width * (record.weight_variance - record.weight_variance[:1])
        np.testing.assert_allclose(record.norm_change, expected, atol=1e-12)


def through_branches(nets, xs):
    """f(x) [B, K], and for each layer the part of it that goes through its branch, with all gates as they are."""
    output, slopes, hidden = reference.forward(nets, xs)
    parts = []
    for first, weight in enumerate(nets.weights):
        part = nets.signs[first] * slopes[first] * np.einsum("bij,bj->bi", weight, hidden[first])
        for later in range(first + 1, len(slopes)):
            through = nets.signs[later] * slopes[later] * np.einsum("bij,bj->bi", nets.weights[later], part)
            part = part + through
        parts.append(np.einsum("bkn,bn->bk", nets.p_out, part))
    return output, parts


@jax.jit
def gradient_in(network, x, targets, eta, config):
    base = forward(network, x)
    gradient, _ = _step.gradient_at(network, base, difference(network, base, eta), targets, config)
    return gradient, _step._entries(gradient)


@pytest.mark.parametrize("block", ["residual", "signed"])
@pytest.mark.slow
def test_a_layers_share_is_the_part_of_the_function_through_its_branch(block):
    """<W_l, g_l> = <dloss/df, part of f> + <dloss/d(f' - f), part of f' - part of f>, also with biases."""
    with jax.enable_x64(True):
        spec = mf.NetworkSpec(5, 3, 8, 3, 0.7, 0.3, 1.0, 0.1, block)
        config = training.TrainingConfig(1, 0.1, 0.4, standard_loss="squared", adversarial_weight=1.3)
        network, (x, y) = jax.jit(mf.init)(KEY, spec), data(3)
        eta = 0.4 * jnp.asarray(np.random.default_rng(1).standard_normal((4, 5)))
        gradient, entries = gradient_in(network, x, jax.nn.one_hot(y, 3), eta, config)

        nets = reference.of_network(network, copies=4)
        (output, parts), (perturbed, perturbed_parts) = (through_branches(nets, np.asarray(z)) for z in (x, x + eta))
        change = perturbed - output
        slope = (output - np.eye(3)[y]) / 4
        change_slope = 1.3 * change / np.linalg.norm(change, axis=1, keepdims=True) / 4
        assert gradient.homogeneous == pytest.approx(np.sum(slope * output + change_slope * change), rel=1e-12)
        weights, gradients = _step.weights_of(network), entries["weights"]
        for weight, of_layer, part, after in zip(weights, gradients, parts, perturbed_parts, strict=True):
            expected = np.sum(slope * part + change_slope * (after - part))
            assert np.sum(weight * of_layer.entries) == pytest.approx(expected, rel=1e-11)


# The ball is so small that all networks but a few are linear in it: a gate that flips moves much between branches.
RATE, EPS = 1e-3, 1e-7
FAST_KEY = jax.random.key(3, impl="threefry4x32")


def branch_shares(key, spec, x, config):
    """The change of the norms times |J|, and what the mean share of a branch predicts, of the layers' mean."""
    network = mf.init(key, spec)
    state = training.step(key, training.init(network, config), (x, None), config)
    size = jnp.linalg.norm(mf.linear_representation(network, x[0]).jacobian) / (RATE * EPS)
    measured, predicted = (size * jnp.mean(change) for change in (state.norm_change, state.norm_change_predicted))
    return {"right": measured - predicted, "wrong": measured - 1.05 * predicted, "predicted": predicted}


@pytest.mark.usefixtures("optimised")
@pytest.mark.law
@pytest.mark.parametrize(("block", "width", "depth"), [("residual", 160, 2), ("signed", 48, 4)])
def test_the_mean_share_of_a_branch(block, width, depth):
    """In the mean of L_adv |J|, a sum of second moments and so exact at any width for "signed", over networks.

    A residual network is granted what it gains along its input, and L/N.
    """
    with jax.enable_x64(True):
        spec = mf.NetworkSpec(100, 1, width, depth, 0.6, 0.0, 1.0, 0.0, block)
        config = training.TrainingConfig(1, RATE, EPS, standard_loss=None, attack=EXACT, trained=("weights",))
        x = jax.random.normal(jax.random.key(1), (1, 100))
        moments = mf.monte_carlo(branch_shares, FAST_KEY, spec, x, config, num_networks=800)
        allowance = 0.0
        if block == "residual":  # |J|^2 / d is larger by so much along x, one of the d directions
            law = mf.theory.residual_law(spec, jnp.sum(x**2))
            allowance = float(law.along_input / (law.orthogonal * jnp.sum(x**2)) - 1) / 100 + depth / width
    allowance *= abs(moments["predicted"].mean)
    assert_mean_is_zero(moments["right"], allowance)
    with pytest.raises(AssertionError):
        assert_mean_is_zero(moments["wrong"], allowance)


def assert_mean_is_zero(moments, allowance):
    assert abs(moments.mean) <= 4 * moments.standard_error + allowance
