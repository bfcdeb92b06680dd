"""Second and fourth moments of the linear representation f(x) = J(x) x + a(x)."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mftadv.spec import NetworkSpec, concrete

Scalar = Float[Array, "..."]
Leaves = tuple[Scalar, Scalar, Scalar, Scalar]

_Formula = TypeVar("_Formula", bound=Callable)


def compiled(*static: str) -> Callable[[_Formula], _Formula]:
    """Make one program of a formula, given the names of its static arguments.

    Outside jit every operation would be compiled on its own at its first use, and every loop at every use.
    """
    return lambda formula: cast(_Formula, jax.jit(formula, static_argnames=static))


def leaves(spec: NetworkSpec) -> Leaves:
    """The variances and slopes s, b2, u, v as arrays of the default float dtype."""
    values = spec.weight_variance, spec.bias_variance, spec.positive_slope, spec.negative_slope
    s, b2, u, v = (jnp.asarray(value, dtype=float) for value in values)
    return s, b2, u, v


def alpha(spec: NetworkSpec) -> Scalar:
    """The mean square slope of the activation.

    alpha = (u^2 + v^2) / 2.

    Source: the paper, definition of the activation's mean square slope.
    """
    _, _, u, v = leaves(spec)
    return _mean_square(u, v)


@compiled()
def _mean_square(u: Scalar, v: Scalar) -> Scalar:
    return (u**2 + v**2) / 2


def branch_gain(spec: NetworkSpec) -> Scalar:
    """A = alpha s, the factor by which one branch multiplies a mean square."""
    return alpha(spec) * leaves(spec)[0]


def propagation_factor(spec: NetworkSpec) -> Scalar:
    """The factor omega by which one block multiplies the mean square of a gradient.

    omega = A for "vanilla", 1 + A for "residual" and "signed", with A = alpha s.

    Source: the paper, definition of the propagation factor; "signed" is ours.
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


def check_size(name: str, value: ArrayLike, positive: bool = False) -> Scalar:
    """The value as an array of the default float dtype.

    Raises:
        ValueError: a concrete `value` is not finite, negative, or 0 where it must be positive.
    """
    known = concrete(value)
    if known is not None and not np.all(np.isfinite(known) & ((known > 0) if positive else (known >= 0))):
        raise ValueError(f"{name}: expected a finite number {'> 0' if positive else '>= 0'}, got {value!r}")
    return jnp.asarray(value, dtype=float)


def saturation(dtype: Any) -> float:
    """What stands for an overflown factor of 0 in a derivative, small enough not to overflow with further factors."""
    return float(jnp.finfo(dtype).max) ** 0.75


@compiled()
def scaled_power(scale: Scalar, base: Scalar, exponent: ArrayLike) -> Scalar:
    """Scale base^exponent, 0 where either factor is 0, even where the other overflows."""
    exponent = jnp.asarray(exponent, base.dtype)
    lost = (scale == 0) & jnp.isinf(base**exponent)
    power = jnp.where(lost, 1.0, base) ** exponent
    power = jnp.where(lost, saturation(power.dtype), power)
    return jnp.where((power == 0) & jnp.isinf(scale), 0.0, scale) * power


@compiled("signed")
def _width_excess(leaves: Leaves, signed: bool) -> Scalar:
    s, _, u, v = leaves
    excess = 3 * _slope_moment(u, v, 2) - 1
    if not signed:
        return excess
    gain = (u**2 + v**2) / 2 * s
    share = gain / (1 + gain)
    return 4 * share / (1 + gain) + excess * share**2


def _slope_moment(u: Scalar, v: Scalar, order: int) -> Scalar:
    # slopes in units of the larger one, so that no power of theirs overflows or vanishes
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(u), jnp.abs(v)))
    positive, negative = (u / unit) ** 2, (v / unit) ** 2
    return 2 ** (order - 1) * (positive**order + negative**order) / (positive + negative) ** order


def slope_moment(spec: NetworkSpec, order: int) -> Scalar:
    """E phi'^(2k) / (E phi'^2)^k of order k, 2^(k-1) (u^2k + v^2k) / (u^2 + v^2)^k: for ReLU 2^(k-1), for |z| 1."""
    _, _, u, v = leaves(spec)
    return _slope_moment(u, v, order)


def gram_spread(spec: NetworkSpec) -> Scalar:
    """The variance that a layer adds to the Gram matrix of J off its diagonal, times N: 2 r (1 - r) + m r^2."""
    share = branch_share(spec)
    return 2 * share * (1 - share) + slope_moment(spec, 2) * share**2


def stand_in(spec: NetworkSpec) -> NetworkSpec:
    """The same law, or its "signed" stand-in for "residual", of which no law of fourth moments is known."""
    return spec.replace(block="signed") if spec.block == "residual" else spec


def width_excess(spec: NetworkSpec) -> Scalar:
    """The relative variance that a layer adds to the squared length of a tangent vector, times N: c for "vanilla"."""
    if spec.block == "residual":
        raise ValueError("block: expected vanilla or signed (no finite-width law is known elsewhere), got 'residual'")
    return _width_excess(leaves(spec), spec.block == "signed")


def log_finite_width_factor(spec: NetworkSpec) -> Scalar:
    """The logarithm w of `finite_width_factor`, which keeps its digits in wide networks."""
    width = float(spec.width)  # which as an integer may be too large for an array
    return math.log1p(2 / width) + spec.depth * jnp.log1p(width_excess(spec) / width)


def finite_width_factor(spec: NetworkSpec) -> Scalar:
    """How far a Jacobian entry is from Gaussian at width N, over networks.

    E J_ij^4 / (3 (E J_ij^2)^2), which is 1 for a Gaussian and here, exactly at every width, bias and input x != 0,

        vanilla  (1 + 2/N) (1 + c/N)^L,                              c = 6 (u^4 + v^4) / (u^2 + v^2)^2 - 1  (ReLU: 5)
        signed   (1 + 2/N) (1 + (4 r (1 - r) + c r^2) / N)^L,        r = A / (1 + A), A = alpha s

    The same factor holds for any fixed direction. Its logarithm w is the relative log-variance of the square of a
    network's Jacobian, J = R G with ln R^2 about N(-w/2, w), so that E|J| falls by about exp(-w/8).

    Returns:
        The factor, shaped like the leaves of `spec`.

    Raises:
        ValueError: `spec.block` is "residual", for which no such law is known.

    Source: ours, exact at every width, bias and input x != 0. Flipping the sign of a row (w_i, b_i) makes the gates
    fair coins, independent of all squares, which gives E|h_l|^4 from E|h_{l-1}|^4 in one line; P_in contributes 1 + 2/N
    and P_out the 3.
    """
    return jnp.exp(log_finite_width_factor(spec))


def jacobian_kurtosis(spec: NetworkSpec) -> Scalar:
    """The kurtosis of one Jacobian entry over networks, at finite width.

    E J_ij^4 / (E J_ij^2)^2 = 3 finite_width_factor(spec).

    Returns:
        The kurtosis, shaped like the leaves of `spec`; 3 in the limit of infinite width.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: ours, exact at every width and input x != 0; see `finite_width_factor`.
    """
    return 3 * finite_width_factor(spec)


def jacobian_variance(spec: NetworkSpec) -> Scalar:
    """The second moment of one Jacobian entry over networks.

    E J_ij^2 = omega^L / d.

    Returns:
        The variance (the mean is zero), shaped like the leaves of `spec`; inf where it overflows.

    Source: the paper, law of the linear representation (infinite width). Exact at every width, bias and input x != 0
    for "vanilla" and "signed" (without bias every gate is open at x = 0: there a "vanilla" network has (u^2 s)^L / d);
    for "residual" it holds, at infinite width, in directions orthogonal to x and fails along x unless u = v: see
    `residual_law`.
    """
    return propagation_factor(spec) ** spec.depth / spec.input_dim


def bias_series(spec: NetworkSpec, coefficients: Float[Array, "L ..."]) -> Scalar:
    """Alpha b2 sum_{j < L} coefficients_j omega^j, where j layers follow the bias; exactly 0 without bias."""
    bias = leaves(spec)[1]
    omega = propagation_factor(spec)
    total = jnp.polyval(coefficients[::-1], omega)
    # 0 * inf, in the value or in a derivative, where there is no bias and the sum overflows
    lost = (bias == 0) & jnp.isinf(total)
    total = jnp.polyval(coefficients[::-1], jnp.where(lost, 0.0, omega))
    return alpha(spec) * bias * jnp.where(lost, jnp.finfo(total.dtype).max, total)


@compiled()
def shift_variance(spec: NetworkSpec) -> Scalar:
    """The second moment of one entry of the shift over networks.

    E a_i^2 = alpha b2 sum_{k=0}^{L-1} omega^k, summed term by term: there is nothing special about omega = 1.

    Returns:
        The variance (the mean is zero), shaped like the leaves of `spec`; exactly 0 without bias, inf where it
        overflows.

    Source: the paper, law of the linear representation (infinite width). Exact at every width and input for "vanilla"
    and "signed"; for "residual" it fails unless u = v, the shift then depending on x: see `residual_law`.
    """
    return bias_series(spec, jnp.ones(spec.depth))
