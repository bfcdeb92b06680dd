"""The linear representation f(x) = J(x) x + a(x) on the linear region of x."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mftadv import oracle
from mftadv.network import Evaluation, Network
from mftadv.oracle import Source

__all__ = ["LinearRepresentation", "linear_representation"]


class LinearRepresentation(NamedTuple):
    """J [*B, K, d], a [*B, K] and f(x) [*B, K]; `network` is the one to ask next, None where the old one serves."""

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

    f(x) = J(x) x + a(x) with J = df/dx. Rows come by pullback where K <= d, columns by pushforward where d < K. The
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
        matrix-free network belongs to its law from then on: ask `.network` next. `rep.network or net` serves both.

    Raises:
        ValueError: wrong shapes, a function that does not map [d] to [K], or chunk_size < 1.

    Source: Kumano et al. 2023, section 4 (linear representation); the sum for the shift is ours.
    """
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size: expected a positive integer or None, got {chunk_size!r}")
    at = oracle.value(net_or_f, x)
    dtype, points = at.output.dtype, at.output.shape[:-1]
    K, d = at.output.shape[-1], jnp.shape(x)[-1]

    # `which` numbers the rows asked for, [*points, R]; the answers come with the network to ask next.
    def rows(network, at, which):
        source, cotangents = network or net_or_f, jax.nn.one_hot(which, K, dtype=dtype)
        jacobian, shift, network = oracle.pullback(source, at, cotangents)
        return (jacobian, shift), network

    def columns(network, at, which):
        # one past the last column stands for the shift: no tangent, the biases alone
        source, tangents = network or net_or_f, jax.nn.one_hot(which, d, dtype=dtype)
        return oracle.pushforward(source, at, tangents, (which == d).astype(dtype))

    if d >= K:
        (jacobian, shift), network = _ask(rows, at, points, K, chunk_size)
    else:
        images, network = _ask(columns, at, points, d + 1, chunk_size)
        jacobian, shift = jnp.swapaxes(images[..., :d, :], -1, -2), images[..., d, :]
    return LinearRepresentation(jacobian, shift, at.output, None if network is None or network.is_dense else network)


def _ask(question, at: Evaluation, points: tuple[int, ...], num_rows: int, chunk_size: int | None):
    """Ask `num_rows` questions at every point, at most `chunk_size` at once."""
    total = math.prod(points) * num_rows
    if chunk_size is None or chunk_size >= total:
        return question(at.network, at, jnp.arange(num_rows).reshape((1,) * len(points) + (-1,)))
    flat = tuple(values.reshape(-1, values.shape[-1]) for values in at.at)
    num_chunks = -(-total // chunk_size)
    asked = jnp.minimum(jnp.arange(num_chunks * chunk_size), total - 1).reshape(num_chunks, chunk_size)

    def chunk(network, asked):
        here = Evaluation(at.output, tuple(values[asked // num_rows] for values in flat), network)
        answers, network = question(network, here, asked % num_rows)
        return network, answers

    network, answers = jax.lax.scan(chunk, at.network, asked)
    restore = lambda a: a.reshape(-1, *a.shape[2:])[:total].reshape(*points, num_rows, *a.shape[2:])  # noqa: E731
    return jax.tree.map(restore, answers), network
