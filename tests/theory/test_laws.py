"""Second and fourth moments against simulation, arbitrary precision and finite differences."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from mftadv.spec import NetworkSpec
from mftadv.theory import _laws as laws
from tests import reference

BLOCKS = ("vanilla", "residual", "signed")
FULL = {"bias_variance": 0.3, "negative_slope": 0.3}


def exact(name, spec, dtype):
    """The laws in 40 digits, at the leaves as `dtype` holds them, from their printed forms."""
    leaf = (spec.weight_variance, spec.bias_variance, spec.positive_slope, spec.negative_slope)
    s, b2, u, v = (mp.mpf(float(dtype(value))) for value in leaf)
    alpha, n = (u**2 + v**2) / 2, spec.width
    gain = alpha * s
    omega = gain + (spec.block != "vanilla")
    c = 6 * (u**4 + v**4) / (u**2 + v**2) ** 2 - 1
    rate = 1 + c / n
    if spec.block == "signed":
        rate = (1 + 2 * gain + 4 * gain / n + gain**2 * (1 + c / n)) / (1 + gain) ** 2
    return {
        "alpha": lambda: alpha,
        "propagation_factor": lambda: omega,
        "finite_width_factor": lambda: (1 + mp.mpf(2) / n) * rate**spec.depth,
        "jacobian_kurtosis": lambda: 3 * (1 + mp.mpf(2) / n) * rate**spec.depth,
        "jacobian_variance": lambda: omega**spec.depth / spec.input_dim,
        "shift_variance": lambda: alpha * b2 * mp.fsum(omega**k for k in range(spec.depth)),
    }[name]()


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("depth", [1, 7, 1000])
@pytest.mark.slow
def test_accuracy(block, depth, x64):
    dtype, unit = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    with jax.enable_x64(x64), mp.workdps(40):
        for weight_variance in (0.3 / depth, 1.9999, 2.0, 2.0001):
            for slopes in ((1.0, 0.0), (0.9, 0.3)):
                spec = NetworkSpec(7, 2, 50, depth, weight_variance, 0.1, *slopes, block)
                names = ["alpha", "propagation_factor", "jacobian_variance", "shift_variance"]
                names += [] if block == "residual" else ["finite_width_factor", "jacobian_kurtosis"]
                for name in names:
                    value, expected = getattr(laws, name)(spec), exact(name, spec, dtype)
                    assert value.dtype == dtype
                    if expected < np.finfo(dtype).max:
                        bound = (1 + depth) * unit * expected + float(np.finfo(dtype).tiny)
                        assert abs(float(value) - expected) < bound, (name, weight_variance, slopes)
                    else:
                        assert np.isinf(value), (name, weight_variance, slopes)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_overflow_is_inf_and_no_bias_is_no_shift(block):
    silent = NetworkSpec(10, 1, 50, 10_000, weight_variance=4.0, block=block)
    loud = NetworkSpec(10, 1, 50, 10_000, weight_variance=4.0, bias_variance=0.1, block=block)
    assert np.isinf(laws.jacobian_variance(silent))
    assert np.isinf(laws.shift_variance(loud))
    assert laws.shift_variance(silent) == 0
    gradient = jax.tree.leaves(jax.grad(laws.shift_variance)(silent))
    assert np.all(np.isfinite(gradient))
    dead = NetworkSpec(10, 1, 50, 3, weight_variance=0.0, bias_variance=0.4, block=block)
    np.testing.assert_allclose(laws.shift_variance(dead), 0.2 if block == "vanilla" else 0.6, rtol=1e-6)
    assert np.all(np.isfinite(jax.tree.leaves(jax.grad(laws.shift_variance)(dead))))


def block_laws(spec):
    kurtosis = [] if spec.block == "residual" else [laws.jacobian_kurtosis(spec)]
    return jnp.stack([laws.jacobian_variance(spec), laws.shift_variance(spec), *kurtosis])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_gradients_against_differences(block):
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(NetworkSpec(7, 2, 30, 5, 2.0, 0.3, 1.0, 0.3, block))

        def function(point):
            return block_laws(tree.unflatten(list(point)))

        gradients, batched = jax.jit(jax.jacrev(function)), jax.jit(jax.vmap(function))
        point, step = jnp.array(leaves), 1e-6 * jnp.eye(4)
        slopes = (batched(point[None] + step) - batched(point[None] - step)) / 2e-6
        np.testing.assert_allclose(gradients(point), slopes.T, rtol=1e-6, atol=1e-7)
        # without bias: one-sided, to second order
        point = point.at[1].set(0.0)
        ahead, further, here = (batched(point[None] + k * step) for k in (1, 2, 0))
        np.testing.assert_allclose(gradients(point), (4 * ahead - further - 3 * here).T / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_sweep_is_a_vmap_over_leaves(block):
    variances, biases = jnp.array([0.5, 2.0, 3.0]), jnp.array([0.0, 0.1, 0.2])
    specs = NetworkSpec(7, 2, 30, 5, variances, biases, jnp.ones(3), jnp.full(3, 0.2), block)
    swept = jax.jit(jax.vmap(block_laws))(specs)
    for i in range(3):
        one = block_laws(NetworkSpec(7, 2, 30, 5, float(variances[i]), float(biases[i]), 1.0, 0.2, block))
        np.testing.assert_allclose(swept[i], one, rtol=1e-5)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.law
def test_second_moments_are_exact_at_small_width(block):
    """J and a at width 12 with bias and both slopes; a theory 5% off fails."""
    spec = NetworkSpec(6, 8, 12, 3, weight_variance=1.2, block=block, **FULL)
    x = np.random.default_rng(1).standard_normal(6)

    def statistic(nets):
        jacobian, shift = reference.linear_representation(nets, x)
        return np.stack([(jacobian**2).mean((1, 2)), (shift**2).mean(1), (jacobian @ x * shift).mean(1)], axis=1)

    samples = reference.simulate(statistic, 2, spec, 60_000)
    for values, law in zip(samples.T, (laws.jacobian_variance(spec), laws.shift_variance(spec)), strict=False):
        assert reference.agrees(values, float(law))
        assert not reference.agrees(values, 1.05 * float(law))
        assert not reference.agrees(values, 0.95 * float(law))
    assert reference.agrees(samples[:, 2], 0.0)


@pytest.mark.law
def test_second_moment_at_zero_without_bias():
    """All gates are open: (u^2 s)^L / d and not (alpha s)^L / d."""
    spec = NetworkSpec(6, 8, 12, 3, weight_variance=1.2, positive_slope=1.0, negative_slope=0.3)
    samples = reference.simulate(
        lambda nets: (reference.linear_representation(nets, np.zeros(6))[0] ** 2).mean((1, 2)), 2, spec, 20_000
    )
    assert reference.agrees(samples, 1.2**3 / 6)
    assert not reference.agrees(samples, 0.95 * 1.2**3 / 6)
    assert not reference.agrees(samples, float(laws.jacobian_variance(spec)))


@pytest.mark.parametrize(("block", "slope"), [("vanilla", 0.0), ("vanilla", 0.3), ("signed", 0.3)])
@pytest.mark.law
def test_kurtosis_is_exact_at_small_width(block, slope):
    """Over networks, at width 40 with bias; a theory 5% off fails."""
    spec = NetworkSpec(8, 8, 40, 2, 2.0, 0.3, 1.0, slope, block)
    x = np.random.default_rng(1).standard_normal(8)
    samples = reference.simulate(
        lambda nets: (reference.linear_representation(nets, x)[0] ** 4).mean((1, 2)), 3, spec, 36_000
    )
    law = float(laws.jacobian_kurtosis(spec) * laws.jacobian_variance(spec) ** 2)
    assert reference.agrees(samples, law)
    assert not reference.agrees(samples, 1.05 * law)
    assert not reference.agrees(samples, 0.95 * law)
    # the Gaussian value is told apart as well
    assert not reference.agrees(samples, 3 * float(laws.jacobian_variance(spec)) ** 2)


def test_blocks_without_a_law_are_refused():
    for function in (laws.finite_width_factor, laws.jacobian_kurtosis):
        with pytest.raises(ValueError, match="block: expected vanilla or signed"):
            function(NetworkSpec(3, 1, 4, 2, block="residual"))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_layers_compose(block):
    """A network of 3 + 4 layers: the lower one's shift grows in the upper, and the factors multiply."""
    lower, upper, whole = (NetworkSpec(7, 2, 10**9, depth, 1.3, 0.2, block=block) for depth in (3, 4, 7))
    grown = laws.shift_variance(lower) * 7 * laws.jacobian_variance(upper) + laws.shift_variance(upper)
    np.testing.assert_allclose(laws.shift_variance(whole), grown, rtol=1e-6)
    product = 7 * laws.jacobian_variance(lower) * laws.jacobian_variance(upper)
    np.testing.assert_allclose(laws.jacobian_variance(whole), product, rtol=1e-6)
    if block == "residual":
        assert laws.log_propagation_factor(whole) > 0
        return
    # N w is the same at every great width, and its digits survive there
    wide, wider = (laws.log_finite_width_factor(NetworkSpec(7, 2, n, 4, 1.3, block=block)) * n for n in (10**7, 10**9))
    np.testing.assert_allclose(wide, wider, rtol=1e-5)
    np.testing.assert_allclose(laws.finite_width_factor(whole), 1, rtol=1e-6)
