"""Every field of a training record against float64 NumPy on the networks before and after."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import training
from tests import reference
from tests.training.attacks import CHEAP

INF, KEY, EPS, WEIGHT, N = math.inf, jax.random.key(6), 0.5, 0.7, 10


def inputs(output_dim, seed):
    """More than the eight whose tangent kernel and gates are compared."""
    x = np.random.default_rng(seed).standard_normal((N, 5))
    return x, np.arange(N) % max(2, output_dim)


class Numpy:
    """A network at inputs in NumPy: outputs, and derivatives in everything."""

    def __init__(self, network):
        self.nets, self.spec = reference.of_network(network), network.spec

    def output(self, x):
        return reference.forward(self.nets, x)[0][0]

    def jacobian(self, x):
        return reference.linear_representation(self.nets, x)[0][0]

    def gradient(self, x, cotangent, trained):
        """The gradient of <cotangent, f(x)> in the trained parts, flattened."""
        weights, biases = reference.parameter_gradients(self.nets, x, cotangent)
        readout = np.outer(cotangent, reference.forward(self.nets, x)[2][-1][0])
        return np.concatenate([part.ravel() for part in _chosen(trained, weights, biases, readout)])

    def parameters(self, trained):
        return np.concatenate(
            [part.ravel() for part in _chosen(trained, self.nets.weights, self.nets.biases, self.nets.p_out)]
        )

    def kernel(self, xs, trained):
        units = np.eye(self.spec.output_dim)
        rows = np.stack([[self.gradient(x, unit, trained) for unit in units] for x in xs])
        return np.einsum("ikp,jkp->ij", rows, rows)

    def gates(self, xs):
        return np.stack([reference.forward(self.nets, x)[1] for x in xs])[:, :, 0] == 1  # [n, L, N]

    def attack(self, x, p, value, slope):
        """What CHEAP finds for a value of the change of the output, with its slope: two points of the ball."""

        def best_response(g):
            return EPS * (np.sign(g) if p == INF else g / np.linalg.norm(g))

        best, point, eta = 0.0, np.zeros(5), best_response(np.arange(1.0, 6))
        for _ in range(2):
            change = self.output(x + eta) - self.output(x)
            if value(change) > best:
                best, point = value(change), eta
            eta = best_response(self.jacobian(x + eta).T @ slope(change))
        return point


def _chosen(trained, weights, biases, readout):
    named = {"weights": weights, "biases": biases, "readout": [readout]}
    return [part for name in trained for part in named[name]]


def target_of(label, output_dim):
    return np.array([2.0 * label - 1]) if output_dim == 1 else np.eye(output_dim)[label]


def loss_and_slope(name, f, target):
    if name == "squared":
        return np.sum((f - target) ** 2) / 2, f - target
    if len(f) == 1:
        return np.log1p(np.exp(-target[0] * f[0])), -target / (1 + np.exp(target * f))
    return np.log(np.sum(np.exp(f))) - target @ f, np.exp(f) / np.sum(np.exp(f)) - target


def is_right(f, label):
    return (f[0] > 0) == label if len(f) == 1 else np.argmax(f) == label


def expected_record(start, end, x, y, config):
    """The means over inputs of what a record holds, at the network `end`."""
    then, now, spec = Numpy(start), Numpy(end), end.spec
    loss, q, rows = config.standard_loss, config.q, {}

    def add(**values):
        for name, value in values.items():
            rows.setdefault(name, []).append(value)

    gradient = 0.0
    for one, label in zip(x, y, strict=True):
        f, jacobian, target = now.output(one), now.jacobian(one), target_of(label, spec.output_dim)
        singular = np.linalg.svd(jacobian)[1][0] if config.p == 2 else np.abs(jacobian).sum()
        free = now.attack(one, config.p, np.linalg.norm, lambda change: change / np.linalg.norm(change))
        change = now.output(one + free) - f
        add(
            jacobian=np.sum(jacobian**2), jacobian_norm=singular, adversarial_loss=np.linalg.norm(change, q),
            accuracy=is_right(f, label), robust_accuracy=is_right(f + change, label),
        )  # fmt: skip
        theta, slope, eta = now.parameters(config.trained), np.zeros_like(f), free
        if loss is None:
            units = np.eye(spec.output_dim)
            add(
                fisher_rao=sum((theta @ now.gradient(one, unit, config.trained)) ** 2 for unit in units),
                cotangent=spec.output_dim,
            )
        else:

            def increase(change, f=f, target=target):
                return loss_and_slope(loss, f + change, target)[0] - loss_and_slope(loss, f, target)[0]

            def rise(change, f=f, target=target):
                return loss_and_slope(loss, f + change, target)[1]

            labelled = now.attack(one, config.p, increase, rise)
            standard, slope = loss_and_slope(loss, f, target)
            add(
                standard_loss=standard, attacked_accuracy=is_right(now.output(one + labelled), label),
                fisher_rao=(theta @ now.gradient(one, slope, config.trained)) ** 2, cotangent=slope @ slope,
            )  # fmt: skip
            eta = labelled if config.adversarial == "madry" else free
        if config.adversarial == "madry":
            at_x, perturbed = (1 - WEIGHT) * slope, WEIGHT * loss_and_slope(loss, now.output(one + eta), target)[1]
        else:
            perturbed = WEIGHT * change / np.linalg.norm(change)
            at_x = slope - perturbed
        parts = [now.gradient(*at, ("weights",)) for at in ((one, at_x), (one + eta, perturbed))]
        gradient = gradient + sum(parts) / len(x)

    record = {name: np.mean(values) for name, values in rows.items()}
    omega = [(1.01 / 2) * np.sum(np.square(w)) / spec.width + spec.has_shortcut for w in now.nets.weights]
    law = (1.01 / 2) * float(spec.weight_variance) + spec.has_shortcut
    kernels = [network.kernel(x[:8], config.trained) for network in (now, then)]
    return record | {
        "jacobian": record["jacobian"] / (spec.output_dim * law**spec.depth),
        "weight_variance": [np.sum(np.square(w)) / spec.width for w in now.nets.weights],
        "propagation_factor": omega,
        "propagation": np.prod(omega),
        "gradient_norm": np.linalg.norm(gradient.reshape(spec.depth, -1), axis=1),
        "kernel_similarity": np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels]),
        "gates_flipped": np.mean(now.gates(x[:8]) != then.gates(x[:8]), axis=(0, 2)),
        "norm_change": [
            np.sum(np.square(w)) - np.sum(np.square(v))
            for v, w in zip(then.nets.weights, now.nets.weights, strict=True)
        ],
    }


CASES = {
    "signed": (3, "signed", "cross_entropy", "paper", 2, ("weights", "biases", "readout")),
    "madry": (1, "vanilla", "squared", "madry", INF, ("weights",)),
    "logistic": (1, "residual", "cross_entropy", "paper", INF, ("biases",)),
    "no standard loss": (3, "vanilla", None, "paper", 2, ("weights", "biases")),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_every_field(name):
    output_dim, block, loss, adversarial, p, trained = CASES[name]
    with jax.enable_x64(True):
        spec = mf.NetworkSpec(5, output_dim, 8, 2, 0.9, 0.3, 1.0, 0.1, block)
        config = training.TrainingConfig(
            6, 0.2, EPS, p, 2, loss, adversarial, WEIGHT, evaluate_every=6, attack=CHEAP, trained=trained
        )
        data, evaluation = (inputs(output_dim, seed) for seed in (0, 1))
        record = jax.jit(training.train)(KEY, spec, data, config, evaluation)
        start = jax.jit(mf.init)(KEY, spec)
    assert list(record.step) == [0, 6]
    assert list(record.stopped) == [-1, -1]
    for number, network in enumerate((start, record.network)):
        expected = expected_record(start, network, *evaluation, config)
        for field, value in expected.items():
            np.testing.assert_allclose(getattr(record, field)[number], value, rtol=1e-8, atol=1e-12, err_msg=field)
    if loss is None:
        assert np.all(np.isnan(record.standard_loss))
        assert np.all(np.isnan(record.attacked_accuracy))
    similarity = np.asarray(record.kernel_similarity)
    assert similarity[0] == pytest.approx(1, rel=1e-12)
    assert similarity[1] < 0.999
    assert np.max(np.asarray(record.gates_flipped)[1]) > 0


@pytest.mark.slow
def test_without_labels_there_is_no_accuracy():
    x, _ = inputs(1, 0)
    spec = mf.NetworkSpec(5, 1, 8, 2, 1.8)
    config = training.TrainingConfig(1, 0.1, EPS, standard_loss=None, attack=CHEAP)
    record = jax.jit(training.train)(KEY, spec, (jnp.asarray(x, float), None), config)
    for name in ("accuracy", "robust_accuracy", "attacked_accuracy", "standard_loss"):
        assert np.all(np.isnan(getattr(record, name)))
    assert np.all(record.adversarial_loss > 0)
    assert np.all(np.isfinite(record.fisher_rao))
