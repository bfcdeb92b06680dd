"""Verdicts of whole tables: their rate of false alarms at few and narrow networks, and on numbers that broke down."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from mftadv import theory
from mftadv.compare import Claim, find, judge
from mftadv.experiments import jacobian_law, loss_bounds
from mftadv.spec import NetworkSpec
from mftadv.statistics import kurtosis_estimate, law_test, mean_estimate, pair_square_estimate
from mftadv.sweep import Cell
from tests import reference

SPEC = NetworkSpec(input_dim=6, output_dim=1, width=10, depth=3, bias_variance=0.1)
X = np.resize([1.0, -0.5], SPEC.input_dim)


CLOSED_FORMS = {
    name: functools.cache(function)
    for name in theory.__all__
    if callable(function := getattr(theory, name)) and not isinstance(function, type)
}


@pytest.fixture(autouse=True)
def closed_forms_once(monkeypatch):
    """The closed forms of equal arguments, computed once: every table wants the same ones."""
    for name, function in CLOSED_FORMS.items():
        monkeypatch.setattr(theory, name, function)


@functools.cache
def networks(spec=SPEC, n=20_000):
    """What is stored of n networks with one output, at X."""

    def flat(nets):
        jacobian, shift = reference.linear_representation(nets, X)
        return np.concatenate([jacobian, shift[..., None]], axis=2)

    draws = reference.simulate(flat, 21, spec, n)
    rows, shift = draws[..., :-1], draws[..., -1]
    norms = {
        f"norm_{name}_2": np.linalg.norm(rows[:, 0], dual, axis=1)
        for name, dual in (("1", math.inf), ("2", 2), ("inf", 1))
    }
    return {"entries": rows, "along": rows @ X / np.linalg.norm(X), "shift": shift, **norms}


def claims_at(spec, sample):
    return jacobian_law.claims_at(spec, jacobian_law.predictions(spec), X, sample, {"input": 0})


def tables(n, repetitions, spec=SPEC):
    """The claims that should hold, over disjoint sets of n networks."""
    sample = networks(spec)
    for i in range(repetitions):
        part = {name: values[i * n : (i + 1) * n] for name, values in sample.items()}
        yield [claim for claim in claims_at(spec, part) if claim.expected == "holds"]


def fails(claims, level):
    return any(judged.verdict == "fails" for judged in judge(claims, level))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [2, 3, 5, 10, 30, 200])
@pytest.mark.law
def test_tables_of_few_narrow_networks_keep_their_family_error(n):
    repetitions, level = 60, 0.05
    drawn = list(tables(n, repetitions))
    limit = stats.binom.isf(1e-4, repetitions, level)
    assert sum(fails(claims, level) for claims in drawn) <= limit
    if n <= 30:  # with the errors of the sample alone, and its skewness at face value, they do not
        plain = [[_replace(claim, predicted_error=0.0, skewness_error=0.0) for claim in claims] for claims in drawn]
        assert sum(fails(claims, level) for claims in plain) > limit
    if n == 200:  # a theory that is off by a factor still fails
        wrong = [[_replace(claim, theory=3 * claim.theory) for claim in claims] for claims in drawn]
        assert sum(fails(claims, level) for claims in wrong) > 0.8 * repetitions


def _replace(claim, **changes):
    return Claim(**{**{name: getattr(claim, name) for name in claim.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    "estimate", [kurtosis_estimate, pair_square_estimate, lambda entries: mean_estimate(entries**2)]
)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [2, 5, 20, 200])
@pytest.mark.law
def test_estimates_without_a_predicted_error_are_judged_with_care(estimate, n):
    rng, repetitions, level, factor = np.random.default_rng(22), 300, 1e-2, 4 / 3
    scales = np.exp((math.sqrt(math.log(factor)) * rng.standard_normal((repetitions, n, 1)) - math.log(factor) / 2) / 2)
    entries = scales * rng.standard_normal((repetitions, n, 4))
    true = {kurtosis_estimate: 3 * factor, pair_square_estimate: factor}.get(estimate, 1.0)
    claims = [Claim.of("q", true, estimate(table)) for table in entries]
    limit = stats.binom.isf(1e-4, repetitions, level)
    assert sum(judged.p_value <= level for judged in judge(claims)) <= limit
    plain = [_replace(claim, skewness_error=0.0) for claim in claims]
    if n == 5:
        assert sum(judged.p_value <= level for judged in judge(plain)) > limit


@pytest.mark.slow
def test_the_law_of_an_entry_of_narrow_networks_holds():
    factor = float(theory.finite_width_factor(SPEC))
    verdicts = []
    for claims in tables(5000, 4):
        (law,) = [claim for claim in claims if claim.id == "jacobian_law"]
        verdicts += [judged.verdict for judged in judge(claims) if judged.claim is law]
    assert verdicts == ["holds"] * 4
    entry = networks()["entries"][:5000, 0, 0]
    variance = float(theory.jacobian_variance(SPEC))
    options = {"allowance": law.allowance, "reason": law.reason}
    for kurtosis, skewness in ((6 * factor, theory.log_scale_skewness(SPEC)), (3.0, 0.0)):
        wrong = Claim.of("law", 0.0, law_test(entry, variance, kurtosis, skewness), **options)
        assert judge([wrong])[0].verdict == "fails"


# --- numbers that broke down -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_jacobian_that_came_out_zero_holds_nothing():
    sample = {name: np.zeros_like(values) for name, values in networks().items()} | {"shift": networks()["shift"]}
    judged = judge(claims_at(SPEC, sample))
    of_shift = {"shift_mean", "shift_variance"}
    assert {j.verdict for j in judged if j.claim.id not in of_shift} <= {"fails", "underpowered"}
    assert [j.verdict for j in find(judged, "jacobian_variance")] == ["fails"]
    assert [j.verdict for j in find(judged, "norm_chevet", p=2.0, q=2.0)] == ["underpowered"]
    # while a shift that is 0 for want of a bias is as it should be
    spec = NetworkSpec(input_dim=6, output_dim=1, width=10, depth=3)
    judged = judge(claims_at(spec, {**networks(), "shift": np.zeros_like(networks()["shift"])}))
    assert [j.verdict for j in find(judged, "shift_variance")] == ["holds"]


@pytest.mark.parametrize(
    ("eps", "dtype", "verdict"),
    [
        (1e-30, np.float32, "underpowered"),
        (1e-43, np.float32, "underpowered"),
        (0.1, np.float32, "holds"),
        (1e-30, np.float64, "holds"),
    ],
)
@pytest.mark.slow
def test_a_loss_that_its_float_type_cannot_hold_says_nothing_of_a_bound(eps, dtype, verdict):
    spec = NetworkSpec(input_dim=6, output_dim=1, width=1000, depth=2, weight_variance=2e-4)
    predicted = loss_bounds.predictions(spec, X[None], eps, 2.0, 2.0)
    shape = (64, 1)
    loss = 0.8 * predicted["sharp"] * (1 + 0.1 * np.random.default_rng(23).standard_normal(shape))
    sample = {"loss": loss.astype(dtype), "nonfinite": np.zeros(shape, bool)}
    coords = {"p": 2.0, "q": 2.0, "eps": eps, "d": 6, "K": 1}
    claims = loss_bounds.claims_of(spec, predicted, sample, dtype, coords)
    assert {judged.verdict for judged in judge(claims)} == {verdict}


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(6, 1, 20, 3, 1e-140, 1e-300),
        NetworkSpec(6, 1, 20, 3, 1e140, 1e-300),
        NetworkSpec(6, 2, 20, 3, 1e-140, 1e-300, block="signed"),
        NetworkSpec(6, 2, 20, 3, 2.0, 1e300, 1e100),
        NetworkSpec(6, 2, 100, 20_000, 2.0, 0.1),
    ],
)
@pytest.mark.slow
def test_laws_beyond_the_floating_point_numbers_are_judged(spec):
    """omega^L or a kurtosis is 0 or inf in float64: no claim that needs it holds."""
    rng, K = np.random.default_rng(24), spec.output_dim
    norms = {jacobian_law.norm_name(*pair): np.abs(rng.standard_normal(12)) for pair in jacobian_law.norm_pairs(spec)}
    rows = rng.standard_normal((12, K, 6))
    sample = {"entries": rows, "along": rows @ X, "shift": rng.standard_normal((12, K)), **norms}
    judged = judge(claims_at(spec, sample))
    assert {j.verdict for j in judged if not j.claim.id.startswith("norm")} <= {"fails", "underpowered"}
    assert [j.verdict for j in find(judged, "jacobian_law")] == ["underpowered"]
    cell = Cell({}, spec, (X[None],), jacobian_law.Statistic("dense", 2, ()))
    assert all(needed >= 2 for needed in jacobian_law.JacobianLaw().resolution(cell).values())
    predicted = loss_bounds.predictions(spec, X[None], 0.1, 2.0, 2.0)
    ones = {"loss": np.ones((12, 1)), "nonfinite": np.zeros((12, 1), bool)}
    coords = {"p": 2.0, "q": 2.0, "eps": 0.1, "d": 6, "K": K}
    assert (
        "holds" not in {j.verdict for j in judge(loss_bounds.claims_of(spec, predicted, ones, np.float64, coords))}
        or predicted["chevet"] > 1
    )
