"""Monte Carlo over networks: the same moments whole, in chunks, on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv import sweep
from mftadv.linear import linear_representation
from mftadv.network import init
from mftadv.spec import NetworkSpec

SPEC = NetworkSpec(5, 2, 12, 3, 2.0, 0.1)


def statistic(key, spec, x):
    rep = linear_representation(init(key, spec), x)
    return {"J": rep.jacobian, "size": jnp.sum(rep.jacobian**2)}


def assert_same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), a, b)


@pytest.fixture(scope="module")
def whole():
    return sweep.monte_carlo(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=37)


def test_network_i_has_key_i(whole):
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(37)]
    loop = jax.jit(lambda key: statistic(key, SPEC, jnp.ones(5)))
    values = np.stack([loop(key)["J"] for key in keys]).astype(np.float64)
    np.testing.assert_allclose(whole["J"].mean, values.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole["J"].variance, values.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(whole["J"].standard_error, values.std(0, ddof=1) / np.sqrt(37), rtol=1e-4)
    assert np.all(whole["J"].count == 37)


@pytest.mark.parametrize("batch_size", [None, 1, 5, 16, 1000])
def test_chunked_is_whole(whole, batch_size):
    seen = []
    chunked = sweep.monte_carlo(
        statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert_same(chunked, whole)
    assert seen[-1] == (37, 37)
    assert seen == sorted(seen)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
@pytest.mark.parametrize("batch_size", [None, 6])
def test_four_devices_are_one(whole, shape, batch_size):
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)])
    assert mesh.size == 4
    sharded = sweep.monte_carlo(
        statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=batch_size, mesh=mesh
    )
    assert_same(sharded, whole)
    run = sweep.draws(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=37, batch_size=8, mesh=mesh)
    sizes = np.concatenate([values["size"] for _, values in run])
    np.testing.assert_allclose(sizes.mean(), whole["size"].mean, rtol=1e-4)
    assert sizes.shape == (37,)


def test_draws_give_every_network():
    run = sweep.draws(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=11, batch_size=4)
    firsts, parts = zip(*run, strict=True)
    assert list(firsts) == [0, 4, 8]
    assert [len(part["size"]) for part in parts] == [4, 4, 3]
    again = sweep.draws(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=2000, batch_size=2)
    np.testing.assert_allclose(next(iter(again))[1]["size"], parts[0]["size"][:2], rtol=1e-5)


def test_nothing_recompiles():
    traces = []
    leaves = (float, np.float32, jnp.float32)

    def counted(key, spec, x, scale):
        traces.append(1)
        return scale * jnp.sum(linear_representation(init(key, spec), x).output)

    for i in range(3):
        spec = NetworkSpec(5, 2, 12, 3, leaves[i](1.0 + i), 0.1 * i, 1.0, 0.1 * i)
        sweep.monte_carlo(counted, jax.random.key(i), spec, i * jnp.ones(5), float(i), num_networks=9, batch_size=4)
        if i == 0:
            first = len(traces)
    assert len(traces) - first <= 2  # the shapes alone are looked at again


def test_nonfinite_draws_are_counted_and_kept_out():
    def broken(key, spec):
        value = jax.random.normal(key)
        return jnp.where(value > 0.5, jnp.inf, value)

    est = sweep.monte_carlo(broken, jax.random.key(0), SPEC, num_networks=50, batch_size=7)
    values = np.array([jax.random.normal(jax.random.fold_in(jax.random.key(0), i)) for i in range(50)])
    assert est.nonfinite == np.sum(values > 0.5)
    assert est.count == np.sum(values <= 0.5)
    np.testing.assert_allclose(est.mean, values[values <= 0.5].mean(), rtol=1e-5)


def test_indicators_and_integers_are_statistics():
    est = sweep.monte_carlo(lambda key, spec: jax.random.normal(key) > 0, jax.random.key(0), SPEC, num_networks=100)
    assert 0.3 < est.mean < 0.7
    with pytest.raises(ValueError, match="key: expected one whose draws do not depend on the batch"):
        sweep.monte_carlo(statistic, jax.random.key(0, impl="rbg"), SPEC, jnp.ones(5))


def test_the_budget_decides_the_batch(monkeypatch):
    plan = lambda: sweep.draws(statistic, jax.random.key(0), SPEC, jnp.ones(5), num_networks=100)  # noqa: E731
    assert plan().batch_size == 100
    per_network = plan().bytes_per_network
    assert per_network > 3 * 12 * 12 * 4  # at least the weights
    monkeypatch.setattr(sweep, "_CPU_BUDGET", 10 * per_network)
    assert 5 <= plan().batch_size <= 15
    monkeypatch.setattr(sweep, "_CPU_BUDGET", 1)
    assert plan().batch_size == 1
    monkeypatch.setattr(sweep, "_memory", lambda mesh: (per_network, 10 * per_network))
    with pytest.raises(ValueError, match=r"spec, batch_size: expected .* to fit into"):
        plan()


def test_second_moment_is_the_theory_and_five_percent_more_is_not():
    est = sweep.monte_carlo(statistic, jax.random.key(1), SPEC, jnp.ones(5), num_networks=60000)
    theory = 2 * 5 * (1 / 5)  # K d omega^L / d with omega = 1, exact at every width
    assert abs(est["size"].mean - theory) < 4 * est["size"].standard_error
    assert abs(est["size"].mean - 1.05 * theory) > 4 * est["size"].standard_error


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_networks": 0}, "num_networks: expected an integer from 1"),
        ({"num_networks": 2.0}, "num_networks: expected an integer from 1"),
        ({"mesh": 4}, "mesh: expected .* got int"),
        ({"batch_size": -1}, "batch_size: expected"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sweep.monte_carlo(statistic, jax.random.key(0), SPEC, jnp.ones(5), **options)
    with pytest.raises(ValueError, match="statistic: expected a pytree of real arrays"):
        sweep.monte_carlo(lambda key, spec: key, jax.random.key(0), SPEC)
