"""What an attack reports of how far it can be trusted, and that nothing wrong passes without a report."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv.attack import Ascent, LinearStarts, RandomStarts, SteepestAscent

INF = math.inf
KEY = jax.random.key(0)
# the fewest pieces, which compile fastest
QUICK = mf.Attack((RandomStarts(2),), (SteepestAscent(12),))
LINEAR = mf.Attack((LinearStarts(),), (SteepestAscent(12),))


@functools.partial(jax.jit, static_argnames=("function", "p", "q", "attack"))
def attacked(function, x, eps, p, q, attack=QUICK, box=None):
    return mf.adversarial_loss(function, x, eps, p, q, KEY, attack, box)


def rotation(x):
    """An isometry: the loss is eps for p = q = 2."""
    return jnp.roll(x, 1) * jnp.where(jnp.arange(x.size) % 2 == 0, -1, 1).astype(x.dtype)


@pytest.mark.parametrize("x", [0.5, 255.0, -1e-3])
@pytest.mark.slow
def test_an_input_outside_the_box_has_no_loss_in_traced_code(x):
    found = attacked(rotation, jnp.full(8, x), 0.1, 2, 2, box=(0.0, 1.0))
    assert np.linalg.norm(found.perturbation) <= 0.1 * (1 + 1e-6)
    if 0 <= x <= 1:
        np.testing.assert_allclose(found.value, 0.1, rtol=1e-5)
        assert found.converged
    else:
        assert np.isnan(found.value)
        assert not found.converged


@pytest.mark.slow
def test_a_box_may_be_open_on_a_side():
    x = jnp.linspace(0.0, 1.0, 6)
    for box, side in (((0.0, None), "lower"), ((None, 1.0), "upper")):
        found = attacked(lambda x: x.sum()[None], x, 0.3, INF, 1, LINEAR, box)
        perturbed = x + found.perturbation
        assert np.all(perturbed >= -1e-6) if side == "lower" else np.all(perturbed <= 1 + 1e-6)
        np.testing.assert_allclose(found.value, 6 * 0.3, rtol=1e-5)


@pytest.mark.parametrize("eps", [math.nan, -1.0, INF, -INF])
@pytest.mark.slow
def test_a_size_that_is_none_has_no_loss_in_traced_code(eps):
    found = attacked(rotation, jnp.ones(8), eps, 2, 2)
    assert np.isnan(found.value)
    assert not found.converged
    assert np.all(found.perturbation == 0)


@pytest.mark.slow
def test_hidden_gradients_are_reported_and_nothing_is_said_to_be_found():
    def threshold(x):
        return jnp.where(x > 0.05, 1.0, 0.0).astype(x.dtype)

    def saturated(x):
        return jax.nn.sigmoid(1e4 * (x + 1))

    for function in (threshold, saturated, jax.lax.stop_gradient):
        found = attacked(function, jnp.zeros(5), 0.1, INF, 2)
        assert found.zero_gradients == 1
        assert not found.converged
    clear = attacked(rotation, jnp.zeros(5), 0.1, INF, 2)
    assert clear.zero_gradients == 0
    assert clear.converged


@pytest.mark.slow
def test_rounding_is_not_reported_as_loss():
    """f(x + eta) - f(x) of a plain function at |x| = 2040 in single precision."""
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0].astype(np.float32)
    x = 255 * jnp.ones(64)

    def isometry(x):
        return matrix @ x

    nothing = attacked(isometry, x, 0.0, 2, 2, LINEAR)
    assert nothing.value == 0
    assert np.all(nothing.history == 0)
    assert nothing.converged
    for eps in (1e-6, 1e-5, 1e-4):
        rounded = attacked(isometry, x, eps, 2, 2, LINEAR)
        assert rounded.rounding > eps
        assert not rounded.converged
    for eps in (0.1, 1.0, 100.0):
        found = attacked(isometry, x, eps, 2, 2, LINEAR)
        assert abs(found.value - eps) <= found.rounding + 1e-5 * eps
        assert found.converged
    network = mf.init(KEY, mf.NetworkSpec(64, 2, 16, 2))
    assert jax.jit(lambda net: mf.adversarial_loss(net, x, 1e-4, 2, 2, KEY, LINEAR).rounding)(network) == 0


@pytest.mark.slow
def test_a_single_start_cannot_know():
    found = attacked(rotation, jnp.ones(5), 0.1, 2, 2, mf.Attack((RandomStarts(1),), (Ascent(12),)))
    assert found.stalled
    assert found.spread == 1
    assert not found.converged
    assert found.restarts.shape == (1,)


@pytest.mark.slow
def test_starts_that_disagree_are_not_converged():
    """A narrow peak that one of two starts finds."""

    def peak(x):
        return 3 * jax.nn.relu(1 - 10 * jnp.abs(x - 0.9)) + 0.5 * jnp.abs(x)

    found = attacked(peak, jnp.zeros(1), 1.0, INF, 2, mf.Attack((LinearStarts(), RandomStarts(4)), (Ascent(30),)))
    assert found.restarts.shape == (6,)
    np.testing.assert_allclose(found.value, np.max(found.restarts))
    second = np.sort(found.restarts)[-2]
    np.testing.assert_allclose(found.spread, 1 - second / found.value, rtol=1e-5)
    assert not found.converged or found.spread <= 0.01


@pytest.mark.slow
def test_sizes_of_inputs_apart():
    """One eps for each input of a block gives what each gives alone."""
    xs, eps = jax.random.normal(jax.random.key(1), (3, 6)), jnp.array([0.1, 0.0, 0.2])
    together = attacked(jnp.tanh, xs, eps, 2, 2, LINEAR)
    assert np.all(np.linalg.norm(together.perturbation, axis=1) <= eps * (1 + 1e-6))
    assert together.value[1] == 0
    for i in (0, 2):
        alone = attacked(jnp.tanh, xs[i], eps[i], 2, 2, LINEAR)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-3)
    with pytest.raises(ValueError, match=r"eps: expected one number, or one for each input, \[3\], got shape \[2\]"):
        attacked(jnp.tanh, xs, eps[:2], 2, 2, LINEAR)


@pytest.mark.slow
def test_a_network_and_its_attack_may_share_a_key():
    """A random direction is independent of the weights: its mean square loss is that of theory."""
    spec, eps, x = mf.NetworkSpec(30, 1, 20, 2), 1e-3, jnp.ones(30)
    random = mf.Attack((RandomStarts(1),), (Ascent(1),))

    def loss(key, spec):
        return mf.adversarial_loss(mf.init(key, spec), x, eps, 2, 2, key, random).history[0]

    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(2000))
    squares = np.square(np.asarray(jax.jit(jax.vmap(loss, (0, None)))(keys, spec), np.float64))
    expected = eps**2 * float(mf.theory.jacobian_variance(spec))
    error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - expected) < 4 * error
    assert error < 0.05 * expected


@pytest.mark.slow
def test_a_function_that_is_random_at_each_trace_is_refused():
    random = np.random.default_rng(0)

    def dropout(x):
        return x * random.integers(0, 2, x.shape).astype(np.float32)

    def by_key(x):
        return x * jax.random.rademacher(jax.random.key(int(random.integers(2**31))), x.shape, x.dtype)

    def fixed(x):
        return x * jax.random.rademacher(jax.random.key(7), x.shape, x.dtype)

    for function in (dropout, by_key):
        for call in (
            lambda f, x: mf.adversarial_loss(f, x, 0.1, 2, 2, KEY, QUICK),
            lambda f, x: mf.linear_representation(f, x),
        ):
            with pytest.raises(ValueError, match="net_or_f: expected the same function each time it is traced"):
                call(function, jnp.ones(100))
    assert attacked(fixed, jnp.ones(100), 1e-2, 2, 2).value <= 1e-2 * (1 + 1e-4)


@pytest.mark.slow
def test_chunks_of_the_jacobian_bound_the_memory():
    weight, readout = (jax.random.normal(KEY, shape) for shape in ((2000, 200), (128, 2000)))

    def model(x):
        return readout @ jax.nn.relu(weight @ x)

    def temporaries(chunk_size):
        run = jax.jit(lambda x: mf.adversarial_loss(model, x, 0.1, 2, 2, KEY, LINEAR, chunk_size=chunk_size).value)
        return run.lower(jnp.ones(200)).compile().memory_analysis().temp_size_in_bytes

    cotangents = 4 * 128 * 2000  # of all rows at once
    assert temporaries(None) - temporaries(8) > cotangents / 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: (f, x, 0.1, "inf", 2, KEY), r"p: expected a number in \[1, inf\], got 'inf'; math.inf is such"),
        (lambda f, x: (f, x, 0.1, 2, "linf", KEY), r"q: expected a number in \[1, inf\]"),
        (lambda f, x: (f, x, 0.1, 2, 2, 0), "key: expected a key such as jax.random.key"),
        (lambda f, x: (f, x, [0.1, 0.2], 2, 2, KEY), "eps: expected one number.* jax.vmap takes several"),
        (lambda f, x: (f, x, 0.1 * x, 2, 2, KEY), "eps: expected one number"),
        (lambda f, x: (f, x, np.int64(3), 2, 2, KEY), r"eps: expected a floating-point number, got int.* no labels"),
        (lambda f, x: (f, jnp.ones((2, 4, 4, 1)), 0.1, 2, 2, KEY), r"x: expected shape .* lambda x: f\(x.reshape\("),
        (lambda f, x: (jnp.sum, x, 0.1, 2, 2, KEY), r"net_or_f: expected one output .* lambda x: f\(x\)\[None\]"),
        (lambda f, x: (lambda x: (x, x), x, 0.1, 2, 2, KEY), "net_or_f: expected one output"),
    ],
)
def test_what_is_refused_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        mf.adversarial_loss(*call(jnp.tanh, jnp.ones(4)))


@pytest.mark.usefixtures("unchecked")
def test_a_model_of_batches_is_detected():
    def model(batch):
        return jnp.einsum("bd,kd->bk", batch, jnp.ones((2, 4)))

    with pytest.raises(ValueError, match="Einstein sum") as error:  # the model's own error, with a note
        mf.linear_representation(model, jnp.ones(4))
    assert "lambda x: model(x[None])[0]" in " ".join(error.value.__notes__)
    assert mf.linear_representation(lambda x: model(x[None])[0], jnp.ones(4)).jacobian.shape == (2, 4)
