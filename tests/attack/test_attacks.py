"""Attacks: in the ball and the box, never below what was evaluated, never above the exact value, and close to it."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import oracle
from mftadv.attack import Ascent, LinearStarts, PowerMethod, RandomStarts, Vertices

INF = math.inf
STARTS = (Vertices(2), LinearStarts(), RandomStarts(2, among=4))
ALL = mf.Attack(STARTS, (PowerMethod(2), Ascent(6)))
FEW = mf.Attack((LinearStarts(1), RandomStarts(1)), (Ascent(2),))
FGSM = mf.Attack((RandomStarts(1),), (PowerMethod(1),))
SPEC = mf.NetworkSpec(5, 2, 8, 2, 1.8, 0.3)
NET, XS = jax.jit(mf.init)(jax.random.key(0), SPEC), jax.random.normal(jax.random.key(1), (3, 5))
KEY = jax.random.key(2)


@functools.partial(jax.jit, static_argnames=("p", "q", "attack"))
def attacked(net, x, eps, p, q, attack, key, box=None):
    return mf.adversarial_loss(net, x, eps, p, q, key, attack, box)


def assert_sound(found, net, x, eps, p, q):
    """What every attack promises, for one size of the perturbation."""
    assert np.all(mf.vector_norm(found.perturbation, p) <= eps * (1 + 1e-6))
    reached = oracle.difference(net, oracle.value(net, x), found.perturbation).output
    np.testing.assert_allclose(found.value, mf.vector_norm(reached, q), rtol=1e-5)
    assert np.all(np.diff(found.history, axis=-1) >= 0)
    np.testing.assert_array_equal(found.history[..., -1], found.value)
    assert np.all(found.value > 0)
    assert np.all(found.nonfinite == 0)
    assert found.value.dtype == found.perturbation.dtype == x.dtype


@pytest.mark.parametrize(
    ("attack", "p", "q"),
    [
        *((ALL, *pair) for pair in ((1, INF), (1.5, 2), (2, 1), (INF, 2))),
        *(("default", *pair) for pair in ((1, INF), (1.5, 2))),
    ],
)
@pytest.mark.slow
def test_contract(attack, p, q):
    for eps in (2.0, 1e-1, 1e-4, 1e-7):
        found = attacked(NET, XS, eps, p, q, attack, KEY)
        assert_sound(found, NET, XS, eps, p, q)
    again = attacked(NET, XS, 1e-7, p, q, attack, KEY)
    np.testing.assert_array_equal(again.perturbation, found.perturbation)
    nothing = attacked(NET, XS, 0.0, p, q, attack, KEY)
    assert np.all(nothing.value == 0)
    assert np.all(nothing.perturbation == 0)
    assert np.all(nothing.converged)
    assert np.all(found.restarts.max(axis=-1) == found.value)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, INF), (INF, 2)])
@pytest.mark.slow
def test_the_input_stays_in_the_box(p, q):
    low, high = np.asarray(XS) - np.float32([0.0, 0.1, 0.2, 0.3, 1e6]), np.asarray(XS) + np.float32(0.15)
    for eps in (1.0, 0.01):
        found = attacked(NET, XS, eps, p, q, ALL, KEY, (low, high))
        assert_sound(found, NET, XS, eps, p, q)
        perturbed = XS + found.perturbation
        assert np.all((perturbed >= low - 1e-6) & (perturbed <= high + 1e-6))


@pytest.mark.slow
def test_an_attack_goes_on_from_the_candidates_of_another():
    """It never ends below them; starts of its own have no part in it, and starts outside the ball are projected."""
    first = attacked(NET, XS, 0.4, 2, 2, FGSM, KEY)
    assert first.candidates.shape == (3, 1, 5)
    np.testing.assert_array_equal(first.candidates[:, 0], first.perturbation)

    @jax.jit
    def again(starts, key):
        return mf.adversarial_loss(NET, XS, 0.4, 2, 2, key, FGSM, starts=starts)

    second = again(first.candidates, KEY)
    assert np.all(second.history[:, 0] >= first.value * (1 - 1e-6))
    assert np.max(second.value - first.value) > 1e-3
    np.testing.assert_array_equal(again(first.candidates, jax.random.key(9)).value, second.value)
    np.testing.assert_allclose(again(5 * first.candidates, KEY).value, second.value, rtol=1e-5)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, INF), (2, INF), (INF, INF), (2, 2), (INF, 1), (INF, 2), (2, 1)])
@pytest.mark.slow
def test_linear_functions_have_their_operator_norm(p, q):
    """By the default attack, in every case with a formula and every case of enumeration."""
    matrices = jax.random.normal(jax.random.key(0), (12, 3, 6))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def reached(matrix, eps):
        return mf.adversarial_loss(lambda x: matrix @ x, jnp.zeros(6), eps, p, q, KEY)

    norm = mf.operator_norm(matrices, p, q)
    assert norm.exact
    for eps in (0.3, 20.0):
        found = reached(matrices, eps)
        np.testing.assert_allclose(found.value, eps * norm.lower, rtol=1e-5)
        assert np.all(found.converged)


@pytest.mark.slow
def test_the_box_of_a_linear_function():
    """K = 1, p = inf: every coordinate goes to the end of its interval, of either sign."""
    row, eps = jax.random.normal(jax.random.key(0), (5,)), 0.3
    low, high = jnp.array([-1.0, -0.1, 0.0, -0.2, -0.5]), jnp.array([0.1, 1.0, 0.5, 0.2, 0.0])
    found = attacked(
        jax.tree_util.Partial(lambda row, x: (row @ x)[None], row), jnp.zeros(5), eps, INF, 2, ALL, KEY, (low, high)
    )
    low, high = np.maximum(low, -eps), np.minimum(high, eps)
    ends = np.maximum(row * low, row * high).sum(), np.maximum(-row * low, -row * high).sum()
    np.testing.assert_allclose(found.value, max(ends), rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("p", "q", "attack"))
def together(networks, xs, eps, keys, p, q, attack):
    """The loss of many networks, each at an input of its own."""
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, networks)
    one = functools.partial(mf.adversarial_loss, p=p, q=q, attack=attack)
    return jax.vmap(lambda net, x, r, key: one(net, x, r, key=key).value, (axes, 0, 0, 0))(networks, xs, eps, keys)


def linear_regions(network, x, eps, p):
    """A lower bound of their number: those of 1,024 random points of the ball."""
    rng = np.random.default_rng(0)
    points = rng.dirichlet(np.ones(len(x)), 1024) if p == 1 else rng.uniform(size=(1024, len(x)))
    points = np.asarray(x) + np.float32(eps * points * rng.choice((-1, 1), points.shape))
    preactivations = np.concatenate(oracle.value(network, points).at, axis=1)
    return len(np.unique(preactivations >= 0, axis=0))


@pytest.mark.slow
def test_quality_on_tiny_networks():
    """Networks of 12 neurons, in balls of three linear regions and more: the promise of each preset."""
    spec = mf.NetworkSpec(4, 3, 6, 2, 2.0, 0.5)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(12))
    networks = jax.jit(jax.vmap(mf.init, (0, None)))(keys, spec)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i] if leaf.ndim else leaf, networks) for i in range(12)]
    xs = jax.random.normal(jax.random.key(1), (12, 4))
    ratios, regions = {attack: [] for attack in ("default", "thorough", FGSM)}, []
    for (p, q), size in itertools.product(((1, 1), (INF, INF)), (0.1, 1.0)):
        eps = size * mf.vector_norm(xs, p)
        cases = list(zip(apart, xs, eps, strict=True))
        exact = np.array([mf.exact_adversarial_loss(net, x, float(r), p, q).value for net, x, r in cases])
        regions += [linear_regions(net, x, float(r), p) for net, x, r in cases]
        for attack, reached in ratios.items():
            value = together(networks, xs, eps, keys, p, q, attack)
            reached.append(np.where(exact > 0, value / np.where(exact > 0, exact, 1), 1 + value))
    ratios = {attack: np.concatenate(reached) for attack, reached in ratios.items()}
    assert all(np.all(reached <= 1 + 1e-5) for reached in ratios.values())
    assert np.mean(regions) >= 3
    assert ratios["thorough"].mean() >= 0.995
    assert ratios["thorough"].min() >= 0.97
    assert ratios["default"].mean() >= 0.98
    assert ratios[FGSM].mean() < 0.9  # so that the promise is one


@pytest.mark.slow
def test_jit_eager_functions_and_vmap_agree():
    keys = jax.random.split(KEY, 2)
    nets = jax.vmap(mf.init, (0, None))(keys, SPEC)
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, nets)
    together = jax.jit(jax.vmap(lambda net: mf.adversarial_loss(net, XS, 0.5, 2, 2, KEY, FEW), (axes,)))(nets)
    for i in range(2):
        net = jax.tree.map(lambda leaf, i=i: leaf[i] if leaf.ndim else leaf, nets)
        alone = attacked(net, XS, 0.5, 2, 2, FEW, KEY)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-4)
    function = attacked(jax.tree_util.Partial(mf.apply, net), XS, 0.5, 2, 2, FEW, KEY)
    np.testing.assert_allclose(function.value, alone.value, rtol=1e-4)
    # of NumPy arrays, which JAX keeps as they are under a vmap
    sizes, inputs, networks = np.array([0.5, 0.4], np.float32), np.stack([XS, XS]), jax.tree.map(np.asarray, nets)
    mapped = jax.vmap(lambda net, x, eps: mf.adversarial_loss(net, x, eps, 2, 2, KEY, FEW).value, (axes, 0, 0))
    np.testing.assert_allclose(jax.jit(lambda: mapped(networks, inputs, sizes))()[0], together.value[0], rtol=1e-4)
    eager = mf.adversarial_loss(NET, XS, 0.4, 2, 2, KEY, FGSM)
    np.testing.assert_allclose(eager.value, attacked(NET, XS, 0.4, 2, 2, FGSM, KEY).value, rtol=1e-4)


@pytest.mark.slow
def test_what_is_traced_does_not_compile_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(spec, x, eps, key):
        return mf.adversarial_loss(mf.init(key, spec), x, eps, 2, 2, key, FGSM).value

    values = [
        run(mf.NetworkSpec(5, 2, 8, 2, s, 0.3), XS, eps, jax.random.key(i))
        for i, (s, eps) in enumerate([(1.0, 0.1), (2.0, 9.0)])
    ]
    assert np.all(values[0] < values[1])


@pytest.mark.slow
def test_precision_is_that_of_the_input():
    with jax.enable_x64(True):
        found = jax.eval_shape(
            lambda x: mf.adversarial_loss(lambda x: x[:2], x, 0.1, 1.5, 2, KEY, ALL),
            jax.ShapeDtypeStruct((5,), "float64"),
        )
    assert found.value.dtype == found.perturbation.dtype == "float64"


@pytest.mark.slow
def test_a_matrix_free_network_is_attacked_within_its_capacity():
    spec, x = mf.NetworkSpec(5, 2, 100, 1, 1.8, 0.3), XS[0]
    promised = mf.capacity_for(spec, adversarial_loss=1, attack=FEW)

    @functools.partial(jax.jit, static_argnames="capacity")
    def run(key, capacity):
        net = mf.init(key, spec, "matrix_free", capacity)
        found = mf.adversarial_loss(net, x, 0.5, 2, 2, key, FEW)
        assert found.network is not None
        return found, oracle.value(found.network, x).output, oracle.value(found.network, x + found.perturbation).output

    found, before, after = run(KEY, (promised[0] + 2, promised[1]))
    assert found.law_exact
    assert np.linalg.norm(found.perturbation) <= 0.5 * (1 + 1e-6)
    np.testing.assert_allclose(found.value, np.linalg.norm(after - before), rtol=1e-3)
    with pytest.raises(ValueError, match="capacity: expected at least"):
        run(KEY, (promised[0] - 1, promised[1]))


@pytest.mark.slow
def test_what_is_not_finite_is_counted_and_otherwise_ignored():
    def function(x):
        return jnp.where(x > 0.5, jnp.nan, x)

    found = attacked(jax.tree_util.Partial(function), jnp.zeros(3), 1.0, INF, INF, ALL, KEY)
    assert found.nonfinite > 0
    assert not found.converged
    assert 0 < found.value <= 1
    assert np.all(np.isfinite(found.perturbation))
    nowhere = attacked(jax.tree_util.Partial(function), jnp.ones(3), 0.1, INF, INF, ALL, KEY)
    assert np.isnan(nowhere.value)
    assert not nowhere.converged


@pytest.mark.slow
def test_a_candidate_that_starts_where_nothing_is_finite_is_halved():
    def function(x):
        return jnp.where(jnp.max(jnp.abs(x)) > 0.01, jnp.nan, x)

    found = attacked(jax.tree_util.Partial(function), jnp.zeros(3), 1.0, INF, INF, "default", KEY)
    assert 0.005 < found.value <= 0.01
    assert found.nonfinite > 0
    assert not found.converged


@pytest.mark.slow
def test_a_function_of_another_precision():
    def function(x):
        return jnp.tanh(x.astype(jnp.bfloat16))

    found = attacked(jax.tree_util.Partial(function), jnp.zeros(3), 1.0, INF, 2, ALL, KEY)
    assert found.value.dtype == found.perturbation.dtype == "float32"
    np.testing.assert_allclose(found.value, math.sqrt(3) * math.tanh(1), rtol=2**-7)


@pytest.mark.usefixtures("unchecked")
def test_pieces_refuse_what_they_cannot_do():
    for build, message in (
        (lambda: mf.Attack((), (Ascent(4),)), "starts: expected a tuple of at least one Start"),
        (lambda: mf.Attack((LinearStarts(),), ()), "rules: expected a tuple of at least one Rule"),
        (lambda: LinearStarts(3), "count: expected 1 or 2, got 3"),
        (lambda: RandomStarts(0), "count: expected a positive integer, got 0"),
        (lambda: Vertices(2, columns=0), "columns: expected a positive integer, got 0"),
        (lambda: PowerMethod(0), "steps: expected a positive integer, got 0"),
        (lambda: Ascent(0), "steps: expected a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.slow
def test_gradients_that_vanish_at_the_input_do_not_stop_the_attack():
    """a |x|^2 + 3 has gradient 0 at 0 and is largest at the ends of the box; where a is 0 it is constant."""

    def function(a, x):
        return a * jnp.sum(x**2)[None] + 3

    found, constant = (
        attacked(jax.tree_util.Partial(function, a), jnp.zeros(4), 2.0, INF, 2, "default", KEY) for a in (1.0, 0.0)
    )
    np.testing.assert_allclose(found.value, 16, rtol=1e-5)
    assert constant.value == 0
    assert np.all(constant.perturbation == 0)
    assert constant.nonfinite == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps: expected a finite number >= 0 in float32, got -1.0"),
        ({"eps": 1e39}, "eps: expected a finite number"),
        ({"eps": 1e-50}, "eps: expected a finite number"),
        ({"eps": "a"}, "eps: expected a finite number"),
        ({"box": (math.nan, 2.0)}, "x: expected an input in the box, got 5 entries outside"),
        ({"eps": math.nan}, "eps: expected a finite number"),
        ({"eps": jnp.ones(2)}, r"eps: expected one number, or one for each input, \[\], got shape \[2\]"),
        ({"p": 0.5}, "p: expected a number in"),
        ({"q": 0}, "q: expected a number in"),
        ({"attack": "strong"}, 'attack: expected "frugal", "fast", "default", .* or an Attack, got .strong'),
        ({"box": (1.5, 2.0)}, "x: expected an input in the box, got 5 entries outside"),
        ({"x": jnp.ones(4)}, "x: expected shape"),
        ({"starts": jnp.ones(5)}, r"starts: expected some perturbations of each input, \['R', 5\], got \[5\]"),
        ({"starts": jnp.ones((0, 5))}, "starts: expected some perturbations of each input"),
        ({"net_or_f": 3}, "net_or_f: expected a Network or a function"),
        ({"net_or_f": lambda x: x[:, None]}, "net_or_f: expected one output of shape"),
        ({"net_or_f": jnp.sum}, "net_or_f: expected one output of shape"),
        ({"net_or_f": lambda x: x[:0]}, "net_or_f: expected one output of shape"),
        ({"net_or_f": lambda x: x.astype(int)}, "net_or_f: expected one output of shape"),
    ],
)
@pytest.mark.slow
def test_bad_input(options, message):
    arguments = {"net_or_f": NET, "x": jnp.ones(5), "eps": 0.1, "p": 2, "q": 2, "key": KEY, **options}
    with pytest.raises(ValueError, match=message):
        mf.adversarial_loss(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": -1}, "evaluate: expected an integer >= 0, got -1"),
        ({"adversarial_loss": True}, "adversarial_loss: expected an integer"),
        ({"adversarial_loss": 1, "p": 0.5}, "p: expected a number in"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_counts(options, message):
    with pytest.raises(ValueError, match=message):
        mf.capacity_for(SPEC, **options)
