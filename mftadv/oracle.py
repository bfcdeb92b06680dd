"""A network, or any JAX function, seen through the same verbs: value, difference, pullback, pushforward.

What is written over these verbs (the linear representation, the attacks) serves dense networks, networks whose
matrices are drawn as they are touched, and the reader's own model. A plain function takes one input [d] to one
output [K]; blocks are this module's business. The verbs are documented at their network forms in `mftadv.network`.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mftadv import network
from mftadv.network import Evaluation, Network

__all__ = ["Source", "difference", "pullback", "pushforward", "value"]

Source = Network | Callable[[Float[Array, " d"]], Float[Array, " K"]]


@singledispatch
def value(source: Any, x: ArrayLike) -> Evaluation:
    """Evaluate the source at one input [d] or a block [B, d].

    Raises:
        ValueError: the source is no network and not callable, x has the wrong shape, or a function does not map one
            input [d] to one output [K].
    """
    if not callable(source):
        raise ValueError(f"net_or_f: expected a Network or a function of one input, got {type(source).__name__}")
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    if x.ndim not in (1, 2):
        raise ValueError(f"x: expected shape [d] or [B, d], got {list(x.shape)}")
    output = jax.eval_shape(source, jax.ShapeDtypeStruct(x.shape[-1:], x.dtype))
    if getattr(output, "ndim", None) != 1 or not output.size or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"net_or_f: expected one output of shape [K] for one input [d], of floats, got {output}")
    return Evaluation(_at_inputs(source, x), (x,), None)


@singledispatch
def difference(source: Any, base: Evaluation, eta: Float[Array, "*points d"]) -> Evaluation:
    """f(x + eta) - f(x) and the derivatives at x + eta; a plain function subtracts."""
    (x,) = base.at
    moved = (x if x.ndim == eta.ndim else x[..., None, :]) + eta
    output = _at_inputs(source, moved)
    return Evaluation(output - (base.output if x.ndim == eta.ndim else base.output[..., None, :]), (moved,), None)


@singledispatch
def pullback(source: Any, at: Evaluation, cotangents: Float[Array, "*rows K"]) -> tuple[Array, Array, Any]:
    """The rows g J(x), the numbers g . a(x), and the network to ask next; a plain function has a = f - J x."""

    def one_point(x, gs):
        output, vjp = jax.vjp(_as_precise(source), x)
        rows = jax.vmap(lambda g: vjp(g)[0])(gs)
        return rows, jnp.sum(gs * output[None], -1) - jnp.sum(rows * x[None], -1)

    return (*_at_points(one_point, "(d),(r,k)->(r,d),(r)", at, cotangents), None)


@singledispatch
def pushforward(
    source: Any, at: Evaluation, tangents: Float[Array, "*rows d"], constants: Float[Array, "*rows"]
) -> tuple[Array, Any]:
    """J(x) t + c a(x) for tangents t and constants c, and the network to ask next."""

    def one_point(x, tangents, constants):
        output, jvp = jax.linearize(_as_precise(source), x)
        return jax.vmap(jvp)(tangents) + constants * (output - jvp(x))[None]

    return _at_points(one_point, "(d),(r,d),(r,i)->(r,k)", at, tangents, constants[..., None]), None


def _as_precise(function: Callable) -> Callable:
    """The function with outputs of the precision of its input, whatever it computes in."""
    return lambda x: function(x).astype(x.dtype)


def _at_inputs(function: Callable, xs: Array) -> Array:
    return jnp.vectorize(_as_precise(function), signature="(d)->(k)")(xs)


def _at_points(function: Callable, signature: str, at: Evaluation, *rows: Array):
    """Apply a function of one input and several rows at every point, where there may be one row of each."""
    (x,) = at.at
    if rows[0].ndim > x.ndim:
        return jnp.vectorize(function, signature=signature)(x, *rows)
    answers = jnp.vectorize(function, signature=signature)(x, *(values[..., None, :] for values in rows))
    return jax.tree.map(lambda values: values.squeeze(x.ndim - 1), answers)


value.register(Network)(network.forward)
difference.register(Network)(network.difference)
pullback.register(Network)(network.pullback)
pushforward.register(Network)(network.pushforward)
