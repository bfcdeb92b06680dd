"""Matrices drawn by their queries: all products are those of one matrix, and all results those of one network.

The products together determine a dense matrix, entry by entry, and each of them must agree with it to rounding. The
law of that matrix is tested in test_matrix_free_law.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mftadv as mf
from mftadv import network
from mftadv.matrices import DenseMatrix, matrix_free_gaussian, noise_size
from mftadv.network import Frozen, Network, Params

from . import reference

WHOLE_SPACE = (10**6, 10**6)  # capacity is limited to the dimensions
ROUNDING = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-12}  # relative to |v| |W|


def gaussian(seed, shape, capacity=WHOLE_SPACE, variance=1.0):
    noise = jax.random.normal(jax.random.key(seed), (noise_size(shape, capacity),))
    return matrix_free_gaussian(noise, shape, variance, capacity)


def make_spec(block="vanilla", d=5, K=2, N=16, L=2, s=1.6, b2=0.3, u=1.0, v=0.2):
    return mf.NetworkSpec(d, K, N, L, s, b2, u, v, block)


def init(key, spec, capacity=WHOLE_SPACE):
    return mf.init(key, spec, "matrix_free", capacity)


# The counts of a matrix that is an operand are traced; one compiled program serves all seeds and queries.
matvec = jax.jit(lambda matrix, v: matrix.matvec(v))
rmatvec = jax.jit(lambda matrix, v: matrix.rmatvec(v))
evaluate = jax.jit(mf.evaluate)
represent = jax.jit(mf.linear_representation)


# --- one matrix --------------------------------------------------------------------------------------------------


def of_kind(rng, kind, earlier, rows, size):
    """A block of queries, in one of the ways in which queries repeat each other."""
    new = rng.standard_normal((rows, size))
    if kind == "zero":
        return 0 * new
    if kind == "one direction":
        return new[:, :1] * new[0]
    if kind == "duplicates":
        return new[[0, *range(rows - 1)]]
    if kind == "dependent" and earlier:
        return rng.standard_normal((rows, len(earlier))) @ np.array(earlier)
    return new


@jax.jit
def interleave(matrix, operations, inputs, cotangents):
    """The products with inputs [T, R, n] and cotangents [T, R, m], then W by columns and by rows, and the first again.

    Operation 0 is W with the block, 1 is W with its first row as a vector, 2 and 3 are the same of W^T.
    """

    def query(matrix, operands):
        operation, v, g = operands
        block, first = slice(None), 0

        def forward(rows, matrix):
            matrix, product = matrix.matvec(v[rows])
            return matrix, (jnp.zeros_like(g).at[rows].set(product), jnp.zeros_like(v))

        def backward(rows, matrix):
            matrix, product = matrix.rmatvec(g[rows])
            return matrix, (jnp.zeros_like(g), jnp.zeros_like(v).at[rows].set(product))

        branches = [
            lambda matrix, direction=direction, rows=rows: direction(rows, matrix)
            for direction in (forward, backward)
            for rows in (block, first)
        ]
        return jax.lax.switch(operation, branches, matrix)

    matrix, products = jax.lax.scan(query, matrix, (operations, inputs, cotangents))
    ranks = matrix.inputs.rank, matrix.outputs.rank
    matrix, by_columns = matrix.matvec(jnp.eye(inputs.shape[-1]))
    matrix, by_rows = matrix.rmatvec(jnp.eye(cotangents.shape[-1]))
    matrix, again = matrix.matvec(inputs[0])
    return products, ranks, (by_columns.T, by_rows), again, matrix


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", [(4, 8), (6, 6), (8, 4)])
@pytest.mark.slow
def test_every_product_is_that_of_the_matrix_read_off_at_the_end(shape, x64):
    """Random interleavings of W and W^T, of vectors and blocks: new, repeated, dependent and zero."""
    (m, n), T, R = shape, 12, 3
    with jax.enable_x64(x64):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            operations, earlier = rng.integers(4, size=T), ([], [])
            queries = np.zeros((T, R, n)), np.zeros((T, R, m))
            for t, operation in enumerate(operations):
                side, rows = operation // 2, (R, 1)[operation % 2]
                kind = rng.choice(["new", "zero", "one direction", "duplicates", "dependent"])
                queries[side][t, :rows] = of_kind(rng, kind, earlier[side], R, (n, m)[side])[:rows]
                earlier[side].extend(queries[side][t, :rows])
            matrix = gaussian(seed, shape, variance=1.7)
            inputs, cotangents = (jnp.asarray(q, matrix.dtype) for q in queries)
            results = interleave(matrix, jnp.asarray(operations, jnp.int32), inputs, cotangents)
            products, ranks, (by_columns, by_rows), again, end = results
            W, v, g = (np.asarray(values, np.float64) for values in (by_rows, inputs, cotangents))
            atol = ROUNDING[matrix.dtype] * np.linalg.norm(W, 2)
            np.testing.assert_allclose(by_columns, W, rtol=0, atol=atol)
            for product, vectors, of in ((products[0], v, W.T), (products[1], g, W), (again, v[0], W.T)):
                where = np.any(np.asarray(product) != 0, axis=-1, keepdims=True)  # elsewhere W^T was queried, or W
                error = np.linalg.norm(product - where * (vectors @ of), axis=-1)
                assert np.all(error <= atol * np.linalg.norm(vectors, axis=-1))
            # as many directions as the dimension of the span of the queries
            assert [int(rank) for rank in ranks] == [
                np.linalg.matrix_rank(np.array([np.zeros(len(rows[0])), *rows]), tol=1e-4) for rows in earlier
            ]
            assert (int(end.inputs.rank), int(end.outputs.rank)) == (n, m)
            assert end.inputs.queries > n
            assert end.law_exact


@jax.jit
def in_turn(matrix, queries):
    return jax.lax.scan(lambda matrix, v: matrix.matvec(v), matrix, queries)


@pytest.mark.parametrize("rows", [1, 20, 200])
@pytest.mark.parametrize("delta", [1e-1, 1e-3, 1e-4])
@pytest.mark.slow
def test_nearly_parallel_queries_have_orthonormal_directions(rows, delta):
    """Two passes of Gram-Schmidt suffice: after one, directions of queries 1e-4 apart are far from orthogonal."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal(2000) + delta * rng.standard_normal((200, 2000))
    v = v.astype(np.float32)
    matrix, products = in_turn(gaussian(0, (3, 2000), (200, 0)), jnp.asarray(v).reshape(-1, rows, 2000))
    Q, Y = (np.asarray(values, np.float64) for values in matrix.inputs[:2])
    assert np.abs(Q @ Q.T - np.eye(200)).max() < 1e-5
    assert matrix.inputs.rank == 200
    assert matrix.law_exact
    np.testing.assert_allclose(np.asarray(products).reshape(200, 3), v @ Q.T @ Y, rtol=0, atol=1e-5 * np.sqrt(2000))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.slow
def test_rounding_noise_uses_no_capacity(rows):
    """A residual of at most 64 eps |v| gives no direction, at any scale of v; along axes it is exact."""
    block = lambda v: jnp.stack([v] * rows)  # noqa: E731
    empty, e, eps = gaussian(0, (3, 6), (4, 2)), jnp.eye(4, 6), float(jnp.finfo(jnp.float32).eps)
    first, _ = matvec(empty, block(e[0]))

    def rank(matrix, v):
        matrix, product = matvec(matrix, block(v))
        assert np.all(np.isfinite(product))
        return int(matrix.inputs.rank)

    for scale in (1e-30, 1.0, 1e30):
        assert rank(first, scale * (e[0] + 63 * eps * e[1])) == 1
        assert rank(first, scale * (e[0] + 65 * eps * e[1])) == 2
    assert rank(first, e[0] + 1e-6 * e[1]) == rank(first, -3 * e[0]) == rank(first, 0 * e[0]) == 1
    assert rank(empty, 0 * e[0]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.slow
def test_the_product_of_what_is_not_finite_is_nan_and_affects_no_other(bad):
    rng = np.random.default_rng(0)
    good = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    with_bad = good.at[1, 2].set(bad)
    matrix, product = matvec(gaussian(0, (3, 6), (5, 2)), with_bad)
    assert np.all(np.isnan(product[1]))
    assert matrix.inputs.rank == 3
    # as if the row had been 0, which gives no direction either
    without, expected = matvec(gaussian(0, (3, 6), (5, 2)), good.at[1].set(0))
    for row in (0, 2, 3):
        np.testing.assert_allclose(product[row], expected[row], rtol=1e-6)
    for later in (good[1], good):
        np.testing.assert_allclose(matvec(matrix, later)[1], matvec(without, later)[1], rtol=1e-5, atol=1e-6)
    assert np.all(np.isnan(matvec(without, with_bad[1])[1]))
    assert np.all(np.isnan(matvec(gaussian(0, (3, 6), (5, 2)), with_bad[1])[1]))  # the first query


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.slow
def test_the_scale_of_queries_does_not_matter(scale):
    """Squares of these overflow or vanish in single precision."""
    v = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    scales = jnp.asarray([[1.0], [scale], [1.0], [scale]], jnp.float32)
    empty = gaussian(0, (3, 6), (4, 2))
    matrix, product = matvec(empty, scales * v)
    plain, expected = matvec(empty, v)
    np.testing.assert_allclose(product / scales, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matvec(matrix, scale * v[0])[1] / scale, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matvec(empty, scale * v[0])[1] / scale, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rmatvec(matrix, jnp.ones(3))[1], rmatvec(plain, jnp.ones(3))[1], rtol=1e-5, atol=1e-5)


# --- whole networks ----------------------------------------------------------------------------------------------


def results(net, x):
    """One result of every kind, at one input or a block, each of the network that the last one returned."""
    rep = mf.linear_representation(net, x)
    base = network.forward(rep.network or net, x)
    row = rep.jacobian[..., 0, :]  # later queries depend on earlier results
    difference = network.difference(base.network, base, jnp.stack([1e-6 * row, row, -2 * row], -2))
    cotangents = jnp.broadcast_to(jnp.eye(net.spec.output_dim)[0], (*x.shape[:-1], 3, net.spec.output_dim))
    rows, shifts, net = network.pullback(difference.network, difference, cotangents)
    return net, (rep[:3], base.output, difference.output, rows, shifts)


def the_dense_one(net):
    """A dense network that has all the products that a matrix-free one has returned, in float64.

    W = Y Q^T + P Z^T (1 - Q Q^T), and what no product depends on is 0. It gives W Q = Y in any case, and W^T P = Z if
    both sides are products of the same matrix.
    """

    def dense(matrix):
        sides = [[np.asarray(a, np.float64) for a in side[:2]] for side in (matrix.inputs, matrix.outputs)]
        (Q, Y), (P, Z) = sides
        return DenseMatrix(float(matrix.deviation) * (Y.T @ Q + P.T @ (Z - Z @ Q.T @ Q)))

    embedding, *weights, readout = map(dense, net.matrices)
    return Network(Params(tuple(weights), net.params.biases), Frozen(embedding, readout, net.frozen.signs), net.spec)


def check(net, x, found):
    """Assert that all results at x, [d] or [B, d], are those of the same dense network."""
    assert net.law_exact
    exact, x, tolerance = reference.of_network(the_dense_one(net)), np.asarray(x, np.float64), 20 * ROUNDING[net.dtype]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {net.dtype}
    finer = jax.tree.map(lambda a: np.asarray(a, np.longdouble), exact)  # for differences of nearly equal numbers
    for i in np.ndindex(x.shape[:-1]):
        (jacobian, shift, output), again, differences, rows, shifts = jax.tree.map(
            lambda a, i=i: np.asarray(a[i]), found
        )
        expected = [value[0] for value in reference.linear_representation(exact, x[i])]
        f = reference.forward(exact, x[i])[0][0]
        got = [jacobian, shift, output, again]
        expected += [f, f]
        for j, size in enumerate((1e-6, 1, -2)):
            perturbed = x[i] + (np.asarray(size, jacobian.dtype) * jacobian[0]).astype(np.longdouble)
            J, a = reference.linear_representation(exact, perturbed.astype(np.float64))
            got += [differences[j] / size, rows[j], shifts[j]]
            difference = reference.forward(finer, perturbed)[0][0] - reference.forward(finer, x[i])[0][0]
            expected += [difference / size, J[0, 0], a[0, 0]]
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=tolerance * np.abs(want).max())


# The queries are counted by Python, or by traced numbers.
COUNTS = {
    "static": jax.jit(lambda key, spec, x: results(init(key, spec), x)),
    "traced": lambda key, spec, x: jax.jit(results)(jax.jit(init)(key, spec), x),
}


@pytest.mark.parametrize(
    ("block", "K", "points", "counts", "x64"),
    [
        ("vanilla", 2, (), "static", False),  # K = 2: rows by pullback
        ("vanilla", 2, (), "static", True),
        ("residual", 7, (), "traced", True),  # K = 7 > d: columns by pushforward
        ("signed", 2, (2,), "static", True),
        ("vanilla", 7, (2,), "traced", False),
    ],
)
@pytest.mark.slow
def test_every_result_is_that_of_one_dense_network(block, K, points, counts, x64):
    with jax.enable_x64(x64):
        spec = make_spec(block, K=K)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((*points, 5)), float)
        net, found = COUNTS[counts](jax.random.key(0), spec, x)
        check(net, x, found)
