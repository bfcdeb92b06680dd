"""The law of a matrix-free network is that of a dense one: two samples, one of each, whose statistics agree.

The dense sample is the float64 NumPy reference, so that nothing is shared but the inputs. Each network is queried along
one trajectory: a block of two inputs, then one input after the other, all but the first of these displaced along the
last Jacobian.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mftadv as mf

from . import reference

D, WIDTH, DEPTH = 8, 24, 2

# Bonferroni: at most one false alarm in a thousand runs with other seeds, over all comparisons that should pass.
FAMILY_ERROR, FAMILY_SIZE = 1e-3, 400
LEVEL = FAMILY_ERROR / FAMILY_SIZE

X = np.random.default_rng(5).standard_normal((3, D)) * [[1.0], [0.5], [0.7]] + [[0.0], [0.3], [0.3]]
POINTS = X[[0, 1, 2, 2, 2, 2]]  # the first two as a block
STEPS = np.array([0.0, 2.0, 2.0, 2.0])  # of the others, along the first row of the last Jacobian


def make_spec(block, K, u, v):
    return mf.NetworkSpec(D, K, WIDTH, DEPTH, 1.4, 0.4, u, v, block)


def dense_trajectory(nets):
    """J, a and f at all points, [M, 6, K, d + 2], of networks in NumPy."""
    points, row = [], 0.0
    for point, step in zip(POINTS, [0.0, 0.0, *STEPS], strict=True):
        x = point + step * row
        J, a = reference.linear_representation(nets, x)
        points.append(np.concatenate([J, a[..., None], reference.forward(nets, x)[0][..., None]], -1))
        row = J[:, 0]
    return np.stack(points, 1)


def trajectory(key, spec, chained):
    """The same of one network, and whether its law is exact; not chained, every call queries the initial network."""
    points = jnp.asarray(POINTS, float)
    net = mf.init(key, spec, "matrix_free", (6, 6 * spec.output_dim))
    choose = functools.partial(jax.tree.map, lambda following, initial: jnp.where(chained, following, initial))
    block = mf.linear_representation(net, points[:2])

    def advance(carry, operands):
        current, row = carry
        point, step = operands
        rep = mf.linear_representation(current, point + step * row)
        return (choose(rep.network or current, current), rep.jacobian[0]), rep[:3]

    start = choose(block.network or net, net), block.jacobian[1, 0]
    (net, _), later = jax.lax.scan(advance, start, (points[2:], jnp.asarray(STEPS, float)))
    J, a, f = (jnp.concatenate(parts) for parts in zip(block[:3], later, strict=True))
    return jnp.concatenate([J, a[..., None], f[..., None]], -1), net.law_exact


# Here time goes into running, not into compiling.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
def trajectories(keys, spec, chained):
    return jax.lax.map(lambda key: trajectory(key, spec, chained), keys, batch_size=500)


def sample(case, chained=True):
    keys = jax.random.split(jax.random.key(10), CASES[case][0])
    results, law_exact = trajectories(keys, spec_of(case), jnp.asarray(chained))
    assert np.all(law_exact)
    return np.asarray(results, np.float64)


def statistics(results):
    """What is compared, one number a network."""
    J, a, f = results[..., :D], results[..., D], results[..., D + 1]
    along = J[:, 0] @ POINTS[0]
    square = np.sum(J[:, 0] ** 2, axis=(1, 2))
    values = {
        "|J|^2": square,
        "log |J|^2": np.log(square),
        "|J x|^2": np.sum(along**2, axis=1),
        "largest singular value": np.linalg.norm(J[:, 0], 2, axis=(1, 2)),
        "entry": J[:, 0, 0, 0],
        "product in a row": J[:, 0, 0, 0] * J[:, 0, 0, 1],
        "product in a column": J[:, 0, 0, 0] * J[:, 0, -1, 0],
        "shift": a[:, 0, 0],
        "shift^2": np.sum(a[:, 0] ** 2, axis=1),
        "<f, J x>": np.sum(f[:, 0] * along, axis=1),
        "<J, J'> of a block": np.sum(J[:, 0] * J[:, 1], axis=(1, 2)),
        "<J, J'> of two calls": np.sum(J[:, 0] * J[:, 2], axis=(1, 2)),
        "<a, a'> of two calls": np.sum(a[:, 0] * a[:, 2], axis=1),
        "<J, J'> of the last calls": np.sum(J[:, 4] * J[:, 5], axis=(1, 2)),
    }
    return values | {f"f after {i} steps": f[:, 2 + i, 0] for i in range(1, 4)}


def p_values(a, b):
    """Of the same law, by Kolmogorov and Smirnov, by the mean and by the variance.

    The samples are of one size, so that a skewed statistic still has a symmetric difference, and a heavy tail makes
    the z tests cautious.
    """
    p, (a, b) = {}, (statistics(a), statistics(b))
    for name, x in a.items():
        y = b[name]
        p[name, "law"] = stats.ks_2samp(x, y, method="asymp").pvalue
        center = (x.mean() + y.mean()) / 2
        for moment, (u, v) in {"mean": (x, y), "variance": ((x - center) ** 2, (y - center) ** 2)}.items():
            p[name, moment] = 2 * stats.norm.sf(abs(u.mean() - v.mean()) / np.sqrt((u.var() + v.var()) / len(u)))
    return p


CASES = {  # with the number of networks of each sample: enough to detect a second moment that is 5% off
    "vanilla": (16_000, 1, 1.0, 0.0),
    "residual": (6_000, 5, 1.0, 0.0),
    "signed": (16_000, 1, 0.5, -0.2),
}


def spec_of(case):
    return make_spec(case, *CASES[case][1:])


@functools.cache
def dense(case):
    return reference.simulate(dense_trajectory, list(CASES).index(case), spec_of(case), CASES[case][0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.law
def test_the_law_is_that_of_a_dense_network(case):
    drawn = sample(case)
    p = p_values(drawn, dense(case))
    print(case, sorted((float(v), k) for k, v in p.items())[:6])
    assert len(p) * (len(CASES) + 1) <= FAMILY_SIZE
    assert min(p.values()) > LEVEL, min(p, key=p.get)
    # a readout of 5% too large a variance is detected
    assert min(p_values(math.sqrt(1.05) * drawn, dense(case)).values()) < LEVEL


@pytest.mark.law
def test_queries_of_the_initial_network_alone_have_another_joint_law():
    p = p_values(sample("vanilla", chained=False), dense("vanilla"))
    wrong = {name for (name, _), value in p.items() if value < LEVEL}
    assert "<J, J'> of two calls" in wrong
    assert wrong.isdisjoint({"|J|^2", "entry", "shift", "<J, J'> of a block"})
