"""Training one network and many: batching, segments, what compiles again, and networks that blow up."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import training
from mftadv.attack import PowerMethod, RandomStarts
from tests.training.attacks import CHEAP

SPEC = mf.NetworkSpec(5, 3, 8, 1, 1.8, 0.3)
X = jax.random.normal(jax.random.key(0), (7, 5))
DATA = X, jnp.arange(7, dtype=jnp.int32) % 3
KEYS = jax.random.split(jax.random.key(1), 3)
# Random, so that each network and each step must have its own draws.
ATTACK = mf.Attack((RandomStarts(1),), (PowerMethod(1),))
CONFIG = training.TrainingConfig(5, 0.1, 0.4, batch_size=3, evaluate_every=2, attack=ATTACK)
DETERMINISTIC = dataclasses.replace(CONFIG, attack=CHEAP)

train = jax.jit(training.train)
segment = jax.jit(training.segment)


def assert_equal(one, other, rtol=1e-4):
    chex.assert_trees_all_equal_structs(one, other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


@pytest.fixture(scope="module")
def records():
    """Of three networks, trained one by one."""
    return [train(key, SPEC, DATA, CONFIG) for key in KEYS]


@pytest.mark.slow
def test_many_networks_are_those_trained_one_by_one(records):
    many = jax.jit(jax.vmap(lambda key: training.train(key, SPEC, DATA, CONFIG)._replace(network=None)))(KEYS)
    for i, record in enumerate(records):
        assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], many), record._replace(network=None))
    assert len({float(record.weight_variance[-1, 0]) for record in records}) == 3


@pytest.mark.slow
def test_without_jit_it_is_the_same(records):
    assert_equal(training.train(KEYS[0], SPEC, DATA, CONFIG), records[0])


@pytest.mark.slow
def test_segment_by_segment_and_step_by_step_it_is_the_same(records):
    key, record = KEYS[1], records[1]
    data, evaluation = training.check_both(SPEC, DATA, CONFIG, None)
    state, parts = training.begin(key, SPEC, data, CONFIG, evaluation), []
    for number in range(CONFIG.num_segments):
        state, part = segment(key, state, jnp.int32(number), data, CONFIG, evaluation)
        parts.append(part)
    assert [int(part["step"]) for part in parts] == list(record.step) == [0, 2, 4, 5]
    together = jax.tree.map(lambda *values: jnp.stack(values), *parts)
    assert_equal(training.TrainingRecord(**together, network=state.state.network), record)

    @jax.jit
    def step(state):
        return training.step(key, state, data, CONFIG)

    state = training.init(jax.jit(mf.init)(key, SPEC), CONFIG)
    for _ in range(CONFIG.steps):
        state = step(state)
    assert_equal(state.network, record.network)


def test_the_number_of_evaluations():
    for steps, interval, number in ((5, 2, 4), (6, 2, 4), (5, 5, 2), (1, 1, 2), (25, None, 10), (20, None, 11)):
        config = dataclasses.replace(CONFIG, steps=steps, evaluate_every=interval)
        assert config.num_segments == number


@pytest.mark.slow
def test_a_batch_of_all_is_all():
    after = [
        jax.jit(training.step)(
            KEYS[0],
            training.init(mf.init(KEYS[0], SPEC), config),
            DATA,
            config,
        ).network
        for size in (None, 7, 100)
        for config in [dataclasses.replace(CONFIG, adversarial=None, batch_size=size)]
    ]
    chex.assert_trees_all_equal(*after)


@pytest.mark.slow
def test_no_value_compiles_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(key, spec, config):
        return training.train(key, spec, DATA, config).weight_variance[-1, 0]

    changes = [
        {},
        {"learning_rate": 0.2},
        {"eps": 1},  # an integer is a radius too
        {"adversarial_weight": 0},
    ]
    values = {float(run(KEYS[0], SPEC, dataclasses.replace(DETERMINISTIC, **change))) for change in changes}
    values.add(float(run(KEYS[0], SPEC.replace(weight_variance=1.9, bias_variance=0.1), DETERMINISTIC)))
    values.add(float(run(KEYS[1], SPEC, DETERMINISTIC)))
    assert len(values) == len(changes) + 2


@pytest.mark.slow
def test_a_network_that_blows_up_stops_alone():
    """Rates of which the first is harmless, the second blows up at once, the third after some steps."""
    config = training.TrainingConfig(8, 0.1, 0.4, standard_loss="squared", evaluate_every=1, attack=CHEAP, batch_size=3)
    rates, key = jnp.array([0.1, 1e30, 100.0]), KEYS[0]

    def run(rate):
        return training.train(key, SPEC.replace(depth=2), DATA, dataclasses.replace(config, learning_rate=rate))

    records = jax.jit(jax.vmap(run))(rates)
    chex.assert_tree_all_finite(records.network)
    stopped = np.asarray(records.stopped)
    np.testing.assert_array_equal(stopped[:, 0], -1)
    assert list(stopped[:2, -1]) == [-1, 0]
    assert 1 <= stopped[2, -1] < config.steps - 1
    np.testing.assert_array_equal(records.step, np.broadcast_to(np.arange(9), (3, 9)))
    weights = np.stack([np.asarray(matrix.entries) for matrix in records.network.params.weights], axis=1)
    for i in (1, 2):  # frozen as they were before the step that failed
        frozen = np.sum(np.square(weights[i]), axis=(1, 2)) / SPEC.width
        np.testing.assert_allclose(frozen, records.weight_variance[i, stopped[i, -1]], rtol=1e-5)
    for i in range(3):
        at = int(stopped[i, -1])
        lost = np.arange(9) > at if at >= 0 else np.zeros(9, bool)
        np.testing.assert_array_equal(stopped[i], np.where(lost, at, -1))
        for name in set(training.TrainingRecord._fields) - {"step", "stopped", "network"}:
            values = np.asarray(getattr(records, name))[i].reshape(9, -1)
            assert np.all(np.isnan(values[lost])), name
            assert i == 2 or np.all(np.isfinite(values[~lost])), name
    assert_equal(jax.tree.map(lambda leaf: leaf[0], records), jax.jit(run)(rates[0]))
