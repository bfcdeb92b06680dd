"""How much statistics of one network scatter, against simulated networks and the exact scale of a ReLU network."""

import math

import jax
import numpy as np
import pytest
from scipy import stats

from mftadv import theory
from mftadv.spec import NetworkSpec
from mftadv.statistics import (
    correlation_estimate,
    kurtosis_estimate,
    mean_estimate,
    pair_correlation_estimate,
    pair_square_estimate,
    scale_mixture_cdf,
)
from mftadv.theory import QUANTITIES, log_scale_skewness, relative_spread
from tests import reference


def test_limits_and_errors():
    spec = NetworkSpec(input_dim=4, output_dim=2, width=8, depth=3)
    assert relative_spread(spec, "shift_variance") == 0
    deep = NetworkSpec(input_dim=4, output_dim=2, width=8, depth=100_000)
    assert relative_spread(deep, "jacobian_variance") == relative_spread(deep, "jacobian_kurtosis") == math.inf
    for arguments, match in (
        ({"quantity": "loss"}, "quantity"),
        ({"quantity": "pair_square", "columns": 1}, "quantity"),
        ({"quantity": "jacobian_mean", "rows": 3}, "rows, columns"),
    ):
        with pytest.raises(ValueError, match=f"{match}: expected"):
            relative_spread(spec, **arguments)


OF_JACOBIAN = tuple(name for name in QUANTITIES if "shift" not in name)
EXTREMES = ((1e-300, 1.0), (1e-140, 1.0), (1e300, 1.0), (2.0, 1e-100), (2.0, 1e100), (1e300, 1e-150))


@pytest.mark.parametrize(("s", "unit"), EXTREMES)
def test_the_spread_of_a_vanilla_jacobian_has_no_unit(s, unit):
    plain = NetworkSpec(6, 2, 20, 3, positive_slope=1.0, negative_slope=0.3)
    extreme = plain.replace(weight_variance=s, positive_slope=unit, negative_slope=0.3 * unit)
    expected, found = ([relative_spread(spec, name) for name in OF_JACOBIAN] for spec in (plain, extreme))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert log_scale_skewness(extreme) == pytest.approx(log_scale_skewness(plain), rel=1e-12)


@pytest.mark.parametrize("b2", [5e-324, 1e-300, 0.1, 1e300])
def test_the_shift_is_of_one_layer_for_vanishing_weights_and_of_all_for_huge_ones(b2):
    spec, layer = NetworkSpec(6, 2, 20, 3, bias_variance=b2), 1 + 5 / 20
    for s, kurtosis in ((0.0, 3 * layer), (1e-300, 3 * layer), (1e-140, 3 * layer), (1e140, 3 * layer**3)):
        of_s = spec.replace(weight_variance=s)
        with jax.enable_x64(True):
            assert float(theory.shift_kurtosis(of_s)) == pytest.approx(kurtosis, rel=1e-12)
        assert relative_spread(of_s, "shift_variance") ** 2 == pytest.approx(kurtosis / 3 * 2 - 1, rel=1e-12)
        assert relative_spread(of_s, "jacobian_shift_square_correlation") > 0


@pytest.mark.parametrize("block", ["vanilla", "signed", "residual"])
@pytest.mark.slow
def test_every_law_has_a_spread_and_none_is_nan(block):
    for leaves in ((1e300, 1e300, 1.0, 1.0), (1e300, 0.1, 1e100, 0.0), (1e-300, 1e-300, 1e-200, 1e-300)):
        spec = NetworkSpec(6, 2, 20, 3, *leaves, block=block)
        assert not np.isnan([relative_spread(spec, quantity) for quantity in QUANTITIES]).any()
    deep = NetworkSpec(6, 1, 100, 2000, bias_variance=0.1, block=block)
    assert not np.isnan([relative_spread(deep, quantity) for quantity in QUANTITIES]).any()
    if block == "vanilla":
        factor = 1.02 * math.exp(2000 * math.log1p(0.05))
        assert relative_spread(deep, "jacobian_variance", columns=1) == pytest.approx(math.sqrt(3 * factor), rel=1e-9)


@pytest.mark.slow
def test_skewness_of_the_logarithm_of_the_scale():
    for width, depth in ((100, 3), (300, 10)):
        logs = np.log(reference.relu_scales(np.random.default_rng(13), 200_000, width, depth))
        spec = NetworkSpec(1, 1, width, depth)
        assert log_scale_skewness(spec) == pytest.approx(stats.skew(logs), rel=0.2)
    # as the layers add up it falls as a mean of them does
    deep, shallow = (log_scale_skewness(NetworkSpec(1, 1, 100, depth)) for depth in (160, 40))
    assert deep == pytest.approx(shallow / 2, rel=0.01)
    for width in (1, 2, 5):
        spec = NetworkSpec(1, 1, width, depth=4)
        f = (1 + 2 / width) * (1 + 5 / width) ** 4
        assert 0 < scale_mixture_cdf(-1.0, 1.0, 3 * f, log_scale_skewness(spec)) < 0.5


def networks(spec, n):
    """J [n, K, d], J x / |x| [n, K] and a [n, K] of n networks at x = (1, -1, ...), orthogonal to what pairs see."""
    x = np.resize([1.0, -1.0], spec.input_dim)

    def flat(nets):
        jacobian, shift = reference.linear_representation(nets, x)
        return np.concatenate([jacobian, shift[..., None]], axis=2)

    draws = reference.simulate(flat, 11, spec, n)
    jacobian, shift = draws[..., :-1], draws[..., -1]
    return jacobian, jacobian @ x / math.sqrt(spec.input_dim), shift


@pytest.mark.parametrize(
    ("block", "outputs", "slope"), [("vanilla", 1, 0.0), ("vanilla", 4, 0.3), ("signed", 4, 0.0), ("residual", 1, 0.0)]
)
@pytest.mark.slow
def test_predicted_spreads_are_those_of_networks(block, outputs, slope):
    spec = NetworkSpec(
        input_dim=12,
        output_dim=outputs,
        width=96,
        depth=3,
        weight_variance=2.0 if block == "vanilla" else 0.5,
        bias_variance=0.3,
        negative_slope=slope,
        block=block,
    )
    n = 4000
    jacobian, along, shift = networks(spec, n)
    estimates = {
        "jacobian_mean": (mean_estimate(jacobian), math.sqrt(np.mean(jacobian**2))),
        "jacobian_variance": (mean_estimate(jacobian**2), None),
        "jacobian_kurtosis": (kurtosis_estimate(jacobian), None),
        "pair_correlation": (pair_correlation_estimate(jacobian), 1.0),
        "pair_square": (pair_square_estimate(jacobian), None),
        "shift_mean": (mean_estimate(shift), math.sqrt(np.mean(shift**2))),
        "shift_variance": (mean_estimate(shift**2), None),
        "jacobian_shift_correlation": (correlation_estimate(along, shift), 1.0),
        "jacobian_shift_square_correlation": (correlation_estimate(along**2, shift**2), 1.0),
    }
    assert {*estimates, "operator_norm"} == set(QUANTITIES)
    for name, (estimate, scale) in estimates.items():
        measured = estimate.standard_error * math.sqrt(n) / (scale or estimate.value)
        predicted = relative_spread(spec, name, columns=1 if "shift_square" in name else None)
        # a spread of fourth moments is an average of eighth powers: 4000 networks give it to a third
        fourth = name in ("jacobian_kurtosis", "pair_square", "jacobian_shift_square_correlation")
        assert measured == pytest.approx(predicted, rel=0.35 if fourth else 0.1), name
    part = mean_estimate(jacobian[:, :1, :5] ** 2)
    assert part.standard_error * math.sqrt(n) / part.value == pytest.approx(
        relative_spread(spec, "jacobian_variance", columns=5, rows=1), rel=0.1
    )
    norms = {
        (1, 1): np.abs(jacobian).sum(axis=1).max(axis=1),
        (2, 2): np.linalg.norm(jacobian, 2, axis=(1, 2)),
        (math.inf, math.inf): np.abs(jacobian).sum(axis=2).max(axis=1),
    }
    for (p, q), norm in norms.items():
        measured = norm.std() / norm.mean()
        assert measured < 1.05 * relative_spread(spec, "operator_norm", p=p, q=q) < 2.5 * measured, (p, q)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
@pytest.mark.slow
def test_spreads_of_second_moments_are_exact_at_small_width(block):
    spec = NetworkSpec(
        input_dim=6,
        output_dim=8,
        width=24,
        depth=2,
        weight_variance=1.2,
        bias_variance=0.4,
        negative_slope=0.5,
        block=block,
    )
    n = 40_000
    jacobian, _, shift = networks(spec, n)
    for name, squares in (
        ("jacobian_variance", np.mean(jacobian**2, axis=(1, 2))),
        ("shift_variance", np.mean(shift**2, 1)),
    ):
        measured, predicted = squares.std() / squares.mean(), relative_spread(spec, name)
        tolerance = 3.5 * math.sqrt((stats.kurtosis(squares, fisher=False) - 1) / (4 * n))
        assert abs(measured / predicted - 1) < tolerance, name
        assert abs(measured / (1.05 * predicted) - 1) > tolerance, name
    # entries, or rows, taken for independent samples promise too much
    assert math.sqrt(2 / 48) < 0.8 * relative_spread(spec, "jacobian_variance")
    one = relative_spread(spec, "jacobian_variance", rows=1) / math.sqrt(8)
    assert one < 0.95 * relative_spread(spec, "jacobian_variance")


def test_spreads_of_fourth_moments_by_the_exact_scale_of_a_relu_network():
    rng, n, spec = np.random.default_rng(12), 200_000, NetworkSpec(input_dim=16, output_dim=1, width=128, depth=3)
    entries = np.sqrt(reference.relu_scales(rng, n, 128, 3))[:, None] * rng.standard_normal((n, 16))
    for name, estimate in (("jacobian_kurtosis", kurtosis_estimate), ("pair_square", pair_square_estimate)):
        got = estimate(entries)
        measured = got.standard_error * math.sqrt(n) / got.value
        assert measured == pytest.approx(relative_spread(spec, name), rel=0.05)
        assert measured != pytest.approx(relative_spread(spec, "jacobian_variance"), rel=0.05)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
def test_the_spread_of_one_entry_is_its_kurtosis_less_one(block):
    spec = NetworkSpec(4, 2, width=20, depth=5, weight_variance=1.3, negative_slope=-0.2, block=block)
    variance = relative_spread(spec, "jacobian_variance", columns=1, rows=1) ** 2
    assert variance == pytest.approx(float(theory.jacobian_kurtosis(spec)) - 1, rel=1e-5)
    assert variance != pytest.approx(1.05 * float(theory.jacobian_kurtosis(spec)) - 1, rel=1e-2)


def test_the_law_of_an_entry_is_off_by_half_of_what_lies_at_0():
    # gates of a ReLU layer without bias are fair coins: in a layer of 2 all are closed with probability 1/4
    spec = NetworkSpec(input_dim=3, output_dim=1, width=2, depth=5)
    generator, count = np.random.default_rng(0), 20_000
    rows = generator.normal(size=(count, 1, 2))
    for _ in range(spec.depth):
        rows = rows * (generator.random((count, 1, 2)) < 0.5) @ generator.normal(size=(count, 2, 2))
    zero = np.mean(np.all(rows == 0, axis=(1, 2)))
    expected = 1 - (3 / 4) ** 5
    assert abs(zero - expected) < 4 * math.sqrt(expected * (1 - expected) / count)
    for law, closed in (
        (spec, expected),
        (spec.replace(negative_slope=0.5), 0),
        (spec.replace(positive_slope=0.0, negative_slope=1.0), expected),
        (spec.replace(block="signed"), 0),
    ):
        fluctuation = math.log(float(theory.finite_width_factor(law)))
        assert float(theory.entry_law_error(law)) == pytest.approx(closed / 2 + 0.04 * fluctuation / 2, rel=1e-5)
