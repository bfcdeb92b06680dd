"""Fourth moments that the Jacobian and the shift share at finite width."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mftadv.spec import NetworkSpec
from mftadv.theory._laws import Scalar, branch_gain, branch_share, compiled, slope_moment, width_excess


class _Moments(NamedTuple):
    """p, q and r of `jacobian_shift_square_correlation` in units in which none overflows, F = E|t|^4 / (E|t|^2)^2."""

    p: Scalar  # over sqrt(F r)
    q: Scalar  # over sqrt(F r)
    base: Scalar  # 1 / sqrt(F r)
    tail: Scalar  # 1 / r


@compiled()
def _moments(spec: NetworkSpec) -> _Moments:
    """The moments at the last layer, F without the factor 1 + 2/N of P_in."""
    N = float(spec.width)  # which as an integer may be too large for an array
    factor = 1 + width_excess(spec) / N
    fourth = slope_moment(spec, 2)
    gain, share, e = branch_gain(spec), branch_share(spec), float(spec.has_shortcut)
    own, quartic = 1 + (fourth - 1) / N, 1 + (3 * fourth - 1) / N

    def layer(_, state):
        # y = alpha b2 N / E|c|^2, what one layer's bias adds to it
        (p, q, base, tail), y = state
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
        return _Moments(p_next / unit, q_next / unit, base / unit, tail / r_next), bias

    # the first bias stands alone: E|c|^2 = N alpha b2
    unit = jnp.sqrt(factor * quartic)
    first = (own * share + 1 - share) / unit, (fourth * share + 1 - share) / unit, 1 / unit, 1 / quartic
    *first, one, _ = jnp.broadcast_arrays(*first, 1.0, gain)
    return jax.lax.fori_loop(0, spec.depth - 1, layer, (_Moments(*first), one))[0]


def shift_kurtosis(spec: NetworkSpec) -> Scalar:
    """The kurtosis of one entry of the shift over networks, at finite width.

    E a_i^4 / (E a_i^2)^2 = 3 r, with r of `jacobian_shift_square_correlation`. It does not depend on b2 > 0.

    Args:
        spec: the law, with bias_variance > 0.

    Returns:
        The kurtosis, shaped like the leaves of `spec`; 3 in the limit of infinite width, inf where it overflows.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: ours, exact at every width and input; see `jacobian_shift_square_correlation`.
    """
    return 3 / _moments(spec).tail


@compiled()
def _square_correlation(moments: _Moments, excess: Scalar, width: Scalar, depth: Scalar) -> Scalar:
    p, q, base, tail = moments
    return (p + 2 * q / width - base) / jnp.sqrt(
        (3 * (1 + 2 / width) - jnp.exp(-depth * jnp.log1p(excess / width))) * (3 - tail)
    )


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
    width, depth = jnp.asarray(float(spec.width)), jnp.asarray(float(spec.depth))
    return _square_correlation(_moments(spec), width_excess(spec), width, depth)
