"""Second moments of a residual network's linear representation at its own input, also at finite width."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from mftadv.spec import NetworkSpec
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._laws import Scalar, check_size, compiled, jacobian_variance, leaves

_einsum = partial(jnp.einsum, precision="highest")

# of y = (1, T, A, O), the parts of a hidden unit, and of the entries of y y^T
_HIDDEN, _FROM_BIAS, _BASIS = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 0]), np.eye(16).reshape(16, 4, 4)

_SQUARES = ("along_input", "shift", "cross", "orthogonal")


class ResidualLaw(NamedTuple):
    """Second moments over networks of one output's parts, f(x) = (J x) + a, and means of their hidden coordinates."""

    along_input: Scalar  # E (J x)^2
    shift: Scalar  # E a^2
    cross: Scalar  # E (J x) a
    mean_along_input: Scalar  # the mean of a coordinate of h_L due to x; that of J x itself is zero
    mean_shift: Scalar  # the mean of a coordinate of h_L due to the biases; that of a itself is zero
    orthogonal: Scalar  # E (J e)^2 for a unit vector e orthogonal to x


def residual_law(spec: NetworkSpec, input_norm_squared: ArrayLike, finite_width: bool = False) -> ResidualLaw:
    """The law of a residual network along its own input, which the published one misses, and across it.

    phi has a non-zero mean unless u = v, so skip and branch correlate along x. With tt = E (J x)^2, aa = E a^2 and
    ta = E (J x) a per output, and n_t, n_a the means of a hidden coordinate's two parts, starting from
    tt = |x|^2 / d and zeros, every layer maps

        V = s (tt + aa + 2 ta) + b2,    mu_t = (u - v) s (tt + ta) / sqrt(2 pi V),
                                        mu_a = (u - v) (s (aa + ta) + b2) / sqrt(2 pi V)
        tt += alpha s tt + 2 n_t mu_t,            aa += alpha (s aa + b2) + 2 n_a mu_a
        ta += alpha s ta + n_t mu_a + n_a mu_t,   n_t += mu_t,   n_a += mu_a

    The published E (J x)^2 = omega^L |x|^2 / d and E a^2 = `shift_variance` leave out every n mu. In directions
    orthogonal to x, and for u = v, they hold: `jacobian_variance`.

    With finite_width every moment gains its term D / N of first order. Let M be the mean of y y^T over the hidden
    units, y = (1, T, A, O) with the parts of a coordinate of h_l due to x, to the biases, and to e. Given M the
    branches of the units are independent and alike, so that M <- F(M) + noise, with F the map above and a covariance
    S(M) / N; hence M has the covariance C / N and the mean M_limit + D / N with

        C <- F' C F'^T + S,    D <- F' D + tr(F'' C) / 2.

    Relative to the limit D grows with depth, exponentially across x and for a small bias, where a part along h itself
    outgrows all others: the width must be well above it. It has been positive for every square tried.

    Args:
        spec: the law of the network, `block="residual"`.
        input_norm_squared: |x|^2, over all d coordinates.
        finite_width: whether to correct for the width of `spec`; the limit of infinite width otherwise.

    Returns:
        The moments, each shaped like the leaves of `spec`; inf where they overflow.

    Raises:
        ValueError: `spec.block` is not "residual".

    Source: ours, in the limit of infinite width or to first order in 1/N. A row of W_l gives the parts of a
    preactivation as Gaussians z_i, jointly with z = z_t + z_a, and E phi'(z) z_i = (u - v) cov(z_i, z) / sqrt(2 pi V).
    The error is O(1/N), with finite_width O(1/N^2), of the order of the square of the relative correction. The second
    moments are exact at every width for L = 1 and for u = v.
    """
    if spec.block != "residual":
        raise ValueError(
            "block: expected residual (elsewhere jacobian_variance and shift_variance hold along x too), "
            f"got {spec.block!r}"
        )
    return _laws(spec, input_norm_squared, finite_width)[int(finite_width)]


def residual_law_error(spec: NetworkSpec, input_norm_squared: ArrayLike) -> Scalar:
    """How far the second moments of `residual_law` with finite_width may be off, as a fraction.

    max_i (M_i / M_i_limit - 1)^2 over its four second moments M_i: the square of the largest first-order correction.

    Args:
        spec: the law of the network, `block="residual"`.
        input_norm_squared: |x|^2, over all d coordinates.

    Returns:
        The fraction, shaped like the leaves of `spec`; inf where a moment overflows.

    Raises:
        ValueError: `spec.block` is not "residual".

    Source: ours, the order of what `residual_law` leaves out, and no bound.
    """
    limit, law = _laws(spec, input_norm_squared, True)
    after, before = (jnp.stack([getattr(moments, name) for name in _SQUARES]) for moments in (law, limit))
    corrections = jnp.where(before == 0, 0.0, after / jnp.where(before == 0, 1.0, before) - 1)
    error = jnp.max(corrections**2, axis=0)
    return jnp.where(jnp.isnan(error), jnp.inf, error)


def growth_along_input(
    spec: NetworkSpec, input_norm_squared: ArrayLike, input_dual_norm: ArrayLike, q: float
) -> Scalar:
    """What the growth of a residual network along its input adds at most to the mean of |J|_{p->q}.

        ( sqrt(E (J x)^2) / |x| - sqrt(E (J e)^2) ) E|g_K|_q |x|_p* / |x|,      e orthogonal to x, g_K standard normal,

    with the second moments of `residual_law` at finite width; 0 for other blocks, and where J grows less along x.

    Args:
        spec: the law of the network.
        input_norm_squared: |x|^2, over all d coordinates, > 0.
        input_dual_norm: |x|_p*, 1/p + 1/p* = 1.
        q: exponent of the output's norm, any number in [1, inf].

    Returns:
        The amount to add, shaped like the leaves of `spec`; inf where it overflows.

    Raises:
        ValueError: an argument is outside its range.

    Source: ours, to first order in 1/N: J = G + (rho - 1) G x x^T / |x|^2 with G isotropic, and the triangle
    inequality.
    """
    output = operator_norm_coefficient(1, q, 1, spec.output_dim, kind="sharp")
    if spec.block != "residual":
        return jnp.zeros_like(leaves(spec)[0])
    square = check_size("input_norm_squared", input_norm_squared, positive=True)
    law = residual_law(spec, square, finite_width=True)
    along = jnp.maximum(jnp.sqrt(law.along_input / square) - jnp.sqrt(law.orthogonal), 0.0)
    growth = along * output * (check_size("input_dual_norm", input_dual_norm) / jnp.sqrt(square))
    return jnp.where(jnp.isnan(growth), jnp.inf, growth)


@compiled("finite_width")
def _laws(spec: NetworkSpec, input_norm_squared: ArrayLike, finite_width: bool) -> tuple[ResidualLaw, ...]:
    """The law in the limit of infinite width and, with finite_width, that at the width of `spec`."""
    first = jnp.asarray(input_norm_squared, dtype=float) / spec.input_dim
    moments = partial(_moments, spec.depth, spec.width if finite_width else None)
    fields = jnp.vectorize(moments, signature="(),(),(),(),()->(r,n)")(first, *leaves(spec))
    across = jacobian_variance(spec)
    laws = (ResidualLaw(*jnp.moveaxis(row, -1, 0)) for row in jnp.moveaxis(fields, -2, 0))
    return tuple(law._replace(orthogonal=across + law.orthogonal / spec.input_dim) for law in laws)


def _moments(depth: int, width: int | None, first: Array, s: Array, b2: Array, u: Array, v: Array) -> Array:
    """The fields of `ResidualLaw` for scalars, in the limit and at the width; the last is d times its excess."""
    even, odd = (lambda k: (u**k + v**k) / 2), (lambda k: (u**k - v**k) / jnp.sqrt(2 * jnp.pi))
    basis, hidden, from_bias = (jnp.asarray(x, first.dtype) for x in (_BASIS, _HIDDEN, _FROM_BIAS))

    def noise(mean, covariance, loading):
        """S(M): the covariance over units of (y + X) (y + X)^T, X_i = phi'(z) z_i."""
        one, two = odd(1) * loading, even(2) * covariance
        # E z_i z_j z_k over z > 0: z_i is its regression on z and a remainder that does not see the gate
        regression = _outer(loading, covariance)
        three = regression + jnp.swapaxes(regression, 0, 1) + jnp.swapaxes(regression, 0, 2)
        three = odd(3) * (three - _outer(loading, _outer(loading, loading)))
        crossed = _outer(mean[0], three - _outer(one, two))
        crossed += jnp.swapaxes(crossed, 0, 1)
        total = jnp.swapaxes(_outer(mean, two - _outer(one, one)), 1, 2)
        total += jnp.swapaxes(total, 0, 1)
        total += jnp.swapaxes(total, 2, 3) + crossed + jnp.transpose(crossed, (2, 3, 0, 1))
        return (total + even(4) * _pairings(covariance) - _outer(two, two)).reshape(16, 16)

    def layer(_, state):
        log_unit, mean, bias, *fluctuation = state
        # h in units of a power of two: rescaling is exact, and only the result can overflow
        size = mean[1, 1] + mean[2, 2] + 2 * mean[1, 2] + bias
        unit = _unit(jnp.where(size > 0, size, mean[3, 3]))
        scale = jnp.where(_HIDDEN > 0, 1 / unit, 1.0)
        square = _outer(scale, scale)
        log_unit, mean, bias = log_unit + jnp.log2(unit), mean * square, bias / unit**2

        # of the parts z_i of a preactivation z: their covariance, and cov(z_i, z) / sqrt(V)
        covariance = s * mean * _outer(hidden, hidden) + bias * _outer(from_bias, from_bias)
        with_gate = covariance[1] + covariance[2]
        variance = with_gate[1] + with_gate[2]
        # in units of V, so that no derivative overflows
        known = jax.lax.stop_gradient(jnp.where(variance > 0, variance, 1.0))
        relative = jnp.where(variance > 0, variance / known, 1.0)
        loading = with_gate / jnp.sqrt(relative) / jnp.sqrt(known)
        if fluctuation:
            drift, spread = fluctuation
            square = square.reshape(16)
            drift, spread = drift * square, spread * _outer(square, square)
            # along every entry of M, the derivatives c of ln V, g of the loading and F' of F; the second derivative
            # of the loading is c^2 loading / 4 - g c
            gate = (basis[..., 1] + basis[..., 2]) * hidden[None]
            c = jnp.where(variance > 0, (gate[:, 1] + gate[:, 2]) * (s / known / relative), 0.0)
            g = gate * (s / jnp.sqrt(known) / jnp.sqrt(relative)) - _outer(c, loading / 2)
            slope = _both_orders(basis[:, 0], loading[None]) + _both_orders(mean[:1], g)
            slope = (basis * (1 + even(2) * s * _outer(hidden, hidden))[None] + odd(1) * slope).reshape(16, 16)
            from_left = jnp.concatenate([slope, basis[:, 0], c[:, None]], axis=1)
            from_right = jnp.concatenate([slope, g, c[:, None]], axis=1)
            product = _einsum("ia,ij,jb->ab", from_left, spread, from_right)
            second = product[16:20, 16:20] + _outer(mean[0], loading * product[20, 20] / 8 - product[20, 16:20] / 2)
            drift = _einsum("i,ia->a", drift, slope) + odd(1) * (second + second.T).reshape(16)
            fluctuation = drift, product[:16, :16] + noise(mean, covariance, loading)
        mean = mean + odd(1) * _both_orders(mean[0], loading) + even(2) * covariance
        return log_unit, mean, bias, *fluctuation

    unit = _unit(jnp.maximum(first, b2))
    mean = jnp.diag(jnp.stack([jnp.ones_like(first), first / unit / unit, *jnp.array([0, 1], first.dtype)]))
    state = jnp.log2(unit), mean, b2 / unit / unit
    if width is not None:
        spread = (_pairings(mean) - _outer(mean, mean)).reshape(16, 16)
        random = np.arange(16) > 0  # y_0^2 is 1
        state += jnp.zeros_like(spread[0]), jnp.where(np.logical_and.outer(random, random), spread, 0.0)
    log_unit, mean, _, *fluctuation = jax.lax.fori_loop(0, depth, layer, state)
    drifts = [jnp.zeros_like(mean)]
    if width is not None:
        drift = fluctuation[0].reshape(4, 4) / width
        drifts.append(jnp.where(jnp.isnan(drift), jnp.inf, drift))  # overflown beside the mean: inf - inf
    drift = jnp.stack(drifts)
    mean = mean[None] + drift
    rows, columns = np.array([1, 2, 1, 0, 0]), np.array([1, 2, 2, 1, 2])
    fields = jnp.concatenate([mean[:, rows, columns], drift[:, 3, 3, None]], axis=1)
    power, of_first = jnp.round(log_unit).astype(int), jnp.round(jnp.log2(unit)).astype(int)
    return _scale(fields, jnp.stack([2 * power] * 3 + [power] * 2 + [2 * (power - of_first)])[None])


def _unit(square: Array) -> Array:
    """The power of two below the root of `square`, 1 for 0."""
    root = jnp.sqrt(jax.lax.stop_gradient(jnp.where(square > 0, square, 1.0)))
    # 3/4 turns rounding to the nearest into rounding down
    return jax.lax.reduce_precision(0.75 * root, jnp.finfo(square.dtype).nexp, 0)


def _outer(x: Array, y: Array) -> Array:
    return x.reshape(*x.shape, *(1,) * y.ndim) * y.reshape(*(1,) * x.ndim, *y.shape)


def _both_orders(x: Array, y: Array) -> Array:
    """x_i y_j + y_i x_j, over the last axes."""
    product = x[..., :, None] * y[..., None, :]
    return product + jnp.swapaxes(product, -1, -2)


def _pairings(covariance: Array) -> Array:
    """Fourth moments of centred Gaussians."""
    product = _outer(covariance, covariance)
    return product + jnp.swapaxes(product, 1, 2) + jnp.swapaxes(product, 1, 3)


def _scale(x: Array, power: Array) -> Array:
    """Multiply by 2^power exactly, with the derivative 2^power also at 0 (where ldexp has 1) and no 0 * inf."""
    scale = jnp.ldexp(jnp.ones_like(x), power)
    return x * jnp.where(x == 0, jnp.minimum(scale, jnp.finfo(x.dtype).max), scale)
