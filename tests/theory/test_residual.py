"""Residual networks at their own input: the law in the limit, and its first correction for the width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv.theory import growth_along_input, jacobian_variance, residual_law, residual_law_error, shift_variance

from .. import reference

CASES = [  # s, b2, u, v, L, |x|^2 / d
    (2.0, 0.1, 1.0, 0.0, 6, 1.072),
    (0.2, 0.1, 1.0, 0.0, 10, 1.0),
    (1.0, 0.5, 1.0, 0.3, 4, 0.5),
    (1.5, 0.3, 0.2, -1.0, 5, 1.0),
]


def residual(width, s, b2, u=1.0, v=0.0, depth=6, d=1, K=1):
    return mf.NetworkSpec(d, K, width, depth, s, b2, u, v, "residual")


def simulate(spec, first, num_networks, batch=500):
    """Means and standard errors of the law's fields, d = 1: rows drawn as they are asked, exact at every width.

    Given the parts T, A, O of h_{l-1}, those of a preactivation are Gaussian, independent and alike over the units.
    Four directions O of each network, all orthogonal to x, spare networks.
    """
    rng, rows = np.random.default_rng(1), []
    u, v = np.float32(spec.positive_slope), np.float32(spec.negative_slope)
    for _ in range(num_networks // batch):
        parts = rng.standard_normal((batch, 6, spec.width), np.float32)
        parts *= np.array([first**0.5, 0, 1, 1, 1, 1], np.float32)[:, None]
        for _ in range(spec.depth):
            gram = spec.weight_variance / spec.width * (parts @ parts.swapaxes(1, 2)).astype(float)
            gram[:, 1, 1] += spec.bias_variance
            z = np.linalg.cholesky(gram).astype(np.float32) @ rng.standard_normal(parts.shape, np.float32)
            parts += np.where(z[:, :1] + z[:, 1:2] >= 0, u, v) * z
        t, a, *others = parts.swapaxes(0, 1).astype(float)
        rows.append([part.mean(1) for part in (t * t, a * a, t * a, t, a, np.mean(np.square(others), axis=0))])
    rows = np.concatenate(rows, axis=1)
    return rows.mean(1), rows.std(1) / np.sqrt(rows.shape[1])


def both(spec, norm_squared):
    return (np.array(residual_law(spec, norm_squared, finite_width=finite), float) for finite in (True, False))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.law
def test_first_order_against_simulation(case):
    """Every moment, to four errors and the square of the correction; 5% off fails, and so does the limit."""
    *leaves, depth, first = case
    spec = residual(128, *leaves, depth)
    mean, error = simulate(spec, first, 20_000 if case == CASES[0] else 8_000)
    law, limit = both(spec, first)
    allowance = np.max(abs(law / limit - 1)) ** 2
    agrees = lambda theory: abs(mean - theory) < 4 * error + allowance * abs(theory)  # noqa: E731
    assert agrees(law).all()
    assert not agrees(1.05 * law).any()
    assert not agrees(0.95 * law).any()
    assert not agrees(limit)[5]
    assert case != CASES[0] or not agrees(limit)[1]


@pytest.mark.law
def test_error_falls_as_the_square_of_the_width():
    """Across x, where it is largest: a quarter at twice the width, and not a half."""
    *leaves, depth, first = CASES[0]
    errors = []
    for width, num_networks in ((16, 240_000), (32, 160_000)):
        spec = residual(width, *leaves, depth)
        mean, error = simulate(spec, first, num_networks)
        errors.append((mean[5] - float(residual_law(spec, first, finite_width=True).orthogonal), error[5]))
    (narrow, narrow_error), (wide, wide_error) = errors
    assert abs(wide - narrow / 4) < 4 * np.hypot(wide_error, narrow_error / 4)
    assert abs(wide - narrow / 2) > 4 * np.hypot(wide_error, narrow_error / 2)


@pytest.mark.law
def test_dense_networks():
    """The law of whole networks, outputs and all; 5% off fails."""
    spec = residual(96, 1.5, 0.5, depth=4, d=6, K=64)
    x = jnp.array([0.4, -1.1, 0.9, 1.6, -0.2, 0.7])

    def statistic(key, spec, x):
        # x and -x obey one law, and their mean has less noise
        jacobian, shift, *_ = mf.linear_representation(mf.init(key, spec), jnp.stack([x, -x]))
        along = jacobian @ x * jnp.array([1.0, -1.0])[:, None]
        across = jnp.sum(jacobian**2, -1) - along**2 / (x @ x)
        return tuple(jnp.mean(part) for part in (along**2, shift**2, along * shift, across / (spec.input_dim - 1)))

    # Here time goes into running, not into compiling.
    run = jax.jit(jax.vmap(statistic, (0, None, None)), compiler_options={"xla_backend_optimization_level": 1})
    root = jax.random.key(2, impl="threefry4x32")
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(4000)).reshape(40, 100)
    draws = np.concatenate([np.stack(run(some, spec, x), 1) for some in keys]).astype(float)
    law, limit = (values[[0, 1, 2, 5]] for values in both(spec, float(x @ x)))
    allowance = np.max(abs(law / limit - 1)) ** 2
    means, errors = draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))
    for mean, error, theory in zip(means, errors, law, strict=True):
        agrees = lambda value, m=mean, e=error: abs(m - value) < 4 * e + allowance * value  # noqa: E731
        assert agrees(theory)
        assert not agrees(1.05 * theory)
        assert not agrees(0.95 * theory)
    assert not abs(means[3] - limit[3]) < 4 * errors[3]


@pytest.mark.parametrize(("bias_variance", "slope", "num_networks"), [(0.0, 0.0, 2500), (1.0, 0.1, 5000)])
@pytest.mark.law
def test_published_law_fails_along_the_input(bias_variance, slope, num_networks):
    """The limit at width 100, to 1/N; 5% off fails, and so does the published law."""
    spec = residual(100, 1.0, bias_variance, v=slope, depth=3, d=20, K=20)
    x = np.random.default_rng(1).standard_normal(20)
    norm_squared, allowance = float(x @ x), 1 / spec.width

    def statistic(nets, x):
        # the readout averaged out: its N(0, 1/N) entries turn a product of outputs into a mean over coordinates
        _, slopes, hidden = reference.forward(nets, x)
        along = nets.p_in @ x
        for weight, gate in zip(nets.weights, slopes, strict=True):
            along = along + gate * np.einsum("mij,mj->mi", weight, along)
        shift = hidden[-1] - along
        parts = along**2, shift**2, along * shift, along, shift
        return np.stack([part.mean(1) for part in parts], axis=1)

    # x and -x obey one law, and their mean has less noise
    both_signs = lambda nets: (statistic(nets, x) + statistic(nets, -x)) / 2  # noqa: E731
    samples = reference.simulate(both_signs, 4, spec, num_networks, batch=200)
    law = residual_law(spec, norm_squared)
    for values, expected in zip(samples.T, law[:5], strict=True):
        if expected == 0:
            np.testing.assert_allclose(values, 0, atol=1e-12)
            continue
        assert reference.agrees(values, float(expected), allowance)
        assert not reference.agrees(values, 1.05 * float(expected), allowance)
        assert not reference.agrees(values, 0.95 * float(expected), allowance)
    published = norm_squared * float(jacobian_variance(spec))
    assert not reference.agrees(samples[:, 0], published, 0.05)
    # the sum of the parts follows the recursion of the whole
    s, b2, alpha = 1.0, bias_variance, (1 + slope**2) / 2
    whole, mean = norm_squared / spec.input_dim, 0.0
    for _ in range(spec.depth):
        preactivation = s * whole + b2
        step = (1 - slope) * np.sqrt(preactivation / (2 * np.pi))
        whole, mean = whole + alpha * preactivation + 2 * mean * step, mean + step
    np.testing.assert_allclose(law.along_input + law.shift + 2 * law.cross, whole, rtol=1e-5)
    np.testing.assert_allclose(law.mean_along_input + law.mean_shift, mean, rtol=1e-5)


@pytest.mark.parametrize("finite_width", [False, True])
@pytest.mark.slow
def test_where_the_published_law_is_exact(finite_width):
    """A linear network, and one layer, at every width."""
    for spec in (residual(2, 0.4, 0.3, 0.8, 0.8, d=20), residual(2, 0.4, 0.3, 1.0, 0.1, depth=1, d=20)):
        law = residual_law(spec, 5.0, finite_width)
        np.testing.assert_allclose(law.along_input, 5 * jacobian_variance(spec), rtol=1e-6)
        np.testing.assert_allclose(law.orthogonal, jacobian_variance(spec), rtol=1e-6)
        np.testing.assert_allclose(law.shift, shift_variance(spec), rtol=1e-6)
        assert law.cross == 0
    assert residual_law(residual(2, 0.4, 0.3, 0.8, 0.8), 5.0, finite_width).mean_along_input == 0


@pytest.mark.slow
def test_correction_is_of_first_order():
    """In powers of 1/N: nothing in the limit, one term, whatever the unit of length."""
    with jax.enable_x64(True):
        narrow, wide = (residual(width, *CASES[0][:4], CASES[0][4]) for width in (100, 10**9))
        (law, limit), (nearly, _) = both(narrow, 1.072), both(wide, 1.072)
        np.testing.assert_allclose(nearly, limit, rtol=1e-7)
        np.testing.assert_allclose((nearly - limit) * 10**7, law - limit, rtol=1e-5)
        assert np.all(law[[0, 1, 5]] > limit[[0, 1, 5]])
        scaled = residual_law(residual(100, 2.0, 0.1 * 2.0**60, 1.0, 0.0, 6), 1.072 * 2.0**60, finite_width=True)
        units = 2.0 ** np.array([60, 60, 60, 30, 30, 0])
        np.testing.assert_allclose(scaled, law * units, rtol=1e-12)


@pytest.mark.parametrize("finite_width", [False, True])
@pytest.mark.slow
def test_extremes(finite_width):
    """Overflow is inf; no input, no bias, no branch give zeros, and no 0 / 0."""

    @jax.jit
    def law(spec, norm_squared):
        return residual_law(spec, norm_squared, finite_width)

    loud, silent = (residual(50, 4.0, b2, depth=10_000, d=10) for b2 in (0.1, 0.0))
    assert np.all(np.isinf(law(loud, 10.0)))
    values = law(silent, 10.0)
    assert np.isinf(values.along_input)
    assert values.shift == values.cross == values.mean_shift == 0
    assert np.isinf(law(silent, 0.0).orthogonal)
    huge = np.array(law(residual(50, 1e-5, 0.1, depth=10_000, d=10), 1e15))
    assert np.all(np.isfinite(huge) & (huge > 0))
    resting, dead = (residual(50, s, 0.0, depth=4, d=10) for s in (2.0, 0.0))
    assert all(value == 0 for spec in (resting, dead) for value in law(spec, 0.0)[:5])
    np.testing.assert_allclose(law(dead, 5.0), [0.5, 0, 0, 0, 0, 0.1], rtol=1e-6)


@pytest.mark.parametrize("finite_width", [False, True])
@pytest.mark.slow
def test_gradients_sweeps_and_single_precision(finite_width):
    """Gradients against differences, one-sided without bias; leaves that are arrays; float32 against float64."""
    tree = jax.tree.structure(residual(30, 1.0, 1.0, depth=5, d=7))

    def moments(leaves, norm_squared):
        return jnp.stack(residual_law(tree.unflatten(list(leaves)), norm_squared, finite_width), axis=-1)

    points = np.array([[2.0, 0.3, 1.0, 0.2], [0.1, 1.0, 1.0, -0.7], [1.0, 0.0, 1.0, 0.0]])
    steps = np.concatenate([np.zeros((1, 4)), np.eye(4), -np.eye(4), 2 * np.eye(4)])
    grid = (points[:, None] + 1e-6 * steps).reshape(-1, 4)
    grid[2 * 13 + 6, 1] = 0  # no negative bias
    with jax.enable_x64(True):
        values = np.array(jax.jit(moments)(jnp.array(grid).T, 3.0)).reshape(3, 13, 6)
        gradient = jax.jit(jax.vmap(jax.jacrev(moments), (0, None)))
        slopes = gradient(jnp.array(points), 3.0)
        assert np.all(np.isfinite(gradient(jnp.array(points), 0.0)))
    here, ahead, behind, further = values[:, :1], values[:, 1:5], values[:, 5:9], values[:, 9:]
    differences = np.where(points[:, :1, None] == 1.0, (4 * ahead - further - 3 * here), ahead - behind) / 2e-6
    np.testing.assert_allclose(slopes, differences.swapaxes(1, 2), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.jit(moments)(jnp.array(points).T, 3.0), here[:, 0], rtol=6e-6)


@pytest.mark.parametrize("block", ["vanilla", "signed"])
def test_other_blocks_are_refused(block):
    with pytest.raises(ValueError, match="block: expected residual"):
        residual_law(mf.NetworkSpec(3, 1, 4, 2, block=block), 3.0)


@pytest.mark.slow
def test_growth_along_the_input_by_the_recursion_without_bias():
    s, depth, d, K = 0.5, 4, 50, 3
    square, mean = 1.7, 0.0  # of a hidden coordinate, |x|^2 / d at first
    for _ in range(depth):
        rise = s**0.5 * square**0.5 / (2 * np.pi) ** 0.5
        square, mean = square + s / 2 * square + 2 * mean * rise, mean + rise
    along, across = (square / 1.7 / d) ** 0.5, ((1 + s / 2) ** depth / d) ** 0.5
    spec = residual(10**9, s, 0.0, depth=depth, d=d, K=K)
    found = float(growth_along_input(spec, 1.7 * d, 4.0, 1))
    expected = (along - across) * K * (2 / np.pi) ** 0.5 * 4.0 / (1.7 * d) ** 0.5
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(1.05 * expected, rel=1e-2)
    assert growth_along_input(residual(100, s, 0.0, 1.0, 1.0, depth, d, K), 1.7 * d, 4.0, 1) < 1e-6
    assert growth_along_input(spec.replace(block="signed"), 1.7 * d, 4.0, 1) == 0
    with pytest.raises(ValueError, match="input_norm_squared: expected a finite number > 0"):
        growth_along_input(spec, 0.0, 0.0, 1)


@pytest.mark.slow
def test_the_error_of_the_first_order_is_the_square_of_the_largest_correction():
    with jax.enable_x64(True):
        spec = residual(200, 0.2, 0.1, d=10)
        law, limit = (array[[0, 1, 2, 5]] for array in both(spec, 10.0))
        error = float(residual_law_error(spec, 10.0))
        assert error == pytest.approx(np.max((law / limit - 1) ** 2), rel=1e-9)
        assert residual_law_error(spec.replace(width=400), 10.0) == pytest.approx(error / 4, rel=1e-9)
        assert 0 < residual_law_error(spec.replace(bias_variance=0.0), 10.0) < 1  # where two of them are 0
        assert residual_law_error(spec.replace(weight_variance=1e200), 10.0) == np.inf


@pytest.mark.slow
def test_closed_derivatives_of_a_layer_are_those_of_automatic_differentiation():
    """Values computed once with jax.jacfwd, twice, of the map of one layer: a term 1/8 taken as 1/7 moves them 1e-3."""
    expected = {
        (1.3, 0.4, 1.0, 0.2): (
            *(2.928659719282495, 1.3702512775426228, 0.297827217095987),
            *(0.7985137375680424, 0.5127751321234432, 0.982326089924242),
        ),
        (0.8, 0.0, 1.0, -0.5): (3.362606259319083, 0.0, 0.0, 1.4625825389036577, 0.0, 0.7480642726662765),
    }
    with jax.enable_x64(True):
        for leaves, values in expected.items():
            law = residual_law(residual(20, *leaves, depth=3, d=5), 2.5, finite_width=True)
            np.testing.assert_allclose(np.array(law), values, rtol=1e-13)
