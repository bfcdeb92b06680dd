"""Gaussian matrices that one can multiply by.

A matrix is a pytree with two verbs, `matvec` (W v) and `rmatvec` (W^T v). Each takes a vector or a block of rows,
[..., n] or [..., m], and returns the matrix to ask next beside the product, so that a matrix may also be drawn as it
is touched: code written over these verbs serves every kind.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class Matrix(Protocol):
    """A linear map W [m, n] with its transpose; a product may reveal more of W, hence the returned matrix."""

    @property
    def dtype(self) -> jnp.dtype: ...

    @property
    def law_exact(self) -> Any:
        """Whether all answers so far have exactly the law of the matrix: a boolean, or an array of one."""
        ...

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["Matrix", Float[Array, "*rows m"]]:
        """W v for each row v, and the matrix to ask next."""
        ...

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["Matrix", Float[Array, "*rows n"]]:
        """W^T v for each row v, and the matrix to ask next."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseMatrix:
    """A matrix held entry by entry."""

    entries: Any  # [m, n]; JAX rebuilds pytrees around things that are no arrays

    @property
    def dtype(self) -> jnp.dtype:
        return self.entries.dtype

    @property
    def law_exact(self) -> bool:
        return True

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["DenseMatrix", Float[Array, "*rows m"]]:
        return self, _contract(v, self.entries, 1)

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["DenseMatrix", Float[Array, "*rows n"]]:
        return self, _contract(v, self.entries, 0)


def dense_gaussian(noise: Float[Array, " T"], shape: tuple[int, int], variance: jax.typing.ArrayLike) -> DenseMatrix:
    """A dense matrix of independent N(0, variance) entries, from m n standard normals."""
    return DenseMatrix(noise.reshape(shape) * jnp.sqrt(jnp.asarray(variance, noise.dtype)))


class _Side(NamedTuple):
    """What one side of a matrix was asked, and what it answered: the inputs of W, or those of W^T."""

    directions: Any  # [C, n], orthonormal rows; those not in use are 0
    images: Any  # [C, m]; those not in use hold the fresh Gaussian vectors that will make them
    kept: Any  # rows in use: a vector in the span of earlier ones takes none
    asked: Any = 0  # vectors so far, a Python integer for as long as the program alone decides it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MatrixFree:
    """A Gaussian matrix W [m, n] drawn as it is touched, with exactly the joint law of a dense one.

    Known are the images Y = W Q of orthonormal inputs Q, and Z = W^T P of orthonormal outputs P. A new input
    v = Q c + r q, with q a unit vector orthogonal to Q, is answered by

        W v = Y c + r W q,    W q = P Z^T q + (1 - P P^T) g,    g ~ N(0, variance) fresh,

    and (q, W q) is remembered; W^T v is the mirror image. What is asked may depend on earlier answers. An answer costs
    O((m + n) C) for C directions, and no matrix is ever formed.

    r q is what two passes of Gram-Schmidt leave of v. Where r <= 64 eps |v| (eps the rounding of the float type:
    7.6e-6 |v| in single precision) it is rounding noise: it is dropped and takes no room. Once the directions span
    the whole space nothing is left to draw, and the matrix goes on as the dense one that it has become.

    Attributes:
        deviation: the standard deviation of an entry; what follows is of W / deviation.
        inputs: Q and Y, with room for as many directions as it was made for.
        outputs: P and Z.
        law_exact: False once a direction found no room: its answer reuses an earlier draw.

    Source: the conditioning of a Gaussian matrix on its products is the argument of Bolthausen 2014 and of Tensor
    Programs (Yang 2019); its use as a data structure is ours.
    """

    deviation: Any
    inputs: _Side
    outputs: _Side
    law_exact: Any = True

    @property
    def dtype(self) -> jnp.dtype:
        return self.inputs.directions.dtype

    def check_room(self, inputs: int, cotangents: int) -> None:
        """Raise the ValueError that so many more questions would meet, before any is asked."""
        _check_room("inputs", self.inputs, inputs)
        _check_room("cotangents", self.outputs, cotangents)

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["MatrixFree", Float[Array, "*rows m"]]:
        inputs, product, fits = _ask("inputs", self.inputs, self.outputs, v)
        asked = dataclasses.replace(self, inputs=inputs, law_exact=self.law_exact & fits)
        return asked, self.deviation * product

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["MatrixFree", Float[Array, "*rows n"]]:
        outputs, product, fits = _ask("cotangents", self.outputs, self.inputs, v)
        asked = dataclasses.replace(self, outputs=outputs, law_exact=self.law_exact & fits)
        return asked, self.deviation * product


def matrix_free_gaussian(
    noise: Float[Array, " T"], shape: tuple[int, int], variance: jax.typing.ArrayLike, capacity: tuple[int, int]
) -> MatrixFree:
    """A matrix of independent N(0, variance) entries, drawn as it is touched.

    Args:
        noise: `noise_size(shape, capacity)` independent standard normals: all that it will ever draw.
        shape: (m, n).
        variance: of an entry, traced.
        capacity: how many directions `matvec` and `rmatvec` have room for; beyond n and m none is needed.
    """
    (m, n), (C, D) = shape, _room(shape, capacity)
    none = jnp.zeros((), jnp.int32)
    inputs = _Side(jnp.zeros((C, n), noise.dtype), noise[: C * m].reshape(C, m), none)
    outputs = _Side(jnp.zeros((D, m), noise.dtype), noise[C * m :].reshape(D, n), none)
    return MatrixFree(jnp.sqrt(jnp.asarray(variance, noise.dtype)), inputs, outputs)


def noise_size(shape: tuple[int, int], capacity: tuple[int, int]) -> int:
    """How many standard normals a matrix drawn as it is touched takes."""
    (m, n), (C, D) = shape, _room(shape, capacity)
    return C * m + D * n


def _room(shape: tuple[int, int], capacity: tuple[int, int]) -> tuple[int, int]:
    return min(capacity[0], shape[1]), min(capacity[1], shape[0])


def matmul_precision() -> str:
    """The precision of matrix products: what JAX was told, or else the highest.

    Accelerators multiply float32 in fewer bits by default, which a check of a theory would see.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]


def _ask(name: str, side: _Side, other: _Side, v: Array) -> tuple[_Side, Array, Any]:
    """The side that was asked with what it learnt, its product with v, and whether there was room for it."""
    rows = v.reshape(math.prod(v.shape[:-1]), v.shape[-1])
    count, room = len(rows), len(side.directions)
    _check_room(name, side, count)
    directions, images = _in_use(side)
    theirs, answers = _in_use(other)
    fresh, old, new = _orthonormalise(directions, rows)
    drawn = jnp.diagonal(new) > 0
    taken = jnp.cumsum(drawn, dtype=jnp.int32)
    places = side.kept + jnp.where(drawn, taken - 1, taken)
    noise = _rows_at(side.images, places)
    known = _contract(fresh, answers, 1) - jnp.where(drawn[:, None], _contract(noise, theirs, 1), 0)
    correction = _contract(known, theirs, 0)
    product = _contract(old, images, 0) + _contract(new, noise + correction, 0)
    kept = side.kept + taken[-1]
    learnt = _Side(
        _add_rows(side.directions, places, fresh),
        _add_rows(side.images, places, correction),
        jnp.minimum(kept, room),
        side.asked + count,
    )
    return learnt, product.reshape(*v.shape[:-1], -1), kept <= room


def _rows_at(buffer: Array, places: Array) -> Array:
    """Rows of a buffer; beyond the end the last, or 0 where there is none."""
    if not len(buffer):
        return jnp.zeros((len(places), buffer.shape[1]), buffer.dtype)
    if len(places) == 1:  # a slice, which compilers fuse where they do not fuse a gather
        return jax.lax.dynamic_slice_in_dim(buffer, places[0], 1)
    return buffer.at[places].get(mode="clip")


def _add_rows(buffer: Array, places: Array, rows: Array) -> Array:
    """The buffer with rows added where there is room."""
    if len(places) == 1 and len(buffer):
        row = _rows_at(buffer, places) + jnp.where(places < len(buffer), rows, 0)
        return jax.lax.dynamic_update_slice_in_dim(buffer, row, places[0], 0)
    return buffer.at[places].add(rows, mode="drop")


def _check_room(name: str, side: _Side, count: int) -> None:
    """Refuse more questions than there is room for, where their number is known."""
    (room, n), asked = side.directions.shape, concrete(side.asked)
    if asked is not None and asked + count > room and room < n:
        raise ValueError(
            f"capacity: expected room for {asked + count} {name}, got {room}; mftadv.capacity_for counts them"
        )


def _in_use(side: _Side) -> tuple[Array, Array]:
    """Directions and images without the rows that no vector can have taken yet."""
    asked = len(side.directions) if concrete(side.asked) is None else side.asked
    return side.directions[:asked], side.images[:asked]


def _orthonormalise(directions: Array, rows: Array) -> tuple[Array, Array, Array]:
    """Split rows v = old @ directions + new @ fresh by Gram-Schmidt.

    Returns fresh [R, n], old [R, C] and new [R, R], lower triangular. A v whose residual is rounding noise has 0 for
    its row of fresh and on the diagonal of new.
    """
    count, threshold = len(rows), 64 * jnp.finfo(rows.dtype).eps

    def split(fresh, v):
        v, size = _unit(v)
        old, new, left = jnp.zeros(len(directions), v.dtype), jnp.zeros(len(fresh), v.dtype), jnp.sign(size)
        if len(directions) + len(fresh):
            for _ in range(2):  # what rounding leaves of one pass, the second takes
                of_old, of_new = _contract(v, directions, 1), _contract(v, fresh, 1)
                v = v - _contract(of_old, directions, 0) - _contract(of_new, fresh, 0)
                old, new = old + of_old, new + of_new
            left = jnp.sqrt(jnp.sum(v * v))
            v = v * (1 / jnp.where(left > 0, left, 1))
        left = jnp.where(left > threshold, left, 0)
        return jnp.where(left > 0, v, 0), size * old, size * new, size * left

    if count == 1:
        fresh, old, _, left = split(rows[:0], rows[0])
        return fresh[None], old[None], left[None, None]

    def step(fresh, position_and_row):
        position, v = position_and_row
        direction, old, new, left = split(fresh, v)
        return fresh.at[position].set(direction), (old, new.at[position].set(left))

    fresh, (old, new) = jax.lax.scan(step, jnp.zeros_like(rows), (jnp.arange(count), rows))
    return fresh, old, new


def _unit(v: Array) -> tuple[Array, Array]:
    """The unit vector along v (0 for 0), and |v|.

    Where squares would overflow or vanish, they are those of v over its largest entry: a second pass, taken only then.
    """
    squared, limits = jnp.sum(v * v), jnp.finfo(v.dtype)

    def carefully():
        largest = jnp.max(jnp.abs(v))
        return largest, jnp.sqrt(jnp.sum((v / jnp.where(largest == 0, 1, largest)) ** 2))

    safe = (squared > limits.tiny / limits.eps**2) & (squared < limits.max * limits.eps)
    scale, length = jax.lax.cond(safe, lambda: (jnp.ones((), v.dtype), jnp.sqrt(squared)), carefully)
    first, second = (jnp.where(part == 0, 0, 1 / part) for part in (scale, length))
    return v * first * second, scale * length


def _contract(v: Array, entries: Array, axis: int) -> Array:
    """Contract the last axis of the rows `v` with one axis of `entries`, in full precision unless JAX is told less."""
    precision = matmul_precision()
    rows = v.reshape(math.prod(v.shape[:-1]), v.shape[-1])
    if rows.shape[0] == 1:  # on a CPU the vector code is up to sixteen times faster than a product of one row
        product = jax.lax.dot_general(rows[0], entries, (((0,), (axis,)), ((), ())), precision=precision)
    else:
        product = jax.lax.dot_general(rows, entries, (((1,), (axis,)), ((), ())), precision=precision)
    return product.reshape(*v.shape[:-1], entries.shape[1 - axis])
