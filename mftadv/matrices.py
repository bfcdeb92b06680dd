"""Gaussian matrices that one can multiply by: held entry by entry, or drawn by their queries.

A query is a product with a vector. Code written over the interface `Matrix` serves both kinds.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mftadv.spec import concrete

__all__ = [
    "DenseMatrix",
    "Matrix",
    "MatrixFree",
    "dense_gaussian",
    "matmul_precision",
    "matrix_free_gaussian",
    "noise_size",
]


class Matrix(abc.ABC):
    """A linear map W [m, n] with its transpose: the interface of every kind of matrix.

    A subclass is a frozen dataclass registered as a pytree. A product returns, beside its value, the matrix to use
    next, of the same pytree structure; any two products along such a chain are those of one and the same W.

    Attributes:
        lazy: whether queries draw entries of W, so that the matrix before a query must not be used again.
        law_exact: whether all products so far have exactly the law of the matrix: a boolean, or an array of one.
    """

    lazy: ClassVar[bool] = False
    law_exact: Any = True

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """The float type of all products."""

    @abc.abstractmethod
    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["Matrix", Float[Array, "*rows m"]]:
        """The matrix to use next, and W v for each row v."""

    @abc.abstractmethod
    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["Matrix", Float[Array, "*rows n"]]:
        """The matrix to use next, and W^T v for each row v."""

    # Not abstract: only a lazy matrix can run out of capacity.
    def check_capacity(self, inputs: int, cotangents: int) -> None:  # noqa: B027
        """Raise now the ValueError that so many further rows of `matvec` and of `rmatvec` would raise."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseMatrix(Matrix):
    """A matrix held entry by entry."""

    entries: Any  # [m, n]; not annotated as an array, since JAX also rebuilds pytrees around other objects

    @property
    def dtype(self) -> jnp.dtype:
        return self.entries.dtype

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["DenseMatrix", Float[Array, "*rows m"]]:
        return self, _contract(v, self.entries, 1)

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["DenseMatrix", Float[Array, "*rows n"]]:
        return self, _contract(v, self.entries, 0)


def dense_gaussian(noise: Float[Array, " T"], shape: tuple[int, int], variance: jax.typing.ArrayLike) -> DenseMatrix:
    """A dense matrix of independent N(0, variance) entries, from m n standard normals."""
    return DenseMatrix(noise.reshape(shape) * jnp.sqrt(jnp.asarray(variance, noise.dtype)))


class _Side(NamedTuple):
    """The queries on one side of a matrix and their products: the inputs of W, or those of W^T."""

    directions: Any  # [C, n], orthonormal rows; those not in use are 0
    images: Any  # [C, m]; those not in use hold the fresh Gaussian vectors that will make them
    rank: Any  # rows in use: a vector in the span of earlier ones needs no new one
    queries: Any = 0  # vectors so far, a Python integer for as long as the program alone determines it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MatrixFree(Matrix):
    """A Gaussian matrix W [m, n] drawn by its queries, with exactly the joint law of a dense one.

    Known are the images Y = W Q of orthonormal inputs Q, and Z = W^T P of orthonormal outputs P. A new input
    v = Q c + r q, with q a unit vector orthogonal to Q, has the product

        W v = Y c + r W q,    W q = P Z^T q + (1 - P P^T) g,    g ~ N(0, variance) fresh,

    and (q, W q) is stored; W^T v is the mirror image. A query may depend on earlier products. It costs O((m + n) C)
    for C directions, and no matrix is ever formed.

    r q is the residual of v after two passes of Gram-Schmidt. Where r <= 64 eps |v| (eps the rounding of the float
    type: 7.6e-6 |v| in single precision) it is rounding noise: it is dropped and uses no capacity. Once the directions
    span the whole space nothing is left to draw, and the matrix goes on as the dense one that it has become.

    Attributes:
        deviation: the standard deviation of an entry; what follows is of W / deviation.
        inputs: Q and Y, of as many rows as the matrix has capacity.
        outputs: P and Z.
        law_exact: False once a direction exceeded the capacity: its product reuses an earlier draw.

    Source: the conditioning of a Gaussian matrix on its products is the argument of Bolthausen 2014 and of Tensor
    Programs (Yang 2019); its use as a data structure is ours.
    """

    deviation: Any
    inputs: _Side
    outputs: _Side
    law_exact: Any = True
    lazy: ClassVar[bool] = True

    @property
    def dtype(self) -> jnp.dtype:
        return self.inputs.directions.dtype

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["MatrixFree", Float[Array, "*rows m"]]:
        inputs, product, fits = _query("inputs", self.inputs, self.outputs, v)
        following = dataclasses.replace(self, inputs=inputs, law_exact=self.law_exact & fits)
        return following, self.deviation * product

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["MatrixFree", Float[Array, "*rows n"]]:
        outputs, product, fits = _query("cotangents", self.outputs, self.inputs, v)
        following = dataclasses.replace(self, outputs=outputs, law_exact=self.law_exact & fits)
        return following, self.deviation * product

    def check_capacity(self, inputs: int, cotangents: int) -> None:
        _check_capacity("inputs", self.inputs, inputs)
        _check_capacity("cotangents", self.outputs, cotangents)


def matrix_free_gaussian(
    noise: Float[Array, " T"], shape: tuple[int, int], variance: jax.typing.ArrayLike, capacity: tuple[int, int]
) -> MatrixFree:
    """A matrix of independent N(0, variance) entries, drawn by its queries.

    Args:
        noise: `noise_size(shape, capacity)` independent standard normals: all that it will ever draw.
        shape: (m, n).
        variance: of an entry, traced.
        capacity: how many directions `matvec` and `rmatvec` can store; beyond n and m none is needed.
    """
    (m, n), (C, D) = shape, _stored(shape, capacity)
    none = jnp.zeros((), jnp.int32)
    inputs = _Side(jnp.zeros((C, n), noise.dtype), noise[: C * m].reshape(C, m), none)
    outputs = _Side(jnp.zeros((D, m), noise.dtype), noise[C * m :].reshape(D, n), none)
    return MatrixFree(jnp.sqrt(jnp.asarray(variance, noise.dtype)), inputs, outputs)


def noise_size(shape: tuple[int, int], capacity: tuple[int, int]) -> int:
    """How many standard normals a matrix drawn by its queries needs."""
    (m, n), (C, D) = shape, _stored(shape, capacity)
    return C * m + D * n


def _stored(shape: tuple[int, int], capacity: tuple[int, int]) -> tuple[int, int]:
    """The directions that are stored on each side: never more than its dimension."""
    return min(capacity[0], shape[1]), min(capacity[1], shape[0])


def matmul_precision() -> str:
    """The precision of matrix products: the one that JAX is configured with, or else the highest.

    Accelerators multiply float32 in fewer bits by default, which a check of a theory would see.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]


def _query(name: str, side: _Side, other: _Side, v: Array) -> tuple[_Side, Array, Any]:
    """The queried side with the new directions, its product with v, and whether the capacity was sufficient."""
    rows = v.reshape(math.prod(v.shape[:-1]), v.shape[-1])
    count, capacity = len(rows), len(side.directions)
    _check_capacity(name, side, count)
    directions, images = _in_use(side)
    other_directions, other_images = _in_use(other)
    fresh, old, new = _orthonormalise(directions, rows)
    drawn = jnp.diagonal(new) > 0
    added = jnp.cumsum(drawn, dtype=jnp.int32)
    places = side.rank + jnp.where(drawn, added - 1, added)
    noise = _rows_at(side.images, places)
    # The component of each image along the directions of the other side is known; noise stands for the rest alone.
    known = _contract(fresh, other_images, 1) - jnp.where(drawn[:, None], _contract(noise, other_directions, 1), 0)
    correction = _contract(known, other_directions, 0)
    product = _contract(old, images, 0) + _contract(new, noise + correction, 0)
    rank = side.rank + added[-1]
    following = _Side(
        _add_rows(side.directions, places, fresh),
        _add_rows(side.images, places, correction),
        jnp.minimum(rank, capacity),
        side.queries + count,
    )
    return following, product.reshape(*v.shape[:-1], -1), rank <= capacity


def _rows_at(buffer: Array, places: Array) -> Array:
    """Rows of a buffer; beyond the end the last, or 0 where there is none."""
    if not len(buffer):
        return jnp.zeros((len(places), buffer.shape[1]), buffer.dtype)
    if len(places) == 1:  # a slice, which compilers fuse where they do not fuse a gather
        return jax.lax.dynamic_slice_in_dim(buffer, places[0], 1)
    return buffer.at[places].get(mode="clip")


def _add_rows(buffer: Array, places: Array, rows: Array) -> Array:
    """The buffer with rows added; those beyond its end are dropped."""
    if len(places) == 1 and len(buffer):
        row = _rows_at(buffer, places) + jnp.where(places < len(buffer), rows, 0)
        return jax.lax.dynamic_update_slice_in_dim(buffer, row, places[0], 0)
    return buffer.at[places].add(rows, mode="drop")


def _check_capacity(name: str, side: _Side, count: int) -> None:
    """Refuse more queries than the capacity, where their number is known."""
    (capacity, n), queries = side.directions.shape, concrete(side.queries)
    if queries is not None and queries + count > capacity and capacity < n:
        raise ValueError(
            f"capacity: expected at least {queries + count} {name}, got {capacity}; mftadv.capacity_for counts them"
        )


def _in_use(side: _Side) -> tuple[Array, Array]:
    """Directions and images without the rows that no query can have used yet."""
    queries = len(side.directions) if concrete(side.queries) is None else side.queries
    return side.directions[:queries], side.images[:queries]


def _orthonormalise(directions: Array, rows: Array) -> tuple[Array, Array, Array]:
    """Split rows v = old @ directions + new @ fresh by Gram-Schmidt.

    Returns fresh [R, n], old [R, C] and new [R, R], lower triangular. A v whose residual is rounding noise has 0 for
    its row of fresh and on the diagonal of new.
    """
    count, threshold = len(rows), 64 * jnp.finfo(rows.dtype).eps

    def split(fresh, v):
        v, size = _unit(v)
        old, new, residual = jnp.zeros(len(directions), v.dtype), jnp.zeros(len(fresh), v.dtype), jnp.sign(size)
        if len(directions) + len(fresh):
            for _ in range(2):  # the second pass removes what rounding leaves after the first
                of_old, of_new = _contract(v, directions, 1), _contract(v, fresh, 1)
                v = v - _contract(of_old, directions, 0) - _contract(of_new, fresh, 0)
                old, new = old + of_old, new + of_new
            residual = jnp.sqrt(jnp.sum(v * v))
            v = v * (1 / jnp.where(residual > 0, residual, 1))
        residual = jnp.where(residual > threshold, residual, 0)
        return jnp.where(residual > 0, v, 0), size * old, size * new, size * residual

    if count == 1:
        fresh, old, _, residual = split(rows[:0], rows[0])
        return fresh[None], old[None], residual[None, None]

    def step(fresh, position_and_row):
        position, v = position_and_row
        direction, old, new, residual = split(fresh, v)
        return fresh.at[position].set(direction), (old, new.at[position].set(residual))

    fresh, (old, new) = jax.lax.scan(step, jnp.zeros_like(rows), (jnp.arange(count), rows))
    return fresh, old, new


def _unit(v: Array) -> tuple[Array, Array]:
    """The unit vector along v (0 for 0), and |v|.

    Where squares would overflow or vanish, v is first divided by its largest entry: a second pass, made only then.
    """
    squared, limits = jnp.sum(v * v), jnp.finfo(v.dtype)

    def rescaled():
        largest = jnp.max(jnp.abs(v))
        return largest, jnp.sqrt(jnp.sum((v / jnp.where(largest == 0, 1, largest)) ** 2))

    safe = (squared > limits.tiny / limits.eps**2) & (squared < limits.max * limits.eps)
    scale, length = jax.lax.cond(safe, lambda: (jnp.ones((), v.dtype), jnp.sqrt(squared)), rescaled)
    first, second = (jnp.where(part == 0, 0, 1 / part) for part in (scale, length))
    return v * first * second, scale * length


def _contract(v: Array, entries: Array, axis: int) -> Array:
    """Contract the last axis of the rows `v` with one axis of `entries`, at `matmul_precision`."""
    precision = matmul_precision()
    rows = v.reshape(math.prod(v.shape[:-1]), v.shape[-1])
    if rows.shape[0] == 1:  # on a CPU the vector code is up to sixteen times faster than a product of one row
        product = jax.lax.dot_general(rows[0], entries, (((0,), (axis,)), ((), ())), precision=precision)
    else:
        product = jax.lax.dot_general(rows, entries, (((1,), (axis,)), ((), ())), precision=precision)
    return product.reshape(*v.shape[:-1], entries.shape[1 - axis])
