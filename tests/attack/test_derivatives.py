"""The derivative of the adversarial loss is that of its maximum (Danskin), and finite where there is none."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv.attack import LinearStarts, PowerMethod, RandomStarts, SteepestAscent
from mftadv.matrices import DenseMatrix
from mftadv.network import Frozen, Params

INF = math.inf
KEY = jax.random.key(0)
QUICK = mf.Attack((RandomStarts(2),), (SteepestAscent(12),))


@functools.partial(jax.jit, static_argnames=("p", "q", "attack"))
def value_and_gradient(net, x, eps, p, q, attack):
    def value(net, x, eps):
        return mf.adversarial_loss(net, x, eps, p, q, KEY, attack).value

    return jax.value_and_grad(value, (0, 1, 2))(net, x, eps)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q"), [(1, INF), (INF, 1)])
def test_the_derivative_is_that_of_the_exact_loss(p, q):
    """Differences of the proven maximum, in the weights, the biases, the input and eps."""
    spec = mf.NetworkSpec(3, 2, 5, 2, 2.0, 0.2, 1.0, 0.3, "residual")
    rng, step = np.random.default_rng(3), 1e-3
    for seed in range(4):
        net, x, eps = mf.init(jax.random.key(seed), spec), jnp.asarray(rng.standard_normal(3), jnp.float32), 0.3
        value, (of_net, of_x, of_eps) = value_and_gradient(net, x, eps, p, q, "default")
        exact = mf.exact_adversarial_loss(net, x, eps, p, q).value
        np.testing.assert_allclose(value, exact, rtol=1e-4)
        direction = jax.tree.map(lambda leaf: rng.standard_normal(np.shape(leaf)).astype(np.float32), net.params)

        def along(h, net=net, x=x, eps=eps, direction=direction):
            """The loss where weights and biases, the input, or eps has moved by h."""
            params = jax.tree.map(lambda leaf, slope: leaf + np.float32(h) * slope, net.params, direction)
            moved = dataclasses.replace(net, params=params)
            arguments = ((moved, x, eps), (net, x + h, eps), (net, x, eps + h))
            return np.array([mf.exact_adversarial_loss(*each, p, q).value for each in arguments])

        differences = (along(step) - along(-step)) / (2 * step)
        inner = jax.tree.map(lambda slope, leaf: np.sum(slope * leaf), direction, of_net.params)
        found = [sum(jax.tree.leaves(inner)), np.sum(of_x), of_eps]
        np.testing.assert_allclose(found, differences, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_the_derivative_of_a_linear_map_is_its_closed_form():
    """L_adv = eps |A|_{p->q}, whose derivative in A is eps times the outer product of the dual and the maximiser."""
    matrix, eps = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32), 0.4
    left, sizes, right = np.linalg.svd(matrix)
    lengths = np.linalg.norm(matrix, axis=0)
    longest = np.eye(5)[np.argmax(lengths)]
    cases = (
        (2, 2, sizes[0], np.outer(left[:, 0], right[0])),
        (1, 2, lengths.max(), np.outer(matrix @ longest / lengths.max(), longest)),
    )
    for p, q, norm, derivative in cases:

        def value(matrix, x, eps, p=p, q=q):
            return mf.adversarial_loss(lambda x: matrix @ x, x, eps, p, q, KEY).value

        of_matrix, of_x, of_eps = jax.jit(jax.grad(value, (0, 1, 2)))(matrix, jnp.ones(5), eps)
        np.testing.assert_allclose(of_matrix, eps * derivative, atol=1e-3 * eps)
        np.testing.assert_allclose(of_x, 0, atol=1e-6)
        np.testing.assert_allclose(of_eps, norm, rtol=1e-5)


def networks():
    """A network, then ones that are constant: without weights, without a readout, with all gates closed, all zero."""
    spec = mf.NetworkSpec(6, 3, 12, 2, 1.5, 0.2)
    net = mf.init(KEY, spec)
    nothing = jax.tree.map(jnp.zeros_like, net)
    weightless = Params(nothing.params.weights, net.params.biases)
    closed = Params(net.params.weights, tuple(jnp.full_like(bias, -100.0) for bias in net.params.biases))
    unread = Frozen(net.frozen.embedding, DenseMatrix(jnp.zeros((3, 12))), ())
    others = [dataclasses.replace(net, params=params) for params in (weightless, closed)]
    others += [dataclasses.replace(net, frozen=unread), dataclasses.replace(nothing, spec=spec)]
    return net, *others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "q", "attack"),
    [(1, 1, "default"), (2, 2, "default"), (INF, INF, "frugal"), (1.5, 3, "frugal"), (INF, 1, "thorough")],
)
def test_derivatives_are_finite_where_there_is_none(p, q, attack):
    """At eps = 0 and where f is constant around x; under jit and vmap over networks, inputs and sizes at once."""
    nets = networks()
    cases = [(net, x, eps) for net in nets for x in (jnp.linspace(-1, 1, 6), jnp.zeros(6)) for eps in (0.0, 0.4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(jnp.asarray(leaves)), *cases)
    values, gradients = jax.vmap(lambda *case: value_and_gradient(*case, p, q, attack))(*stacked)
    for i, (net, x, eps) in enumerate(cases):
        gradient = [np.asarray(leaf[i]) for leaf in jax.tree.leaves(gradients)]
        assert all(np.all(np.isfinite(leaf)) for leaf in gradient)
        is_constant = net is not nets[0] or eps == 0
        assert (values[i] == 0) == is_constant
        assert all(np.all(leaf == 0) for leaf in gradient) == is_constant
        if not is_constant and attack == "frugal":  # whose program compiles fastest
            value, alone = value_and_gradient(net, x, eps, p, q, attack)
            np.testing.assert_allclose(values[i], value, rtol=1e-3)
            for a, b in zip(gradient, jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-2 * np.max(np.abs(b)))


@pytest.mark.slow
def test_the_derivative_of_a_block_is_that_of_its_inputs():
    net, sizes = networks()[0], jnp.array([0.1, 0.3, 0.4])
    xs = jax.random.normal(jax.random.key(1), (3, 6))

    def found(net, xs, eps):
        found = mf.adversarial_loss(net, xs, eps, 2, 2, KEY, QUICK)
        return jnp.sum(found.value), found.perturbation

    def fixed(net, xs, eps):
        moved = xs + eta * (eps / sizes)[:, None]
        return jnp.sum(mf.vector_norm(mf.apply(net, moved) - mf.apply(net, xs), 2))

    gradient, eta = jax.jit(jax.grad(found, (0, 1, 2), has_aux=True))(net, xs, sizes)
    expected = jax.jit(jax.grad(fixed, (0, 1, 2)))(net, xs, sizes)
    assert_same_gradients(gradient, expected)


def assert_same_gradients(gradient, expected):
    """To a thousandth of the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.max(np.abs(b)))


@pytest.mark.slow
def test_a_box_does_not_move_with_the_perturbation():
    """The loss of a relu(x - .9) at .9 is a (1 - .9) where the box ends at 1: its derivatives are .1 in a, 0 in eps."""

    def value(a, eps):
        return mf.adversarial_loss(lambda x: a * jax.nn.relu(x - 0.9), jnp.array([0.9]), eps, 2, 2, KEY, QUICK, (0, 1))

    found, gradient = jax.jit(jax.value_and_grad(lambda *each: value(*each).value, (0, 1)))(2.0, 0.3)
    np.testing.assert_allclose(found, 0.2, rtol=1e-5)
    np.testing.assert_allclose(gradient[0], 0.1, rtol=1e-5)
    np.testing.assert_allclose(gradient[1], 0.2 / 0.3, rtol=1e-5)  # that of the scaled perturbation, as documented


@pytest.mark.parametrize(("p", "q", "of_function"), [(1, 1, True), (2, 2, False), (INF, 2, False), (1.5, 3, True)])
@pytest.mark.slow
def test_the_derivative_is_that_at_the_fixed_perturbation(p, q, of_function):
    """In everything that the loss depends on, for a network or for a function."""
    spec = mf.NetworkSpec(6, 3, 12, 2, 1.5, 0.2)
    net, x, eps = mf.init(KEY, spec), jnp.linspace(-1, 1, 6), jnp.float32(0.4)

    def found(net, x, eps):
        found = mf.adversarial_loss((lambda x: mf.apply(net, x)) if of_function else net, x, eps, p, q, KEY, QUICK)
        return found.value, found.perturbation

    def fixed(net, x, eps):
        return mf.vector_norm(mf.apply(net, x + eta * (eps / 0.4)) - mf.apply(net, x), q)

    gradient, eta = jax.jit(jax.grad(found, (0, 1, 2), has_aux=True))(net, x, eps)
    assert_same_gradients(gradient, jax.jit(jax.grad(fixed, (0, 1, 2)))(net, x, eps))


@pytest.mark.slow
def test_derivatives_at_zero_are_zero():
    """At a perturbation of size 0, and of a function that is constant."""

    def value(x, eps, scale):
        return mf.adversarial_loss(lambda x: scale * jnp.tanh(x), x, eps, 2, 2, KEY, QUICK).value

    gradient = jax.jit(jax.grad(value, (0, 1)))
    for x, eps, scale in ((jnp.zeros(3), 0.0, 1.0), (jnp.ones(3), 0.1, 0.0)):
        assert all(np.all(np.asarray(g) == 0) for g in gradient(x, eps, scale))
    assert all(np.any(np.asarray(g) != 0) for g in gradient(jnp.ones(3), 0.1, 1.0))


@pytest.mark.slow
def test_the_search_is_not_differentiated():
    """The gradient takes the memory of one evaluation, not that of the whole search."""
    spec = mf.NetworkSpec(32, 2, 64, 3)
    net, x = mf.init(KEY, spec), jnp.ones(32)

    def temporaries(function):
        return jax.jit(function).lower(net).compile().memory_analysis().temp_size_in_bytes

    def value(net):
        return mf.adversarial_loss(lambda x: mf.apply(net, x), x, 0.3, 2, 2, KEY, QUICK).value

    assert temporaries(jax.grad(value)) < temporaries(value) + 3 * 4 * (64 * 64 * 3 + 64 * 32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow
def test_a_matrix_free_network_has_no_derivative():
    spec, one_step = mf.NetworkSpec(6, 1, 12, 1), mf.Attack((LinearStarts(1),), (PowerMethod(1),))

    @jax.jit
    def value(x):
        net = mf.init(KEY, spec, "matrix_free", mf.capacity_for(spec, adversarial_loss=1, attack=one_step))
        return mf.adversarial_loss(net, x, 0.1, 2, 2, KEY, one_step).value

    assert jax.eval_shape(value, jnp.ones(6)).shape == ()
    with pytest.raises(ValueError, match="net_or_f: expected a dense network or a function"):
        jax.eval_shape(jax.grad(value), jnp.ones(6))
