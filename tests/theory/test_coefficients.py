"""Operator norm coefficients against quadrature, arbitrary precision, identities and simulated Gaussian matrices."""

import math

import hypothesis
import mpmath as mp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import integrate, special

from mftadv.spec import dual_exponent
from mftadv.theory import _gaussian_norms as norms
from mftadv.theory._coefficients import (
    has_sharp_coefficient,
    operator_norm_coefficient,
    operator_norm_deviation,
)
from tests import reference

INF = math.inf
SHARP = [(1, 1), (1, 2), (1, INF), (2, 2), (2, INF), (INF, INF)]
exponents = st.one_of(st.sampled_from([1.0, 2.0, INF]), st.floats(1, 20), st.floats(20, 1e9))
dimensions = st.one_of(st.integers(1, 12), st.integers(1, 10**6))


def expected_maximum_norm(n):
    """E|g_n|_inf to 25 digits."""
    with mp.workdps(25):
        return mp.quad(lambda t: 1 - mp.erf(t / mp.sqrt(2)) ** n, [0, 0.5, 1, 2, 3, 4, 4.5, 5, 6, 8, 14])


def expected_norm_bound(n, r):
    """The bound on E|g_n|_r that "chevet" is defined with, the least exponent by a fine scan."""
    if r == 1:
        return n * mp.sqrt(2 / mp.pi)
    if r == 2:
        return mp.sqrt(2) * mp.gamma(mp.mpf(n + 1) / 2) / mp.gamma(mp.mpf(n) / 2)
    if r == INF:
        return expected_maximum_norm(n)

    def by_moment(t):
        return (n * 2 ** (t / 2) * mp.gamma((t + 1) / 2) / mp.sqrt(mp.pi)) ** (1 / t)

    if r < 2:
        return by_moment(mp.mpf(r))
    scan = [2 + (mp.mpf(r) - 2) * k / 4000 for k in range(4001)]
    best = min(scan, key=by_moment)
    width = (mp.mpf(r) - 2) / 4000
    fine = [min(max(best + width * k / 1000, mp.mpf(2)), mp.mpf(r)) for k in range(-1000, 1001)]
    return min(min(map(by_moment, fine)), mp.mpf(n) ** (1 / mp.mpf(r)) * expected_maximum_norm(n))


@pytest.mark.parametrize(
    ("p", "q", "d", "k"),
    [(1, 1, 1, 1), (2, 2, 10**6, 7), (INF, 1, 1000, 10), (1, INF, 64, 10**5), (1.5, 2.5, 30, 4), (1.1, 40, 500, 1)],
)
@pytest.mark.slow
def test_chevet_and_leading_are_as_defined(p, q, d, k):
    with mp.workdps(25):
        p_dual, q_dual = dual_exponent(p), dual_exponent(q)
        r_p = mp.mpf(d) ** (0.5 - 1 / mp.mpf(p)) if p > 2 else 1
        r_q = mp.mpf(k) ** (0.5 - 1 / mp.mpf(q_dual)) if q_dual > 2 else 1
        expected = (r_p * expected_norm_bound(k, q) + r_q * expected_norm_bound(d, p_dual)) / mp.sqrt(d)
    assert operator_norm_coefficient(p, q, d, k) == pytest.approx(float(expected), rel=1e-12)


def test_leading_orders():
    for p, q, d, k in [(2, 2, 50, 7), (1, INF, 50, 7), (INF, 1, 50, 7)]:
        leading = {1: lambda n: n * math.sqrt(2 / math.pi), 2: math.sqrt, INF: lambda n: math.sqrt(2 * math.log(2 * n))}
        r_p, r_q = d ** max(0, 0.5 - 1 / p), k ** max(0, 0.5 - 1 / dual_exponent(q))
        expected = (r_p * leading[q](k) + r_q * leading[dual_exponent(p)](d)) / math.sqrt(d)
        assert operator_norm_coefficient(p, q, d, k, "leading") == pytest.approx(expected, rel=1e-13)
    # and the leading order of the next: they meet at width
    for p, q in [(1, 1), (2, 2), (INF, 1), (3.5, 1.5)]:
        ratio = operator_norm_coefficient(p, q, 10**6, 10**5, "leading") / operator_norm_coefficient(p, q, 10**6, 10**5)
        assert 1 <= ratio < 1.02


def test_published_entries_and_where_they_are_no_bounds():
    published = {
        (1, 1): math.sqrt(2 * 9 / (math.pi * 50)),
        (1, 2): math.sqrt(3 / 50),
        (2, 2): 1.0,
        (INF, 2): math.sqrt(2 * math.log(3) / 50),
    }
    for (p, q), value in published.items():
        assert operator_norm_coefficient(p, q, 50, 3, "published") == pytest.approx(value, rel=1e-14)
    for p, q in [(1, 1), (1, 2), (INF, 2)]:
        published, sharp = (operator_norm_coefficient(p, q, 1000, 1, kind) for kind in ("published", "sharp"))
        assert published < sharp / 3
    assert operator_norm_coefficient(INF, 2, 1000, 1, "published") == 0


@pytest.mark.parametrize("r", [1.0001, 1.3, 1.999, 2.001, 3.0, 17.0, 300.0])
def test_mean_norm_of_two_coordinates(r):
    # direction and length of g are independent: E|g|_r = E|g|_2 times the mean norm of a direction
    mean, error = integrate.quad(
        lambda angle: (math.cos(angle) ** r + math.sin(angle) ** r) ** (1 / r) * 4 / math.pi,
        *(0, math.pi / 4),
        points=[math.pi / 4 - 3 / max(r, 6), math.pi / 4 - 0.5 / max(r, 6)],
        epsabs=1e-13,
        epsrel=1e-13,
    )
    assert norms.expected_norm(2, r) == pytest.approx(math.sqrt(math.pi / 2) * mean, rel=max(1e-13, 2 * error))


@pytest.mark.parametrize("n", [1, 2, 30, 1000, 10**6])
@pytest.mark.slow
def test_mean_norms_join_their_closed_forms(n):
    assert norms.expected_norm(n, INF) == pytest.approx(float(mp.mpf(expected_maximum_norm(n))), rel=1e-13)
    for r in (1.0, 2.0, INF):
        for near in (r * (1 + 1e-9), r * (1 - 1e-9)) if r < INF else (1e12,):
            if near > 1:
                # |x|_r moves by at most |x|_r ln(n) dr / r^2
                assert norms.expected_norm(n, near) == pytest.approx(norms.expected_norm(n, r), rel=1e-9 * (1 + 14))
    means = [norms.expected_norm(n, r) for r in (1, 1.2, 1.7, 2, 2.5, 4, 9, 40, 1000, INF)]
    assert n == 1 or np.all(np.diff(means) < 0)
    for r in (1.2, 1.7, 2.5, 4, 9, 40, 1000):
        assert norms.expected_norm(n, r) <= norms.jensen_bound(n, r, norms.expected_norm(n, INF)) * (1 + 1e-14)


@pytest.mark.parametrize("r", [1.3, 3.0, 8.0])
@pytest.mark.law
def test_mean_norm_against_simulation(r):
    samples = np.linalg.norm(np.random.default_rng(0).standard_normal((4000, 20)), r, axis=1)
    assert reference.agrees(samples, norms.expected_norm(20, r))
    assert not reference.agrees(samples, 1.05 * norms.expected_norm(20, r))


def test_sums_of_half_normals():
    # the l_1 ball in the plane is the l_inf ball turned: |g_2|_1 is distributed as sqrt(2) |g_2|_inf
    for count in (2, 50, 10**6):
        expected = math.sqrt(2) * norms.expected_norm(2 * count, INF)
        assert norms.expected_maximum(count, 2, 1) == pytest.approx(expected, rel=1e-12)
    # the law has the first two moments of a sum
    for n in (3, 10, 1000, 10**6):
        mean, deviation = n * math.sqrt(2 / math.pi), math.sqrt(n * (1 - 2 / math.pi))
        edges = np.linspace(max(0, mean - 7 * deviation), mean + 12 * deviation, 33)
        nodes, weights = np.polynomial.legendre.leggauss(20)
        half = np.diff(edges)[:, None] / 2
        t = (edges[:-1, None] + half * (1 + nodes)).ravel()
        tail = norms._half_normal_sum_tail(t, n) * (half * weights).ravel()
        assert edges[0] + tail.sum() == pytest.approx(mean, rel=2e-10)
        centred = (edges[0] - mean) ** 2 + 2 * (tail * (t - mean)).sum()
        assert centred == pytest.approx(deviation**2, rel=1e-5)


def test_mean_largest_singular_value():
    assert norms.expected_singular_value(2, 2) == pytest.approx(math.sqrt(math.pi), rel=1e-13)

    def of_two_rows(n):
        # singular values a > b of a 2 x n matrix: density (a b)^(n-2) (a^2 - b^2) exp(-(a^2 + b^2)/2)
        def moment(k):
            def f(b, a):
                return a**k * (a * b) ** (n - 2) * (a * a - b * b) * math.exp(-(a * a + b * b) / 2)

            return integrate.dblquad(f, 0, 14, 0, lambda a: a, epsabs=0, epsrel=1e-10)[0]

        return moment(1) / moment(0)

    for n in (3, 8):
        assert norms.expected_singular_value(2, n) == pytest.approx(of_two_rows(n), rel=1e-9)
        assert norms.expected_singular_value(n, 2) == norms.expected_singular_value(2, n)


@pytest.mark.parametrize(("m", "n"), [(128, 128), (127, 1000), (100, 10**6)])
def test_tracy_widom_continues_the_exact_law(m, n, monkeypatch):
    exact = norms.expected_singular_value(m, n)
    monkeypatch.setattr(norms, "EXACT_RANK", 0)
    limit = norms.expected_singular_value.__wrapped__(m, n)
    assert 0 < abs(limit / exact - 1) < 2e-4


@pytest.mark.parametrize(("d", "k"), [(40, 6), (6, 40), (12, 12)])
@pytest.mark.law
def test_sharp_against_simulated_matrices(d, k):
    matrices = np.random.default_rng(d).standard_normal((2000, k, d)) / math.sqrt(d)
    for p, q in SHARP:
        if p == q == 2:
            samples = np.linalg.svd(matrices, compute_uv=False)[:, 0]
        elif p == 1:
            samples = np.linalg.norm(matrices, q, axis=1).max(axis=1)
        else:
            samples = np.linalg.norm(matrices, dual_exponent(p), axis=2).max(axis=1)
        sharp = operator_norm_coefficient(p, q, d, k, "sharp")
        assert reference.agrees(samples, sharp), (p, q)
        assert not reference.agrees(samples, 1.05 * sharp), (p, q)
        assert sharp <= operator_norm_coefficient(p, q, d, k)
        for confidence in (0.5, 0.9, 0.99):
            deviation = operator_norm_deviation(p, q, d, k, confidence)
            assert np.mean(samples > sharp + deviation) <= 1 - confidence + 3 * math.sqrt(confidence / 2000)


@pytest.mark.parametrize(("p", "q"), [(INF, 1), (INF, 2), (2, 1)])
def test_chevet_bounds_the_norms_without_a_formula(p, q):
    d, k = 10, 4
    matrices = np.random.default_rng(0).standard_normal((500, k, d)) / math.sqrt(d)
    if p == INF:  # attained at a corner
        signs = 1.0 - 2 * (np.arange(2**d)[:, None] >> np.arange(d) & 1)
        samples = np.linalg.norm(matrices @ signs.T, q, axis=1).max(axis=1)
    else:  # |G|_{2->1} = max over signs y of |G^T y|_2
        signs = 1.0 - 2 * (np.arange(2**k)[:, None] >> np.arange(k) & 1)
        samples = np.linalg.norm(signs @ matrices, axis=2).max(axis=1)
    chevet = operator_norm_coefficient(p, q, d, k)
    error = samples.std() / math.sqrt(500)
    assert samples.mean() - 4 * error < chevet < 1.25 * samples.mean()
    deviation = operator_norm_deviation(p, q, d, k, 0.9)
    assert np.mean(samples > samples.mean() + deviation) < 0.1


@hypothesis.given(exponents, exponents, dimensions, dimensions)
def test_identities(p, q, d, k):
    dual = dual_exponent(q), dual_exponent(p), k, d
    has_sharp = has_sharp_coefficient(p, q, d, k)
    assert has_sharp == has_sharp_coefficient(*dual)
    kinds = ("chevet", "leading", "sharp") if has_sharp else ("chevet", "leading")
    values = {kind: operator_norm_coefficient(p, q, d, k, kind) for kind in kinds}
    for kind, value in values.items():
        assert 0 < value < INF
        # the transpose has the dual norm; p** = p only to rounding, magnified by ln n where p is huge
        transposed = operator_norm_coefficient(*dual, kind) * math.sqrt(k / d)
        assert value == pytest.approx(transposed, rel=1e-7 if max(p, q) < INF and max(p, q) > 1e4 else 1e-11)
    assert operator_norm_deviation(p, q, d, k, 0.9) == pytest.approx(
        operator_norm_deviation(*dual, 0.9) * math.sqrt(k / d), rel=1e-6
    )
    if has_sharp:
        assert values["sharp"] <= values["chevet"] * (1 + 1e-12)


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("p", [1, 1.4, 2, 5, INF])
def test_one_row_or_one_column_is_a_vector(p, n):
    mean = norms.expected_norm(n, dual_exponent(p))
    for other in (1, 1.7, 2, 6, INF):
        row = operator_norm_coefficient(p, other, n, 1, "sharp")
        column = operator_norm_coefficient(other, dual_exponent(p), 1, n, "sharp")
        assert row == pytest.approx(mean / math.sqrt(n), rel=1e-13)
        assert column == pytest.approx(mean, rel=1e-13)


def test_deviation_is_the_lipschitz_constant():
    rate = math.sqrt(2 * math.log(20))
    for p, q, d, k in [(INF, 1, 6, 3), (4, 1.5, 6, 3), (2, 2, 6, 3), (1, INF, 6, 3), (3, 3, 1, 1)]:
        lipschitz = operator_norm_deviation(p, q, d, k, 0.95) * math.sqrt(d) / rate
        # |y x^T|_{p->q} = |y|_q |x|_p* is at most this much of its Frobenius norm |x|_2 |y|_2, and attains it
        ones_x, ones_y, unit_x, unit_y = np.ones(d), np.ones(k), np.eye(d)[0], np.eye(k)[0]
        ratios = [
            np.linalg.norm(x, dual_exponent(p)) * np.linalg.norm(y, q) / np.linalg.norm(x) / np.linalg.norm(y)
            for x in (ones_x, unit_x)
            for y in (ones_y, unit_y)
        ]
        assert lipschitz == pytest.approx(max(ratios), rel=1e-12)


def test_deviation_holds_and_has_the_right_rate():
    mean = operator_norm_coefficient(2, 2, 1, 1, "sharp")
    for log_delta in (-0.1, -1, -5, -30):
        deviation = operator_norm_deviation(2, 2, 1, 1, -math.expm1(log_delta))
        assert special.erfc((mean + deviation) / math.sqrt(2)) < math.exp(log_delta)
    assert special.erfc((mean + 0.85 * deviation) / math.sqrt(2)) > math.exp(log_delta)


def test_dimensions():
    # at a fixed mean square of the input: smaller with d for p = 1, constant for p = 2, sqrt(d) for p = inf
    for kind in ("chevet", "sharp"):
        ratio = {p: operator_norm_coefficient(p, INF, 10**6, 3, kind) for p in (1, 2, INF)}
        smaller = {p: operator_norm_coefficient(p, INF, 10**4, 3, kind) for p in (1, 2, INF)}
        assert ratio[1] < smaller[1] / 5
        assert ratio[2] == pytest.approx(smaller[2], rel=0.03)
        assert ratio[INF] == pytest.approx(10 * smaller[INF], rel=0.03)
    for p in (1, 1.5, 2, 3, INF):
        for q in (1, 1.5, 2, 3, INF):
            assert np.all(np.diff([operator_norm_coefficient(p, q, 50, k) for k in range(1, 20)]) > 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"p": 0.5}, r"p: expected .*got 0\.5"),
        ({"q": math.nan}, "q: expected .*got nan"),
        ({"input_dim": 0}, "input_dim: expected a positive integer, got 0"),
        ({"output_dim": 2.0}, "output_dim: expected a positive integer, got 2.0"),
        ({"kind": "best"}, "kind: expected one of chevet, sharp, leading, published, got 'best'"),
        ({"p": 3, "kind": "published"}, "p, q: expected .*published"),
        ({"p": INF, "kind": "sharp"}, "chevet"),
        ({"p": 1, "q": 3, "kind": "sharp"}, "chevet"),
    ],
)
def test_errors(change, match):
    arguments = {"p": 2, "q": 2, "input_dim": 5, "output_dim": 4} | change
    with pytest.raises(ValueError, match=match):
        operator_norm_coefficient(**arguments)
    if "kind" not in change:
        with pytest.raises(ValueError, match=match):
            has_sharp_coefficient(**arguments)
        with pytest.raises(ValueError, match=match):
            operator_norm_deviation(**arguments, confidence=0.9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("confidence", [0, 1, 1.5, math.nan, "0.9", None])
def test_confidence_errors(confidence):
    with pytest.raises(ValueError, match="confidence: expected a number in"):
        operator_norm_deviation(2, 2, 5, 4, confidence)
