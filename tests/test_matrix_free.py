"""Matrices drawn as they are touched: every answer is that of one matrix, and a network's that of one network.

What makes it checkable: what was answered determines a dense matrix, entry by entry, and everything that was answered
on the way must agree with it to rounding. The law of that matrix is the business of test_matrix_free_law.
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
from .test_network import as_reference

EVERYTHING = (10**6, 10**6)  # room for the whole space, and no more than that
ROUNDING = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-12}  # relative to |v| |W|


def gaussian(seed, shape, capacity=EVERYTHING, variance=1.0):
    noise = jax.random.normal(jax.random.key(seed), (noise_size(shape, capacity),))
    return matrix_free_gaussian(noise, shape, variance, capacity)


def make_spec(block="vanilla", d=5, K=2, N=16, L=2, s=1.6, b2=0.3, u=1.0, v=0.2):
    return mf.NetworkSpec(d, K, N, L, s, b2, u, v, block)


def init(key, spec, capacity=EVERYTHING):
    return mf.init(key, spec, "matrix_free", capacity)


# The counts of a matrix that comes from outside are traced; one compiled program serves all seeds and questions.
up = jax.jit(lambda matrix, v: matrix.matvec(v))
down = jax.jit(lambda matrix, v: matrix.rmatvec(v))
evaluate = jax.jit(mf.evaluate)
represent = jax.jit(mf.linear_representation)


# --- one matrix --------------------------------------------------------------------------------------------------


def of_kind(rng, kind, asked, rows, size):
    """A block of questions, in one of the ways in which questions repeat each other."""
    new = rng.standard_normal((rows, size))
    if kind == "zero":
        return 0 * new
    if kind == "one direction":
        return new[:, :1] * new[0]
    if kind == "duplicates":
        return new[[0, *range(rows - 1)]]
    if kind == "asked before" and asked:
        return rng.standard_normal((rows, len(asked))) @ np.array(asked)
    return new


@jax.jit
def conversation(matrix, verbs, inputs, cotangents):
    """The answers to questions [T, R, n] and [T, R, m], then W by columns and by rows, and an old question again.

    Verb 0 asks W for the block, 1 for its first row as a vector, 2 and 3 ask W^T.
    """

    def ask(matrix, question):
        verb, v, g = question
        block, first = slice(None), 0

        def forward(rows, matrix):
            matrix, answer = matrix.matvec(v[rows])
            return matrix, (jnp.zeros_like(g).at[rows].set(answer), jnp.zeros_like(v))

        def backward(rows, matrix):
            matrix, answer = matrix.rmatvec(g[rows])
            return matrix, (jnp.zeros_like(g), jnp.zeros_like(v).at[rows].set(answer))

        ways = [
            lambda matrix, way=way, rows=rows: way(rows, matrix)
            for way in (forward, backward)
            for rows in (block, first)
        ]
        return jax.lax.switch(verb, ways, matrix)

    matrix, answers = jax.lax.scan(ask, matrix, (verbs, inputs, cotangents))
    kept = matrix.inputs.kept, matrix.outputs.kept
    matrix, by_columns = matrix.matvec(jnp.eye(inputs.shape[-1]))
    matrix, by_rows = matrix.rmatvec(jnp.eye(cotangents.shape[-1]))
    matrix, again = matrix.matvec(inputs[0])
    return answers, kept, (by_columns.T, by_rows), again, matrix


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", [(4, 8), (6, 6), (8, 4)])
@pytest.mark.slow
def test_every_answer_is_that_of_the_matrix_read_off_at_the_end(shape, x64):
    """Random interleavings of W and W^T, of vectors and blocks: new, repeated, dependent and zero."""
    (m, n), T, R = shape, 12, 3
    with jax.enable_x64(x64):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            verbs, asked = rng.integers(4, size=T), ([], [])
            questions = np.zeros((T, R, n)), np.zeros((T, R, m))
            for t, verb in enumerate(verbs):
                side, rows = verb // 2, (R, 1)[verb % 2]
                kind = rng.choice(["new", "zero", "one direction", "duplicates", "asked before"])
                questions[side][t, :rows] = of_kind(rng, kind, asked[side], R, (n, m)[side])[:rows]
                asked[side].extend(questions[side][t, :rows])
            matrix = gaussian(seed, shape, variance=1.7)
            inputs, cotangents = (jnp.asarray(q, matrix.dtype) for q in questions)
            told = conversation(matrix, jnp.asarray(verbs, jnp.int32), inputs, cotangents)
            answers, kept, (by_columns, by_rows), again, end = told
            W, v, g = (np.asarray(values, np.float64) for values in (by_rows, inputs, cotangents))
            atol = ROUNDING[matrix.dtype] * np.linalg.norm(W, 2)
            np.testing.assert_allclose(by_columns, W, rtol=0, atol=atol)
            for answer, asked_for, of in ((answers[0], v, W.T), (answers[1], g, W), (again, v[0], W.T)):
                where = np.any(np.asarray(answer) != 0, axis=-1, keepdims=True)  # the other verb was asked elsewhere
                error = np.linalg.norm(answer - where * (asked_for @ of), axis=-1)
                assert np.all(error <= atol * np.linalg.norm(asked_for, axis=-1))
            # as many directions as the questions span: what repeats takes no room
            assert [int(k) for k in kept] == [
                np.linalg.matrix_rank(np.array([np.zeros(len(rows[0])), *rows]), tol=1e-4) for rows in asked
            ]
            assert (int(end.inputs.kept), int(end.outputs.kept)) == (n, m)
            assert end.inputs.asked > n
            assert end.law_exact


@jax.jit
def in_turn(matrix, questions):
    return jax.lax.scan(lambda matrix, v: matrix.matvec(v), matrix, questions)


@pytest.mark.parametrize("rows", [1, 20, 200])
@pytest.mark.parametrize("delta", [1e-1, 1e-3, 1e-4])
@pytest.mark.slow
def test_nearly_parallel_questions_keep_orthonormal_directions(rows, delta):
    """Two passes of Gram-Schmidt do: after one, directions of questions 1e-4 apart are far from orthogonal."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal(2000) + delta * rng.standard_normal((200, 2000))
    v = v.astype(np.float32)
    matrix, answers = in_turn(gaussian(0, (3, 2000), (200, 0)), jnp.asarray(v).reshape(-1, rows, 2000))
    Q, Y = (np.asarray(values, np.float64) for values in matrix.inputs[:2])
    assert np.abs(Q @ Q.T - np.eye(200)).max() < 1e-5
    assert matrix.inputs.kept == 200
    assert matrix.law_exact
    np.testing.assert_allclose(np.asarray(answers).reshape(200, 3), v @ Q.T @ Y, rtol=0, atol=1e-5 * np.sqrt(2000))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.slow
def test_what_is_rounding_noise_takes_no_room(rows):
    """A residual of at most 64 eps |v| keeps no direction, at any scale of v; along axes it is exact."""
    block = lambda v: jnp.stack([v] * rows)  # noqa: E731
    empty, e, eps = gaussian(0, (3, 6), (4, 2)), jnp.eye(4, 6), float(jnp.finfo(jnp.float32).eps)
    first, _ = up(empty, block(e[0]))

    def kept(matrix, v):
        matrix, answer = up(matrix, block(v))
        assert np.all(np.isfinite(answer))
        return int(matrix.inputs.kept)

    for scale in (1e-30, 1.0, 1e30):
        assert kept(first, scale * (e[0] + 63 * eps * e[1])) == 1
        assert kept(first, scale * (e[0] + 65 * eps * e[1])) == 2
    assert kept(first, e[0] + 1e-6 * e[1]) == kept(first, -3 * e[0]) == kept(first, 0 * e[0]) == 1
    assert kept(empty, 0 * e[0]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.slow
def test_what_is_not_finite_answers_nan_and_spoils_nothing_else(bad):
    rng = np.random.default_rng(0)
    good = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)
    spoilt = good.at[1, 2].set(bad)
    matrix, answer = up(gaussian(0, (3, 6), (5, 2)), spoilt)
    assert np.all(np.isnan(answer[1]))
    assert matrix.inputs.kept == 3
    # as if the row had been 0, which keeps no direction either
    without, expected = up(gaussian(0, (3, 6), (5, 2)), good.at[1].set(0))
    for row in (0, 2, 3):
        np.testing.assert_allclose(answer[row], expected[row], rtol=1e-6)
    for later in (good[1], good):
        np.testing.assert_allclose(up(matrix, later)[1], up(without, later)[1], rtol=1e-5, atol=1e-6)
    assert np.all(np.isnan(up(without, spoilt[1])[1]))
    assert np.all(np.isnan(up(gaussian(0, (3, 6), (5, 2)), spoilt[1])[1]))  # nothing asked before


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.slow
def test_the_scale_of_what_is_asked_is_no_matter(scale):
    """Squares of these overflow or vanish in single precision."""
    v = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    scales = jnp.asarray([[1.0], [scale], [1.0], [scale]], jnp.float32)
    empty = gaussian(0, (3, 6), (4, 2))
    matrix, answer = up(empty, scales * v)
    plain, expected = up(empty, v)
    np.testing.assert_allclose(answer / scales, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(up(matrix, scale * v[0])[1] / scale, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(up(empty, scale * v[0])[1] / scale, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(down(matrix, jnp.ones(3))[1], down(plain, jnp.ones(3))[1], rtol=1e-5, atol=1e-5)


# --- whole networks ----------------------------------------------------------------------------------------------


def tell(net, x):
    """A bit of everything that one asks, at one input or a block, each of the network that the last answer left."""
    rep = mf.linear_representation(net, x)
    base = network.forward(rep.network or net, x)
    row = rep.jacobian[..., 0, :]  # what is asked depends on what was answered
    moved = network.difference(base.network, base, jnp.stack([1e-6 * row, row, -2 * row], -2))
    cotangents = jnp.broadcast_to(jnp.eye(net.spec.output_dim)[0], (*x.shape[:-1], 3, net.spec.output_dim))
    rows, shifts, net = network.pullback(moved.network, moved, cotangents)
    return net, (rep[:3], base.output, moved.output, rows, shifts)


def the_dense_one(net):
    """A dense network that gives all the answers that a matrix-free one has given, in float64.

    W = Y Q^T + P Z^T (1 - Q Q^T), and what no answer depends on is 0. It gives W Q = Y in any case, and W^T P = Z if
    both sides were told of the same matrix.
    """

    def dense(matrix):
        sides = [[np.asarray(a, np.float64) for a in side[:2]] for side in (matrix.inputs, matrix.outputs)]
        (Q, Y), (P, Z) = sides
        return DenseMatrix(float(matrix.deviation) * (Y.T @ Q + P.T @ (Z - Z @ Q.T @ Q)))

    embedding, *weights, readout = map(dense, net.matrices)
    return Network(Params(tuple(weights), net.params.biases), Frozen(embedding, readout, net.frozen.signs), net.spec)


def check(net, x, answers):
    """That all answers at x, [d] or [B, d], are those of the same dense network."""
    assert net.law_exact
    exact, x, tolerance = as_reference(the_dense_one(net)), np.asarray(x, np.float64), 20 * ROUNDING[net.dtype]
    assert {leaf.dtype for leaf in jax.tree.leaves(answers)} == {net.dtype}
    for i in np.ndindex(x.shape[:-1]):
        (jacobian, shift, output), again, moved, rows, shifts = jax.tree.map(lambda a, i=i: np.asarray(a[i]), answers)
        expected = [value[0] for value in reference.linear_representation(exact, x[i])]
        f = reference.forward(exact, x[i])[0][0]
        got = [jacobian, shift, output, again]
        expected += [f, f]
        for j, size in enumerate((1e-6, 1, -2)):
            there = x[i] + np.asarray(size, jacobian.dtype) * jacobian[0].astype(np.float64)
            J, a = reference.linear_representation(exact, there)
            got += [moved[j] / size, rows[j], shifts[j]]
            expected += [(reference.forward(exact, there)[0][0] - f) / size, J[0, 0], a[0, 0]]
        for value, want in zip(got, expected, strict=True):
            np.testing.assert_allclose(value, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-9)


# Ways of asking two networks, of the keys given: counted by Python, counted by traced numbers, and all at once.
WAYS = {
    "counted": jax.jit(lambda key, spec, x: tell(init(key, spec), x)),
    "traced": lambda key, spec, x: jax.jit(tell)(jax.jit(init)(key, spec), x),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    ("block", "K", "points", "way"),
    [
        ("vanilla", 2, (), "counted"),  # K = 2: rows by pullback
        ("residual", 7, (), "traced"),  # K = 7 > d: columns by pushforward
        ("signed", 2, (2,), "counted"),
        ("vanilla", 7, (2,), "traced"),
    ],
)
@pytest.mark.slow
def test_every_answer_is_that_of_one_dense_network(block, K, points, way, x64):
    with jax.enable_x64(x64):
        spec = make_spec(block, K=K)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((*points, 5)), float)
        net, answers = WAYS[way](jax.random.key(0), spec, x)
        check(net, x, answers)
