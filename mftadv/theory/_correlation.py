"""How strongly the Jacobians, and so the outputs, of one random network at two inputs are correlated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, ArrayLike, Float

from mftadv.spec import NetworkSpec, dual_exponent
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._laws import Scalar, alpha, branch_share, compiled, leaves, propagation_factor, scaled_power

# x^3 times this polynomial in x^2 is sin x - x cos x, to double precision for |x| < 1/2
_ARC_SERIES = tuple((-1) ** (n + 1) * 2 * n / float(np.prod(np.arange(2.0, 2 * n + 2))) for n in range(7, 0, -1))


def _root(x: Array) -> Array:
    """The square root, with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _sine_excess(angle: Array) -> Array:
    """Sin x - x cos x, without cancellation near 0."""
    series = angle**3 * jnp.polyval(jnp.asarray(_ARC_SERIES), angle**2)
    return jnp.where(angle < 0.5, series, jnp.sin(angle) - angle * jnp.cos(angle))


def _angle(cosine: Array) -> Array:
    """Arccos, accurate next to 1 (and, as the angle to -1, next to -1), with derivative 0 at both ends."""
    return jnp.arctan2(_root((1 - cosine) * (1 + cosine)), cosine)


@jax.custom_jvp
def _arc_moment(cosine: Array) -> Array:
    """Sin theta + (pi - theta) cos theta."""
    return _sine_excess(_angle(-cosine))


# by hand: the chain through theta is 0 * inf at |cosine| = 1, where the derivative is finite
_arc_moment.defjvps(lambda tangent, _, cosine: _angle(-cosine) * tangent)


def kappa(spec: NetworkSpec, c: ArrayLike) -> Scalar:
    """The second moment of the activation at two standard Gaussians of correlation c.

    kappa(c) = E phi(z) phi(z') = (u - v)^2 (sin theta + (pi - theta) cos theta) / (2 pi) + u v c, theta = arccos c.

    Source: ours, exact; the arc-cosine kernel of degree one for u = 1, v = 0.
    """
    _, _, u, v = leaves(spec)
    return _second_moment(u, v, c)


@compiled()
def _second_moment(u: Scalar, v: Scalar, c: ArrayLike) -> Scalar:
    c = jnp.asarray(c, dtype=float)
    return (u - v) ** 2 / (2 * jnp.pi) * _arc_moment(c) + u * v * c


def gate_correlation(spec: NetworkSpec, c: ArrayLike) -> Scalar:
    """The second moment of the activation's slope at two standard Gaussians of correlation c.

    g(c) = E phi'(z) phi'(z') = alpha (1 - theta / pi) + u v theta / pi = kappa'(c), theta = arccos c.

    g has a cusp at c = 1, where its derivative in c is infinite: there, and at c = -1, 0 is returned for it.

    Source: ours, exact; the arc-cosine kernel of degree zero for u = 1, v = 0.
    """
    _, _, u, v = leaves(spec)
    return _gate_moment(u, v, c)


@compiled()
def _gate_moment(u: Scalar, v: Scalar, c: ArrayLike) -> Scalar:
    c = jnp.asarray(c, dtype=float)
    return _gate(u, v, _angle(c), _angle(-c))


def _gate(u: Scalar, v: Scalar, angle: Array, supplement: Array) -> Array:
    return ((u**2 + v**2) / 2 * supplement + u * v * angle) / jnp.pi


class CorrelationPath(NamedTuple):
    """What two inputs become on their way through a network; the first axis is the layer, l = 1..L."""

    angle: Float[Array, " L *leaves"]  # theta_l, between the two preactivations z_l over networks, in [0, pi]
    gate: Float[Array, " L *leaves"]  # g(cos theta_l), the correlation of the two slopes
    product: Float[Array, " L *leaves"]  # (e + s g(cos theta_1)) ... (e + s g(cos theta_l)), e = 1 with a shortcut


@compiled()
def correlation_path(
    spec: NetworkSpec, angle: ArrayLike, norms: tuple[ArrayLike | None, ArrayLike | None] = (None, None)
) -> CorrelationPath:
    """The correlation of two inputs followed through the layers.

    With w and m the variance and mean of a hidden coordinate, k the covariance of the two, nu = (u - v) / sqrt(2 pi)
    for "residual" and 0 elsewhere, e = 1 with a shortcut and 0 without, every layer maps

        V = s (w + m^2) + b2,                c = (s (k + m m') + b2) / sqrt(V V') = cos theta
        w <- e w + (alpha - nu^2) V,         k <- e k + sqrt(V V') (kappa(c) - nu^2),         m <- m + nu sqrt(V)

    from w = |x|^2 / d, k = x.x' / d and m = 0. For "vanilla" without bias this is c <- kappa(c) / alpha, so theta_1
    is the angle of the inputs and theta_l that of the hidden layers h_{l-1}.

    The map is followed for 1 - k / sqrt(w w'), and for means and biases in units of sqrt(w) and sqrt(w') of the layer,
    by sums of non-negative terms: a small angle loses no more than the rounding of the two lengths, and nothing
    overflows, whatever the lengths.

    Args:
        spec: the law of the network.
        angle: the angle between the two inputs in radians, in [0, pi]; a small one need not survive a cosine.
        norms: (|x|, |x'|); None stands for sqrt(d).

    Returns:
        Arrays with a leading layer axis. Derivatives at angle 0, where g has its cusp, take the angle as constant.

    Source: ours, in the limit of infinite width.
    """
    s, b2, u, v = leaves(spec)
    mean_slope = (u - v) / jnp.sqrt(2 * jnp.pi) if spec.block == "residual" else jnp.zeros_like(u)
    mean_square_slope, shortcut = alpha(spec), float(spec.has_shortcut)
    spread = mean_square_slope - mean_slope**2
    root_spread = jnp.sqrt(spread)
    odd, even = (u - v) ** 2 / (2 * mean_square_slope), (u + v) ** 2 / (2 * mean_square_slope)
    # where an input or the weights vanish, floors too low to matter elsewhere keep the limit of the angle defined
    floor, tiny = float(jnp.finfo(s.dtype).eps) ** 2, float(jnp.finfo(s.dtype).tiny)
    gain, shortest = jnp.maximum(s, floor), jnp.maximum(floor, tiny**0.5 * b2)

    def layer(state, _):
        # m, n: means in units of the standard deviations sqrt(w), sqrt(w'), of ratio `ratio`; bias, other_bias, cross:
        # b2 / w, b2 / w' and b2 / sqrt(w w'); defect, sine: of the angle between the two hidden layers
        m, n, bias, other_bias, cross, ratio, defect, sine, product = state
        a, b = jnp.sqrt(gain * (1 + m**2) + bias), jnp.sqrt(gain * (1 + n**2) + other_bias)
        signal, noise, root = gain / a / b, cross / a / b, jnp.sqrt(ratio)
        parallel = signal * (1 - defect + m * n) + noise
        # Lagrange's identity: 1 - parallel^2 as a sum of squares, exactly 0 where the inputs are equal
        transverse = _root(
            signal**2 * (sine**2 + (n - m) ** 2 + 2 * m * n * defect)
            + signal * noise * ((root - 1 / root) ** 2 + 2 * defect + (m * root - n / root) ** 2)
        )
        theta, supplement = jnp.arctan2(transverse, parallel), jnp.arctan2(transverse, -parallel)
        gate = _gate(u, v, theta, supplement)
        # 1 - kappa(cos theta) / alpha, from the nearer end
        branch_defect = jnp.where(
            theta < jnp.pi / 2,
            2 * jnp.sin(theta / 2) ** 2 - odd / jnp.pi * _sine_excess(theta),
            even + (odd - 1) * 2 * jnp.sin(supplement / 2) ** 2 - odd / jnp.pi * _sine_excess(supplement),
        )

        growth, other_growth = jnp.hypot(shortcut, root_spread * a), jnp.hypot(shortcut, root_spread * b)
        skip, branch = shortcut / growth / other_growth, (a / growth) * (b / other_growth)
        misaligned = (b - a) ** 2 / growth / other_growth / (1 + skip + spread * branch)
        defect = skip * (defect + spread * misaligned) + mean_square_slope * branch * branch_defect
        defect = jnp.clip(defect, 0.0, 2.0)
        sine, product = _root(defect * (2 - defect)), product * (shortcut + s * gate)
        m, n, ratio = (m + mean_slope * a) / growth, (n + mean_slope * b) / other_growth, ratio * growth / other_growth
        bias, other_bias, cross = bias / growth**2, other_bias / other_growth**2, cross / growth / other_growth
        state = m, n, bias, other_bias, cross, ratio, defect, sine, product
        return state, CorrelationPath(theta, gate, product)

    lengths = ((1.0 if norm is None else norm / jnp.sqrt(spec.input_dim)) for norm in norms)
    p, q = (jnp.maximum(jnp.asarray(length, dtype=float), jnp.sqrt(shortest)) for length in lengths)
    p, q, angle, b2, *_ = jnp.broadcast_arrays(p, q, jnp.asarray(angle, dtype=float), b2, s, u, v)
    zero = jnp.zeros_like(p)
    state = zero, zero, b2 / p / p, b2 / q / q, b2 / p / q, p / q, 2 * jnp.sin(angle / 2) ** 2, jnp.sin(angle), zero + 1
    return jax.lax.scan(layer, state, length=spec.depth)[1]


@compiled()
def jacobian_correlation(
    spec: NetworkSpec,
    cosine: ArrayLike,
    input_norm_squared: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
) -> Scalar:
    """How much of the Jacobian at one input is found again at another, over networks.

    d E[J_ij(x) J_ij(x')] = prod_{l=1}^{L} (e + s g(c_l)), c_l the correlation of the preactivations of layer l
    (`correlation_path`), e = 1 with a shortcut and 0 without; omega^L at x' = x. It holds in input directions j
    orthogonal to x and x'. For "vanilla" without bias c_1 = cosine and c_{l+1} = kappa(c_l) / alpha.

    Args:
        spec: the law of the network.
        cosine: x.x' / (|x| |x'|), in [-1, 1].
        input_norm_squared: (|x|^2, |x'|^2); None stands for d, a mean square of 1. They matter with bias only.

    Returns:
        The correlation; inf where it overflows. Next to cosine 1 it falls like the angle sqrt(2 (1 - cosine)): the
        derivative there is infinite, and at |cosine| = 1 itself the one returned takes the angle as constant. Two
        inputs closer than a cosine in single precision can tell go to `correlation_path` by their angle.

    Source: ours, in the limit of infinite width; at finite width allow about 20/N, relative.
    """
    first, second = (None if norm is None else _root(jnp.asarray(norm, dtype=float)) for norm in input_norm_squared)
    return correlation_path(spec, _angle(jnp.asarray(cosine, dtype=float)), (first, second)).product[-1]


def _best_perturbation_length(p: float, dim: int) -> float:
    """|eta|_2 / |eta|_p of the eta that maximises <g, eta> at given |eta|_p, for a typical Gaussian g [dim].

    eta_j = sign(g_j) |g_j|^(p* - 1), so |g|^(p* - 1) in the 2-norm over the p-norm, with the quantiles of |g| for g.
    """
    size = scipy.special.ndtri(0.5 + (np.arange(dim) + 0.5) / (2 * dim))
    eta = (size / size[-1]) ** (dual_exponent(p) - 1)
    return float(np.linalg.norm(eta) / np.linalg.norm(eta, p))


def one_step_loss(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike, p: float = 2, q: float = 2) -> Scalar:
    """The adversarial loss reached by one step along the Jacobian, averaged over networks.

    For eta the best perturbation for J(x), |eta|_p = eps, given J(x),

        E [f(x + eta) - f(x)] = kappa_L J(x) eta,    kappa_L = prod_{l=1}^{L} (e + s g(c_l)) / omega,

    c_l along `correlation_path` from the angle theta between x and x + eta, so that the loss is

        eps beta_{p,q} omega^{L/2} kappa_L,          tan theta = |eta|_2 / |x|,

    with beta the "sharp" coefficient. eta is orthogonal to x in the mean; |eta|_2 is eps for p = 2 and p = 1,
    eps sqrt(d) for p = inf, and the typical value between. kappa_L falls from 1 as gates flip inside the ball: a step
    along the gradient falls short of the bound at large eps, where an attack of many small steps nearly reaches it.
    What f(x + eta) - f(x) holds besides this mean is left out. It can only add to the loss, and it is small where
    beta is well above |eta|_2 E|g_K|_q / (eps sqrt(d)): not for p = 1 with K > 1 at large eps.

    Args:
        spec: the law of the network, "vanilla" or "signed".
        eps: the size of the perturbation.
        input_norm: |x|_2 over all d coordinates.
        p: exponent of the perturbation's norm.
        q: exponent of the output's norm.

    Returns:
        The loss, shaped like the leaves of `spec`.

    Raises:
        ValueError: p or q is outside [1, inf]; the sharp coefficient is not known for (p, q, d, K); `spec.block` is
            "residual", where J has an outsize component along x.

    Source: ours, in the limit of infinite width, by regression of the Gaussian process f(x + eta) on J(x). Finite
    networks keep less, by a part of about d L / (10 N) at theta = .3.
    """
    if spec.block == "residual":
        raise ValueError("block: expected vanilla or signed (J is not isotropic elsewhere), got 'residual'")
    beta = operator_norm_coefficient(p, q, spec.input_dim, spec.output_dim, kind="sharp")
    return _one_step(spec, eps, input_norm, beta, _best_perturbation_length(p, spec.input_dim))


@compiled()
def _one_step(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike, beta: ArrayLike, length: ArrayLike) -> Scalar:
    """The loss, from beta and the `length` |eta|_2 of an |eta|_p = 1."""
    eps, input_norm = jnp.asarray(eps, dtype=float), jnp.asarray(input_norm, dtype=float)
    length = eps * length
    path = correlation_path(spec, jnp.arctan2(length, input_norm), (input_norm, jnp.hypot(input_norm, length)))
    remaining = jnp.prod(1 - branch_share(spec) * (1 - path.gate / alpha(spec)), axis=0)
    return scaled_power(eps * beta * remaining, propagation_factor(spec), spec.depth / 2)
