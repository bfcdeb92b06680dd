"""Norms against NumPy, and operator norms against enumeration and against every direction they claim to bound."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.norms import exact_operator_norm, has_exact_operator_norm, vector_norm

EXPONENTS = (1, 1.5, 2, 3.7, 100, math.inf)


@pytest.mark.parametrize("p", EXPONENTS)
def test_vector_norm(p):
    x = np.random.default_rng(0).standard_normal((4, 7))
    np.testing.assert_allclose(vector_norm(jnp.asarray(x), p), np.linalg.norm(x, p, axis=1), rtol=1e-5)
    np.testing.assert_allclose(vector_norm(jnp.asarray(1e30 * x), p), 1e30 * np.linalg.norm(x, p, axis=1), rtol=1e-5)
    assert vector_norm(jnp.zeros(3), p) == 0
    assert np.isnan(vector_norm(jnp.array([1.0, jnp.nan]), p))
    assert vector_norm(jnp.array([1.0, jnp.inf]), p) == math.inf


@pytest.mark.parametrize("shape", [(3, 5), (1, 6), (6, 1), (5, 3)])
@pytest.mark.parametrize(("p", "q"), list(itertools.product(EXPONENTS, EXPONENTS)))
def test_operator_norm_is_reached_and_never_exceeded(shape, p, q):
    matrix = np.random.default_rng(1).standard_normal(shape)
    if not has_exact_operator_norm(p, q, shape):
        with pytest.raises(ValueError, match="p, q: expected"):
            exact_operator_norm(jnp.asarray(matrix), p, q)
        return
    norm = float(exact_operator_norm(jnp.asarray(matrix), p, q))
    directions = [np.random.default_rng(2).standard_normal((2000, shape[1])), np.eye(shape[1])]
    directions += [np.array(list(itertools.product([-1.0, 1.0], repeat=shape[1])))]
    dual = 1 / (1 - 1 / p) if 1 < p < math.inf else {1: math.inf, math.inf: 1}[p]
    for row in matrix:  # the best direction of each row
        best = np.sign(row) * np.abs(row) ** (dual - 1) if dual < math.inf else np.eye(shape[1])[np.argmax(np.abs(row))]
        directions.append(best[None])
    directions.append(np.linalg.svd(matrix)[2])
    directions = np.concatenate(directions)
    directions /= np.abs(directions).max(axis=1, keepdims=True)  # so that no power vanishes
    ratios = np.linalg.norm(directions @ matrix.T, q, axis=1) / np.linalg.norm(directions, p, axis=1)
    assert ratios.max() == pytest.approx(norm, rel=1e-5)


def test_batches():
    matrices = np.random.default_rng(0).standard_normal((4, 3, 5))
    for p, q in [(1, 2), (2, 2), (2, math.inf)]:
        batch = jax.jit(lambda m, p=p, q=q: exact_operator_norm(m, p, q))(jnp.asarray(matrices))
        loop = [exact_operator_norm(jnp.asarray(m), p, q) for m in matrices]
        np.testing.assert_allclose(batch, np.stack(loop), rtol=1e-6)
