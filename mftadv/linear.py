"""The linear representation f(x) = J(x) x + a(x) on the linear region of x."""

import contextlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mftadv import oracle
from mftadv.network import Evaluation, Network
from mftadv.oracle import Function, Source
from mftadv.spec import check_positive

__all__ = ["LinearRepresentation", "jacobian_and_shift", "jacobian_queries", "linear_representation"]


class LinearRepresentation(NamedTuple):
    """J [*B, K, d], a [*B, K] and f(x) [*B, K]; `network` is the one to query next, None where the old one serves."""

    jacobian: Float[Array, "*B K d"]
    shift: Float[Array, "*B K"]
    output: Float[Array, "*B K"]
    network: Network | None

    @property
    def law_exact(self) -> Any:
        """Whether the answers have exactly the law of the network, see `Network.law_exact`."""
        return True if self.network is None else self.network.law_exact


def linear_representation(
    net_or_f: Source, x: Float[ArrayLike, "*B d"], *, chunk_size: int | None = None
) -> LinearRepresentation:
    """The exact Jacobian J and shift a of a network, or of any JAX function, at one input or a block of inputs.

    f(x) = J(x) x + a(x) with J = df/dx. Rows come by pullback where K <= d, columns by pushforward where d < K; a
    function that has only one of the two modes of differentiation is differentiated by that. The
    shift of a network is sum_l <df/db_l, b_l> along the same backward pass (or the biases carried by the same forward
    pass), so it is exactly 0 without biases; that of a plain function is f(x) - J x. The gate of a preactivation
    that is exactly 0 counts as open. All inputs of a block share one pass over the weights.

    Args:
        net_or_f: a `Network`, or a JAX function of one input [d] to one output [K].
        x: one input [d] or a block [B, d].
        chunk_size: the most rows (or columns) carried through the layers at once, each of width N; a block of B
            inputs has B min(K, d + 1) of them. None carries all.

    Returns:
        A `LinearRepresentation`; `.network` is None for dense networks and functions. What J and a reveal of a
        matrix-free network belongs to its law from then on: query `.network` next. `rep.network or net` serves both.

    Raises:
        ValueError: wrong shapes, a function that does not map [d] to [K] or is another one each time it is traced
            (dropout), or chunk_size < 1.

    Source: the paper, the linear representation of a ReLU-like network; the sum for the shift is ours.
    """
    source, x = oracle.trace(net_or_f, x)
    at = oracle.value(source, x)
    jacobian, shift, network = jacobian_and_shift(source, at, jnp.shape(x)[-1], chunk_size)
    return LinearRepresentation(jacobian, shift, at.output, None if network is None or network.is_dense else network)


def jacobian_and_shift(
    source: Network | Function, at: Evaluation, input_dim: int, chunk_size: int | None
) -> tuple[Float[Array, "*B K d"], Float[Array, "*B K"], Network | None]:
    """J and a where a source was evaluated, and the network to use next; see `linear_representation`."""
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    dtype, points, (K, d) = at.output.dtype, at.output.shape[:-1], (at.output.shape[-1], input_dim)

    def unit_rows(which, n):
        return jnp.asarray((which[..., None] == np.arange(n).reshape((1,) * which.ndim + (n,))).astype(dtype))

    # `which` numbers the rows or columns, [*points, R].
    def rows(network, at, which):
        jacobian, shift, network = oracle.pullback(network or source, at, unit_rows(which, K))
        return (jacobian, shift), network

    def columns(network, at, which):
        # one past the last column stands for the shift: no tangent, the biases alone
        tangents, constants = unit_rows(which, d), jnp.asarray((which == d).astype(dtype))
        return oracle.pushforward(network or source, at, tangents, constants)

    def by_rows():
        (jacobian, shift), network = _in_chunks(rows, at, points, K, chunk_size)
        return jacobian, shift, network

    def by_columns():
        images, network = _in_chunks(columns, at, points, d + 1, chunk_size)
        return jnp.swapaxes(images[..., :d, :], -1, -2), images[..., d, :], network

    preferred, other = (by_rows, by_columns) if d >= K else (by_columns, by_rows)
    try:
        return preferred()
    except (TypeError, ValueError):
        # A custom_vjp has no forward mode, and a while loop no reverse mode.
        if isinstance(source, Network):
            raise
        with contextlib.suppress(TypeError, ValueError):
            return other()
        raise


def jacobian_queries(input_dim: int, output_dim: int) -> tuple[int, int]:
    """How many inputs and how many cotangents J and a of one input take, beside the input itself."""
    return (0, output_dim) if input_dim >= output_dim else (input_dim + 1, 0)


def _in_chunks(function, at: Evaluation, points: tuple[int, ...], num_rows: int, chunk_size: int | None):
    """A function of row numbers, [*points, num_rows] of them, at most `chunk_size` at once."""
    total = math.prod(points) * num_rows
    if chunk_size is None or chunk_size >= total:
        return function(at.network, at, np.arange(num_rows).reshape((1,) * len(points) + (-1,)))
    flat = tuple(values.reshape(-1, values.shape[-1]) for values in at.at)
    num_chunks = -(-total // chunk_size)
    numbers = jnp.minimum(jnp.arange(num_chunks * chunk_size), total - 1).reshape(num_chunks, chunk_size)

    def chunk(network, numbers):
        here = Evaluation(at.output, tuple(values[numbers // num_rows] for values in flat), network)
        answers, network = function(network, here, numbers % num_rows)
        return network, answers

    network, answers = jax.lax.scan(chunk, at.network, numbers)
    restore = lambda a: a.reshape(-1, *a.shape[2:])[:total].reshape(*points, num_rows, *a.shape[2:])  # noqa: E731
    return jax.tree.map(restore, answers), network
