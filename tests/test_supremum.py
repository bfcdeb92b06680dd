"""The experiment supremum: its search against exact answers, and what it claims of powers of d."""

import itertools

import jax
import numpy as np
import pytest
import xarray

import mftadv as mf
from mftadv.compare import find, judge
from mftadv.experiments import Supremum, run
from mftadv.experiments.supremum import Statistic, mean_norm

PS = (1.0, 1.5, 2.0, np.inf)
SMALL = Supremum(dims=(4, 8, 16), p=(1.0, 2.0, np.inf))


def norms(rows):
    """The largest |J|_{p*} of some rows J, for each p."""
    return np.array([np.linalg.norm(rows, ord, axis=1).max() for ord in (np.inf, 3, 2, 1)])


def planes(network):
    """W_1 P_in of a network of one layer, [N, d]."""
    return np.asarray(network.params.weights[0].entries, float) @ np.asarray(network.frozen.embedding.entries, float)


def jacobians(network, xs):
    """J of a network of one layer at inputs, in NumPy."""
    return ((xs @ planes(network).T >= 0) * np.asarray(network.frozen.readout.entries, float)) @ planes(network)


def every_region(network):
    """An input of each region of a network of one layer: in three dimensions each is at a corner of two planes."""
    rows = planes(network)
    if rows.shape[1] == 2:
        angles = np.sort(np.concatenate([np.arctan2(-rows[:, 0], rows[:, 1]), np.arctan2(rows[:, 0], -rows[:, 1])]))
        middles = angles + np.diff(angles, append=angles[0] + 2 * np.pi) / 2
        return np.stack([np.cos(middles), np.sin(middles)], axis=1)
    inputs = []
    for i, j in itertools.combinations(range(len(rows)), 2):
        corner = np.cross(rows[i], rows[j])
        aside = np.linalg.pinv(rows[[i, j]])  # raises one preactivation, and not the other
        for sign, *signs in itertools.product((-1, 1), repeat=3):
            inputs.append(sign * corner / np.linalg.norm(corner) + 1e-6 * aside @ np.array(signs))
    return np.array(inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "N"), [(2, 12), (3, 12)])
def test_the_search_finds_what_enumeration_finds(d, N):
    spec, keys = mf.NetworkSpec(d, 1, N, 1), jax.random.split(jax.random.key(0), 40)
    networks = jax.jit(jax.vmap(lambda key: mf.init(key, spec)))(keys)
    found = jax.device_get(jax.jit(jax.vmap(Statistic(PS, 16, 40).search))(networks, keys))
    shares, few = [], []
    for i in range(len(keys)):
        network = jax.tree.map(lambda leaf, i=i: leaf[i], networks)
        exact = norms(jacobians(network, every_region(network)))
        assert np.all(found["supremum"][i] <= exact * (1 + 1e-5))
        shares.append(found["supremum"][i] / exact)
        few.append(found["typical"][i] / exact)
    assert np.mean(np.array(shares) > 0.9999) > 0.35
    assert np.mean(shares) > 0.95
    assert np.mean(few) < 0.6


def made(powers):
    """Suprema of 20 networks in which, for each p, the mean over E |g|_{p*} is a power of d."""
    spread = 1 + 0.02 * np.resize([-1.0, 1.0], 20)
    cells = SMALL.cells()
    values = [
        [spread * mean_norm(cell.spec.input_dim, p) * cell.spec.input_dim**power for p, power in powers.items()]
        for cell in cells
    ]
    both = ("cell", "network", "p"), np.moveaxis(values, 1, 2)
    return xarray.Dataset({"typical": both, "supremum": both, "networks": ("cell", [20] * len(cells))})


def verdicts(powers):
    judged = judge(SMALL.claims(made(powers)))
    return {
        (each.claim.id, each.claim.coords["p"], each.claim.coords.get("side")): each.verdict
        for each in find(judged, "order") + find(judged, "order_typical")
    }


@pytest.mark.slow
def test_the_powers_that_are_claimed():
    over = np.log(mean_norm(16, 2.0) / mean_norm(4, 2.0) * mean_norm(4, 1.0) / mean_norm(16, 1.0)) / np.log(4)
    assert 0.2 < over < 0.35  # of |g|_2 over |g|_inf
    drawn = np.abs(np.random.default_rng(0).normal(size=(40000, 16))).max(axis=1)
    assert mean_norm(16, 1.0) == pytest.approx(drawn.mean() / 4, rel=0.01)
    as_g_2 = verdicts({1.0: over, 2.0: 0.0, np.inf: 0.05})
    assert as_g_2.pop(("order_typical", 1.0, None)) == "fails, as predicted"
    assert set(as_g_2.values()) == {"holds"}
    typical = verdicts({1.0: 0.0, 2.0: 0.2, np.inf: -0.2})
    assert typical.pop(("order_typical", 1.0, None)) == "holds"
    wrong = {("order", 1.0, "fall"), ("order", 2.0, "rise"), ("order", np.inf, "fall")}
    assert {name for name, verdict in typical.items() if verdict == "fails"} == wrong


@pytest.mark.slow
def test_a_run_draws_and_tables_what_was_found():
    experiment = Supremum(dims=(2, 3), expansion=4, steps=4, p=(1.0, 1.5))
    found = run(experiment)
    (figure,) = experiment.figures(found.data, found.judged).values()
    rows = experiment.rows(found.data)
    assert [(row["p"], row["d"]) for row in rows] == [(1.0, 2), (1.0, 3), (1.5, 2), (1.5, 3)]
    assert all(row["supremum"] >= row["typical"] for row in rows)
    ratios = [container[0].get_ydata() for container in figure.axes[1].containers]
    np.testing.assert_allclose(np.ravel(ratios).astype(float), [row["ratio"] for row in rows])
    assert len(experiment.tables(found.data, found.judged)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (4, 4)}, "dims: expected at least two, for a fit"),
        ({"p": ()}, "p: expected at least one number, got none"),
        ({"p": (0.5,)}, "p: expected"),
        ({"steps": 0}, "steps: expected a positive integer, got 0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Supremum(**options).cells()
