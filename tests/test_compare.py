"""Verdicts: their meaning case by case, and the family error and power of a table by simulation."""

import dataclasses
import functools
import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mftadv.compare import Claim, judge
from mftadv.statistics import (
    LawTest,
    kurtosis_estimate,
    law_test,
    mean_estimate,
    networks_needed,
    pair_correlation_estimate,
    ratio_estimate,
)

HOLDS, FAILS, PREDICTED, UNDERPOWERED = "holds", "fails", "fails, as predicted", "underpowered"


def claim(theory=2.0, measured=2.0, error=0.01, freedom=999.0, **options):
    return Claim("q", theory, measured, error, freedom, **options)


def verdict(*claims, **options):
    return judge(claims, **options)[0].verdict


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (claim(measured=2.01), HOLDS),
        (claim(measured=2.1), FAILS),
        (claim(measured=1.9), FAILS),
        (claim(measured=2.1, error=0.05), UNDERPOWERED),
        (claim(measured=3.0, error=0.05), FAILS),
        # an allowance is taken off the difference, and hides what is smaller than it
        (claim(measured=2.05, allowance=0.02), HOLDS),
        (claim(measured=2.05, allowance=0.005), FAILS),
        (claim(measured=2.01, allowance=0.06), UNDERPOWERED),
        (claim(measured=2.3, allowance=0.06), FAILS),
        # a published row that is known to be wrong
        (claim(measured=3.0, expected="fails"), PREDICTED),
        (claim(measured=2.01, expected="fails"), HOLDS),
        (claim(measured=2.01, error=0.5, expected="fails"), UNDERPOWERED),
        # bounds are one-sided, and comfortable ones need no precision
        (claim(measured=1.0, kind="at_most"), HOLDS),
        (claim(measured=1.0, error=0.2, kind="at_most"), HOLDS),
        (claim(measured=1.9, error=0.2, kind="at_most"), UNDERPOWERED),
        (claim(measured=1.0, error=0.2, skewness=0.3, kind="at_most"), UNDERPOWERED),
        (claim(measured=2.1, kind="at_most"), FAILS),
        (claim(measured=2.1, kind="at_most", allowance=0.04), HOLDS),
        (claim(measured=2.1, kind="at_most", expected="fails"), PREDICTED),
        (claim(measured=-5.0, error=0.2, kind="at_most"), HOLDS),
        # exact statements, with nothing that could vary
        (claim(0.0, 0.0, 0.0), HOLDS),
        (claim(0.0, 0.0, 0.0, freedom=0), HOLDS),
        (claim(0.0, 1e-12, 0.0), FAILS),
        (claim(0.0, 1e-12, 0.0, allowance=1e-9, scale=1.0), HOLDS),
        (claim(2.0, 1.0, 0.0, kind="at_most"), HOLDS),
        (claim(2.0, 2.0 + 1e-12, 0.0, kind="at_most"), FAILS),
        # a zero is judged against the scale it is given, and has none of its own
        (claim(0.0, 0.01, 0.01, scale=2.0), HOLDS),
        (claim(0.0, 0.01, 0.01), UNDERPOWERED),
        # what is not finite never holds
        (claim(nonfinite=1), FAILS),
        (claim(nonfinite=1, expected="fails"), FAILS),
        (claim(measured=1.0, kind="at_most", nonfinite=3), FAILS),
        (claim(measured=math.nan), UNDERPOWERED),
        (claim(measured=math.nan, nonfinite=1, expected="fails"), FAILS),
        (claim(theory=math.inf, measured=1.0, kind="at_most"), FAILS),
        (claim(error=math.nan, freedom=0), UNDERPOWERED),
        (claim(error=math.inf), UNDERPOWERED),
        (claim(error=math.inf, measured=0.0, kind="at_most"), UNDERPOWERED),
        # the distance of a law, by its number of draws
        (Claim("law", 0.0, 0.005, math.nan, 9_999, kind="distance"), HOLDS),
        (Claim("law", 0.0, 0.06, math.nan, 9_999, kind="distance"), FAILS),
        (Claim("law", 0.0, 0.025, math.nan, 39_999, kind="distance", allowance=0.02), HOLDS),
        (Claim("law", 0.0, 0.05, math.nan, 499, kind="distance"), UNDERPOWERED),
        (Claim("law", 0.0, 0.05, math.nan, 499, kind="distance", scale=4.0), HOLDS),
    ],
)
def test_verdicts(subject, expected):
    got = judge([subject])[0]
    assert got.verdict == expected
    assert got.claim is subject
    # a table around it changes levels, not meaning
    assert judge([claim(), subject, claim()], family_error=3e-3)[1].verdict == expected


def test_the_numbers_of_a_judgement():
    got = judge([claim(2.0, 2.05, 0.01, allowance=0.01), claim(2.0, 1.9, 0.01, kind="at_most")], 0.01)
    assert [j.ratio for j in got] == pytest.approx([1.025, 0.95])
    assert [j.z for j in got] == pytest.approx([3.0, -10.0])
    assert got[0].p_value == pytest.approx(2 * stats.t.sf(3.0, 999))
    assert got[1].p_value == pytest.approx(1.0)
    visible = (stats.t.isf(0.0025, 999) + stats.t.isf(0.1, 999)) * 0.01 + 0.02
    assert got[0].smallest_visible == pytest.approx(visible / 2)
    assert judge([claim(2.0, 1.9, 0.01)])[0].z == pytest.approx(-10)
    assert judge([claim(2.0, 2.01, 0.01, allowance=0.01)])[0].z == 0
    assert math.isnan(judge([claim(0.0, 1.0, 1.0, scale=1.0)])[0].ratio)


def test_skewness_is_halls_transformation_where_it_is_the_more_cautious():
    gamma, t = 0.2, -4.0
    low, high = judge([claim(0.0, sign * t, 1.0, math.inf, skewness=gamma, scale=1.0) for sign in (1, -1)])
    assert low.z == pytest.approx(t + gamma * t**2 / 3 + gamma**2 * t**3 / 27 + gamma / 6)
    assert high.z == -t
    # the deviation it can see is where the discounted t reaches the level
    wide = 20 * low.smallest_visible
    assert judge([claim(0.0, -wide, 1.0, math.inf, skewness=gamma, scale=1.0)])[0].verdict == FAILS
    edge = low.smallest_visible - stats.norm.isf(0.1)
    at_edge = judge([claim(0.0, -edge, 1.0, math.inf, skewness=gamma, scale=1.0)])[0]
    assert at_edge.p_value == pytest.approx(1e-3 / 2, rel=1e-6)


def test_holm_by_its_definition():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.standard_normal(8), [3.0, 3.34, 3.5, 4.5, math.nan]])
    judged = judge([claim(0.0, value, 1.0, math.inf, scale=1.0) for value in z], 0.01)
    p = 2 * stats.norm.sf(np.abs(z))
    rejected, order = set(), np.argsort(p)
    for k, i in enumerate(order):
        if not p[i] <= 0.01 / (len(z) - k):
            break
        rejected.add(i)
    assert {i for i, j in enumerate(judged) if j.adjusted_p_value <= 0.01} == rejected
    # Holm's second step rejects what Bonferroni would not
    assert sum(p <= 0.01 / len(z)) < len(rejected)
    shuffled = rng.permutation(len(z))
    again = judge([judged[i].claim for i in shuffled], 0.01)
    assert [j.verdict for j in again] == [judged[i].verdict for i in shuffled]


def test_claims_of_estimates():
    sample = np.random.default_rng(1).standard_normal(500)
    estimate, test = mean_estimate(np.append(sample, np.nan)), law_test(sample, 1.0, 3.0)
    got = Claim.of("mean", 0.0, estimate, scale=1.0, note="n")
    assert (got.measured, got.standard_error) == (estimate.value, estimate.standard_error)
    assert (got.degrees_of_freedom, got.skewness) == (estimate.degrees_of_freedom, estimate.skewness)
    assert (got.nonfinite, got.note) == (1, "n")
    law = judge([Claim.of("law", 0.0, test, allowance=0.01, reason="width")])[0]
    assert law.p_value == pytest.approx(stats.kstwo.sf(test.distance - 0.01, 500))
    assert judge([Claim.of("law", 0.0, test)])[0].p_value == pytest.approx(test.p_value)
    assert judge([Claim.of("law", 0.0, LawTest(0.2, 0.0, 0.2, 500, 0))])[0].verdict == FAILS


@pytest.mark.usefixtures("unchecked")
def test_records_are_json():
    table = judge([claim(jnp.float32(2)), claim(0.0, np.float32(1), 0.0), claim(measured=math.nan, reason="r")])
    records = json.loads(json.dumps([j.as_dict() for j in table], allow_nan=False))
    assert [r["verdict"] for r in records] == [HOLDS, FAILS, UNDERPOWERED]
    assert records[0]["theory"] == 2.0
    assert records[1]["z"] is None
    assert records[1]["ratio"] is None
    assert records[2]["measured"] is None
    assert records[2]["reason"] == "r"
    assert judge([]) == ()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: claim(kind="above"), "kind"),
        (lambda: claim(expected="maybe"), "expected"),
        (lambda: claim(error=-1.0), "standard_error"),
        (lambda: claim(allowance=-0.1), "allowance"),
        (lambda: claim(scale=-1.0), "scale"),
        (lambda: judge([claim()], family_error=0.0), "family_error"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=f"{match}: expected"):
        call()


def table(rng, n, wrong=1.0, spreads=types.MappingProxyType({})):
    """Ten claims on n networks of 16 entries sharing a lognormal scale; all true but for the factor on the second."""
    f, w = 1.1, math.log(1.1)
    entries = np.exp((np.sqrt(w) * rng.standard_normal((n, 1)) - w / 2) / 2) * rng.standard_normal((n, 16))
    along = entries.sum(axis=1) / 4
    shift, norm = rng.standard_normal((n, 2)) ** 2, np.abs(entries).max(axis=1)
    claims = [
        Claim.of("mean", 0.0, mean_estimate(entries), scale=1.0),
        Claim.of("variance", wrong, mean_estimate(entries**2)),
        Claim.of("kurtosis", 3 * f, kurtosis_estimate(entries)),
        Claim.of("pairs", 0.0, pair_correlation_estimate(entries), scale=1.0),
        Claim.of("along", 1.0, ratio_estimate(along**2, entries**2)),
        Claim.of("shift", 1.0, mean_estimate(shift[:, 0])),
        Claim.of("other shift", 1.0, mean_estimate(shift[:, 1])),
        Claim.of("entry", 1.0, mean_estimate(entries[:, 0] ** 2)),
        Claim.of("law", 0.0, law_test(entries[:, 0], 1.0, 3 * f)),
        Claim.of("bound", 16 * math.sqrt(2 / math.pi), mean_estimate(norm), kind="at_most"),
    ]
    return [dataclasses.replace(c, predicted_error=spreads.get(c.quantity, 0.0) / math.sqrt(n)) for c in claims]


@functools.cache
def spreads():
    """The standard deviation of one network's value, quantity by quantity: what a theory predicts."""
    n = 20_000
    claims = table(np.random.default_rng(1), n)
    return {c.quantity: c.standard_error * math.sqrt(n) for c in claims if c.kind != "distance"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.law
def test_a_table_of_true_claims_keeps_its_family_error():
    rng, repetitions, level = np.random.default_rng(2), 500, 0.05
    tables = [table(rng, 600, spreads=spreads()) for _ in range(repetitions)]

    def rate(theory, tables):
        altered = [[dataclasses.replace(c, theory=theory(c)) for c in t] for t in tables]
        return np.mean([any(j.verdict == FAILS for j in judge(t, level)) for t in altered])

    limit = stats.binom.isf(1e-4, repetitions, level) / repetitions
    assert rate(lambda c: c.theory, tables) <= limit
    assert rate(lambda c: 1.05 * c.theory, tables[:100]) > 3 * limit


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [1.05, 0.95])
@pytest.mark.slow
def test_a_claim_that_is_five_percent_wrong_is_caught_with_the_planned_networks(wrong):
    rng, repetitions, level = np.random.default_rng(3), 120, 1e-3
    spread = math.sqrt(1.1 * (1 + 2 / 16) - 1)
    n = networks_needed(spread, 0.05, level / 10, 0.9)
    tables = [[j.verdict for j in judge(table(rng, n, wrong), level)] for _ in range(repetitions)]
    caught = np.mean([verdicts[1] == FAILS for verdicts in tables])
    # 0.9 less the noise of 120 tables, and the skewness the plan leaves out
    assert caught > 0.78
    assert sum(v == FAILS for verdicts in tables for k, v in enumerate(verdicts) if k != 1) <= 2
    few = [judge(table(rng, n // 4, wrong), level)[1].verdict for _ in range(40)]
    assert np.mean([v == UNDERPOWERED for v in few]) > 0.7
