"""The mean largest singular value at finite width, against networks drawn in NumPy."""

import math

import numpy as np
import pytest

from mftadv.spec import NetworkSpec
from mftadv.theory import operator_norm_coefficient, spectral_norm_mean
from tests import reference

SHAPES = [
    NetworkSpec(60, 6, 200, 3),
    NetworkSpec(60, 6, 200, 3, weight_variance=1.3, positive_slope=1.0, negative_slope=-0.5),
    NetworkSpec(60, 6, 200, 4, weight_variance=1.5, bias_variance=0.2, block="signed"),
]


@pytest.mark.parametrize("spec", SHAPES, ids=["relu", "leaky", "signed"])
@pytest.mark.law
def test_against_drawn_networks(spec):
    """Within the squares of the first-order terms, a tenth of these, which the sharp coefficient misses."""

    def top(nets):
        jacobian = reference.linear_representation(nets, np.ones(spec.input_dim))[0]
        return np.linalg.norm(jacobian, 2, axis=(1, 2))

    samples = reference.simulate(top, 5, spec, 1500, batch=50)
    theory = spectral_norm_mean(spec)
    infinite = spectral_norm_mean(spec.replace(width=10**12))
    allowed = (theory - infinite) / 10
    error = 4 * np.std(samples) / math.sqrt(len(samples))
    assert error < 2 * abs(allowed)
    assert abs(np.mean(samples) - theory) < abs(allowed) + error
    assert abs(np.mean(samples) - infinite) > 3 * abs(allowed) + error
    assert abs(np.mean(samples) - 0.95 * theory) > abs(allowed) + error


def test_limits_and_refusals():
    wide = NetworkSpec(50, 4, 10**9, 6, weight_variance=3.0)
    sharp = operator_norm_coefficient(2, 2, 50, 4, "sharp") * 1.5**3
    assert spectral_norm_mean(wide) == pytest.approx(sharp, rel=1e-6)
    with pytest.raises(ValueError, match="block: expected vanilla or signed"):
        spectral_norm_mean(wide.replace(block="residual"))
    with pytest.raises(ValueError, match="width: expected N"):
        spectral_norm_mean(wide.replace(width=10))
