"""Steps without adversary against a loop over optax written out here: forward pass, loss, batches and all."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mftadv as mf
from mftadv import training
from mftadv.attack import PowerMethod, RandomStarts
from mftadv.network import difference, forward
from mftadv.spec import key_for
from mftadv.training import _step
from tests.training.attacks import CHEAP

KEY, STEPS, BATCH, N = jax.random.key(4), 5, 3, 7


def data(output_dim):
    x = np.random.default_rng(0).standard_normal((N, 5))
    return jnp.asarray(x, float), jnp.arange(N, dtype=jnp.int32) % max(2, output_dim)


@jax.jit
def trained(spec, config, data):
    network = mf.init(KEY, spec)
    state = jax.lax.fori_loop(
        0, STEPS, lambda _, state: training.step(KEY, state, data, config), training.init(network, config)
    )
    return network, state.network


def batches():
    """The rows of each step: two batches an epoch, which leave one input out, by the permutations of the library."""
    key = jax.random.fold_in(key_for("step", KEY), 0)
    rows = []
    for epoch in range(-(-STEPS // 2)):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), N))
        assert sorted(order) == list(range(N))
        rows += [order[:BATCH], order[BATCH : 2 * BATCH]]
    return rows[:STEPS]


def by_hand(network, loss, optimizer, data, rows):
    """The weights and biases after STEPS steps of an optax optimizer on the mean loss of each batch."""
    x, y = data
    embedding, readout = network.frozen.embedding.entries, network.frozen.readout.entries
    signs = network.frozen.signs or [1.0] * network.spec.depth
    shortcut, u, v = float(network.spec.has_shortcut), network.spec.positive_slope, network.spec.negative_slope

    @jax.jit
    @jax.grad
    def gradient(params, x, y):
        h = x @ embedding.T
        for weight, bias, sign in zip(*params, signs, strict=True):
            z = h @ weight.T + jnp.broadcast_to(bias, h.shape)
            h = shortcut * h + jnp.broadcast_to(sign, h.shape) * jnp.where(z >= 0, u * z, v * z)
        f = h @ readout.T
        if f.shape[1] == 1:
            sign = (2 * y - 1).astype(f.dtype)
            each = jnp.log1p(jnp.exp(-sign * f[:, 0])) if loss == "cross_entropy" else (f[:, 0] - sign) ** 2 / 2
        elif loss == "cross_entropy":
            right = jnp.take_along_axis(f, y[:, None], axis=1)[:, 0]
            each = jnp.log(jnp.sum(jnp.exp(f), axis=1)) - right
        else:
            each = jnp.sum((f - jnp.eye(f.shape[1], dtype=f.dtype)[y]) ** 2, axis=1) / 2
        return jnp.mean(each)

    params = [weight.entries for weight in network.params.weights], list(network.params.biases)
    state = optimizer.init(params)
    for row in rows:
        updates, state = optimizer.update(gradient(params, x[row], y[row]), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("x64", "output_dim", "block", "loss", "optimizer", "adversarial"),
    [
        (False, 1, "vanilla", "cross_entropy", "sgd", "paper"),
        (False, 3, "signed", "squared", "adam", "paper"),
        (True, 1, "vanilla", "cross_entropy", "sgd", "paper"),
        (True, 3, "residual", "cross_entropy", "adam", "madry"),
        (True, 3, "signed", "squared", "adam", None),
        (True, 1, "signed", "squared", "sgd", None),
    ],
)
@pytest.mark.slow
def test_without_weight_of_the_adversary_it_is_a_loop_over_optax(x64, output_dim, block, loss, optimizer, adversarial):
    # adam of optax raises a float to an integer power
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard" if optimizer == "adam" else "strict"):
        spec = mf.NetworkSpec(5, output_dim, 8, 2, 0.8, 0.3, 1.0, 0.1, block)
        rate, make = 0.05, getattr(optax, optimizer)
        config = training.TrainingConfig(
            STEPS, rate, 0.4, standard_loss=loss, adversarial=adversarial, adversarial_weight=0.0, batch_size=BATCH,
            attack=CHEAP, optimizer=None if optimizer == "sgd" else make,
        )  # fmt: skip
        network, after = trained(spec, config, data(output_dim))
        expected = by_hand(network, loss, make(rate), data(output_dim), batches())
        tolerance = 1e-12 if x64 else 1e-6
        for got, of_part in zip((_step.weights_of(after), after.params.biases), expected, strict=True):
            for mine, theirs in zip(got, of_part, strict=True):
                assert mine.dtype == (jnp.float64 if x64 else jnp.float32)
                np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
        moved = [np.abs(a - b).max() for a, b in zip(expected[0], _step.weights_of(network), strict=True)]
        assert min(moved) > 1e-3
        for mine, theirs in zip(jax.tree.leaves(after.frozen), jax.tree.leaves(network.frozen), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_data_may_be_of_numpy():
    """Also where a step is traced, and takes a batch by numbers that are not known."""
    config = training.TrainingConfig(1, 0.05, 0.4, adversarial=None, batch_size=BATCH)
    state, points = training.init(mf.init(KEY, mf.NetworkSpec(5, 3, 8, 1)), config), data(3)
    step = jax.jit(lambda state: training.step(KEY, state, tuple(map(np.asarray, points)), config).network.params)
    expected = jax.jit(training.step)(KEY, state, points, config).network.params
    jax.tree.map(np.testing.assert_array_equal, step(state), expected)


@pytest.mark.slow
def test_every_step_perturbs_anew():
    """From the same network and inputs the same step leads to the same network, another one to another."""
    spec, attack = mf.NetworkSpec(5, 3, 8, 2, 1.8), mf.Attack((RandomStarts(1),), (PowerMethod(1),))
    config = training.TrainingConfig(STEPS, 0.05, 0.4, attack=attack)

    @jax.jit
    def after(key, number):
        state = training.init(mf.init(KEY, spec), config)._replace(step=number)
        return _step.weights_of(training.step(key, state, data(3), config).network)[0]

    zeroth, again, first, other = (
        after(key, jnp.int32(number)) for key, number in ((KEY, 0), (KEY, 0), (KEY, 1), (jax.random.fold_in(KEY, 1), 0))
    )
    np.testing.assert_array_equal(zeroth, again)
    for moved in (first, other):
        assert np.max(np.abs(moved - zeroth)) > 1e-5


@pytest.mark.slow
def test_no_perturbation_adds_nothing_to_the_gradient():
    """Where eps is 0 the norm of no change has the gradient 0, and not nan."""
    spec = mf.NetworkSpec(5, 3, 8, 2, 1.8, 0.3)
    x, y = data(3)
    configs = {q: training.TrainingConfig(1, 0.1, 0.0, q=q, adversarial="paper") for q in (1, 2, 3, math.inf)}
    configs["none"] = training.TrainingConfig(1, 0.1, 0.0, adversarial=None)

    @jax.jit
    def gradients():
        network, targets = mf.init(KEY, spec), jax.nn.one_hot(y, 3)
        base = forward(network, x)
        moved = difference(network, base, jnp.zeros_like(x))
        each = {q: _step.gradient_at(network, base, moved, targets, config)[0] for q, config in configs.items()}
        each["unperturbed"] = _step.gradient_at(network, base, None, targets, configs["none"])[0]
        each = {q: (_step._entries(gradient), gradient.loss) for q, gradient in each.items()}
        return {str(q): gradient for q, gradient in each.items()}

    found = gradients()
    for gradient in found.values():
        chex.assert_trees_all_close(gradient, found["none"], rtol=1e-6, atol=1e-7)


@jax.jit
def ascended(network, x, target, config, eta):
    """The parameters and perturbations after a step of both, by derivatives of JAX."""

    def objective(network, x, target, eta):
        before, after = mf.apply(network, x), mf.apply(network, x + eta)
        if config.adversarial == "paper":
            return jnp.sqrt(jnp.sum((after - before) ** 2))
        return jnp.sum((after - target) ** 2) / 2 - jnp.sum((before - target) ** 2) / 2

    def of_input(network, x, target, eta):
        standard = jnp.sum((mf.apply(network, x) - target) ** 2) / 2
        return standard + config.adversarial_weight * objective(network, x, target, eta)

    def one(x, target, eta):
        of_each = jax.value_and_grad(objective, 3)
        values, ascent = jax.vmap(lambda one: of_each(network, x, target, one))(eta)
        slopes = jax.grad(of_input)(network, x, target, eta[jnp.argmax(values)])
        return slopes.params, config.eps * ascent / jnp.linalg.norm(ascent, axis=-1, keepdims=True)

    slopes, eta = jax.vmap(one)(x, target, eta)
    return jax.tree.map(lambda w, g: w - config.learning_rate * jnp.mean(g, axis=0), network.params, slopes), eta


@pytest.mark.parametrize("adversarial", ["paper", "madry"])
@pytest.mark.slow
def test_perturbations_ascend_with_every_step_of_training(adversarial):
    with jax.enable_x64(True):
        spec = mf.NetworkSpec(5, 3, 8, 2, 1.8, 0.3, 1.0, 0.1, "signed")
        config = training.TrainingConfig(
            3, 0.05, 0.4, standard_loss="squared", adversarial=adversarial, adversarial_weight=0.7, warm_start=True
        )
        x, y = (rows[:2] for rows in data(3))
        eta = jax.random.normal(jax.random.key(5), (2, 3, 5), x.dtype)
        eta = config.eps * eta / jnp.linalg.norm(eta, axis=-1, keepdims=True)
        network = jax.jit(mf.init)(KEY, spec)
        state = training.init(network, config)._replace(perturbations=eta)
        step = jax.jit(lambda state: training.step(KEY, state, (x, y), config))
        for _ in range(config.steps):
            with jax.numpy_rank_promotion("allow"):
                params, eta = ascended(state.network, x, jax.nn.one_hot(y, 3, dtype=x.dtype), config, eta)
            state = step(state)
            chex.assert_trees_all_close(state.network.params, params, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(state.perturbations, eta, rtol=1e-9, atol=1e-11)
