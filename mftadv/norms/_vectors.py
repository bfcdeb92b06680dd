"""Vectors and lp balls: norms and the maximisers of linear forms."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mftadv.spec import check_exponent, concrete

P = ParamSpec("P")
R = TypeVar("R")


def in_single(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, computed in float32 where its first argument is of half precision, with results of that precision.

    In float16 a sum of 65,505 ones is inf, and in bfloat16 one of 257 is 256.
    """
    name = next(iter(inspect.signature(function).parameters))

    def is_half(leaf: Any) -> bool:
        floating = isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return floating and jnp.finfo(leaf.dtype).bits < 32

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0] if args else kwargs.get(name)
        if not is_half(x):
            return function(*args, **kwargs)
        args, kwargs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_half(leaf) else leaf, (args, kwargs))
        return jax.tree.map(lambda leaf: leaf.astype(x.dtype), function(*args, **kwargs))

    return wrapped


@in_single
def vector_norm(x: Float[Array, "*rows n"], p: float) -> Float[Array, "*rows"]:
    """|x|_p = (sum_j |x_j|^p)^(1/p) along the last axis, scaled by the largest entry so that no power overflows.

    Its derivative, also by an entry that is 0, is 0 where there is none.

    Args:
        x: a vector [n], or rows of them.
        p: the exponent, in [1, inf].

    Returns:
        The norm of each row.

    Raises:
        ValueError: `p` is not a number in [1, inf].

    Source: definition.
    """
    p = check_exponent("p", p)
    if p == math.inf:
        return jnp.max(_size(x), axis=-1)
    if p == 1:
        return jnp.sum(_size(x), axis=-1)
    # The norm does not depend on the unit, so neither need its derivative.
    size = jnp.abs(x)
    unit = jax.lax.stop_gradient(unit_of(size))
    total = jnp.sum((size / unit) ** p, axis=-1)
    root = jnp.where(total == 0, 1, total) ** (1 / p)  # both branches of a `where` are differentiated
    return unit[..., 0] * jnp.where(total == 0, 0, root)


@jax.custom_jvp
def _size(x: Array) -> Array:
    """|x|, of derivative 0 at 0, where that of `abs` is 1."""
    return jnp.abs(x)


@_size.defjvp
def _size_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return jnp.abs(primals[0]), jnp.sign(primals[0]) * tangents[0]


@in_single
def dual_vector(g: Float[Array, "*rows n"], p: float) -> Float[Array, "*rows n"]:
    """The maximiser of <g, eta> over |eta|_p <= 1 along the last axis, where <g, eta> = |g|_{p*}.

    eta = sign(g) |g|^(p*-1) / | |g|^(p*-1) |_p for 1 < p < inf; sign(g) for p = inf; the signed coordinate vector at
    the (first) largest |g_j| for p = 1.

    Args:
        g: a vector [n], or rows of them.
        p: exponent of the ball, in [1, inf].

    Returns:
        eta, of norm |eta|_p = 1; 0 where g = 0.

    Raises:
        ValueError: `p` is not a number in [1, inf].

    Source: the case of equality in Hoelder's inequality.
    """
    p, size = check_exponent("p", p), jnp.abs(g)
    if p == math.inf:
        return jnp.sign(g)
    if p == 1:
        # to a compiler less than an argmax: two plain reductions
        place = jax.lax.broadcasted_iota(jnp.int32, g.shape, g.ndim - 1)
        largest = jnp.where(size == jnp.max(size, axis=-1, keepdims=True), place, g.shape[-1])
        return jnp.where(place == jnp.min(largest, axis=-1, keepdims=True), jnp.sign(g), 0)
    power = (size / unit_of(size)) ** (1 / (p - 1))
    total = jnp.sum(power**p, axis=-1, keepdims=True)  # of largest term 1
    return jnp.sign(g) * power / jnp.where(total == 0, 1, total) ** (1 / p)


@in_single
def maximise_linear(
    g: Float[Array, "*rows n"],
    radius: Float[ArrayLike, "*#rows"],
    p: float,
    lower: Float[ArrayLike, "..."] | None = None,
    upper: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*rows n"]:
    """The maximiser of <g, eta> over |eta|_p <= radius and lower <= eta <= upper.

    eta_j = clip(mu sign(g_j) |g_j|^(p*-1), lower_j, upper_j) for 1 < p < inf, with the mu that spends the radius;
    clip(radius sign(g_j), lower_j, upper_j) for p = inf; for p = 1 the coordinates are filled in the order of |g_j|.
    Without a box it is radius times `dual_vector(g, p)`. Where g_j = 0, eta_j = 0.

    Args:
        g: a vector [n], or rows of them.
        radius: of the ball, >= 0; one for all or one for each row.
        p: exponent of the ball, in [1, inf].
        lower: the box from below, <= 0, of any shape that broadcasts to that of g; None is -inf.
        upper: the box from above, >= 0, likewise; None is inf.

    Returns:
        eta, inside the box exactly and inside the ball up to rounding.

    Raises:
        ValueError: `p` is not a number in [1, inf]; a concrete radius < 0, or a box without 0.

    Source: the conditions of Karush, Kuhn and Tucker; ours.
    """
    p = check_exponent("p", p)
    radius, box = read_ball(g, radius), read_box(g, lower, upper)
    if box is None:
        return radius * dual_vector(g, p)
    # How far each coordinate can go along sign(g), in units of the radius: to the box, or to the ball.
    limit = jnp.minimum(jnp.where(g < 0, -box[0], box[1]) / jnp.where(radius > 0, radius, 1), 1)
    if p == math.inf:
        size = limit
    elif p == 1:
        order = jnp.argsort(-jnp.abs(g), axis=-1)
        filled = jnp.take_along_axis(limit, order, axis=-1)
        spent = jnp.cumulative_sum(filled, axis=-1, include_initial=True)[..., :-1]
        filled = jnp.clip(1 - spent, 0, filled)
        size = jnp.put_along_axis(limit, order, filled, axis=-1, inplace=False)
    else:
        # A coordinate that exceeds its limit while the radius is spent on all that are free is at it in the solution,
        # where mu is larger. So those at their limit only grow in number: at most n passes, a handful in practice.
        def spend(full):
            rest = jnp.maximum(1 - jnp.sum(jnp.where(full, limit, 0) ** p, axis=-1, keepdims=True), 0) ** (1 / p)
            return full, jnp.where(full, limit, rest * jnp.abs(dual_vector(jnp.where(full, 0, g), p)))

        none = jnp.zeros(g.shape, bool)
        _, size = jax.lax.while_loop(
            lambda state: jnp.any(state[1] > limit), lambda state: spend(state[0] | (state[1] > limit)), spend(none)
        )
    return jnp.clip(jnp.sign(g) * size * radius, *box)


def unit_of(size: Array) -> Array:
    """The largest of each row of absolute values as a column [*rows, 1], 1 where it cannot be divided by."""
    largest = jnp.max(size, axis=-1, keepdims=True)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def read_ball(x: Array, radius: ArrayLike) -> Array:
    """The radius of each row as a column [*rows, 1]."""
    known = concrete(radius)
    if known is not None and np.any(known < 0):
        raise ValueError(f"radius: expected a number >= 0, got {radius!r}")
    return jnp.broadcast_to(jnp.asarray(radius, x.dtype), x.shape[:-1])[..., None]


def read_box(x: Array, lower: ArrayLike | None, upper: ArrayLike | None) -> tuple[Array, Array] | None:
    """The box with the shape of x; None where there is none."""
    if lower is None and upper is None:
        return None
    bounds = []
    for name, bound, side in (("lower", lower, -1), ("upper", upper, 1)):
        bound = side * math.inf if bound is None else bound
        known = concrete(bound)
        if known is not None and np.any(side * known < 0):
            raise ValueError(f"{name}: expected a box around 0, got {bound!r}")
        bounds.append(jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape))
    return bounds[0], bounds[1]
