"""Second and fourth moments of the linear representation f(x) = J(x) x + a(x)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from mftadv.spec import NetworkSpec

Scalar = Float[Array, "*leaves"]


def leaves(spec: NetworkSpec) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """The variances and slopes s, b2, u, v as arrays of the default float dtype."""
    values = spec.weight_variance, spec.bias_variance, spec.positive_slope, spec.negative_slope
    s, b2, u, v = (jnp.asarray(value, dtype=float) for value in values)
    return s, b2, u, v


def alpha(spec: NetworkSpec) -> Scalar:
    """The mean square slope of the activation.

    alpha = (u^2 + v^2) / 2.

    Source: Kumano et al. 2023, section 3 (definition).
    """
    _, _, u, v = leaves(spec)
    return (u**2 + v**2) / 2


def branch_gain(spec: NetworkSpec) -> Scalar:
    """A = alpha s, the factor by which one branch multiplies a mean square."""
    return alpha(spec) * leaves(spec)[0]


def propagation_factor(spec: NetworkSpec) -> Scalar:
    """The factor omega by which one block multiplies the mean square of a gradient.

    omega = A for "vanilla", 1 + A for "residual" and "signed", with A = alpha s.

    Source: Kumano et al. 2023, definition of the propagation factor; "signed" is ours.
    """
    gain = branch_gain(spec)
    return 1 + gain if spec.has_shortcut else gain


def branch_share(spec: NetworkSpec) -> Scalar:
    """The share r = A / omega of a block's mean square that runs through its branch; 1 without a shortcut."""
    gain = branch_gain(spec)
    return gain / (1 + gain) if spec.has_shortcut else jnp.ones_like(gain)


def log_propagation_factor(spec: NetworkSpec) -> Scalar:
    """Ln omega, without cancellation for a shortcut of small gain; -inf where omega is 0."""
    gain = branch_gain(spec)
    return jnp.log1p(gain) if spec.has_shortcut else jnp.log(gain)


def scaled_power(scale: Scalar, base: Scalar, exponent: float) -> Scalar:
    """Scale base^exponent, which is 0 for a scale of 0 even where the power overflows."""
    lost = (scale == 0) & jnp.isinf(base**exponent)
    power = jnp.where(lost, 1.0, base) ** exponent
    return scale * jnp.where(lost, jnp.finfo(power.dtype).max, power)


def log_finite_width_factor(spec: NetworkSpec) -> Scalar:
    """The logarithm w of `finite_width_factor`, which keeps its digits in wide networks."""
    if spec.block == "residual":
        raise ValueError("block: expected vanilla or signed (no finite-width law is known elsewhere), got 'residual'")
    _, _, u, v = leaves(spec)
    excess = 6 * (u**4 + v**4) / (u**2 + v**2) ** 2 - 1
    if spec.block == "signed":
        share = branch_share(spec)
        excess = 4 * share * (1 - share) + excess * share**2
    return jnp.log1p(2 / spec.width) + spec.depth * jnp.log1p(excess / spec.width)


def finite_width_factor(spec: NetworkSpec) -> Scalar:
    """How far a Jacobian entry is from Gaussian at width N, over networks.

    E J_ij^4 / (3 (E J_ij^2)^2), which is 1 for a Gaussian and here, exactly at every width, input and bias,

        vanilla  (1 + 2/N) (1 + c/N)^L,                              c = 6 (u^4 + v^4) / (u^2 + v^2)^2 - 1  (ReLU: 5)
        signed   (1 + 2/N) (1 + (4 r (1 - r) + c r^2) / N)^L,        r = A / (1 + A), A = alpha s

    The same factor holds for any fixed direction. Its logarithm w is the relative log-variance of the square of a
    network's Jacobian, J = R G with ln R^2 about N(-w/2, w), so that E|J| falls by about exp(-w/8).

    Returns:
        The factor, shaped like the leaves of `spec`.

    Raises:
        ValueError: `spec.block` is "residual", for which no such law is known.

    Source: ours. Flipping the sign of a row (w_i, b_i) makes the gates fair coins, independent of all squares, which
    gives E|h_l|^4 from E|h_{l-1}|^4 in one line; P_in contributes 1 + 2/N and P_out the 3.
    """
    return jnp.exp(log_finite_width_factor(spec))


def jacobian_kurtosis(spec: NetworkSpec) -> Scalar:
    """The kurtosis of one Jacobian entry over networks, at finite width.

    E J_ij^4 / (E J_ij^2)^2 = 3 finite_width_factor(spec).

    Returns:
        The kurtosis, shaped like the leaves of `spec`; 3 in the limit of infinite width.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: ours, exact at every width; see `finite_width_factor`.
    """
    return 3 * finite_width_factor(spec)


def jacobian_variance(spec: NetworkSpec) -> Scalar:
    """The second moment of one Jacobian entry over networks.

    E J_ij^2 = omega^L / d.

    Returns:
        The variance (the mean is zero), shaped like the leaves of `spec`; inf where it overflows.

    Source: Kumano et al. 2023, law of the linear representation (infinite width). Exact at every width, input and
    bias for "vanilla" and "signed"; for "residual" it holds, at infinite width, in directions orthogonal to x and
    fails along x unless u = v: see `residual_law`.
    """
    return propagation_factor(spec) ** spec.depth / spec.input_dim


def bias_series(spec: NetworkSpec, coefficients: Float[Array, " L"]) -> Scalar:
    """Alpha b2 sum_{j < L} coefficients_j omega^j, where j layers follow the bias; exactly 0 without bias."""
    bias = leaves(spec)[1]
    omega = propagation_factor(spec)
    total = jnp.polyval(coefficients[::-1], omega)
    # 0 * inf, in the value or in a derivative, where there is no bias and the sum overflows
    lost = (bias == 0) & jnp.isinf(total)
    total = jnp.polyval(coefficients[::-1], jnp.where(lost, 0.0, omega))
    return alpha(spec) * bias * jnp.where(lost, jnp.finfo(total.dtype).max, total)


def shift_variance(spec: NetworkSpec) -> Scalar:
    """The second moment of one entry of the shift over networks.

    E a_i^2 = alpha b2 sum_{k=0}^{L-1} omega^k, summed term by term: there is nothing special about omega = 1.

    Returns:
        The variance (the mean is zero), shaped like the leaves of `spec`; exactly 0 without bias, inf where it
        overflows.

    Source: Kumano et al. 2023, law of the linear representation (infinite width). Exact at every width and input for
    "vanilla" and "signed"; for "residual" it fails unless u = v, the shift then depending on x: see `residual_law`.
    """
    return bias_series(spec, jnp.ones(spec.depth))


class ResidualLaw(NamedTuple):
    """Second moments over networks of one output's parts, f(x) = (J x) + a, and means of their hidden coordinates."""

    along_input: Scalar  # E (J x)^2
    shift: Scalar  # E a^2
    cross: Scalar  # E (J x) a
    mean_along_input: Scalar  # the mean of a coordinate of h_L due to x; that of J x itself is zero
    mean_shift: Scalar  # the mean of a coordinate of h_L due to the biases; that of a itself is zero


def residual_law(spec: NetworkSpec, input_norm_squared: ScalarLike) -> ResidualLaw:
    """The law of a residual network along its own input, which the published one misses.

    phi has a non-zero mean unless u = v, so skip and branch correlate along x. With tt = E (J x)^2, aa = E a^2 and
    ta = E (J x) a per output, and n_t, n_a the means of a hidden coordinate's two parts, starting from
    tt = |x|^2 / d and zeros, every layer maps

        V = s (tt + aa + 2 ta) + b2,    mu_t = (u - v) s (tt + ta) / sqrt(2 pi V),
                                        mu_a = (u - v) (s (aa + ta) + b2) / sqrt(2 pi V)
        tt += alpha s tt + 2 n_t mu_t,            aa += alpha (s aa + b2) + 2 n_a mu_a
        ta += alpha s ta + n_t mu_a + n_a mu_t,   n_t += mu_t,   n_a += mu_a

    The published E (J x)^2 = omega^L |x|^2 / d and E a^2 = `shift_variance` leave out every n mu. In directions
    orthogonal to x, and for u = v, they hold: `jacobian_variance`.

    Args:
        spec: the law of the network, `block="residual"`.
        input_norm_squared: |x|^2, over all d coordinates.

    Returns:
        The moments, each shaped like the leaves of `spec`; inf where they overflow.

    Raises:
        ValueError: `spec.block` is not "residual".

    Source: ours, in the limit of infinite width: there a row of W_l gives the two parts of a preactivation as a
    Gaussian pair, and E phi'(z) z_t = (u - v) cov(z_t, z) / sqrt(2 pi V).
    """
    if spec.block != "residual":
        raise ValueError(
            "block: expected residual (elsewhere jacobian_variance and shift_variance hold along x too), "
            f"got {spec.block!r}"
        )
    s, b2, u, v = leaves(spec)
    mean_slope, mean_square_slope = (u - v) / jnp.sqrt(2 * jnp.pi), alpha(spec)

    def layer(_, state):
        # moments in units of 4^unit and means of 2^unit: rescaling is exact, and only the result can overflow
        (tt, aa, ta), (n_t, n_a), unit = state
        bias = _scale(b2, -2 * unit)
        c_t, c_a = s * (tt + ta), s * (aa + ta) + bias
        deviation = jnp.sqrt(jnp.where(c_t + c_a > 0, c_t + c_a, 1.0))
        mu_t, mu_a = mean_slope * c_t / deviation, mean_slope * c_a / deviation
        tt, aa, ta = (
            tt + mean_square_slope * s * tt + 2 * n_t * mu_t,
            aa + mean_square_slope * (s * aa + bias) + 2 * n_a * mu_a,
            ta + mean_square_slope * s * ta + n_t * mu_a + n_a * mu_t,
        )
        step = (jnp.frexp(tt + aa + 2 * ta)[1] - 1) // 2
        moments = tuple(_scale(moment, -2 * step) for moment in (tt, aa, ta))
        return moments, tuple(_scale(mean, -step) for mean in (n_t + mu_t, n_a + mu_a)), unit + step

    first = jnp.broadcast_arrays(jnp.asarray(input_norm_squared, dtype=float) / spec.input_dim, u, v, s, b2)[0]
    zero = jnp.zeros_like(first)
    start = (first, zero, zero), (zero, zero), zero.astype(jnp.int32)
    moments, means, unit = jax.lax.fori_loop(0, spec.depth, layer, start)
    return ResidualLaw(*(_scale(moment, 2 * unit) for moment in moments), *(_scale(mean, unit) for mean in means))


def _scale(x: Array, power: Array) -> Array:
    """Multiply by 2^power exactly, with the derivative 2^power also at 0 (where ldexp has 1) and no 0 * inf."""
    scale = jnp.ldexp(jnp.ones_like(x), power)
    return x * jnp.where(x == 0, jnp.minimum(scale, jnp.finfo(x.dtype).max), scale)
