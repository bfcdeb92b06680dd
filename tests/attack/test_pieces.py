"""The promises of the interfaces `Start` and `Rule`, checked on every piece that the library has and on a user's."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import oracle
from mftadv.attack import (
    Ascent,
    LinearStarts,
    Objective,
    OutputStarts,
    PowerMethod,
    Problem,
    RandomStarts,
    Rule,
    Start,
    SteepestAscent,
    Vertices,
    _pieces,
)
from tests import reference
from tests.interfaces import implementations

STEPS = 4
SPEC = mf.NetworkSpec(5, 3, 6, 1, 2.0, 0.3)
XS, EPS = jax.random.normal(jax.random.key(1), (2, 5)), jnp.array([0.7, 0.0])  # the second ball is a point
NORMS = {"l1": (1.0, 2.0, False), "linf and a box": (math.inf, 1.0, True)}  # p, q


@dataclasses.dataclass(frozen=True)
class Axes(Start):
    """A user's start: the best responses to the coordinates, of which it evaluates the first."""

    def queries(self, input_dim):
        return 1, 0

    def __call__(self, problem, network, normals):
        shape = (*problem.base.output.shape[:-1], self.count, problem.input_dim)
        eta = problem.best_response(jnp.broadcast_to(jnp.eye(self.count, problem.input_dim), shape))
        if network is not None:
            network = oracle.difference(network, problem.base, eta[..., :1, :]).network
        return network, eta


@dataclasses.dataclass(frozen=True)
class Halfway(Rule):
    """A user's rule: half the way to the best response, alternately to the last gradient and to this one."""

    def memory(self, problem, candidates):
        return candidates.eta

    def __call__(self, problem, candidates, values, gradient, memory, number):
        return (candidates.eta + problem.best_response(jnp.where(number % 2 == 0, gradient, memory))) / 2, gradient


@dataclasses.dataclass(frozen=True)
class TooFar(Axes):
    """A start 5% outside the ball."""

    def __call__(self, problem, network, normals):
        network, eta = super().__call__(problem, network, normals)
        return network, 1.05 * eta


@dataclasses.dataclass(frozen=True)
class Overshoot(Halfway):
    """A rule whose candidates are 5% outside the ball."""

    def __call__(self, problem, candidates, values, gradient, memory, number):
        return 1.05 * problem.best_response(gradient), memory


STARTS = {
    "LinearStarts": LinearStarts(),
    "RandomStarts": RandomStarts(4, among=3),
    "OutputStarts": OutputStarts(4),
    "Vertices": Vertices(3, columns=2),
    "Axes": Axes(3),
}
RULES = {
    "PowerMethod": PowerMethod(STEPS),
    "SteepestAscent": SteepestAscent(STEPS),
    "Ascent": Ascent(STEPS),
    "Halfway": Halfway(STEPS),
}
USERS = mf.Attack((STARTS["Axes"],), (RULES["Halfway"],))
WRONG = {"TooFar": TooFar(3)}, {"Overshoot": Overshoot(STEPS)}


def test_every_piece_is_in_the_table():
    assert implementations(Start) | {"Axes"} == set(STARTS)
    assert implementations(Rule) | {"Halfway"} == set(RULES)
    for name, piece in (STARTS | RULES).items():
        assert type(piece).__name__ == name
        assert piece == dataclasses.replace(piece)
        assert hash(piece) == hash(dataclasses.replace(piece))  # equal pieces share a compiled program


@functools.partial(jax.jit, static_argnames=("p", "q", "boxed"))
def candidates_of(net, xs, eps, key, p, q, boxed):
    """The candidates of every start; those at every step of every rule, with values and best ones; a user's attack."""
    base = oracle.value(net, xs)
    jacobian = mf.linear_representation(net, xs).jacobian
    box = (-0.3 * jnp.ones_like(xs)[:, None], 0.1 * jnp.ones_like(xs)[:, None]) if boxed else (None, None)
    problem = Problem(net, base, jacobian, 5, eps[:, None], p, Objective(q), box)
    starts = {}
    for name, piece in (STARTS | WRONG[0]).items():
        _, starts[name] = piece(problem, None, jax.random.normal(key, (piece.normals((2,), 5),)))
    first, rules = starts["RandomStarts"][:, :2], {}
    for name, rule in (RULES | WRONG[1]).items():
        candidates = _pieces.start(None, first)

        def step(carry, number, rule=rule):
            candidates, memory = carry
            candidates, values, at = _pieces.evaluate(problem, candidates)
            candidates, gradient = _pieces.gradients(problem, candidates, values, at)
            eta, memory = rule(problem, candidates, values, gradient, memory, number)
            # The scan refuses a rule whose candidates or memory change in shape or precision.
            return (candidates._replace(eta=eta), memory), (eta, values, candidates.value, candidates.best)

        carry = candidates, rule.memory(problem, candidates)
        rules[name] = jax.lax.scan(step, carry, jnp.arange(STEPS, dtype=jnp.int32))[1]
    found = mf.adversarial_loss(net, xs, eps, p, q, key, USERS, (xs - 0.3, xs + 0.1) if boxed else None)
    return starts, rules, (found.value, found.history, found.restarts, found.perturbation)


@functools.cache
def network():
    return mf.init(jax.random.key(0), SPEC)


def results(norms):
    return candidates_of(network(), XS, EPS, jax.random.key(2), *NORMS[norms])


def assert_allowed(eta, norms):
    """In the ball and in the box, of each input."""
    p, _, boxed = NORMS[norms]
    eta = np.asarray(eta)
    assert eta.dtype == XS.dtype
    assert np.all(np.isfinite(eta))
    radius = np.asarray(EPS)[:, None] * (1 + 1e-6)
    assert np.all(np.linalg.norm(eta.astype(np.float64), p, axis=-1) <= radius)
    assert not boxed or np.all((eta >= -0.3 - 1e-6) & (eta <= 0.1 + 1e-6))


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.slow
def test_starts_are_in_the_ball_and_in_the_box(name, norms):
    eta = results(norms)[0][name]
    assert eta.shape == (2, STARTS[name].count, 5)
    assert_allowed(eta, norms)
    assert np.all(np.any(np.asarray(eta)[0] != 0, axis=-1))  # no start is at 0, where the loss has gradient 0


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.slow
def test_rules_stay_in_the_ball_and_in_the_box(name, norms):
    eta, values, best_values, best = results(norms)[1][name]
    assert eta.shape == (STEPS, 2, 2, 5)
    for each in (*eta, *best):
        assert_allowed(each, norms)
    np.testing.assert_array_equal(best_values, np.maximum.accumulate(np.maximum(values, 0), axis=0))
    # the best values are those of the best candidates, by float64 NumPy
    exact, x = reference.of_network(network()), np.asarray(XS[0], np.float64)
    for j in range(2):
        there = x + np.asarray(best[-1, 0, j], np.float64)
        difference = reference.forward(exact, there)[0][0] - reference.forward(exact, x)[0][0]
        np.testing.assert_allclose(best_values[-1, 0, j], np.linalg.norm(difference, NORMS[norms][1]), rtol=1e-5)


@pytest.mark.slow
def test_pieces_outside_the_ball_are_detected():
    starts, rules, _ = results("linf and a box")
    for eta in (starts["TooFar"], rules["Overshoot"][0][0]):
        with pytest.raises(AssertionError):
            assert_allowed(eta, "linf and a box")


@pytest.mark.slow
def test_queries_are_as_many_as_promised():
    """The counts of a matrix-free network are known when it is traced."""

    def counts(net):
        return np.array([net.frozen.embedding.inputs.queries, net.frozen.readout.outputs.queries])

    def trace(piece):
        base = oracle.value(mf.init(jax.random.key(0), SPEC, "matrix_free", (100, 100)), XS[0])
        problem = Problem(base.network, base, jnp.ones((3, 5)), 5, jnp.ones(1), 2.0, Objective(2.0), (None, None))
        net, eta = piece(problem, base.network, jnp.ones(piece.normals((), 5)))
        candidates, _ = _pieces.gradients(problem, *_pieces.evaluate(problem, _pieces.start(net, eta)))
        np.testing.assert_array_equal(counts(net) - counts(base.network), piece.queries(5))
        np.testing.assert_array_equal(counts(candidates.network) - counts(net), len(eta))
        return eta

    for piece in STARTS.values():
        assert jax.eval_shape(lambda piece=piece: trace(piece)).shape == (piece.count, 5)
    attack = mf.Attack(tuple(STARTS.values()), tuple(RULES.values()))
    found = jax.eval_shape(lambda net: mf.adversarial_loss(net, XS[0], 0.5, 2, 2, jax.random.key(0), attack), network())
    (candidates,), (evaluations,) = found.restarts.shape, found.history.shape
    assert candidates == sum(piece.count for piece in STARTS.values())
    # x itself, a difference for each evaluation and a cotangent for each but the last, J by rows, what starts evaluate
    capacity = mf.capacity_for(SPEC, adversarial_loss=1, attack=attack)
    assert capacity == (1 + candidates * evaluations + 4 + 1, candidates * (evaluations - 1) + 3)


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.slow
def test_an_attack_may_consist_of_a_users_pieces(norms):
    *_, (value, history, restarts, perturbation) = results(norms)
    assert history.shape == (2, STEPS + 1)
    assert restarts.shape == (2, USERS.starts[0].count)
    assert np.all(np.diff(history, axis=-1) >= 0)
    np.testing.assert_array_equal(value, np.max(restarts, axis=-1))
    assert value[0] > 0
    assert value[1] == 0
    assert_allowed(perturbation[:, None], norms)


class Lookalike:
    """What has all that a start has, but is none."""

    count, uses_jacobian, queries, normals, __call__ = 1, False, Start.queries, Start.normals, Axes.__call__


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("starts", "rules", "message"),
    [
        ((), (PowerMethod(2),), r"starts: expected a tuple of at least one Start instance, got \(\)"),
        ((LinearStarts(),), (), r"rules: expected a tuple of at least one Rule instance, got \(\)"),
        ((PowerMethod(2),), (LinearStarts(),), "starts: expected .* Start instance, got .*PowerMethod"),
        ((LinearStarts(),), (LinearStarts(),), "rules: expected .* Rule instance, got .*LinearStarts"),
        ((LinearStarts,), (PowerMethod(2),), "starts: expected .* Start instance, got .*<class"),
        ((LinearStarts(), Lookalike()), (PowerMethod(2),), "starts: expected .* Start instance, got .*Lookalike"),
        ([LinearStarts()], (PowerMethod(2),), r"starts: expected a tuple of .*, got \[LinearStarts"),
        (LinearStarts(), (PowerMethod(2),), "starts: expected a tuple of .*, got LinearStarts"),
    ],
)
def test_an_attack_consists_of_starts_and_rules(starts, rules, message):
    with pytest.raises(ValueError, match=message):
        mf.Attack(starts, rules)


@pytest.mark.parametrize("interface", [Start, Rule])
def test_the_interfaces_themselves_are_no_pieces(interface):
    with pytest.raises(TypeError, match="abstract"):
        interface(1)
