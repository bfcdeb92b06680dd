"""The joint law of the Jacobian and the shift at finite width."""

import jax
import jax.numpy as jnp

from mftadv.spec import NetworkSpec
from mftadv.theory._laws import Scalar, alpha, finite_width_factor, leaves


def jacobian_shift_square_correlation(spec: NetworkSpec) -> Scalar:
    """The correlation of J_ij^2 with a_i^2 over networks, at finite width.

    J and a are uncorrelated but share the fluctuations of the width. For t = h_l's part linear in x and c = its part
    due to the biases, with p = E|t|^2|c|^2 / (E|t|^2 E|c|^2), q = N E(t.c)^2 / (E|t|^2 E|c|^2) and
    r = E|c|^4 / (E|c|^2)^2, every layer maps (p, q, r) linearly, and

        corr = (p + 2 q/N - 1) / sqrt((3 F - 1) (3 r - 1)),  F = finite_width_factor.

    It depends neither on b2 > 0, which only scales a, nor on x or d, and falls as 1/N.

    Args:
        spec: the law, with bias_variance > 0.

    Returns:
        The correlation, shaped like the leaves of `spec`.

    Raises:
        ValueError: `spec.block` is "residual", where J and a are correlated themselves: see `residual_law`.

    Source: ours, exact at every width, input and slope: flipping the sign of a row (w_i, b_i) makes the gates fair
    coins independent of all even products of the two parts.
    """
    factor = finite_width_factor(spec)
    s, _, u, v = leaves(spec)
    N, a = spec.width, alpha(spec)
    fourth, square = (u**4 + v**4) / 2, a**2
    own = fourth / N + (1 - 1 / N) * square
    gain = a * s
    e = 1 if spec.has_shortcut else 0
    omega = e + gain

    def layer(_, state):
        p, q, r, y = state  # y = b2 N / E|c|^2
        growth = e + a * (s + y)
        product, overlap, quartic = s * s * p + s * y, s * s * q / N, s * s * r + 2 * s * y + y * y
        p_next = own * product + 2 * fourth / N * overlap
        q_next = fourth * (product + 2 * overlap) + (N - 1) * square * overlap
        r_next = (3 * fourth / N + (1 - 1 / N) * square) * quartic
        if e:
            p_next += p + 2 * gain * p + a * y + 4 * gain * q / N**2
            q_next += q + a * (2 * s * p + y + 2 * s * q / N) + 2 * gain * q
            r_next += r + (2 + 4 / N) * (gain * r + a * y)
        return p_next / (omega * growth), q_next / (omega * growth), r_next / growth**2, y / growth

    # the first bias stands alone: E|c|^2 = N alpha b2
    first = (
        (own * s + e * a) / (omega * a),
        (fourth * s + e * a) / (omega * a),
        (3 * fourth / N + (1 - 1 / N) * square) / square,
        1 / a,
    )
    p, q, r, _ = jax.lax.fori_loop(0, spec.depth - 1, layer, tuple(jnp.broadcast_arrays(*first)))
    return (p + 2 * q / N - 1) / jnp.sqrt((3 * factor - 1) * (3 * r - 1))
