"""The squares of J and a correlate at finite width exactly as the closed form says."""

import jax
import numpy as np
import pytest

from mftadv import statistics
from mftadv.spec import NetworkSpec
from mftadv.theory import jacobian_shift_square_correlation

from .. import reference


@pytest.mark.parametrize(
    ("block", "width", "depth", "v", "s"),
    [
        ("vanilla", 12, 3, 0.0, 2.0),
        ("vanilla", 6, 2, 0.5, 1.0),
        ("signed", 10, 4, 0.0, 1.0),
        ("signed", 10, 1, -0.4, 1.0),
    ],
)
@pytest.mark.law
def test_against_simulation(block, width, depth, v, s):
    spec = NetworkSpec(8, 1, width, depth, s, 0.6, 1.0, v, block)

    def draw(networks):
        jacobian, shift = reference.linear_representation(networks, np.linspace(0.5, 1.5, 8))
        return np.concatenate([jacobian[:, 0], shift], axis=1) ** 2

    squares = reference.simulate(draw, 1, spec, 150_000, batch=10_000)
    shift = np.broadcast_to(squares[:, 8:], (len(squares), 8))
    estimate = statistics.correlation_estimate(squares[:, :8], shift)
    theory = float(jacobian_shift_square_correlation(spec))
    # 5% of a correlation this small is below the noise; what is seen is the formula without its overlap or its readout
    assert abs(estimate.value - theory) < 4 * estimate.standard_error
    assert 4 * estimate.standard_error < 0.1 * theory
    assert abs(estimate.value - 1.15 * theory) > 4 * estimate.standard_error


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_falls_as_the_width_and_ignores_bias_and_input_dimension(block):
    def correlation(width=1000, b2=0.3, d=5, depth=6):
        return jacobian_shift_square_correlation(NetworkSpec(d, 1, width, depth, 1.3, b2, 1.0, 0.1, block))

    with jax.enable_x64(True):
        np.testing.assert_allclose(correlation(10_000) * 10_000, correlation(100_000) * 100_000, rtol=5e-3)
        np.testing.assert_allclose(correlation(b2=0.3), correlation(b2=30.0), rtol=1e-12)
        np.testing.assert_allclose(correlation(d=5), correlation(d=500), rtol=1e-12)
    deep = correlation(depth=10_000)
    assert 0 < float(deep) <= 1


def test_residual_is_refused():
    with pytest.raises(ValueError, match="block: expected"):
        jacobian_shift_square_correlation(NetworkSpec(3, 1, 4, 2, 1.0, 0.1, block="residual"))
