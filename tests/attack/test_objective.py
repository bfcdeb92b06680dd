"""Attacks on a loss in place of the output's norm, against search, loops written out here, and closed forms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv.attack import RandomStarts, Start, SteepestAscent, named_attack
from mftadv.training import LOSSES
from tests import reference

INF = math.inf
KEY = jax.random.key(2)
NET = jax.jit(mf.init)(jax.random.key(0), mf.NetworkSpec(2, 3, 12, 2, 2.0, 0.3))
XS = jnp.array([[0.9, -0.4], [0.3, 1.1], [-1.2, 0.2]])
TARGETS = jnp.eye(3)
STEPS, EPS = 5, 0.8


@dataclasses.dataclass(frozen=True)
class Diagonal(Start):
    """The best response to (1, 2, ..., d): a start that needs no random number."""

    count: int = 1

    def __call__(self, problem, network, normals):
        row = jnp.arange(1.0, problem.input_dim + 1)
        return network, problem.best_response(jnp.broadcast_to(row, (*problem.base.output.shape[:-1], 1, len(row))))


ASCENT = mf.Attack((Diagonal(),), (SteepestAscent(STEPS),))


@functools.partial(jax.jit, static_argnames=("p", "q", "attack", "loss"))
def attacked(net_or_f, x, eps, p, q=2, attack="default", loss=None, targets=None):
    return mf.adversarial_loss(net_or_f, x, eps, p, q, KEY, attack, loss=loss, targets=targets)


def start_of(p):
    """The point of the unit ball of the p-norm where 1 x_1 + 2 x_2 is largest."""
    return {2: np.array([1.0, 2.0]) / math.sqrt(5), INF: np.ones(2)}[p]


def ascent_by_hand(value, gradient, p, stale=False):
    """The best values, and the best point, of steepest ascent by shrinking steps, in float64.

    With `stale` the gradient at the start is used throughout.
    """
    eta = EPS * start_of(p)
    best, point, history, first = 0.0, np.zeros(2), [], gradient(eta)
    for t in range(STEPS + 1):
        if value(eta) > best:
            best, point = value(eta), eta
        history.append(best)
        slope = first if stale else gradient(eta)
        direction = np.sign(slope) if p == INF else slope / np.linalg.norm(slope)
        eta = eta + 2 * EPS * (1 - min(t, STEPS - 1) / STEPS) ** 2 * direction
        eta = np.clip(eta, -EPS, EPS) if p == INF else eta / max(1, np.linalg.norm(eta) / EPS)
    return history, point


def turning(x):
    """A function whose gradient turns quickly."""
    return jnp.stack([jnp.sin(3 * x[0] + x[1]) + 0.3 * x[1], jnp.cos(4 * x[1] - x[0])])


def turning_by_hand(eta):
    a, b = 3 * eta[0] + eta[1], 4 * eta[1] - eta[0]
    value = np.array([np.sin(a) + 0.3 * eta[1], np.cos(b) - 1])
    jacobian = np.array([[3 * np.cos(a), np.cos(a) + 0.3], [np.sin(b), -4 * np.sin(b)]])
    return value, jacobian


@pytest.mark.parametrize("p", [2, INF])
@pytest.mark.parametrize("objective", ["norm", "cross_entropy"])
@pytest.mark.slow
def test_every_gradient_is_that_of_its_own_iterate(p, objective):
    target = np.array([0.0, 1.0])

    def value(eta):
        change, _ = turning_by_hand(eta)
        if objective == "norm":
            return np.linalg.norm(change)
        return cross_entropy(change + np.array([0.0, 1.0])) - cross_entropy(np.array([0.0, 1.0]))

    def cross_entropy(outputs):
        return np.logaddexp(*outputs) - target @ outputs

    def gradient(eta):
        change, jacobian = turning_by_hand(eta)
        outputs = change + np.array([0.0, 1.0])
        softmax = np.exp(outputs) / np.exp(outputs).sum()
        return jacobian.T @ (change / np.linalg.norm(change) if objective == "norm" else softmax - target)

    labelled = {} if objective == "norm" else {"loss": LOSSES["cross_entropy"], "targets": jnp.asarray(target, "f4")}
    found = attacked(jax.tree_util.Partial(turning), jnp.zeros(2), EPS, p, attack=ASCENT, **labelled)
    history, point = ascent_by_hand(value, gradient, p)
    np.testing.assert_allclose(found.history, history, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.perturbation, point, rtol=1e-3, atol=1e-5)
    assert len(set(history)) >= 3
    stale, _ = ascent_by_hand(value, gradient, p, stale=True)
    assert np.max(np.abs(np.subtract(stale, history))) > 0.03


def outputs_at(x, etas):
    return reference.forward(reference.of_network(NET, len(etas)), np.asarray(x, np.float64) + etas)[0]


def increase(name, x, target, etas):
    """How much the loss of a network's output rises at x + eta, for etas [M, 2], in float64."""

    def loss(outputs):
        if name == "squared":
            return np.sum((outputs - target) ** 2, axis=-1) / 2
        return np.log(np.sum(np.exp(outputs), axis=-1)) - outputs @ target

    return loss(outputs_at(x, etas)) - loss(outputs_at(x, np.zeros((1, 2))))


def ball(p, n=201):
    """A grid of the unit ball."""
    side = np.linspace(-1, 1, n)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    if p == INF:
        return points
    radius, norm = np.abs(points).max(1), np.linalg.norm(points, p, axis=1)
    return points * (radius / np.where(norm > 0, norm, 1))[:, None]


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.slow
def test_the_increase_of_a_loss_is_that_of_a_search_of_the_ball(loss, p):
    found = attacked(NET, XS, EPS, p, attack="thorough", loss=LOSSES[loss], targets=TARGETS)
    assert np.all(mf.vector_norm(found.perturbation, p) <= EPS * (1 + 1e-6))
    for x, target, value, eta in zip(XS, np.eye(3), found.value, found.perturbation, strict=True):
        reached = increase(loss, x, target, np.asarray(eta, np.float64)[None])[0]
        np.testing.assert_allclose(value, reached, rtol=1e-4, atol=1e-6)
        values = increase(loss, x, target, EPS * ball(p))
        # The points are up to .014 EPS apart: the search falls a little short of the maximum, as the attack may.
        assert np.max(values) * 0.995 <= value <= np.max(values) * 1.01


@pytest.mark.parametrize("p", [2, INF])
@pytest.mark.slow
def test_a_labelled_attack_on_a_network_is_projected_gradient_ascent(p):
    found = attacked(NET, XS, EPS, p, attack=ASCENT, loss=LOSSES["cross_entropy"], targets=TARGETS)
    for i, target in enumerate(np.eye(3)):

        def value(eta, i=i, target=target):
            return increase("cross_entropy", XS[i], target, eta[None])[0]

        def gradient(eta, i=i, target=target):
            outputs = outputs_at(XS[i], eta[None])[0]
            nets = reference.of_network(NET)
            jacobian = reference.linear_representation(nets, np.asarray(XS[i], np.float64) + eta)[0][0]
            return jacobian.T @ (np.exp(outputs) / np.exp(outputs).sum() - target)

        history, point = ascent_by_hand(value, gradient, p)
        np.testing.assert_allclose(found.history[i], history, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.perturbation[i], point, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.slow
def test_values_and_derivatives_of_the_logistic_loss_of_a_linear_function(p):
    """ln(1 + exp(-t w.x + eps |w|_p*)) - ln(1 + exp(-t w.x)), and its derivatives in w, x and eps."""
    row, x, target = jnp.array([0.7, -1.9]), jnp.array([0.4, 0.3]), jnp.ones(1)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def by_attack(row, x, eps):
        f = lambda x: (row @ x)[None]  # noqa: E731
        loss = LOSSES["cross_entropy"]
        return mf.adversarial_loss(f, x, eps, p, 2, KEY, loss=loss, targets=target).value

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def closed(row, x, eps):
        norm = {1: jnp.max(jnp.abs(row)), 2: jnp.sqrt(jnp.sum(row**2)), INF: jnp.sum(jnp.abs(row))}[p]
        return jnp.log1p(jnp.exp(eps * norm - row @ x)) - jnp.log1p(jnp.exp(-row @ x))

    (value, slopes), (expected, closed_slopes) = by_attack(row, x, EPS), closed(row, x, EPS)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for slope, closed_slope in zip(slopes, closed_slopes, strict=True):
        np.testing.assert_allclose(slope, closed_slope, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_derivatives_in_the_network_are_those_at_the_perturbation_found():
    """Danskin's theorem, against differences of the maximum found by search."""
    x, target, move = XS[0], np.array([1.0, 0.0, 0.0]), 1e-3

    @jax.jit
    def by_attack(scale):
        params = NET.params._replace(weights=tuple(mf.DenseMatrix(w.entries * scale) for w in NET.params.weights))
        network = dataclasses.replace(NET, params=params)
        loss = LOSSES["squared"]
        return mf.adversarial_loss(network, x, EPS, INF, 2, KEY, loss=loss, targets=jnp.asarray(target, "f4")).value

    def by_search(scale):
        nets = reference.of_network(NET, 201**2)
        nets = nets._replace(weights=[w * scale for w in nets.weights])
        outputs = [reference.forward(nets, np.asarray(x, np.float64) + eta)[0] for eta in (EPS * ball(INF), 0)]
        after, before = (np.sum((output - target) ** 2, axis=1) / 2 for output in outputs)
        return np.max(after - before)

    expected = (by_search(1 + move) - by_search(1 - move)) / (2 * move)
    np.testing.assert_allclose(jax.jit(jax.grad(by_attack))(1.0), expected, rtol=1e-2)


@pytest.mark.slow
def test_fast_evaluates_six_times_with_five_gradients_and_no_jacobian():
    attack = named_attack("fast", 2)
    assert attack == mf.Attack((RandomStarts(1),), (SteepestAscent(5),))
    assert attack.queries(1000, 10) == (6, 5)
    assert mf.capacity_for(NET.spec, adversarial_loss=1, attack="fast") == (7, 5)
    found = attacked(NET, XS, EPS, 2, attack="fast")
    assert found.jacobian is None
    assert found.history.shape == (3, 6)
    best = attacked(NET, XS, EPS, 2).value
    assert np.all((found.value > 0.5 * best) & (found.value <= best * (1 + 1e-5)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": jnp.ones((3, 3))}, "targets: expected None where there is no loss, got some"),
        (
            {"loss": LOSSES["squared"]},
            r"targets: expected one row of .*, \[3, 'T'\], got shape None",
        ),
        ({"loss": LOSSES["squared"], "targets": jnp.ones(3)}, r"targets: expected one row .*, got shape \(3,\)"),
        ({"loss": LOSSES["squared"], "targets": jnp.ones((2, 3))}, r"targets: expected one row .*, got shape \(2, 3\)"),
    ],
)
def test_bad_targets(options, message):
    with pytest.raises(ValueError, match=message):
        mf.adversarial_loss(NET, XS, EPS, 2, 2, KEY, **options)
