"""Errors by network, declared false-alarm rates, and the planned number of networks."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from mftadv import theory
from mftadv.compare import Claim, judge
from mftadv.spec import NetworkSpec
from mftadv.statistics import (
    correlation_estimate,
    kurtosis_estimate,
    law_test,
    mean_estimate,
    networks_needed,
    pair_correlation_estimate,
    pair_square_estimate,
    ratio_estimate,
    scale_mixture_cdf,
    smallest_visible_deviation,
    smooth_estimate,
)
from tests import reference

F = 1.1  # E R^4 of the scale in the null model below


def scaled_rows(rng, n, m, f=F):
    """n networks of m entries J = R g of unit variance, ln R^2 ~ N(-w/2, w), and a shift sharing the scale."""
    w = math.log(f)
    scale = np.exp((np.sqrt(w) * rng.standard_normal((n, 1)) - w / 2) / 2)
    return scale * rng.standard_normal((n, m)), scale * rng.standard_normal((n, 1))


# --- estimates ---------------------------------------------------------------------------------------------------


def test_the_mean_is_by_network_and_not_by_entry():
    entries = np.random.default_rng(0).standard_normal((50, 1)) + np.zeros((50, 7))
    got = mean_estimate(entries)
    assert got.value == pytest.approx(entries.mean())
    assert got.standard_error == pytest.approx(stats.sem(entries[:, 0]))
    influence = entries[:, 0] - entries.mean()
    assert got.degrees_of_freedom == pytest.approx(
        min(49, 2 * 50 / (np.mean(influence**4) / np.mean(influence**2) ** 2 - 1))
    )
    assert mean_estimate(influence**4).degrees_of_freedom < 12
    assert mean_estimate(np.arange(50.0)).degrees_of_freedom == 49
    assert got.skewness == pytest.approx(stats.skew(entries[:, 0]) / math.sqrt(50))
    assert stats.sem(entries.ravel()) < 0.5 * got.standard_error


def test_a_ratio_is_the_jackknife_and_agrees_with_the_delta_method():
    rng = np.random.default_rng(1)
    x = rng.gamma(2.0, size=400)
    y = x + rng.gamma(3.0, size=400)
    n, ratio = len(x), x.mean() / y.mean()
    left_out = np.array([np.delete(x, i).mean() / np.delete(y, i).mean() for i in range(n)])
    got = ratio_estimate(x, y)
    assert got.value == pytest.approx(n * ratio - (n - 1) * left_out.mean(), rel=1e-10)
    assert got.standard_error == pytest.approx(math.sqrt((n - 1) * left_out.var()), rel=1e-10)
    delta = np.std(x - ratio * y, ddof=1) / (y.mean() * math.sqrt(n))
    assert got.standard_error == pytest.approx(delta, rel=0.01)
    naive = np.std(x / y, ddof=1) / math.sqrt(n)
    assert naive != pytest.approx(delta, rel=0.05)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow
def test_the_jackknife_removes_the_bias_of_a_smooth_function():
    rng = np.random.default_rng(2)
    draws = rng.exponential(size=(4000, 12))
    debiased = np.array([smooth_estimate(lambda m: m**2, row).value for row in draws])
    error = 4 * debiased.std() / math.sqrt(len(draws))
    assert abs(debiased.mean() - 1) < error
    assert abs((draws.mean(1) ** 2).mean() - 1) > error


def test_skewness_of_a_function_of_the_mean():
    # an exponential's mean: log makes 2 gamma of the identity's into 2 gamma - 3 cv, and the power -1/3 leaves 0
    draws = np.random.default_rng(3).exponential(size=200_000)
    skew = [
        smooth_estimate(f, draws).skewness * math.sqrt(len(draws))
        for f in (lambda m: m, np.log, lambda m: m ** -(1 / 3))
    ]
    # 6 a + 3 c with a = gamma / 6 and c = f'' cv / (2 f'), here 2 - 3/2; for m^(-1/3), decreasing, -(2 - 2)
    np.testing.assert_allclose(skew, [2.0, 0.5, 0.0], atol=0.1)


def test_moment_estimates_are_their_definitions():
    entries, shift = scaled_rows(np.random.default_rng(4), 300, 6)
    second, fourth = np.mean(entries**2), np.mean(entries**4)
    assert kurtosis_estimate(entries).value == pytest.approx(fourth / second**2, rel=0.02)
    assert kurtosis_estimate(entries, variance=2.0).value == pytest.approx(fourth / 4)
    off = ~np.eye(6, dtype=bool)
    for estimate, y, power in ((pair_correlation_estimate, entries, 1), (pair_square_estimate, entries**2, 2)):
        direct = np.mean((y[:, :, None] * y[:, None, :])[:, off]) / second**power
        assert estimate(entries).value == pytest.approx(direct, abs=0.02)
        rows = np.stack([entries, entries], axis=1)
        assert estimate(rows).value == pytest.approx(estimate(entries).value)
    a, b = entries[:, 0], shift[:, 0]
    assert correlation_estimate(a, a + b).value == pytest.approx(np.corrcoef(a, a + b)[0, 1], abs=0.01)
    assert correlation_estimate(a, -a).value == pytest.approx(-1)


def test_networks_with_nonfinite_draws_are_left_out_and_counted():
    values = np.random.default_rng(5).standard_normal((30, 2))
    values[3, 1], values[7, 0], values[8] = np.nan, np.inf, [np.inf, -np.inf]
    got, clean = mean_estimate(values), mean_estimate(np.delete(values, [3, 7, 8], axis=0))
    assert got.nonfinite == 3
    assert (got.value, got.standard_error, clean.nonfinite) == (clean.value, clean.standard_error, 0)
    assert mean_estimate(values[3:4]).nonfinite == 1
    assert math.isnan(mean_estimate(values[3:4]).value)


@pytest.mark.parametrize("size", [1e-150, 1e-60, 1e60, 1e150])
def test_estimates_of_tiny_and_huge_entries(size):
    entries, shift = scaled_rows(np.random.default_rng(14), 60, 5)
    entries[3, 1] = np.nan
    each = np.broadcast_to(shift, entries.shape)
    for estimate in (kurtosis_estimate, pair_correlation_estimate, pair_square_estimate):
        for field in ("value", "standard_error", "degrees_of_freedom", "skewness", "nonfinite"):
            expected = getattr(estimate(entries), field)
            assert getattr(estimate(size * entries), field) == pytest.approx(expected, rel=1e-9)
    got, expected = correlation_estimate(size * entries, each), correlation_estimate(entries, size * each)
    assert got.value == pytest.approx(expected.value, rel=1e-9)
    assert got.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert mean_estimate(size * entries).degrees_of_freedom == pytest.approx(mean_estimate(entries).degrees_of_freedom)
    assert kurtosis_estimate(entries * size, size**2).value == pytest.approx(kurtosis_estimate(entries, 1.0).value)


@pytest.mark.slow
def test_what_cannot_be_estimated_without_one_of_the_networks_is_not():
    pair = correlation_estimate(np.array([1.0, 2.0]), np.array([3.0, 5.0]))
    assert math.isnan(pair.value)
    assert math.isnan(pair.standard_error)
    assert math.isnan(correlation_estimate(np.array([1.0]), np.array([3.0])).value)
    # also where rounding hides that nothing varies
    pairs = np.random.default_rng(16).standard_normal((200, 2, 2))
    assert all(math.isnan(correlation_estimate(*pair).value) for pair in pairs)
    assert math.isnan(correlation_estimate(np.full(9, 0.1), np.arange(9.0)).value)


def test_the_skewness_of_few_networks_is_uncertain():
    few, many = (np.random.default_rng(15).standard_normal((n, 2)) ** 2 for n in (10, 1000))
    for estimate, factor in ((mean_estimate, 1.25), (kurtosis_estimate, 4)):
        for values in (few, many):
            got = estimate(values)
            assert got.skewness_error == pytest.approx(factor / math.sqrt(got.degrees_of_freedom))
            assert -1 <= got.skewness <= 1
    assert mean_estimate(np.ones(5)).skewness_error == 0


def test_small_and_constant_samples():
    one = mean_estimate(np.array([2.0]))
    assert (one.value, one.degrees_of_freedom) == (2.0, 0)
    assert math.isnan(one.standard_error)
    zero = mean_estimate(np.zeros((9, 3)))
    assert (zero.value, zero.standard_error, zero.skewness) == (0.0, 0.0, 0.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mean_estimate(1.0), "features"),
        (lambda: ratio_estimate(np.ones(3), np.ones(4)), "features"),
        (lambda: correlation_estimate(np.ones((3, 1)), np.ones((3, 2))), "a, b"),
        (lambda: pair_square_estimate(np.ones((3, 1))), "entries"),
        (lambda: scale_mixture_cdf(0.0, 0.0, 3.0), "variance"),
        (lambda: scale_mixture_cdf(0.0, 1.0, 2.9), "kurtosis"),
        (lambda: scale_mixture_cdf(0.0, 1.0, 6.0, 0.1), "skewness"),
        (lambda: scale_mixture_cdf(0.0, 1.0, 6.0, -1.1), "skewness"),
        (lambda: scale_mixture_cdf(0.0, 1.0, 3e9, -0.5), "skewness"),
        (lambda: law_test(np.ones((3, 1)), 1.0, 3.0), "sample"),
        (lambda: law_test(np.full(3, np.nan), 1.0, 3.0), "sample"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=f"{match}: expected"):
        call()


# --- declared false-alarm rates ----------------------------------------------------------------------------------

CLAIMS = {
    "mean": (lambda j, a: mean_estimate(j), 0.0, 1.0),
    "coverage": (lambda j, a: mean_estimate(abs(j) <= 1), 2 * float(scale_mixture_cdf(1.0, 1.0, 3 * F)) - 1, None),
    "variance": (lambda j, a: mean_estimate(j**2), 1.0, None),
    "shift": (lambda j, a: mean_estimate(a**2), 1.0, None),
    "ratio": (lambda j, a: ratio_estimate(j[:, 0] ** 2, j**2), 1.0, None),
    "kurtosis": (lambda j, a: kurtosis_estimate(j), 3 * F, None),
    "pairs": (lambda j, a: pair_correlation_estimate(j), 0.0, 1.0),
    "pair squares": (lambda j, a: pair_square_estimate(j), F, None),
    "correlation": (lambda j, a: correlation_estimate(j[:, :1], a), 0.0, 1.0),
    "correlation of squares": (lambda j, a: correlation_estimate(j[:, :1] ** 2, a**2), (F - 1) / (3 * F - 1), 1.0),
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.law
def test_false_alarms_are_at_most_the_declared_rate(name):
    estimate, theory, scale = CLAIMS[name]
    rng = np.random.default_rng(6)
    repetitions, level, n = 1000, 0.05, 600
    estimates = [estimate(*scaled_rows(rng, n, 20)) for _ in range(repetitions)]
    # the error that a theory would predict
    error = float(np.std([e.value for e in estimates]))

    def rate(theory):
        claims = [Claim.of(name, theory, e, scale=scale, predicted_error=error) for e in estimates]
        # one table of all, its unadjusted p-values
        return np.mean([judged.p_value <= level for judged in judge(claims, level)])

    limit = stats.binom.isf(1e-4, repetitions, level) / repetitions
    assert rate(theory) <= limit
    # a theory off by four standard errors is seen
    assert rate(theory + 4 * np.median([e.standard_error for e in estimates])) > 0.6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.law
def test_students_t_alone_would_not_keep_its_rate_for_squares():
    rng = np.random.default_rng(7)
    repetitions, level, n = 20_000, 0.001, 64
    squares = rng.standard_normal((repetitions, n), dtype=np.float32) ** 2
    estimates = [mean_estimate(row) for row in squares]
    corrected = [Claim.of("square", 1.0, e) for e in estimates]
    plain = [Claim.of("square", 1.0, e, skewness=0.0, skewness_error=0.0) for e in estimates]
    # one table of all, its unadjusted p-values
    rates = [np.mean([j.p_value <= level for j in judge(table)]) for table in (corrected, plain)]
    limit = stats.binom.isf(1e-4, repetitions, level) / repetitions
    assert rates[0] <= limit
    assert rates[1] > 5 * level


# --- the law of an entry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kurtosis", [3.0, 3.3, 6.0, 40.0])
@pytest.mark.slow
def test_scale_mixture_by_adaptive_quadrature(kurtosis):
    w, variance = math.log(kurtosis / 3), 0.3

    def integrand(y, x):
        return stats.norm.cdf(x / math.sqrt(variance) * math.exp((w / 2 - math.sqrt(w) * y) / 2)) * stats.norm.pdf(y)

    x = np.array([-2.0, -0.3, -0.01, 0.0, 0.2, 1.5])
    expected = [integrate.quad(integrand, -12, 12, args=(value,), epsabs=1e-12, limit=200)[0] for value in x]
    np.testing.assert_allclose(scale_mixture_cdf(x, variance, kurtosis), expected, atol=2e-6 if kurtosis > 10 else 1e-9)
    # second and fourth moments by E x^k = 2 k int x^(k-1) (1 - F) over x > 0
    x = np.linspace(0, 40, 20_001)
    for power, moment in ((2, variance), (4, kurtosis * variance**2)) if kurtosis < 10 else ():
        tail = np.trapezoid(x ** (power - 1) * (1 - scale_mixture_cdf(x, variance, kurtosis)), x)
        assert 2 * power * tail == pytest.approx(moment, rel=1e-4)


@pytest.mark.law
def test_law_test_keeps_its_rate_and_sees_a_wrong_law():
    rng = np.random.default_rng(8)
    samples = [scaled_rows(rng, 200, 1, f=2.0)[0][:, 0] for _ in range(300)]
    rate = np.mean([law_test(sample, 1.0, 6.0).p_value <= 0.05 for sample in samples])
    limits = [stats.binom.isf(tail, 300, 0.05) / 300 for tail in (1 - 1e-4, 1e-4)]
    assert limits[0] <= rate <= limits[1]
    big = scaled_rows(rng, 20_000, 1, f=2.0)[0][:, 0]
    right, wrong = law_test(big, 1.0, 6.0), law_test(big, 1.0, 4.0)
    assert right.p_value > 1e-3 > wrong.p_value
    assert right.normal_distance > 5 * right.distance
    for kurtosis, distance in ((6.0, right.distance), (3.0, right.normal_distance)):
        same = stats.kstest(big[:500], lambda x, k=kurtosis: scale_mixture_cdf(x, 1.0, k))
        got = law_test(big[:500], 1.0, kurtosis)
        assert (got.distance, got.p_value) == pytest.approx((same.statistic, same.pvalue), rel=1e-6)
        assert distance != got.distance
    broken = law_test(np.append(big, [np.nan, np.inf]), 1.0, 6.0)
    assert (broken.count, broken.nonfinite, broken.distance) == (20_000, 2, right.distance)


@pytest.mark.parametrize(("width", "depth"), [(10, 3), (30, 10), (250, 10)])
@pytest.mark.slow
def test_scale_mixture_is_near_the_exact_law_of_a_relu_network(width, depth):
    scale = reference.relu_scales(np.random.default_rng(9), 100_000, width, depth)
    x = np.linspace(0.1, 4, 40)
    exact = np.array([stats.norm.cdf(value / np.sqrt(np.maximum(scale, 1e-300))).mean() for value in x])
    f = (1 + 2 / width) * (1 + 5 / width) ** depth
    distance = np.abs(exact - scale_mixture_cdf(x, 1.0, 3 * f)).max()
    assert distance < 0.3 * math.log(f) / width + 5e-4
    assert np.abs(exact - stats.norm.cdf(x)).max() > 3 * distance
    skewness = theory.log_scale_skewness(NetworkSpec(1, 1, width, depth))
    limit = 0.04 * math.log(f) / width + 5e-4
    assert np.abs(exact - scale_mixture_cdf(x, 1.0, 3 * f, skewness)).max() < limit
    if width < 100:
        assert np.abs(exact - scale_mixture_cdf(x, 1.0, 3 * f, skewness / 2)).max() > limit


@pytest.mark.parametrize(("kurtosis", "skewness"), [(3.3, -0.3), (6.0, -0.5), (6.0, -1.0), (40.0, -0.4)])
def test_a_skewed_scale_keeps_variance_and_kurtosis(kurtosis, skewness):
    x = np.concatenate([[0.0], np.geomspace(1e-3, 300, 40_001)])
    above = 1 - scale_mixture_cdf(x, 0.3, kurtosis, skewness)
    second, fourth = (2 * power * np.trapezoid(x ** (power - 1) * above, x) for power in (2, 4))
    assert second == pytest.approx(0.3, rel=1e-4)
    assert fourth == pytest.approx(kurtosis * 0.09, rel=2e-3)


# --- the planner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.02, 0.5, 3.0])
def test_networks_needed_is_the_inverse(spread):
    n = networks_needed(spread, 0.05, 1e-4, 0.8)
    assert smallest_visible_deviation(spread, n, 1e-4, 0.8) <= 0.05
    assert n == 2 or smallest_visible_deviation(spread, n - 1, 1e-4, 0.8) > 0.05


@pytest.mark.parametrize(("spread", "false_alarm"), [(0.1, 0.01), (0.5, 1e-4)])
def test_the_planned_power_is_reached(spread, false_alarm):
    n = networks_needed(spread, 0.05, false_alarm, 0.9)
    rng = np.random.default_rng(10)
    mean = rng.standard_normal(40_000) * spread / math.sqrt(n)
    error = spread * np.sqrt(rng.chisquare(n - 1, 40_000) / (n - 1) / n)

    def rejected(deviation):
        return np.mean(np.abs(mean + deviation) / error > stats.t.isf(false_alarm / 2, n - 1))

    assert rejected(0.05) == pytest.approx(0.9, abs=0.015)
    assert rejected(0.04) < 0.75
    assert rejected(0.0) == pytest.approx(false_alarm, abs=4 * math.sqrt(false_alarm / 40_000))


@pytest.mark.parametrize("spread", [*np.geomspace(1e6, 1e9, 31), 1e18, 1e19, 1e150, math.inf, np.float64(1e300)])
def test_a_spread_however_large_needs_a_number_of_networks_or_infinitely_many(spread):
    """((z_{false alarm / 2} + z_power) spread / .05)^2, as n is large, or inf beyond 2^62."""
    size = float(stats.norm.isf([5e-4, 0.1]).sum()) * float(spread)
    for deviation in (0.05, 0.0525):
        expected = (size / deviation) * (size / deviation)
        needed = networks_needed(spread, deviation)
        assert needed == (pytest.approx(expected, rel=1e-6) if expected < 2**62 else math.inf)
    assert networks_needed(spread, math.inf, 1e-300) >= 2


def test_planner_limits_and_errors():
    assert networks_needed(0.0) == 2
    assert networks_needed(math.inf) == networks_needed(1e12) == math.inf
    assert smallest_visible_deviation(1e6, networks_needed(1e6)) == pytest.approx(0.05)
    for call, match in (
        (lambda: smallest_visible_deviation(-1.0, 10), "relative_standard_deviation"),
        (lambda: smallest_visible_deviation(math.nan, 10), "relative_standard_deviation"),
        (lambda: smallest_visible_deviation(1.0, 1), "num_networks"),
        (lambda: networks_needed(1.0, 0.0), "deviation"),
        (lambda: networks_needed(1.0, false_alarm=0.0), "false_alarm"),
        (lambda: networks_needed(1.0, power=1.0), "power"),
    ):
        with pytest.raises(ValueError, match=f"{match}: expected"):
            call()
