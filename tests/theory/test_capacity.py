"""The Fisher-Rao norm against simulation and its printed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.spec import NetworkSpec
from mftadv.theory import _capacity as capacity
from mftadv.theory import _laws as laws
from tests import reference


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.law
def test_exact_at_small_width(block, biases):
    """Width 24 with bias, both slopes and a fixed cotangent; 5% off fails."""
    spec = NetworkSpec(5, 2, 24, 3, 1.6 if block == "vanilla" else 0.8, 0.4, 1.0, 0.3, block)
    x, cotangent = np.random.default_rng(1).standard_normal(5), np.array([0.6, -1.1])
    samples = reference.simulate(
        lambda nets: reference.fisher_rao_product(nets, x, cotangent, biases) ** 2, 7, spec, 60_000
    )
    law = float(capacity.fisher_rao_norm(spec, x @ x, cotangent @ cotangent, biases))
    assert reference.agrees(samples, law)
    assert not reference.agrees(samples, 1.05 * law)
    assert not reference.agrees(samples, 0.95 * law)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("depth", [1, 9, 10_000])
@pytest.mark.slow
def test_printed_forms(depth, x64):
    dtype, unit = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    with jax.enable_x64(x64):
        for weight_variance in (1.999, 2.0, 2.001):
            s, b2 = float(dtype(weight_variance)), float(dtype(0.3))
            omega, k = np.longdouble(s) / 2, np.arange(1, depth + 1)
            for biases in (True, False):
                noise = 0.5 * b2 * np.sum((depth - k + biases) ** 2 * omega ** (depth - k))
                expected = 2 * (depth**2 * omega**depth * 4 / 8 + noise)
                spec = NetworkSpec(8, 1, 10, depth, weight_variance, 0.3)
                value = capacity.fisher_rao_norm(spec, 4.0, 2.0, biases)
                np.testing.assert_allclose(float(value), float(expected), rtol=(1 + depth) * unit)
            spec = NetworkSpec(8, 1, 10, depth, weight_variance / depth, block="signed")
            gain = np.longdouble(dtype(weight_variance / depth)) / 2
            r = gain / (1 + gain)
            expected = (1 + gain) ** depth * ((depth * r) ** 2 + depth * r * (1 - r)) / 2
            value = capacity.fisher_rao_norm(spec, 4.0)
            np.testing.assert_allclose(float(value), float(expected), rtol=(1 + depth) * unit)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_overflow_and_gradients(block):
    for bias_variance in (0.0, 0.1):
        deep = NetworkSpec(8, 1, 10, 10_000, 4.0, bias_variance, block=block)
        assert np.isinf(capacity.fisher_rao_norm(deep, 4.0))
        # no input and no bias leave nothing to overflow
        assert capacity.fisher_rao_norm(deep, 0.0) == (0 if bias_variance == 0 else np.inf)
        assert capacity.fisher_rao_norm(deep, 4.0, 0.0) == 0
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(NetworkSpec(8, 1, 10, 5, 1.3, 0.3, 1.0, 0.2, block))

        def function(point):
            return capacity.fisher_rao_norm(tree.unflatten(list(point[:4])), point[4], point[5])

        point, step = jnp.array([*leaves, 3.0, 0.7]), 1e-6 * jnp.eye(6)
        batched = jax.jit(jax.vmap(function))
        slope = (batched(point[None] + step) - batched(point[None] - step)) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(function))(point), slope, rtol=1e-7)


def test_only_the_signal_falls_without_bias_and_residual_is_refused():
    spec = NetworkSpec(8, 1, 10, 6, 1.5)
    np.testing.assert_allclose(capacity.fisher_rao_norm(spec, 4.0), 36 * 4 * laws.jacobian_variance(spec), rtol=1e-6)
    with pytest.raises(ValueError, match="block: expected vanilla or signed"):
        capacity.fisher_rao_norm(NetworkSpec(8, 1, 10, 6, block="residual"), 4.0)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
def test_a_leaf_may_be_an_array(block):
    variances = np.array([1.0, 2.0, 3.0])
    spec = NetworkSpec(8, 1, 10, 4, variances, 0.3, block=block)
    each = [float(capacity.fisher_rao_norm(spec.replace(weight_variance=s), 5.0)) for s in variances]
    np.testing.assert_allclose(capacity.fisher_rao_norm(spec, 5.0), each, rtol=1e-6)
