"""Projections onto lp balls and boxes, and their derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mftadv.norms._vectors import in_single, maximise_linear, read_ball, read_box, unit_of, vector_norm
from mftadv.spec import check_exponent, traced_arrays

# beyond these, one for every factor e between the slopes 1 and p - 1 at which Newton's method starts and ends
NEWTON_STEPS = 3


@in_single
def project(
    x: Float[Array, "*rows n"],
    radius: Float[ArrayLike, "*#rows"],
    p: float,
    lower: Float[ArrayLike, "..."] | None = None,
    upper: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "*rows n"]:
    """The point nearest to x, in Euclidean distance, of {|eta|_p <= radius, lower <= eta <= upper}.

    eta_j = clip(y_j, lower_j, upper_j) where |y_j| + lambda p |y_j|^(p-1) = |x_j| (for p = 1,
    |y_j| = max(|x_j| - lambda, 0)) with y_j of the sign of x_j, and the smallest lambda >= 0 for which |eta|_p fits.
    p = inf clips; p = 2 is `maximise_linear(x, ...)` where x is outside; else max_j |y_j| is bisected to rounding.
    Derivatives in x, radius and the box are those of these conditions, 0 at radius 0.

    Args:
        x: a vector [n], or rows of them.
        radius: of the ball, >= 0; one for all or one for each row.
        p: exponent of the ball, in [1, inf].
        lower: the box from below, <= 0, of any shape that broadcasts to that of x; None is -inf.
        upper: the box from above, >= 0, likewise; None is inf.

    Returns:
        eta, inside the box exactly and inside the ball up to rounding; x itself where x is inside both.

    Raises:
        ValueError: `p` is not a number in [1, inf]; a concrete radius < 0, or a box without 0.

    Source: the conditions of Karush, Kuhn and Tucker; for p = 1 Duchi et al. 2008; the box and other p are ours.
    """
    p = check_exponent("p", p)
    radius, box = read_ball(x, radius), read_box(x, lower, upper)
    if p == math.inf:
        return jnp.clip(x if box is None else jnp.clip(x, *box), -radius, radius)
    return _nearest(*traced_arrays((x, radius, box)), p)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _nearest(x: Array, radius: Array, box: tuple[Array, Array] | None, p: float) -> Array:
    """`project` for p < inf; `radius` is a column."""
    boxed = x if box is None else jnp.clip(x, *box)
    if p == 2:  # along x, wherever the box lets it
        eta = x if box is None else maximise_linear(x, radius[..., 0], p, *box)
    else:
        eta = _shrink(x, boxed, radius, p)
    # A hair inside, so that its norm, summed again in another order, is not found outside.
    norm, most = vector_norm(eta, p)[..., None], radius * (1 - 2 * jnp.finfo(x.dtype).eps)
    eta = eta * jnp.minimum(most / jnp.where(norm > 0, norm, 1), 1)
    return jnp.where(vector_norm(boxed, p)[..., None] <= radius, boxed, eta)


@_nearest.defjvp
def _nearest_jvp(p: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The derivative of the conditions that define eta, solved for that of eta.

    With n_j = d|eta|_p / d eta_j, a free coordinate obeys eta_j + mu n_j = x_j, so that d eta_j = w_j (dx_j - n_j dmu)
    with w_j = |eta_j| / (|eta_j| + (p-1) (|x_j| - |eta_j|)); one held by the box moves with it; and dmu is what gives
    sum_j n_j d eta_j = dradius. For p = 1, w_j is 1 where eta_j is not 0, and 0 elsewhere.
    """
    (x, radius, box), (dx, dradius, dbox) = primals, tangents
    eta = _nearest(x, radius, box, p)
    size, boxed, dboxed, held = jnp.abs(eta), x, dx, jnp.zeros(x.shape, bool)
    if box is not None:
        boxed, dboxed = jnp.clip(x, *box), jnp.where(x < box[0], dbox[0], jnp.where(x > box[1], dbox[1], dx))
        held = (boxed != x) & (size >= (1 - 64 * jnp.finfo(x.dtype).eps) * jnp.abs(boxed))
    slope = size + (p - 1) * (jnp.abs(x) - size)
    weight = size / jnp.where(slope == 0, 1, slope)
    # where x_j = 0; for p = 2 all free coordinates have one weight
    at_0 = jnp.max(jnp.where(held, 0, weight), axis=-1, keepdims=True) if p == 2 else float(p > 2)
    weight = jnp.where(slope == 0, at_0, weight)
    normal = jnp.sign(eta) * (jnp.where(size == 0, 1, size) / jnp.where(radius == 0, 1, radius)) ** (p - 1)
    by_price, at_price_0 = jnp.where(held, 0, weight * normal), jnp.where(held, dboxed, weight * dx)
    total = jnp.sum(normal * by_price, axis=-1, keepdims=True)
    dprice = (jnp.sum(normal * at_price_0, axis=-1, keepdims=True) - dradius) / jnp.where(total == 0, 1, total)
    outside = jnp.where(radius == 0, 0, at_price_0 - by_price * dprice)
    return eta, jnp.where(vector_norm(boxed, p)[..., None] <= radius, dboxed, outside)


def _shrink(x: Array, boxed: Array, radius: Array, p: float) -> Array:
    """The projection of an x outside, for p other than 2 and inf; `boxed` is x inside the box, `radius` a column.

    In units of the largest |x_j|. Bisected is the largest |y_j|, called k: mu = (1 - k) / k^(p-1), and all sizes grow
    with k.
    """
    unit = unit_of(jnp.abs(x))
    size, behind = jnp.abs(x) / unit, (unit - jnp.abs(x)) / unit
    radius, allowed = radius / unit, jnp.abs(boxed) / unit
    precision = jnp.finfo(x.dtype)
    if p == 1:

        def sizes(k):  # far outside, a small one would be lost in a difference |x_j| - lambda
            return jnp.clip(k - behind, 0, allowed)
    else:
        # y + mu y^(p-1) = a, divided by a, is solved for t = ln(y / k), in which its logarithm is convex with slopes
        # between 1 and p - 1: Newton's method from above never passes the root.
        log_size = jnp.log(jnp.where(size == 0, 1, size))
        newton_steps = NEWTON_STEPS + math.ceil(abs(math.log(p - 1)))

        def sizes(k):
            log_k, log_rest = jnp.log(k), jnp.log1p(-k)

            def newton(_, t):
                excess = jnp.logaddexp(log_k + t, log_rest + (p - 1) * t) - log_size
                if p < 2:  # near a = 1 the sum is nearly 1 for every t, and what matters is how it differs from 1
                    change = k * jnp.expm1(t) + (1 - k) * jnp.expm1((p - 1) * t)
                    excess = jnp.where(behind < 0.5, jnp.log1p((change + behind) / size), excess)
                share = jax.nn.sigmoid(log_k - log_rest + (2 - p) * t)
                return jnp.minimum(t - excess / (share + (p - 1) * (1 - share)), 0)

            start = jnp.minimum(jnp.minimum(log_size - log_k, (log_size - log_rest) / (p - 1)), 0)
            return jnp.minimum(k * jnp.exp(jax.lax.fori_loop(0, newton_steps, newton, start)), allowed)

    def halve(_, bracket):
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        fits = vector_norm(sizes(middle), p)[..., None] <= radius
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low = jnp.maximum(radius / x.shape[-1] ** (1 / p), precision.tiny)
    low, _ = jax.lax.fori_loop(0, precision.nmant + 8, halve, (low, jnp.ones_like(low)))
    return jnp.sign(x) * jnp.minimum(sizes(low) * unit, jnp.abs(boxed))
