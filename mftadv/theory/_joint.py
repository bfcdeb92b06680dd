"""The joint law of the Jacobian and the shift at finite width."""

import jax
import jax.numpy as jnp

from mftadv.spec import NetworkSpec
from mftadv.theory._laws import Scalar, alpha, branch_gain, branch_share, compiled, leaves, width_excess


@compiled()
def jacobian_shift_square_correlation(spec: NetworkSpec) -> Scalar:
    """The correlation of J_ij^2 with a_i^2 over networks, at finite width.

    J and a are uncorrelated but share the fluctuations of the width. For t = h_l's part linear in x and c = its part
    due to the biases, with p = E|t|^2|c|^2 / (E|t|^2 E|c|^2), q = N E(t.c)^2 / (E|t|^2 E|c|^2) and
    r = E|c|^4 / (E|c|^2)^2, every layer maps (p, q, r) linearly, and

        corr = (p + 2 q/N - 1) / sqrt((3 F - 1) (3 r - 1)),  F = finite_width_factor.

    It depends neither on b2 > 0, which only scales a, nor on x or d, and falls as 1/N. Where J = 0 it is a limit.

    Args:
        spec: the law, with bias_variance > 0.

    Returns:
        The correlation, shaped like the leaves of `spec`.

    Raises:
        ValueError: `spec.block` is "residual", where J and a are correlated themselves: see `residual_law`.

    Source: ours, exact at every width, slope and input x != 0: flipping the sign of a row (w_i, b_i) makes the gates
    fair coins independent of all even products of the two parts.
    """
    N, factor = spec.width, 1 + width_excess(spec) / spec.width
    _, _, u, v = leaves(spec)
    fourth = (u**4 + v**4) / 2 / alpha(spec) ** 2
    gain, share, e = branch_gain(spec), branch_share(spec), float(spec.has_shortcut)
    own, quartic = 1 + (fourth - 1) / N, 1 + (3 * fourth - 1) / N

    def layer(_, state):
        # p and q in units of sqrt(F r), so that none overflows; tail = 1/r, base = 1/sqrt(F r), y = alpha b2 N / E|c|^2
        p, q, tail, base, y = state
        growth = e + gain + y
        branch, bias, skip = gain / growth, y / growth, e / growth
        product, overlap, cross = share * (branch * p + bias * base), share * branch * q / N, share * skip
        p_next = own * product + 2 * fourth / N * overlap
        p_next += (1 - share) * (skip * p + bias * base) + cross * (2 * p + 4 * q / N**2)
        q_next = fourth * (product + 2 * overlap) + (N - 1) * overlap
        q_next += (1 - share) * (skip * q + bias * base) + 2 * cross * (p + q / N + q)
        r_next = quartic * (branch**2 + (2 * branch * bias + bias**2) * tail)
        r_next += skip**2 + (2 + 4 / N) * skip * (branch + bias * tail)
        unit = jnp.sqrt(factor * r_next)
        return p_next / unit, q_next / unit, tail / r_next, base / unit, bias

    # the first bias stands alone: E|c|^2 = N alpha b2
    unit = jnp.sqrt(factor * quartic)
    first = (own * share + 1 - share) / unit, (fourth * share + 1 - share) / unit, 1 / quartic, 1 / unit, 1.0
    p, q, tail, base, _ = jax.lax.fori_loop(0, spec.depth - 1, layer, tuple(jnp.broadcast_arrays(*first, gain)[:5]))
    return (p + 2 * q / N - base) / jnp.sqrt((3 * (1 + 2 / N) - factor**-spec.depth) * (3 - tail))
