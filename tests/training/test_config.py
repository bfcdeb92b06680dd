"""What a configuration and the data may be, and the two losses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mftadv as mf
from mftadv import training
from mftadv.training import LOSSES

SPEC, SINGLE = mf.NetworkSpec(5, 3, 4, 1), mf.NetworkSpec(5, 1, 4, 1)
VALID = {"steps": 5, "learning_rate": 0.1, "eps": 0.3}
X, Y = np.zeros((4, 5)), np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a positive integer, got 0"),
        ({"steps": 2.0}, "steps: expected a positive integer, got 2.0"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"evaluate_every": 0}, "evaluate_every: expected a positive integer, got 0"),
        ({"evaluate_every": 6}, "evaluate_every: expected at most 5, got 6"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number > 0, got 0.0"),
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number > 0, got -0.1"),
        ({"learning_rate": math.inf}, "learning_rate: expected a finite number > 0, got inf"),
        ({"learning_rate": "a"}, "learning_rate: expected a finite number > 0, got 'a'"),
        ({"learning_rate": None}, "learning_rate: expected a finite number > 0, got None"),
        ({"learning_rate": True}, "learning_rate: expected a finite number > 0, got True"),
        ({"eps": -0.3}, "eps: expected a finite number >= 0, got -0.3"),
        ({"eps": math.nan}, "eps: expected a finite number >= 0, got nan"),
        ({"eps": np.array([0.1, -1.0])}, r"eps: expected a finite number >= 0, got array"),
        ({"p": 0.5}, r"p: expected a number in \[1, inf\], got 0.5"),
        ({"q": "inf"}, r"q: expected a number in \[1, inf\], got 'inf'; math.inf is such a number"),
        ({"standard_loss": "hinge"}, "standard_loss: expected one of cross_entropy, squared or None, got 'hinge'"),
        (
            {"standard_loss": None, "adversarial": None},
            "standard_loss: expected a loss with adversarial=None",
        ),
        ({"standard_loss": None, "adversarial": "madry"}, "standard_loss: expected a loss with adversarial='madry'"),
        ({"adversarial": "trades"}, "adversarial: expected one of paper, madry or None, got 'trades'"),
        ({"adversarial_weight": -1.0}, "adversarial_weight: expected a finite number >= 0, got -1.0"),
        ({"adversarial_weight": math.inf}, "adversarial_weight: expected a finite number >= 0, got inf"),
        ({"adversarial_weight": 1.5, "adversarial": "madry"}, r"adversarial_weight: expected a number in \[0, 1\]"),
        ({"attack": "strong"}, "attack: expected .*, got 'strong'"),
        ({"trained": ()}, r"trained: expected a tuple of some of weights, biases, readout, got \(\)"),
        ({"trained": "weights"}, "trained: expected a tuple of some of weights, biases, readout, got 'weights'"),
        ({"trained": ("weights", "embedding")}, "trained: expected a tuple of some of weights, biases, readout"),
        ({"trained": ("weights", "weights")}, "trained: expected a tuple of some of weights, biases, readout"),
        (
            {"warm_start": True, "batch_size": 3},
            "warm_start: expected an adversary and no batches, .*, got batch_size=3",
        ),
        ({"warm_start": True, "adversarial": None}, "warm_start: expected an adversary .*, adversarial=None"),
        ({"optimizer": "adam"}, "optimizer: expected a function of the learning rate, as optax.adam, got 'adam'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        training.TrainingConfig(**{**VALID, **options})


@pytest.mark.parametrize(
    ("spec", "data", "options", "message"),
    [
        (SPEC, X, {}, r"data: expected \(x, y\), inputs and labels, or \(x, None\), got ndarray"),
        (SPEC, (X, Y, Y), {}, r"data: expected \(x, y\), inputs and labels, or \(x, None\), got tuple"),
        (SPEC, (X[0], Y), {}, r"data: expected inputs \[n, 5\], got shape \[5\]"),
        (SPEC, (X[:, :4], Y), {}, r"data: expected inputs \[n, 5\], got shape \[4, 4\]"),
        (SPEC, (X[:0], Y[:0]), {}, r"data: expected inputs \[n, 5\], got shape \[0, 5\]"),
        (SPEC, (X, None), {}, "data: expected labels, which standard_loss='cross_entropy' needs, got None"),
        (SPEC, (X, None), {"standard_loss": "squared"}, "data: expected labels, which standard_loss='squared' needs"),
        (SPEC, (X, Y[:3]), {}, r"data: expected one label an input, \[4\], got shape \[3\]"),
        (SPEC, (X, np.eye(4, dtype=int)), {}, r"data: expected one label an input, \[4\], got shape \[4, 4\]"),
        (SPEC, (X, Y.astype(np.float32)), {}, "data: expected labels that are integers, got float32"),
        (SPEC, (X, Y == 1), {}, "data: expected labels that are integers, got bool"),
        (SPEC, (X, Y + 1), {}, r"data: expected labels 0 ... 2, as the network has 3 outputs, got 1 ... 3"),
        (SPEC, (X, Y - 1), {}, r"data: expected labels 0 ... 2, as the network has 3 outputs, got -1 ... 1"),
        (SINGLE, (X, Y), {}, "data: expected labels 0 ... 1, as the network has 1 outputs, got 0 ... 2"),
        (SPEC, (X, 0 * Y), {}, "data: expected labels of more than one class, got 0 alone"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_data(spec, data, options, message):
    config = training.TrainingConfig(**VALID, **options)
    with pytest.raises(ValueError, match=message):
        training.train(jax.random.key(0), spec, data, config)
    with pytest.raises(ValueError, match=message.replace("data", "evaluation")):
        training.check_both(spec, (X, Y % max(2, spec.output_dim)), config, data)


def test_labels_are_checked_where_a_loss_needs_them_alone():
    config = training.TrainingConfig(**VALID, standard_loss=None)
    (_, y), _ = training.check_both(SPEC, (X, 0 * Y), config, None)
    np.testing.assert_array_equal(y, 0)
    (_, y), (_, other) = training.check_both(SPEC, (X, None), config, (X, Y))
    assert y is None
    assert other.dtype == jnp.int32


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow
def test_what_a_matrix_free_network_is_not_trained_for():
    network = mf.init(jax.random.key(0), SPEC, "matrix_free", (2, 2))
    with pytest.raises(ValueError, match="optimizer: expected None for a matrix-free network, got"):
        training.init(network, training.TrainingConfig(**VALID, optimizer=optax.adam))
    with pytest.raises(ValueError, match="trained: expected no readout for a matrix-free network, got"):
        training.init(network, training.TrainingConfig(**VALID, trained=("weights", "readout")))


def test_a_configuration_is_a_pytree_of_its_numbers():
    config = training.TrainingConfig(5, 1, 0, adversarial_weight=2, trained=("biases", "weights"))
    leaves, structure = jax.tree.flatten(config)
    assert leaves == [1.0, 0.0, 2.0]
    assert all(isinstance(leaf, float) for leaf in leaves)
    assert config.trained == ("weights", "biases")  # in one order, so that equal ones share a program
    assert jax.tree.unflatten(structure, leaves) == config
    assert hash(structure) == hash(jax.tree.structure(training.TrainingConfig(5, 3.0, 0.1)))
    assert (config.p, config.q, config.evaluate_every) == (2.0, 2.0, 1)


@pytest.mark.slow
def test_losses_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    f, labels = rng.standard_normal((6, 3)), rng.integers(0, 3, 6)
    targets = np.eye(3)[labels]
    probabilities = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    single, signs = 3 * f[:, :1], np.sign(rng.standard_normal((6, 1)))
    for loss, outputs, target, expected in (
        ("cross_entropy", f, targets, -np.log(probabilities[np.arange(6), labels])),
        ("cross_entropy", single, signs, np.log1p(np.exp(-signs * single))[:, 0]),
        ("squared", f, targets, ((f - targets) ** 2).sum(1) / 2),
        ("squared", single, signs, ((single - signs) ** 2)[:, 0] / 2),
    ):
        value = LOSSES[loss](jnp.asarray(outputs, float), jnp.asarray(target, float))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    far = LOSSES["cross_entropy"](jnp.array([[200.0], [-200.0]]), jnp.ones((2, 1)))
    np.testing.assert_allclose(far, [0, 200])
