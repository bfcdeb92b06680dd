"""The queries of a function of a network, counted in its program: as many as it makes, whatever it is written with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv.network import engine_for

SPEC = mf.NetworkSpec(5, 2, 300, 1, bias_variance=0.1)
KEY, X = jax.random.key(0), jnp.arange(1.0, 6.0)
STEPS = jnp.linspace(0.5, 1.5, 4)


def twice(net, x):
    """f(x) + f(2 x), and the network to use next."""
    y, net = mf.evaluate(net, x)
    z, net = mf.evaluate(net, 2 * x)
    return y + z, net


def in_a_loop(net):
    total = jnp.zeros(2)
    for size in (1.0, 2.0, 3.0):
        rep = mf.linear_representation(net, size * X)
        total, net = total + rep.shift, rep.network or net
    return total, net


def in_a_scan(net):
    def step(net, size):
        y, net = jax.jit(twice)(net, size * X)
        return net, y

    net, values = jax.lax.scan(step, net, STEPS)
    return values, net


def in_scans_in_a_scan(net):
    def step(net, size):
        values, net = in_a_scan(net)
        return net, values * size

    net, values = jax.lax.scan(step, net, jnp.ones(3))
    y, net = mf.evaluate(net, X)
    return (values, y), net


def in_a_branch(net):
    def once(net):
        return mf.evaluate(net, X)

    return jax.lax.cond(jnp.sum(X) > 0, lambda net: twice(net, X), once, net)


def of_a_block(net):
    return mf.evaluate(net, jnp.outer(STEPS, X))


def by_backward(net):
    """Rows that were queried before count once more."""
    values, net = of_a_block(net)
    rep = mf.linear_representation(net, jnp.outer(STEPS, X))
    return (values, rep.jacobian), rep.network or net


def at_each_size(net):
    """Each size has a network of its own, which is the same at first."""
    return jax.vmap(lambda size: twice(net, size * X)[0])(STEPS), net


def differentiated(net):
    return jax.grad(lambda x: jnp.sum(in_a_branch(net)[0] * x))(1.0), in_a_branch(net)[1]


COUNTS = [
    (in_a_loop, (3, 6)),
    (in_a_scan, (8, 0)),
    (in_scans_in_a_scan, (25, 0)),
    (in_a_branch, (2, 0)),
    (of_a_block, (4, 0)),
    (by_backward, (8, 8)),
    (at_each_size, (2, 0)),
    (differentiated, (4, 0)),
    (lambda net: (net.params.biases, net), (0, 0)),
]


@pytest.mark.parametrize(("function", "count"), COUNTS)
@pytest.mark.slow
def test_what_a_function_queries_is_counted(function, count):
    assert mf.capacity_for(SPEC, function) == count
    assert mf.capacity_for(SPEC, function, linear_representation=2) == (count[0] + 2, count[1] + 4)


@pytest.mark.parametrize("dims", [(5, 2), (2, 5)])
def test_a_jacobian_is_counted_as_its_formula_says(dims):
    spec, xs = mf.NetworkSpec(*dims, 8, 3, block="signed"), jnp.ones((3, dims[0]))
    counted = mf.capacity_for(spec, lambda net: mf.linear_representation(net, xs).jacobian)
    assert counted == mf.capacity_for(spec, linear_representation=3)
    counted = mf.capacity_for(spec, lambda net: mf.linear_representation(net, xs, chunk_size=len(xs)).jacobian)
    assert counted[0] >= mf.capacity_for(spec, linear_representation=3)[0]  # the last chunk is filled up


@pytest.mark.parametrize(
    ("dims", "p", "attack"),
    [((5, 2), 2, "default"), ((5, 2), 1, "default"), ((2, 5), 2, "frugal"), ((5, 2), 2, "fast")],
)
@pytest.mark.slow
def test_an_attack_is_counted_as_its_formula_says(dims, p, attack):
    spec, xs = mf.NetworkSpec(*dims, 8, 1), jnp.ones((2, dims[0]))
    counted = mf.capacity_for(spec, lambda net: mf.adversarial_loss(net, xs, 0.1, p, 2, KEY, attack).value)
    assert counted == mf.capacity_for(spec, adversarial_loss=2, p=p, attack=attack)


def test_a_loop_of_unknown_length_is_refused():
    def until_large(net):
        return jax.lax.while_loop(lambda at: jnp.sum(at[0]) < 9, lambda at: twice(at[1], X), (jnp.zeros(2), net))

    with pytest.raises(ValueError, match=r"function: expected loops of a length that the program knows.*got a while"):
        mf.capacity_for(SPEC, until_large)
    # A loop that queries nothing may be of any length.
    assert mf.capacity_for(SPEC, lambda net: jax.lax.while_loop(lambda y: y[0] < 9, lambda y: y + 1, X)) == (0, 0)


@pytest.mark.parametrize("function", [in_a_loop, of_a_block, by_backward, at_each_size])
@pytest.mark.usefixtures("unchecked")
def test_the_count_is_what_a_matrix_free_network_needs(function):
    inputs, cotangents = mf.capacity_for(SPEC, function)

    def run(key, less):
        return function(mf.init(key, SPEC, "matrix_free", (inputs - less, cotangents)))[0]

    jax.eval_shape(lambda key: run(key, 0), KEY)
    with pytest.raises(ValueError, match="capacity: expected at least"):
        jax.eval_shape(lambda key: run(key, 1), KEY)


def statistic(key, spec, x):
    """What a user writes: its queries are counted where the program of a network is traced."""

    def of(net):
        net, values = jax.lax.scan(lambda net, size: mf.evaluate(net, x.at[0].set(size))[::-1], net, STEPS)
        y, net = mf.evaluate(net, x)
        return {"square": y**2, "values": values, "exact": jnp.asarray(net.law_exact, float)}

    capacity = mf.capacity_for(spec, of)
    assert engine_for(spec, capacity) == "matrix_free"
    return of(mf.init(key, spec, engine="auto", capacity=capacity))


@pytest.mark.slow
def test_a_users_statistic_of_many_networks_has_exactly_their_law():
    spec = SPEC.replace(input_dim=40, bias_variance=0.0)
    found = mf.monte_carlo(statistic, KEY, spec, jnp.ones(40), num_networks=400)
    assert np.all(found["exact"].mean == 1)
    square = found["square"]  # of mean omega^L |x|^2 / d = 1
    assert np.all(np.abs(square.mean - 1) < 4 * square.standard_error)
    assert np.all(4 * square.standard_error < 0.4)
