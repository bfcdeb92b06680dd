"""Networks, the oracle and the linear representation against float64 NumPy, JAX's own derivatives, and each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv import linear, network, oracle
from mftadv.network import apply, evaluate, forward, init
from mftadv.spec import NetworkSpec

from . import reference

BLOCKS = ("vanilla", "residual", "signed")

# Compiled once: run eagerly, each operation would be a program of its own.
drawn = jax.jit(init)
represented = jax.jit(linear.linear_representation, static_argnames="chunk_size")


def make_spec(block="vanilla", d=7, K=3, N=16, L=2, s=1.6, b2=0.3, u=1.0, v=0.2):
    return NetworkSpec(d, K, N, L, s, b2, u, v, block)


@pytest.fixture
def key():
    return jax.random.key(3)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("K", [3, 12])  # rows by pullback, columns by pushforward
@pytest.mark.slow
def test_linear_representation_is_the_reference(key, block, K):
    spec = make_spec(block, K=K, L=4 if block == "residual" else 2)
    net = drawn(key, spec)
    x = np.random.default_rng(1).standard_normal(7, np.float32)
    rep = represented(net, x)
    jacobian, shift = reference.linear_representation(reference.of_network(net), np.asarray(x, np.float64))
    output = reference.forward(reference.of_network(net), np.asarray(x, np.float64))[0]
    np.testing.assert_allclose(rep.jacobian, jacobian[0], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(rep.shift, shift[0], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(rep.output, output[0], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(rep.jacobian, jax.jit(jax.jacrev(apply, argnums=1))(net, x), rtol=1e-4, atol=2e-6)
    assert rep.network is None


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("K", [3, 12])
@pytest.mark.slow
def test_shift_by_three_routes(block, K):
    with jax.enable_x64(True):
        net = drawn(jax.random.key(5), make_spec(block, K=K))
        x = np.random.default_rng(1).standard_normal(7)

        @jax.jit
        def both(net, x):
            pushed, _ = network.pushforward(net, forward(net, x), jnp.zeros((1, 7)), jnp.ones(1))
            return linear.linear_representation(net, x), pushed

        rep, by_propagation = both(net, x)
        by_difference = np.asarray(rep.output) - np.asarray(rep.jacobian) @ x
        np.testing.assert_allclose(rep.shift, by_difference, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(rep.shift, by_propagation[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("K", [2, 9])
@pytest.mark.slow
def test_shift_is_exactly_zero_without_biases(key, K):
    net = drawn(key, make_spec(K=K, b2=0.0))
    rep = represented(net, np.random.default_rng(1).standard_normal((5, 7), np.float32))
    assert np.all(np.asarray(rep.shift) == 0)


@pytest.mark.parametrize("K", [3, 12])
@pytest.mark.parametrize(
    ("block", "chunk_size"),
    [*((block, None) for block in BLOCKS), *(("signed", size) for size in (1, 4, 1000))],
)
@pytest.mark.slow
def test_blocks_and_chunks_are_loops(key, block, K, chunk_size):
    net = drawn(key, make_spec(block, K=K))
    xs = np.random.default_rng(1).standard_normal((5, 7), np.float32)

    @jax.jit
    def all_ways(net, xs):
        plain = lambda x: apply(net, x)  # noqa: E731
        blocks = [linear.linear_representation(source, xs, chunk_size=chunk_size)[:3] for source in (net, plain)]
        return blocks, linear.linear_representation(plain, xs[0], chunk_size=chunk_size)

    blocks, one = all_ways(net, xs)
    expected = [jax.device_get(represented(net, x)[:3]) for x in xs]
    for block_rep in blocks:
        for found, *alone in zip(block_rep, *expected, strict=True):
            np.testing.assert_allclose(found, np.stack(alone), rtol=2e-4, atol=5e-6)
    np.testing.assert_allclose(one.jacobian, expected[0][0], rtol=2e-4, atol=5e-6)


@pytest.mark.slow
def test_chunks_bound_the_memory():
    spec = NetworkSpec(64, 32, 512, 4)
    net, xs = jax.eval_shape(init, jax.random.key(0), spec), jax.ShapeDtypeStruct((32, 64), jnp.float32)

    def temporaries(chunk_size):
        represent = jax.jit(lambda net, xs: linear.linear_representation(net, xs, chunk_size=chunk_size).jacobian)
        return represent.lower(net, xs).compile().memory_analysis().temp_size_in_bytes

    whole, chunked = temporaries(None), temporaries(16)
    assert whole > 32 * 32 * 512 * 4  # one layer's cotangents of all rows at once
    assert chunked < whole / 3


@pytest.mark.slow
def test_one_pass_over_the_weights():
    """A block of inputs multiplies every matrix twice, once up and once down, however many inputs it holds."""
    net = drawn(jax.random.key(0), make_spec(L=3))
    jaxpr = jax.make_jaxpr(lambda xs: linear.linear_representation(net, xs).jacobian)(jnp.ones((6, 7)))
    products = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 2 * (3 + 2)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_gate_at_zero_is_open(block):
    spec = make_spec(block, d=1, K=1, N=1, L=1, s=1.0, b2=0.0, u=3.0, v=-2.0)
    net = drawn(jax.random.key(0), spec)
    ones = jax.tree.map(jnp.ones_like, (net.params.weights, net.frozen))
    net = network.Network(net.params._replace(weights=ones[0]), ones[1], spec)
    slope = {"vanilla": 3.0, "residual": 4.0, "signed": 4.0}[block]
    rep = represented(net, jnp.zeros(1))
    assert rep.jacobian.item() == slope
    assert represented(net, -jnp.ones(1)).jacobian.item() == slope - 5.0


@jax.jit
def differences(net, xs, etas):
    """Differences from each point, and the first rows of the Jacobians and shifts at the perturbed points."""
    difference = network.difference(net, forward(net, xs), etas)
    first = jnp.broadcast_to(jnp.eye(3)[0], (*etas.shape[:2], 3))
    return difference, *network.pullback(net, difference, first)[:2]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [1e-7, 1e-4, 0.3])
@pytest.mark.slow
def test_difference_is_right_however_small(block, size):
    spec = make_spec(block)
    net = drawn(jax.random.key(2), spec)
    random = np.random.default_rng(1)
    xs = random.standard_normal((3, 7), np.float32)
    etas = np.float32(size) * random.standard_normal((3, 5, 7), np.float32)

    difference, rows, shifts = differences(net, xs, etas)
    exact = reference.of_network(net)
    for i in range(3):
        base = reference.forward(exact, np.asarray(xs[i], np.float64))[0][0]
        for j in range(5):
            perturbed = np.asarray(xs[i], np.float64) + np.asarray(etas[i, j], np.float64)
            expected = reference.forward(exact, perturbed)[0][0] - base
            np.testing.assert_allclose(difference.output[i, j], expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())
            # and the gradient at the perturbed input, which float32 may not distinguish from x
            jacobian, shift = reference.linear_representation(exact, perturbed)
            np.testing.assert_allclose(rows[i, j], jacobian[0][0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(shifts[i, j], shift[0][0], rtol=1e-4, atol=1e-5)
    single = jax.jit(lambda net, x, eta: network.difference(net, forward(net, x), eta).output)(net, xs[0], etas[0, 0])
    np.testing.assert_allclose(single, difference.output[0, 0], rtol=1e-5, atol=1e-6 * size)


@pytest.mark.slow
def test_the_oracle_of_a_function_is_that_of_its_network():
    with jax.enable_x64(True):
        net = drawn(jax.random.key(2), make_spec())
        random = np.random.default_rng(1)
        shapes = (4, 7), (4, 2, 7), (4, 2, 3), (4, 2, 7)
        xs, etas, cotangents, tangents = (jnp.asarray(random.standard_normal(shape)) for shape in shapes)
        constants = jnp.array([[0.0, 2.0]] * 4)

        def results(net_or_f):
            source, _ = oracle.trace(net_or_f, xs)
            base = oracle.value(source, xs)
            difference = oracle.difference(source, base, etas)
            results = [base.output, difference.output, oracle.difference(source, base, etas[:, 0]).output]
            results += oracle.pullback(source, base, cotangents)[:2]
            results += oracle.pullback(source, difference, cotangents)[:2]
            results += oracle.pullback(source, base, cotangents[:, 0])[:2]
            results += [oracle.pushforward(source, base, tangents, constants)[0]]
            return [*results, oracle.pushforward(source, base, tangents[:, 0], jnp.ones(4))[0]]

        both = jax.jit(lambda net: [results(net_or_f) for net_or_f in (net, lambda x: apply(net, x))])(net)
        for a, b in zip(*both, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_vmap_over_networks_is_a_loop_and_jit_is_eager():
    spec = make_spec("signed")
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.linspace(-1, 1, 7)

    def one(key, spec):
        rep = linear.linear_representation(init(key, spec), x)
        return rep.jacobian, rep.shift

    batch = jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, spec)
    for i, key in enumerate(keys):
        for a, b in zip(batch, one(key, spec), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_leaves_of_the_spec_do_not_recompile_and_may_be_swept():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def output(key, spec, x):
        return apply(init(key, spec), x)

    x = jnp.ones(7)
    for s, b2, v in [(1.0, 0.0, 0.0), (2.0, 0.1, 0.5), (0.5, 3.0, -1.0)]:
        output(jax.random.key(0), make_spec(s=s, b2=b2, v=v), x)
    specs = make_spec(s=jnp.array([1.0, 4.0]), b2=jnp.array([0.1, 0.1]), v=jnp.zeros(2), u=jnp.ones(2))
    swept = jax.jit(jax.vmap(lambda spec: apply(init(jax.random.key(0), spec), x)))(specs)
    expected = output(jax.random.key(0), make_spec(s=4.0, b2=0.1, v=0.0), x)
    np.testing.assert_allclose(swept[1], expected, rtol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_init_has_the_variances_it_promises(block):
    spec = NetworkSpec(400, 300, 300, 2, 1.7, 0.4, block=block)
    net = drawn(jax.random.key(0), spec)
    promised = [(net.frozen.embedding.entries, 1 / 400), (net.frozen.readout.entries, 1 / 300)]
    promised += [(w.entries, 1.7 / 300) for w in net.params.weights] + [(b, 0.4) for b in net.params.biases]
    for values, variance in promised:
        values = np.asarray(values, np.float64)
        relative = np.mean(values**2) / variance - 1
        assert abs(relative) < 4.5 * np.sqrt(2 / values.size)
        assert abs(values.mean()) < 4.5 * np.sqrt(variance / values.size)
        # at the size of a matrix a variance 5% off is detected (a bias has too few entries)
        assert values.size < 1000 or abs(1.05 * (1 + relative) - 1) > 4.5 * np.sqrt(2 / values.size)
    for signs in net.frozen.signs:
        assert set(np.unique(signs)) == {-1.0, 1.0}
    assert bool(net.frozen.signs) == (block == "signed")
    flat = [np.asarray(w.entries).ravel()[:90000] for w in net.params.weights]
    assert abs(np.corrcoef(flat[0], flat[1])[0, 1]) < 4.5 / 300


@pytest.mark.slow
def test_draws_are_independent_of_the_reader_s_own():
    """One key for a network and for an input, directly or by split and fold_in: no cosine beyond chance."""
    key, d = jax.random.key(0), 1000
    net = drawn(key, make_spec("signed", d=d, N=d, K=2, L=1))
    own = [key, *jax.random.split(key, 8), *(jax.random.fold_in(key, i) for i in range(8))]
    inputs = jnp.stack([jax.random.normal(k, (d,)) for k in own])
    rows = [net.frozen.embedding.entries, net.frozen.readout.entries, net.params.weights[0].entries]
    rows = np.concatenate([*rows, *(np.asarray(v)[None] for v in (*net.params.biases, *net.frozen.signs))])
    cosines = (
        (np.asarray(inputs) @ rows.T) / np.linalg.norm(inputs, axis=1)[:, None] / np.linalg.norm(rows, axis=1)[None]
    )
    assert np.max(np.abs(cosines)) < 6 / np.sqrt(d)


@pytest.mark.slow
def test_repr_is_short():
    net = drawn(jax.random.key(0), make_spec())
    assert repr(net).startswith("Network(NetworkSpec(input_dim=7,")
    assert repr(net).endswith("dense)")
    assert len(repr(net)) < 250


@pytest.mark.slow
def test_dtypes():
    net = drawn(jax.random.key(0), make_spec())
    rep = linear.linear_representation(net, np.ones(7))  # float64 data, float32 network
    assert {leaf.dtype for leaf in jax.tree.leaves(rep)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        net = drawn(jax.random.key(0), make_spec("signed"))
        rep = represented(net, np.ones(7))
        assert {leaf.dtype for leaf in jax.tree.leaves(rep)} == {jnp.dtype("float64")}


@pytest.mark.slow
def test_evaluate_returns_the_network():
    net = drawn(jax.random.key(0), make_spec())
    output, again = evaluate(net, jnp.ones(7))
    assert again.is_dense
    np.testing.assert_array_equal(output, apply(net, jnp.ones(7)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: apply(net, jnp.ones(6)), r"x: expected shape \[7\] or \[B, 7\], got \[6\]"),
        (lambda net: apply(net, jnp.ones((2, 2, 7))), r"x: expected shape .* got \[2, 2, 7\]"),
        (lambda net: linear.linear_representation(net, jnp.ones(7), chunk_size=0), "chunk_size: expected"),
        (lambda net: linear.linear_representation("f", jnp.ones(7)), "net_or_f: expected .* got str"),
        (lambda net: linear.linear_representation(jnp.sum, jnp.ones(7)), r"net_or_f: .* \[K\] for one input \[d\]"),
        (lambda net: linear.linear_representation(jnp.sin, jnp.ones((1, 1, 7))), "x: expected shape"),
        (lambda net: init(net.spec, jax.random.key(0)), "key: expected a key .* got a NetworkSpec"),
        (lambda net: init(0, net.spec), "key: expected a key such as jax.random.key"),
        (lambda net: init(jax.random.key(0), 7), "spec: expected a NetworkSpec, got int"),
        (lambda net: init(jax.random.key(0), net.spec.replace(bias_variance=np.ones(3))), "spec: .* jax.vmap.mf.init"),
    ],
)
@pytest.mark.slow
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn(jax.random.key(0), make_spec()))
