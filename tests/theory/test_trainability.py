"""The largest trainable depth against a scan of all depths and against its asymptotes."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mftadv.spec import NetworkSpec
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._evolution import weight_variance
from mftadv.theory._kernel import validity_horizon
from mftadv.theory._trainability import deepest, max_trainable_depth

EPS = 0.1
RATE = EPS * operator_norm_coefficient(2, 2, 10, 1) / 100  # kappa, for alpha = 1/2


def depth_of(omega, elapsed, lower, upper, block="vanilla", **options):
    """The deepest trainable ReLU network from omega_0, at kappa T = elapsed."""
    spec = NetworkSpec(10, 1, 100, 7, weight_variance=2 * (omega - (block != "vanilla")), block=block)
    return deepest(spec, EPS, 2, 2, elapsed / RATE, lower, upper, **options)[0]


def scan(omega, elapsed, lower, upper, linearised=False, deepest=10**6):
    """The same by trying every vanilla depth, and whether a depth beyond the answer passes again."""
    depth, start = np.arange(1.0, deepest + 1), np.log(omega)
    m = depth / 2 - 1
    with np.errstate(all="ignore"):
        if linearised:
            final = start - elapsed * omega**m
        else:
            final = -np.logaddexp(-m * start, np.log(m * elapsed)) / m
            final[:2] = 2 * np.log(max(0.0, omega**0.5 - elapsed / 2)), start - elapsed
        passes = (depth * final >= np.log(lower)) & (depth * start <= np.log(upper))
    answer = deepest if passes.all() else int(np.argmin(passes))
    return answer, bool(passes[answer:].any())


@settings(max_examples=300)
@given(
    shift=st.tuples(st.sampled_from([-1, 0, 1]), st.floats(-5, 0.5)),
    elapsed=st.floats(-5, 2).map(lambda x: 10**x),
    lower=st.floats(-1, 2).map(lambda x: math.exp(-(10**x))),
    upper=st.floats(-1, 2.5).map(lambda x: math.exp(10**x)),
    linearised=st.booleans(),
)
@pytest.mark.slow
def test_against_all_depths(shift, elapsed, lower, upper, linearised):
    omega = math.exp(shift[0] * 10 ** shift[1])
    actual = depth_of(omega, elapsed, lower, upper, linearised=linearised)
    # to either side of the limits, which a depth may meet to rounding
    least, most = (scan(omega, elapsed, lower * x, upper / x, linearised, 30_000)[0] for x in (1 + 1e-9, 1 - 1e-9))
    assert least <= min(actual, 30_000) <= most


@pytest.mark.parametrize(
    ("omega", "elapsed", "log_lower", "linearised", "passes_again"),
    [
        (1.0, 1.9, -5.75, False, True),  # one layer loses e^-6, two e^-3.8
        (4000.0, 100.0, -100.0, False, True),  # two lose e^-183, three e^-23
        (1.0, 1.9, -6.5, False, False),
        (0.999, 0.05, -20.0, True, True),  # the linearised decline is largest at depth 2,114, and least at 10,779
        (0.999, 0.05, -34.0, True, True),
        (0.999, 0.05, -38.0, True, True),
        (0.999, 0.005, -15.0, True, False),
    ],
)
def test_where_the_decline_is_not_monotone(omega, elapsed, log_lower, linearised, passes_again):
    expected, again = scan(omega, elapsed, math.exp(log_lower), math.inf, linearised)
    assert again == passes_again
    assert depth_of(omega, elapsed, math.exp(log_lower), math.inf, linearised=linearised) == expected


@pytest.mark.slow
def test_against_the_weight_variance():
    """omega(t)^L on a grid of times, for each depth in turn."""
    t = jnp.linspace(0.0, 0.08 / RATE, 9)

    def passes(depth):
        spec = NetworkSpec(10, 1, 100, depth, weight_variance=2.02)
        powers = (weight_variance(spec, t, EPS, 2, 2) / 2) ** depth
        return bool(jnp.all((powers >= 0.5) & (powers <= 3)))

    with jax.enable_x64(True):
        expected = next(depth for depth in range(1, 100) if not passes(depth)) - 1
    assert 5 < expected < 98
    assert depth_of(1.01, 0.08, 0.5, 3) == expected


@pytest.mark.parametrize("elapsed", [1e-6, 1e-9, 1e-18])
def test_deep_networks(elapsed):
    """2 (lower^{-1/2} - 1) / (kappa T) and, linearised, ln(1 / lower) / (kappa T); at any depth within a second."""
    before = time.process_time()
    exact, linearised = (depth_of(1.0, elapsed, 0.5, 2, linearised=linear) for linear in (False, True))
    assert time.process_time() - before < 1
    assert isinstance(exact, int)
    assert exact == pytest.approx(2 * (2**0.5 - 1) / elapsed, rel=1e-5)
    assert linearised == pytest.approx(math.log(2) / elapsed, rel=1e-12, abs=1)


def test_depth_is_proportional_to_width():
    depths = [deepest(NetworkSpec(10, 1, n, 1), EPS, 2, 2, 1.0, 0.5, 2)[0] for n in (10**4, 10**5)]
    assert depths[1] == pytest.approx(10 * depths[0], rel=1e-3)


@pytest.mark.parametrize("block", ["residual", "signed"])
def test_shortcuts_meet_the_upper_limit_alone(block):
    """ln(upper) / ln(1 + A), whatever the horizon: A <= upper^{1/L} - 1 trains L layers."""
    for elapsed in (0.0, 1.0, 1e9):
        assert depth_of(1.25, elapsed, 1.0, 10, block) == math.floor(math.log(10) / math.log(1.25))
    assert depth_of(1 + 2.0**-30, 1.0, 1.0, math.e, block) == 2**30
    assert depth_of(1.25, 1.0, 1.0, math.inf, block) == math.inf
    assert depth_of(1.0, 1.0, 1.0, 1.0, block) == math.inf


@pytest.mark.slow
def test_warns_where_the_closed_form_is_used_beyond_its_validity():
    spec = NetworkSpec(10, 1, 100, 1)
    short, lower = 1e-6 / RATE, 1 - 3e-6
    depth = max_trainable_depth(spec, EPS, 2, 2, short, lower, 2)
    assert (depth, True) == (3, True) == deepest(spec, EPS, 2, 2, short, lower, 2)
    assert short < validity_horizon(spec.replace(depth=depth + 1), EPS, 10**0.5)
    with pytest.warns(UserWarning, match=r"horizon: T = 65\.2 is \S+ times the validity_horizon") as caught:
        depth = max_trainable_depth(spec, EPS, 2, 2, 0.08 / RATE, 0.5, 2)
    assert f"at depth {depth + 1}. Depth {depth + 1} fails" in str(caught[0].message)
    # by growth, with a shortcut, or without an attack, no decay is used
    assert max_trainable_depth(spec.replace(weight_variance=2.5), EPS, 2, 2, 1e9, 0.0, 10) == 10
    assert max_trainable_depth(spec.replace(block="signed"), EPS, 2, 2, 1e9, 0.5, 10) == 3
    assert max_trainable_depth(spec, 0.0, 2, 2, 1e9, 0.5, 10) == math.inf
    with pytest.warns(UserWarning, match=r"is inf times the validity_horizon of the closed form, 0 at depth"):
        depth = max_trainable_depth(spec.replace(weight_variance=2000.0), EPS, 2, 2, 0.08 / RATE, 0.5, math.inf)
    assert depth == scan(1000.0, 0.08, 0.5, math.inf)[0]


def test_extremes():
    assert depth_of(1.0, 0.0, 1.0, 1.0) == math.inf
    assert depth_of(1.0, 1e9, 0.0, 1.0) == math.inf
    assert depth_of(1.0, 1e9, 5e-324, 1.0) == 0
    assert depth_of(1.5, 0.0, 1.0, 1.4) == 0
    assert depth_of(0.5, 0.0, 0.2, 1.0) == 2
    for linearised in (False, True):
        assert depth_of(0.0, 1.0, 0.1, 1.0, linearised=linearised) == 0
        assert depth_of(0.0, 1.0, 0.0, 1.0, linearised=linearised) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": -1.0}, "horizon: expected a finite number >= 0, got -1.0"),
        ({"eps": -1.0}, "eps: expected a finite number >= 0, got -1.0"),
        ({"lower": 1.5}, "lower, upper: expected 0 <= lower <= 1 <= upper, got 1.5 and 2.0"),
        ({"upper": 0.5}, "lower, upper: expected 0 <= lower <= 1 <= upper, got 0.5 and 0.5"),
        ({"kind": "other"}, "kind: expected"),
    ],
)
def test_rejects(arguments, message):
    defaults = {"eps": 0.1, "p": 2, "q": 2, "horizon": 1.0, "lower": 0.5, "upper": 2.0}
    with pytest.raises(ValueError, match=message):
        max_trainable_depth(NetworkSpec(10, 1, 100, 1), **{**defaults, **arguments})
