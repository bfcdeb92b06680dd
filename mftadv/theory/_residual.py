"""Second moments of a residual network's linear representation at its own input, also at finite width."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from mftadv.spec import NetworkSpec
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._laws import Scalar, check_size, compiled, jacobian_variance, leaves

_einsum = partial(jnp.einsum, precision="highest")

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
    moments = jnp.vectorize(partial(_moments, spec.depth, spec.width if finite_width else None))
    across = jacobian_variance(spec)
    return tuple(
        ResidualLaw(*fields, orthogonal=across + excess / spec.input_dim)
        for *fields, excess in moments(first, *leaves(spec))
    )


def _moments(depth: int, width: int | None, first: Array, s: Array, b2: Array, u: Array, v: Array):
    """The fields of `ResidualLaw` for scalars, in the limit and at the width; the last, d times its excess over it."""
    even, odd = (lambda k: (u**k + v**k) / 2), (lambda k: (u**k - v**k) / jnp.sqrt(2 * jnp.pi))

    def branch(mean, bias):
        """The covariance of the parts z_i of a preactivation, and cov(z_i, z) / sqrt(V)."""
        covariance = (s * mean).at[2, 2].add(bias).at[0].set(0).at[:, 0].set(0)
        with_gate = covariance[1] + covariance[2]
        variance = with_gate[1] + with_gate[2]
        # in units of V, so that no derivative overflows
        unit = jax.lax.stop_gradient(jnp.where(variance > 0, variance, 1.0))
        return covariance, with_gate / jnp.sqrt(jnp.where(variance > 0, variance / unit, 1.0)) / jnp.sqrt(unit)

    def step(mean, bias):
        """F(M)."""
        covariance, loading = branch(mean, bias)
        crossed = jnp.outer(mean[0], odd(1) * loading)
        return mean + crossed + crossed.T + even(2) * covariance

    def noise(mean, bias):
        """S(M): the covariance over units of (y + X) (y + X)^T, X_i = phi'(z) z_i."""
        covariance, loading = branch(mean, bias)
        one, two = odd(1) * loading, even(2) * covariance
        # E z_i z_j z_k over z > 0: z_i is its regression on z and a remainder that does not see the gate
        regression = _einsum("i,jk->ijk", loading, covariance)
        three = regression + jnp.moveaxis(regression, 0, 1) + jnp.moveaxis(regression, 0, 2)
        three = odd(3) * (three - _einsum("i,j,k->ijk", loading, loading, loading))
        crossed = 2 * _einsum("a,bcd->abcd", mean[0], three - _einsum("b,cd->bcd", one, two))
        total = 4 * _einsum("ac,bd->abcd", mean, two - jnp.outer(one, one))
        total += crossed + jnp.transpose(crossed, (2, 3, 0, 1))
        total += even(4) * _pairings(covariance) - _einsum("ab,cd->abcd", two, two)
        total = (total + jnp.swapaxes(total, 0, 1)) / 2
        return (total + jnp.swapaxes(total, 2, 3)) / 2

    def layer(_, state):
        unit, mean, *fluctuation = state
        # h in units of 2^unit: rescaling is exact, and only the result can overflow
        size = mean[1, 1] + mean[2, 2] + 2 * mean[1, 2] + _scale(b2, -2 * unit)
        rise = _unit(jnp.where(size > 0, size, mean[3, 3]))
        unit += rise
        scale = jnp.ones_like(mean[0]).at[1:].set(jnp.ldexp(jnp.ones_like(s), -rise))
        square, bias = jnp.outer(scale, scale), _scale(b2, -2 * unit)
        mean *= square
        if fluctuation:
            drift, spread = fluctuation
            drift, spread = drift * square, spread * _einsum("ab,cd->abcd", square, square)
            slope = jax.jacfwd(step)(mean, bias)
            curvature = jax.jacfwd(jax.jacfwd(step))(mean, bias)
            drift = _einsum("abij,ij->ab", slope, drift) + _einsum("abijkl,ijkl->ab", curvature, spread) / 2
            spread = _einsum("abij,ijkl,cdkl->abcd", slope, spread, slope) + noise(mean, bias)
            fluctuation = drift, spread
        return unit, step(mean, bias), *fluctuation

    first_unit = _unit(jnp.maximum(first, b2))
    mean = jnp.diag(jnp.stack([jnp.ones_like(first), _scale(first, -2 * first_unit), *jnp.array([0, 1], first.dtype)]))
    state = first_unit, mean
    if width is not None:
        spread = _pairings(mean) - _einsum("ab,cd->abcd", mean, mean)
        state += jnp.zeros_like(mean), spread.at[0, 0, 0, 0].set(0)
    unit, mean, *fluctuation = jax.lax.fori_loop(0, depth, layer, state)
    drifts = [jnp.zeros_like(mean)]
    if width is not None:
        drift = fluctuation[0] / width
        drifts.append(jnp.where(jnp.isnan(drift), jnp.inf, drift))  # overflown beside the mean: inf - inf

    def fields(drift):
        squares = (_scale((mean + drift)[i, j], 2 * unit) for i, j in ((1, 1), (2, 2), (1, 2)))
        means = (_scale((mean + drift)[0, i], unit) for i in (1, 2))
        return *squares, *means, _scale(drift[3, 3], 2 * (unit - first_unit))

    return tuple(fields(drift) for drift in drifts)


def _unit(square: Array) -> Array:
    """The power of two near the root of `square`."""
    return jnp.where(square > 0, (jnp.frexp(square)[1] - 1) // 2, 0)


def _pairings(covariance: Array) -> Array:
    """Fourth moments of centred Gaussians."""
    product = _einsum("ab,cd->abcd", covariance, covariance)
    return product + jnp.swapaxes(product, 1, 2) + jnp.swapaxes(product, 1, 3)


def _scale(x: Array, power: Array) -> Array:
    """Multiply by 2^power exactly, with the derivative 2^power also at 0 (where ldexp has 1) and no 0 * inf."""
    scale = jnp.ldexp(jnp.ones_like(x), power)
    return x * jnp.where(x == 0, jnp.minimum(scale, jnp.finfo(x.dtype).max), scale)
