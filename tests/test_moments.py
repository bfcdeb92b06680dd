"""Moments: two passes, merging, counting; against scipy in float64."""

import dataclasses
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from mftadv.statistics import Moments, merge, moments, to_host

FIELDS = [field.name for field in dataclasses.fields(Moments)]
PROPERTIES = ("variance", "standard_error", "variance_standard_error")
EVERYTHING = [name for name in (*FIELDS, *PROPERTIES) if name != "residual"]  # which is rounding

# Compiled once a shape: run eagerly, each operation would be a program of its own.
moments_on_device, merge_on_device = jax.jit(moments), jax.jit(merge)
ON_DEVICE = pytest.param(moments_on_device, merge_on_device, jnp.asarray, id="device")
ON_HOST = pytest.param(moments, merge, np.asarray, id="host")


@jax.jit
def described_on_device(m):
    return {name: getattr(m, name) for name in EVERYTHING}


def described(m):
    """Fields and properties by name."""
    on_device = isinstance(m.mean, jax.Array)
    return (described_on_device if on_device else described_on_device.__wrapped__)(m)


def draws(n=101, shape=(3,), seed=0, dtype=np.float64):
    return np.random.default_rng(seed).gamma(2.0, size=(n, *shape)).astype(dtype)


def assert_close(got, expected, rtol):
    got, expected = described(got), described(expected)
    for name in EVERYTHING:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, err_msg=name)


def reference(values):
    """The definitions, by scipy."""
    return {
        "mean": values.mean(0),
        "variance": values.var(0, ddof=1),
        "standard_error": stats.sem(values),
        "skewness": stats.skew(values),
        "kurtosis": stats.kurtosis(values, fisher=False),
        "deviation": values.std(0),
    }


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("moments", "merge", "convert"), [ON_HOST, ON_DEVICE])
@pytest.mark.slow
def test_definitions(shape, moments, merge, convert):
    values, rtol = draws(shape=shape), 1e-12 if convert is np.asarray else 2e-5
    got = described(moments(convert(values)))
    for name, expected in reference(values).items():
        np.testing.assert_allclose(got[name], expected, rtol=rtol, err_msg=name)
        assert got[name].shape == shape
        assert not np.allclose(got[name], 1.05 * expected, rtol=rtol)
    assert np.all(got["count"] == 101)
    assert np.all(got["nonfinite"] == 0)


def test_standard_error_of_the_variance():
    sample = np.random.default_rng(1).gamma(2.0, size=(200, 4000))
    got = moments(sample)
    # over 4000 repetitions; the estimate itself is noisy and a little low, as the fourth moment is
    ratio = np.sqrt(np.mean(got.variance_standard_error**2)) / got.variance.std()
    assert abs(ratio - 1) < 0.04
    assert not abs(1.05 * ratio - 1) < 0.04


@pytest.mark.slow
def test_an_offset_of_ten_thousand_standard_deviations_in_float32():
    values = (1e4 + np.random.default_rng(2).standard_normal(20_000)).astype(np.float32)
    exact = reference(values.astype(np.float64))
    parts = [moments_on_device(jnp.asarray(part)) for part in np.split(values, 8)]
    for got in (moments_on_device(jnp.asarray(values)), functools.reduce(merge_on_device, parts)):
        for name, rtol in {"mean": 2e-7, "variance": 1e-4, "kurtosis": 1e-4}.items():
            np.testing.assert_allclose(described(got)[name], exact[name], rtol=rtol)
    one_pass = np.mean(np.square(values)) - np.square(np.mean(values))
    assert abs(one_pass / exact["variance"] - 1) > 1e-4


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.0, 1e3]))
@pytest.mark.slow
def test_merging_chunks_is_the_whole_in_any_order_and_grouping(sizes, seed, offset):
    rng = np.random.default_rng(seed)
    chunks = [offset + rng.standard_normal((size, 2)) for size in sizes]
    parts = [moments(chunk) for chunk in chunks]
    whole = moments(np.concatenate(chunks))
    left = functools.reduce(merge, parts)
    right = functools.reduce(lambda a, b: merge(b, a), reversed(parts))
    shuffled = functools.reduce(merge, [parts[i] for i in rng.permutation(len(parts))])
    for got in (left, right, shuffled):
        for name in EVERYTHING:
            np.testing.assert_allclose(getattr(got, name), getattr(whole, name), rtol=1e-9, atol=1e-9, err_msg=name)


def test_merging_in_float32_keeps_what_the_mean_rounds_off():
    """float32 numbers next to 10,000 are .001 apart: the means of chunks and of their union lie between them."""
    chunks = [(1e4 + draws(n, (64,), seed=n)).astype(np.float32) for n in (101, 57)]
    got = to_host(merge_on_device(*map(moments_on_device, chunks)))
    exact = np.concatenate(chunks).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(got.mean + got.residual, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("moments", "merge", "convert"), [ON_HOST, ON_DEVICE])
@pytest.mark.parametrize("scale", [1.0, 1e18])
@pytest.mark.slow
def test_no_draws_are_an_exact_neutral_element(moments, merge, convert, scale):
    empty = moments(convert(np.zeros((0, 3), np.float32)))
    some = moments(convert((scale * draws(5)).astype(np.float32)))
    zeros = jax.tree.map(lambda leaf: convert(0 * np.asarray(leaf)), some)
    assert np.all(empty.count == 0)
    assert np.all(np.isnan(empty.mean))
    for neutral in (empty, dataclasses.replace(zeros, mean=empty.mean), dataclasses.replace(zeros, mean=some.mean)):
        for got in (merge(neutral, some), merge(some, neutral)):
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(got, name), getattr(some, name), err_msg=name)
    nothing = described(merge(empty, empty))
    assert all(np.all(np.isnan(nothing[name])) for name in ("mean", "skewness", "kurtosis", *PROPERTIES))


def test_one_draw_has_a_mean_and_no_spread():
    got = moments(np.array([[2.0, -3.0]]))
    np.testing.assert_array_equal(got.mean, [2.0, -3.0])
    np.testing.assert_array_equal(got.deviation, [0, 0])
    assert all(np.all(np.isnan(getattr(got, name))) for name in ("skewness", "kurtosis", *PROPERTIES))


@pytest.mark.slow
def test_equal_draws_have_no_spread_and_no_shape():
    got = described(moments_on_device(np.full(7, 0.1, np.float32)))
    np.testing.assert_allclose(got["mean"], 0.1, rtol=1e-7)
    np.testing.assert_array_less(got["variance"], 1e-15)
    assert np.isnan(moments(np.zeros(4)).kurtosis)
    assert np.isnan(moments(np.zeros(4)).skewness)


@pytest.mark.parametrize(("moments", "merge", "convert"), [ON_HOST, ON_DEVICE])
@pytest.mark.slow
def test_nonfinite_draws_are_counted_and_masked_draws_are_not(moments, merge, convert):
    clean = draws(20, (2,), dtype=np.float32)
    values = np.concatenate([clean, np.full((4, 2), np.nan, np.float32)])
    values[20, 0], values[21, 0], values[22, 0] = np.inf, -np.inf, 5.0
    where = np.arange(24) < 23
    got, expected = moments(convert(values), convert(where)), moments(convert(clean[:, 1]))
    np.testing.assert_array_equal(got.count, [21, 20])
    np.testing.assert_array_equal(got.nonfinite, [2, 3])
    got, expected = described(got), described(expected)
    for name in EVERYTHING[2:]:
        np.testing.assert_allclose(got[name][1], expected[name], rtol=1e-6)
    np.testing.assert_array_equal(moments(convert(values)).nonfinite, [3, 4])
    assert np.all(np.isnan(moments(convert(values[23:])).mean))


@pytest.mark.slow
def test_jit_and_vmap_agree_with_the_eager_array():
    values = jnp.asarray(draws(32, (4, 3)))
    where = jnp.arange(32) < 30
    eager, whole = moments(values, where), moments_on_device(values)
    assert_close(moments_on_device(values, where), eager, 1e-5)
    assert_close(jax.jit(jax.vmap(moments, in_axes=(1, None)))(values, where), eager, 1e-5)
    assert_close(merge_on_device(eager, whole), merge(eager, whole), 1e-5)
    np.testing.assert_allclose(eager.variance, described(eager)["variance"], rtol=1e-6)
    assert eager.count.dtype == eager.nonfinite.dtype == jnp.int32
    assert len(jax.tree.leaves(eager)) == len(FIELDS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32, jnp.int8, jnp.bool_])
@pytest.mark.slow
def test_sums_are_never_narrower_than_float32(dtype):
    values = jnp.arange(300).astype(dtype)
    got = moments(values)
    assert got.mean.dtype == got.kurtosis.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, np.asarray(values).astype(np.float64).mean(), rtol=1e-6)


@pytest.mark.slow
def test_double_precision_stays_and_the_host_widens():
    with jax.enable_x64(True):
        got = moments_on_device(jnp.asarray(draws()))
        assert got.mean.dtype == jnp.float64
        assert_close(got, moments(draws()), 1e-12)
    host = to_host(moments_on_device(jnp.asarray(draws(), np.float32)))
    assert all(isinstance(getattr(host, name), np.ndarray) for name in FIELDS)
    assert host.count.dtype == host.nonfinite.dtype == np.int64
    assert host.mean.dtype == host.kurtosis.dtype == np.float64
    many = dataclasses.replace(host, count=np.full(3, 2**31 - 1))
    np.testing.assert_array_equal(merge(many, many).count, 2**32 - 2)
    assert moments(draws(dtype=np.float32)).mean.dtype == np.float64


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e20, 1e30, 1e36])
@pytest.mark.slow
def test_tiny_and_huge_draws_in_float32_have_the_moments_of_their_float64_sums(size):
    values = (size * np.random.default_rng(3).chisquare(1, 2400)).astype(np.float32)
    exact = reference(values.astype(np.float64))
    for chunks in (1, 3, 100):
        parts = [moments_on_device(jnp.asarray(part)) for part in np.split(values, chunks)]
        on_device, on_host = functools.reduce(merge_on_device, parts), functools.reduce(merge, map(to_host, parts))
        for got in (to_host(on_device), on_host):
            for name in ("mean", "variance", "standard_error", "skewness", "kurtosis"):
                np.testing.assert_allclose(getattr(got, name), exact[name], rtol=2e-5, err_msg=name)
    assert on_host.kurtosis != pytest.approx(1.05 * exact["kurtosis"], rel=2e-5)
    # on the device as well, where the property itself is a float32
    whole = described(moments_on_device(jnp.asarray(values)))
    np.testing.assert_allclose(whole["standard_error"], exact["standard_error"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("spread", [1, 3, 2**31 - 1])
@pytest.mark.slow
def test_integers_enter_exactly(dtype, spread):
    limits = np.iinfo(dtype)
    values = np.random.default_rng(4).integers(limits.max - spread, limits.max, 200, endpoint=True, dtype=dtype)
    exact = reference(values.astype(np.float64))
    for chunks in (1, 8):
        parts = [to_host(moments_on_device(jnp.asarray(part))) for part in np.split(values, chunks)]
        got = functools.reduce(merge, parts)
        # to the digits of a float32 of the spread, or of 256, whatever the offset
        np.testing.assert_allclose(got.mean, exact["mean"], rtol=0, atol=2e-7 * max(spread, 256))
        np.testing.assert_allclose(got.variance, exact["variance"], rtol=1e-5)
        np.testing.assert_allclose(got.kurtosis, exact["kurtosis"], rtol=1e-5)


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31)])
@pytest.mark.slow
def test_an_integer_that_is_no_float32_is_its_own_mean(value):
    got = to_host(moments_on_device(jnp.full(3, value, jnp.int32)))
    assert (got.mean, got.standard_error) == (value, 0)


@pytest.mark.slow
def test_chunks_in_other_units_merge():
    parts = [moments_on_device((size * draws(50)).astype(np.float32)) for size in (1e-12, 1.0, 1e6)]
    whole = moments(np.concatenate([size * draws(50) for size in (1e-12, 1.0, 1e6)]))
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        assert_close(to_host(functools.reduce(merge_on_device, [parts[i] for i in order])), whole, 2e-6)


def test_pytrees_of_moments_merge():
    a, b = draws(20), draws(30, seed=1)
    trees = [{"J": moments(x), "rest": (moments(x[:, 0]), None)} for x in (a, b)]
    merged = merge(*trees)
    assert_close(merged["J"], moments(np.concatenate([a, b])), 1e-12)
    assert_close(merged["rest"][0], moments(np.concatenate([a, b])[:, 0]), 1e-12)
    assert_close(to_host(jax.tree.map(jnp.asarray, trees[0]))["J"], moments(a), 1e-6)
    for other in (trees[0]["J"], {"J": trees[0]["J"]}, [trees[0]]):
        with pytest.raises(ValueError, match="a, b: expected Moments, or equal pytrees of them"):
            merge(trees[0], other)
    with pytest.raises(ValueError, match="a, b: expected"):
        merge({"J": a}, {"J": b})


def test_what_is_printed_is_the_mean_its_error_and_the_count():
    assert (
        repr(moments(np.array([2.0, 2.0, 4.0, 4.0]))) == "Moments(mean=3.0, standard_error=0.5773502691896258, count=4)"
    )
    assert repr(moments(np.array([[1.0, np.nan], [2, 3]]))) == (
        "Moments(mean=[1.5 3. ], standard_error=[0.5 nan], count=[2 1], nonfinite=[0 1])"
    )
    assert len(repr(moments(draws(4, (64, 10))))) < 1500
    # pytrees are rebuilt around what is no array
    assert repr(jax.tree.map(jnp.shape, moments(draws()))).startswith("Moments(count=(3,), nonfinite")


@pytest.mark.parametrize(
    ("values", "where", "match"),
    [(1.0, None, "values"), (np.ones(3, complex), None, "values"), (np.ones((3, 2)), np.ones((3, 2), bool), "where")],
)
def test_errors(values, where, match):
    with pytest.raises(ValueError, match=f"{match}: expected"):
        moments(values, where)
