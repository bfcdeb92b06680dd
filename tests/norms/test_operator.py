"""Operator norms against enumeration in NumPy, dense scans of the ball, and duality."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mftadv.network import init
from mftadv.norms import _operator, exact_operator_norm, has_exact_operator_norm, operator_norm
from mftadv.spec import NetworkSpec

INF = math.inf
EXPONENTS = (1, 1.5, 2, 3.7, 100, INF)
PAIRS = list(itertools.product(EXPONENTS, EXPONENTS))


def dual(p):
    return {1: INF, INF: 1}[p] if p in (1, INF) else p / (p - 1)


@functools.cache
def sign_vectors(n):
    return np.array([(1.0, *rest) for rest in itertools.product([-1.0, 1.0], repeat=n - 1)])


def enumerated(matrix, p, q):
    """|M|_{p->q} for p = inf or q = 1, over all sign vectors, of which -s gives what s gives."""
    if p != INF:
        return enumerated(matrix.T, INF, dual(p))
    signs = sign_vectors(matrix.shape[1])
    return np.linalg.norm(signs @ np.asarray(matrix, float).T, q, axis=1).max()


def jitted(p, q):
    """An eager loop compiles at every call."""
    return compiled(p, q, _operator.ENUMERATION_LIMIT, _operator._CHUNK_ENTRIES)


@functools.cache
def compiled(p, q, *what_it_is_compiled_for):
    return jax.jit(lambda matrix: operator_norm(matrix, p, q))


@pytest.fixture
def no_enumeration(monkeypatch):
    monkeypatch.setattr(_operator, "ENUMERATION_LIMIT", 0)


@pytest.mark.parametrize("shape", [(3, 5), (1, 6), (6, 1), (5, 3)])
@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.slow
def test_formula_is_reached_and_never_exceeded(shape, p, q):
    matrix = np.random.default_rng(1).standard_normal(shape)
    if not has_exact_operator_norm(p, q, shape):
        with pytest.raises(ValueError, match="p, q: expected"):
            exact_operator_norm(jnp.asarray(matrix), p, q)
        return
    norm = float(exact_operator_norm(jnp.asarray(matrix), p, q))
    directions = [np.random.default_rng(2).standard_normal((2000, shape[1])), np.eye(shape[1])]
    directions += [np.array(list(itertools.product([-1.0, 1.0], repeat=shape[1])))]
    for row in matrix:  # the best direction of each row
        best = np.eye(shape[1])[np.argmax(np.abs(row))] if p == 1 else np.sign(row) * np.abs(row) ** (dual(p) - 1)
        directions.append(best[None])
    directions.append(np.linalg.svd(matrix)[2])
    directions = np.concatenate(directions)
    directions /= np.abs(directions).max(axis=1, keepdims=True)  # so that no power vanishes
    ratios = np.linalg.norm(directions @ matrix.T, q, axis=1) / np.linalg.norm(directions, p, axis=1)
    assert ratios.max() == pytest.approx(norm, rel=1e-5)
    result = operator_norm(jnp.asarray(matrix), p, q)
    assert result.exact is True
    assert result.lower == result.upper == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(("p", "q"), [(INF, 1), (INF, 1.5), (INF, 2), (3.7, 1)])
@pytest.mark.slow
def test_enumeration(p, q, monkeypatch):
    """On the shorter side and, but for inf -> 1, the longer one; up to the limit, and beside one beyond it."""
    sizes = [(40, 7), (3, 14)] if p == INF else [(7, 40), (14, 3)]
    for seed, shape in enumerate([*sizes, (14, 14)]):
        matrix = np.random.default_rng(seed).standard_normal((2, *shape))
        expected = [enumerated(m, p, q) for m in matrix]
        result = jitted(p, q)(matrix)
        assert result.exact is True
        np.testing.assert_allclose(result.lower, expected, rtol=1e-5)
        assert jnp.all(result.lower == result.upper)
    with monkeypatch.context() as patch:
        patch.setattr(_operator, "_CHUNK_ENTRIES", 1000)  # many chunks, few entries in each
        np.testing.assert_allclose(jitted(p, q)(matrix).lower, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_shorter_side_is_enumerated():
    for shape in ((9, 100), (100, 9)):
        matrix = np.random.default_rng(0).standard_normal(shape)
        result = jitted(INF, 1)(matrix)
        assert result.exact is True
        assert float(result.lower) == pytest.approx(enumerated(matrix if shape[1] == 9 else matrix.T, INF, 1), rel=1e-5)
    assert jax.eval_shape(jitted(INF, 1), jnp.ones((15, 15))).exact is False
    assert jax.eval_shape(jitted(INF, 2), jnp.ones((9, 15))).exact is False


@pytest.mark.parametrize(("p", "q"), [(INF, 1), (INF, 2), (2, 1)])
@pytest.mark.slow
def test_bounds_enclose_what_enumeration_finds(p, q, no_enumeration):
    matrix = np.random.default_rng(7).standard_normal((50, 14, 14))
    truth = np.array([enumerated(m, p, q) for m in matrix])
    result = jitted(p, q)(matrix)
    assert result.exact is False
    assert np.all(result.lower <= truth * (1 + 1e-6))
    assert np.all(result.upper >= truth * (1 - 1e-6))
    assert np.mean(result.lower / truth) >= 0.999
    assert np.min(result.lower / truth) > 0.95
    assert np.mean(result.upper / truth) < 1.4  # 1.34 measured for inf -> 1, 1.14 for the others


# on both sides of the diagonal p = q, and closed under (p, q) -> (q*, p*)
PAIRS_WITHOUT_FORMULA = [
    *[(4 / 3, 4 / 3), (4, 4), (4 / 3, 4), (4 / 3, 2), (2, 4)],
    *[(4, 2), (2, 4 / 3), (4, 4 / 3), (INF, 2), (2, 1), (INF, 1)],
]


def matrices_of_two_columns():
    gaussian = np.random.default_rng(0).standard_normal((4, 2))
    yield from (gaussian, gaussian[:2], np.array([[1.0, 1.0], [1.0, -1.0]]), np.ones((4, 2)), np.eye(2))
    yield from (np.outer([1.0, -2.0, 0.5], [0.3, 1.0]), np.diag([1.0, 0.01]), np.array([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize(("p", "q"), PAIRS_WITHOUT_FORMULA)
@pytest.mark.slow
def test_bounds_enclose_a_scan_of_the_plane(p, q, no_enumeration):
    """The interpolated bounds are bounds, also where complex norms are larger than real ones; M^T has those of M."""
    angles = np.linspace(0, np.pi, 40001)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    directions /= np.linalg.norm(directions, p, axis=0)
    plane = list(matrices_of_two_columns())
    truth = np.array([np.linalg.norm(matrix @ directions, q, axis=0).max() for matrix in plane])
    padded = [np.pad(matrix, ((0, 4 - len(matrix)), (0, 2))) for matrix in plane]  # zeros change no norm
    matrix = np.concatenate([padded, np.random.default_rng(3).standard_normal((6, 4, 4))])
    result = jitted(p, q)(matrix)
    assert result.exact is False
    assert np.all(result.lower <= result.upper)
    np.testing.assert_allclose(result.lower[: len(truth)], truth, rtol=1e-5)
    assert np.all(result.upper[: len(truth)] >= truth * (1 - 1e-6))
    widest = 1.5 if (p, q) in ((4, 4 / 3), (INF, 2), (INF, 1)) else 1.3
    assert np.all((result.upper / result.lower)[len(truth) :] < widest)
    transposed = jitted(dual(q), dual(p))(np.swapaxes(matrix, 1, 2))
    np.testing.assert_allclose(transposed.lower, result.lower, rtol=1e-5)
    np.testing.assert_allclose(transposed.upper, result.upper, rtol=1e-5)


@pytest.mark.parametrize(("p", "q"), [(1, 2), (2, 2), (INF, 2), (3, 1.5)])
@pytest.mark.slow
def test_scales_and_what_is_not_finite(p, q):
    matrix = np.random.default_rng(0).standard_normal((4, 3))
    flawed = [np.where(matrix > 1, bad, matrix) for bad in (np.nan, np.inf)]
    result = jitted(p, q)(np.stack([matrix, 1e-30 * matrix, 1e30 * matrix, 0 * matrix, *flawed]))
    for bound in result[:2]:
        np.testing.assert_allclose(bound, bound[0] * np.array([1, 1e-30, 1e30, 0, np.nan, np.inf]), rtol=1e-5)
    assert 0 < result.lower[0] <= result.upper[0] < INF


@pytest.mark.parametrize(("p", "q", "exact"), [(1, 2, True), (INF, 2, True), (3, 1.5, False)])
@pytest.mark.slow
def test_batches_jit_and_vmap(p, q, exact):
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5)))
    key = jax.random.key(5)

    def one(m):
        return operator_norm(m, p, q, key)

    result, mapped = jax.jit(lambda m: (one(m), jax.vmap(jax.vmap(one))(m)))(matrix)
    assert result.exact is exact
    assert result.lower.shape == result.upper.shape == (2, 3)
    alone = jax.jit(one)
    loop = [alone(m) for m in matrix.reshape(6, 4, 5)]
    for bound in ("lower", "upper"):
        np.testing.assert_allclose(getattr(mapped, bound), getattr(result, bound), rtol=1e-6)
        by_one = jnp.stack([getattr(one, bound) for one in loop])
        np.testing.assert_allclose(by_one.reshape(2, 3), getattr(result, bound), rtol=1e-6)
    assert mapped.exact is exact
    with jax.enable_x64(True):
        wide = jax.eval_shape(lambda m: operator_norm(m, p, q), jax.ShapeDtypeStruct((4, 5), "float64"))
        assert wide.lower.dtype == wide.upper.dtype == "float64"


@pytest.mark.slow
def test_derivatives_of_the_largest_singular_value():
    matrices = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 3)), "float32")

    def norms(matrices):
        return exact_operator_norm(matrices, 2, 2)

    left, _, right = np.linalg.svd(matrices)
    gradients = left[:, :, :1] * right[:, :1]
    first, second = jax.grad(norms), jax.hessian(norms)
    for found in (jax.vmap(first)(matrices), jax.grad(lambda m: jnp.sum(jax.vmap(norms)(m)))(matrices),
                  jax.grad(lambda m: jnp.sum(norms(m)))(matrices)):  # fmt: skip
        np.testing.assert_allclose(found, gradients, rtol=1e-4, atol=1e-5)
    expected = (first(matrices[0] + 0.01 * matrices[1]) - first(matrices[0] - 0.01 * matrices[1])) / 0.02
    np.testing.assert_allclose(jnp.tensordot(second(matrices[0]), matrices[1]), expected, atol=1e-3)


@pytest.mark.slow
def test_the_key_draws_the_starts():
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((40, 30)))
    few = jax.jit(lambda key: operator_norm(matrix, INF, 1, key, restarts=2).lower)
    lower = [float(few(jax.random.key(seed))) for seed in range(3)]
    without, many = jax.jit(lambda: [operator_norm(matrix, INF, 1, restarts=count).lower for count in (2, 64)])()
    assert float(without) == pytest.approx(lower[0], rel=1e-6)
    assert len(set(lower)) > 1
    assert many >= max(lower)


@pytest.mark.slow
def test_starts_are_independent_of_a_network_of_the_same_key(monkeypatch):
    """None of the random starts is along a row of the network, as the first would be along row 0 of P_in."""
    spec, key = NetworkSpec(1000, 2, 20, 1), jax.random.key(0)
    rows = np.concatenate([jax.jit(init)(key, spec).frozen.embedding.entries, jax.random.normal(key, (1, 1000))])

    class Drawn(Exception):
        """The starts are there, and no more is asked."""

    def drawn(matrix, p, q, random):
        raise Drawn(random)

    monkeypatch.setattr(_operator, "_starts", drawn)
    with pytest.raises(Drawn) as raised:
        operator_norm(jnp.ones((2, 1000)), 3, 1.5, key, restarts=8)
    starts = np.asarray(raised.value.args[0])
    cosines = starts @ rows.T / np.linalg.norm(starts, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    assert starts.shape == (8, 1000)
    assert np.max(np.abs(cosines)) < 6 / math.sqrt(1000)


def test_errors(unchecked):
    matrix = jnp.ones((2, 3))
    for p, q, name in ((0.5, 2, "p"), (2, 0.5, "q"), (math.nan, 2, "p"), (2, True, "q")):
        with pytest.raises(ValueError, match=rf"{name}: expected a number in \[1, inf\]"):
            operator_norm(matrix, p, q)
    for bad in (jnp.ones(3), jnp.ones((0, 3)), jnp.ones((2, 3, 0))):
        with pytest.raises(ValueError, match=r"matrix: expected \[\.\.\., K, d\]"):
            operator_norm(bad, 3, 1.5)
    with pytest.raises(ValueError, match="restarts: expected a positive integer, got 0"):
        operator_norm(matrix, 3, 1.5, restarts=0)
    for p in (1, 3):
        with pytest.raises(ValueError, match="key: expected a key"):
            operator_norm(matrix, p, 1.5, 0)
