"""One interface of four functions to a network or any JAX function: value, difference, pullback, pushforward.

Code written over these (the linear representation, the attacks) serves dense networks, matrix-free networks and the
reader's own model. A plain function maps one input [d] to one output [K]; this module applies it to blocks of inputs.
The four are documented at their network forms in `mftadv.network`.
"""

import dataclasses
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, ArrayLike, Float

from mftadv import network
from mftadv.network import Evaluation, Network

__all__ = ["Function", "Source", "difference", "pullback", "pushforward", "trace", "value"]

Source = Network | Callable[[Float[Array, " d"]], Float[Array, " K"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Function:
    """A plain function as it was traced at one input: a pytree of the arrays it closes over, with its program.

    Its output has the precision of its input, whatever the precision of the computation.
    """

    constants: list[Any]
    program: Jaxpr = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " K"]:
        (output,) = jaxpr_as_fun(ClosedJaxpr(self.program, self.constants))(x)
        return output.astype(x.dtype)


def trace(net_or_f: Any, x: ArrayLike) -> tuple[Network | Function, Array]:
    """The network, or a plain function traced once for all its later uses, and x as an array of floats.

    Args:
        net_or_f: a `Network`, or a JAX function of one input [d] to one output [K].
        x: one input [d] or a block [B, d].

    Raises:
        ValueError: it is neither, x has the wrong shape, the function does not map one input [d] to one output [K],
            or it is another function each time that it is traced.
    """
    x = jnp.asarray(x)
    if isinstance(net_or_f, Network):
        return net_or_f, network.check_input(net_or_f, x)
    if not callable(net_or_f):
        raise ValueError(f"net_or_f: expected a Network or a function of one input, got {type(net_or_f).__name__}")
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    if x.ndim not in (1, 2):
        raise ValueError(
            f"x: expected shape [d] or [B, d], got {list(x.shape)}; inputs of other shapes are flattened, "
            "and the function restores each one: lambda x: f(x.reshape(H, W, C))"
        )
    if isinstance(net_or_f, Function):
        return net_or_f, x
    one = jax.ShapeDtypeStruct(x.shape[-1:], x.dtype)
    # Each trace is of a new lambda, since JAX caches the program of a function that it has traced before.
    try:
        program, again = (jax.make_jaxpr(lambda x: net_or_f(x))(one) for _ in range(2))
    except Exception as error:
        error.add_note(
            f"net_or_f was called with one input of shape {list(one.shape)}; a model of batches is passed as "
            "lambda x: model(x[None])[0]"
        )
        raise
    outputs = program.out_avals
    if len(outputs) != 1 or outputs[0].ndim != 1 or not outputs[0].size or not _is_float(outputs[0]):
        got = ", ".join(str(output) for output in outputs)
        raise ValueError(
            f"net_or_f: expected one output of shape [K] for one input [d], of floats, got {got}; "
            "a scalar is passed as lambda x: f(x)[None]"
        )
    if not _same_program(program, again):
        raise ValueError(
            "net_or_f: expected the same function each time it is traced, got two that differ: one that draws random "
            "numbers (dropout) takes a fixed key, or is set to evaluate"
        )
    return Function(program.consts, program.jaxpr), x


def _is_float(output: Any) -> bool:
    return jnp.issubdtype(output.dtype, jnp.floating)


def _same_program(one: ClosedJaxpr, other: ClosedJaxpr) -> bool:
    """Whether two traces agree, as far as can be known: constants that are traced themselves count as equal."""

    def same(a, b):
        if a is b or isinstance(a, Tracer) or isinstance(b, Tracer):
            return True
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(a, b, equal_nan=jnp.issubdtype(a.dtype, jnp.inexact))

    return str(one.jaxpr) == str(other.jaxpr) and all(map(same, one.consts, other.consts))


@singledispatch
def value(source: Function, x: Float[Array, "*points d"]) -> Evaluation:
    """The value f(x) at one input [d] or a block [B, d]."""
    return Evaluation(_at_inputs(source, x), (x,), None)


@singledispatch
def difference(source: Any, base: Evaluation, eta: Float[Array, "*points d"]) -> Evaluation:
    """f(x + eta) - f(x) and the derivatives at x + eta; a plain function subtracts."""
    (x,) = base.at
    perturbed = (x if x.ndim == eta.ndim else x[..., None, :]) + eta
    output = _at_inputs(source, perturbed)
    return Evaluation(output - (base.output if x.ndim == eta.ndim else base.output[..., None, :]), (perturbed,), None)


@singledispatch
def pullback(source: Any, at: Evaluation, cotangents: Float[Array, "*rows K"]) -> tuple[Array, Array, Any]:
    """The rows g J(x), the numbers g . a(x), and no network; a plain function has a = f - J x."""

    def one_point(x, gs):
        output, vjp = jax.vjp(source, x)
        rows = jax.vmap(lambda g: vjp(g)[0])(gs)
        return rows, jnp.sum(gs * output[None], -1) - jnp.sum(rows * x[None], -1)

    return (*_at_points(one_point, "(d),(r,k)->(r,d),(r)", at, cotangents), None)


@singledispatch
def pushforward(
    source: Any, at: Evaluation, tangents: Float[Array, "*rows d"], constants: Float[Array, "*rows"]
) -> tuple[Array, Any]:
    """J(x) t + c a(x) for tangents t and constants c, and no network."""

    def one_point(x, tangents, constants):
        output, jvp = jax.linearize(source, x)
        return jax.vmap(jvp)(tangents) + constants * (output - jvp(x))[None]

    return _at_points(one_point, "(d),(r,d),(r,i)->(r,k)", at, tangents, constants[..., None]), None


def _at_inputs(function: Callable, xs: Array) -> Array:
    return jnp.vectorize(function, signature="(d)->(k)")(xs)


def _at_points(function: Callable, signature: str, at: Evaluation, *rows: Array):
    """Apply a function of one input and several rows at every point; a point may also come with a single row."""
    (x,) = at.at
    if rows[0].ndim > x.ndim:
        return jnp.vectorize(function, signature=signature)(x, *rows)
    results = jnp.vectorize(function, signature=signature)(x, *(values[..., None, :] for values in rows))
    return jax.tree.map(lambda values: values.squeeze(x.ndim - 1), results)


value.register(Network)(network.forward)
difference.register(Network)(network.difference)
pullback.register(Network)(network.pullback)
pushforward.register(Network)(network.pushforward)
