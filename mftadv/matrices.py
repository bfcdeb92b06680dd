"""Gaussian matrices that one can multiply by.

A matrix is a pytree with two verbs, `matvec` (W v) and `rmatvec` (W^T v). Each takes a vector or a block of rows,
[..., n] or [..., m], and returns the matrix to ask next beside the product, so that a matrix may also be drawn as it
is touched: code written over these verbs serves every kind.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

__all__ = ["DenseMatrix", "Matrix", "dense_gaussian", "matmul_precision"]


@runtime_checkable
class Matrix(Protocol):
    """A linear map W [m, n] with its transpose; a product may reveal more of W, hence the returned matrix."""

    @property
    def dtype(self) -> jnp.dtype: ...

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

    def matvec(self, v: Float[Array, "*rows n"]) -> tuple["DenseMatrix", Float[Array, "*rows m"]]:
        return self, _contract(v, self.entries, 1)

    def rmatvec(self, v: Float[Array, "*rows m"]) -> tuple["DenseMatrix", Float[Array, "*rows n"]]:
        return self, _contract(v, self.entries, 0)


def dense_gaussian(key: Key[Array, ""], shape: tuple[int, int], variance: jax.typing.ArrayLike) -> DenseMatrix:
    """A dense matrix of independent N(0, variance) entries in the default float type."""
    entries = jax.random.normal(key, shape)
    return DenseMatrix(entries * jnp.sqrt(jnp.asarray(variance, entries.dtype)))


def matmul_precision() -> str:
    """The precision of matrix products: what JAX was told, or else the highest.

    Accelerators multiply float32 in fewer bits by default, which a check of a theory would see.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]


def _contract(v: Array, entries: Array, axis: int) -> Array:
    """Contract the last axis of the rows `v` with one axis of `entries`, in full precision unless JAX is told less."""
    precision = matmul_precision()
    rows = v.reshape(-1, v.shape[-1])
    if rows.shape[0] == 1:  # on a CPU the vector code is up to sixteen times faster than a product of one row
        product = jax.lax.dot_general(rows[0], entries, (((0,), (axis,)), ((), ())), precision=precision)
    else:
        product = jax.lax.dot_general(rows, entries, (((1,), (axis,)), ((), ())), precision=precision)
    return product.reshape(*v.shape[:-1], entries.shape[1 - axis])
