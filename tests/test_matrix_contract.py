"""The promises of the interface `Matrix`, checked on every matrix that the library has."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.matrices import DenseMatrix, Matrix, dense_gaussian, matrix_free_gaussian, noise_size

from .interfaces import implementations

M, N, CAPACITY = 4, 5, (3, 2)


def dense():
    return dense_gaussian(jax.random.normal(jax.random.key(0), (M * N,)), (M, N), 1.7)


def matrix_free(capacity=(N, M)):
    noise = jax.random.normal(jax.random.key(1), (noise_size((M, N), capacity),))
    return matrix_free_gaussian(noise, (M, N), 1.7, capacity)


TABLE = {"DenseMatrix": dense, "MatrixFree": matrix_free}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Skewed(DenseMatrix):
    """A matrix whose transpose is 5% wrong.

    Its second field makes it another pytree: those of two dataclasses with equal fields compare as equal in JAX.
    """

    factor: Any = 1.05

    def rmatvec(self, v):
        _, product = super().rmatvec(v)
        return self, self.factor * product


def test_every_matrix_is_in_the_table():
    assert implementations(Matrix) == {*TABLE, "Counted"}  # which multiplies nothing, see test_queries


@jax.jit
def products(matrix, v, g):
    """Products with blocks v [3, N] and g [3, M], then with one row of each, then all entries."""
    matrix, block = matrix.matvec(v)
    matrix, transposed = matrix.rmatvec(g)
    matrix, row = matrix.matvec(v[0])
    matrix, transposed_row = matrix.rmatvec(g[1])
    matrix, columns = matrix.matvec(jnp.eye(N))
    return matrix, (block, transposed, row, transposed_row, columns.T)


def operands():
    """Two random vectors and a combination of them, for either side."""
    rng, combine = np.random.default_rng(0), np.array([[1.0, 0.0], [0.0, 1.0], [2.0, -3.0]])
    return tuple(jnp.asarray(combine @ rng.standard_normal((2, size)), float) for size in (N, M))


def check(matrix):
    v, g = operands()
    following, results = products(matrix, v, g)
    assert {result.dtype for result in results} == {matrix.dtype}
    assert jax.tree.structure(following) == jax.tree.structure(matrix)
    assert following.law_exact
    v, g = (np.asarray(values, np.float64) for values in (v, g))
    block, transposed, row, transposed_row, W = results
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    same(block, v @ W.T)
    same(transposed, g @ W)
    same(np.sum(g * block, axis=-1), np.sum(transposed * v, axis=-1))  # <g, W v> = <W^T g, v>
    for linear in (block, transposed):
        same(linear[2], 2 * linear[0] - 3 * linear[1])
    same(row, block[0])
    same(transposed_row, transposed[1])


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.slow
def test_products_are_those_of_one_linear_map_and_its_transpose(name):
    check(TABLE[name]())


@pytest.mark.slow
def test_a_wrong_transpose_is_detected():
    with pytest.raises(AssertionError):
        check(Skewed(dense().entries))


@jax.jit
def updated(matrix, v, g):
    matrix, before = matrix.matvec(v)
    matrix, transposed = matrix.rmatvec(g)
    update = matrix.rank_one_update(g, v)
    return update, before, transposed, update.matrix.matvec(v)[1], update.matrix.rmatvec(g)[1]


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.slow
def test_an_update_adds_outer_products_of_queried_vectors(name):
    v, g = (rows[:2] for rows in operands())
    update, before, transposed, after, transposed_after = updated(TABLE[name](), v, g)
    assert update.matrix.law_exact
    v, g = np.asarray(v), np.asarray(g)
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=3e-5)
    same(after, before + v @ v.T @ g)
    same(transposed_after, transposed + g @ g.T @ v)
    size = np.sum((g.T @ v) ** 2)
    same(update.size, size, rtol=1e-5)
    same(update.norm_change, 2 * np.sum(g * before) + size, rtol=1e-5)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.slow
def test_the_same_matrix_gives_the_same_products_compiled_or_not(name):
    matrix, (v, g) = TABLE[name](), operands()
    once, twice = products(matrix, v, g), products(matrix, v, g)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    _, (block, *_) = once
    np.testing.assert_allclose(matrix.matvec(v[0])[1], block[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_only_a_lazy_matrix_has_a_capacity():
    dense().check_capacity(10**6, 10**6)
    limited = matrix_free(CAPACITY)
    limited.check_capacity(*CAPACITY)
    for counts, message in (((4, 0), "at least 4 inputs, got 3"), ((0, 3), "at least 3 cotangents, got 2")):
        with pytest.raises(ValueError, match=f"capacity: expected {message}"):
            limited.check_capacity(*counts)
    assert matrix_free().lazy
    assert not dense().lazy


def test_the_interface_itself_is_no_matrix():
    with pytest.raises(TypeError, match="abstract"):
        Matrix()
