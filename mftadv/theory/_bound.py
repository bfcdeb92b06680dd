"""The bound on the adversarial loss, typical or at a confidence over networks of finite width."""

import math

import jax.numpy as jnp
import scipy
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec, check_exponent
from mftadv.theory._coefficients import (
    check_confidence,
    chevet_terms,
    operator_norm_coefficient,
    operator_norm_deviation,
)
from mftadv.theory._gaussian_norms import expected_norm
from mftadv.theory._laws import Scalar, check_size, compiled, log_finite_width_factor, propagation_factor, stand_in

_BOUNDS = ("chevet", "sharp")


def width_quantile(spec: NetworkSpec, probability: float) -> Scalar:
    """A quantile over networks of what finite width does to the norm of J.

    J = A G omega^{L/2}, with A [K, K] the product of the layers as seen from the outputs and G Gaussian. K = 1: the
    quantile of the scalar A, exp(-w/4 + sqrt(w) z/2) with w = ln finite_width_factor and z the normal quantile. K > 1:
    an upper bound on the quantile of A's largest singular value, as `adversarial_loss_bound` derives it; below a
    probability of 1/2, where that derivation fails, the bound at 1/2.

    Args:
        spec: the law of the network, "vanilla" or "signed".
        probability: of not exceeding the quantile, in (0, 1) (static).

    Returns:
        The quantile, shaped like the leaves of `spec`.

    Raises:
        ValueError: the block is "residual", or the probability is not in (0, 1).

    Source: ours, to leading order in 1/N at fixed L/N; see `adversarial_loss_bound`.
    """
    check_confidence(probability, "probability")
    z = float(scipy.special.ndtri(probability))
    # what bounds the quantiles of K > 1 bounds those from the median upwards, and so, at z = 0, the lower ones as well
    return _quantile(log_finite_width_factor(spec), *_edge(spec), z if spec.output_dim == 1 else max(z, 0.0))


def _edge(spec: NetworkSpec) -> tuple[float, float]:
    """K, and e as in `adversarial_loss_bound`."""
    k = spec.output_dim
    return float(k), 2 * expected_norm(k - 1, 2.0) if k > 1 else 0.0


def _mean_log_square(w: Scalar, k: ArrayLike, edge: ArrayLike) -> Scalar:
    """The mean of ln |A|_2^2, or for K > 1 a bound on it; its variance is w."""
    growth = k * w / 12
    # the second is the greater well before its exponential is cut off
    repelled = edge * jnp.sqrt(6 / k * jnp.expm1(jnp.minimum(growth, 3.0))) - (k - 1) * w / 4
    return jnp.minimum(edge * jnp.sqrt(w / 2), jnp.where(growth < 3, repelled, jnp.inf)) - w / 2


@compiled()
def _quantile(w: Scalar, k: ArrayLike, edge: ArrayLike, z: ArrayLike) -> Scalar:
    return jnp.exp((_mean_log_square(w, k, edge) + jnp.sqrt(w) * z) / 2)


@compiled()
def _mean(w: Scalar, k: ArrayLike, edge: ArrayLike) -> Scalar:
    return jnp.minimum(jnp.exp(_mean_log_square(w, k, edge) / 2 + w / 8), jnp.sqrt(k))


def width_mean(spec: NetworkSpec) -> Scalar:
    """The mean over networks of what finite width does to the norm of J; for K > 1 an upper bound.

    E|A|_2 <= min( exp( (m - w/2)/2 + w/8 ), sqrt(K) ), J = A G omega^{L/2}, with m and w of `adversarial_loss_bound`.

    Args:
        spec: the law of the network, "vanilla" or "signed".

    Returns:
        The factor, shaped like the leaves of `spec`.

    Raises:
        ValueError: the block is "residual".

    Source: ours, to leading order in 1/N at fixed L/N; see `adversarial_loss_bound`. ln |A|_2^2 moves with the Gaussian
    noise of the layers by at most sqrt(w), so that E|A|_2 is at most that of a log-normal variable; and |A|_2 is at
    most |A|_F, of mean square K at every width.
    """
    return _mean(log_finite_width_factor(spec), *_edge(spec))


def finite_width_bound(spec: NetworkSpec, eps: ArrayLike, p: float, q: float) -> Scalar:
    """Chevet's bound on the mean of eps |J(x)|_{p->q} over random networks of finite width.

        eps omega^{L/2} d^{-1/2} ( R_p(d) E|g_K|_q + W^+ R_q*(K) E|g_d|_p* ),      W^+ = max(W, 1),

    in the letters of `operator_norm_coefficient`. Only the second term, the greater the more inputs there are, feels
    the spread that the layers give to the singular values of K > 1 outputs: W is `width_mean`, or for q = inf, if that
    is less, exp(ln K / r - w/4 + r w/8) at the best r = sqrt(8 ln K / w), w = ln `finite_width_factor`.

    Args:
        spec: the law of the network, "vanilla" or "signed".
        eps: the size of the perturbation, >= 0.
        p: exponent of the perturbation's norm, any number in [1, inf].
        q: exponent of the output's norm, any number in [1, inf].

    Returns:
        The bound, shaped like the leaves of `spec` and eps; inf where it overflows.

    Raises:
        ValueError: an argument is outside its range, or the block is "residual".

    Source: ours, to leading order in 1/N at fixed L/N. Chevet's inequality for J = omega^{L/2} A G given A, and the
    mean over A: |J|_{p->q} is on average at most omega^{L/2} d^{-1/2} ( R_p(d) E|A g_K|_q + E|A|_{2->q} E|g_d|_p* ).
    P_out is Gaussian and independent of what it reads, of mean square 1, so that E|A g_K|_q <= E|g_K|_q; and |A|_{2->q}
    <= R_q*(K) |A|_2. For q = inf it is the longest row of A, at most (sum_i |a_i|^r)^(1/r) for r >= 1, of rows that are
    log-normal to leading order in 1/N.
    """
    by_outputs, by_inputs = _chevet_terms(spec, p, q)
    return _grown(check_size("eps", eps) * (by_outputs + _by_width(spec, q) * by_inputs), spec)


def chevet_excess(spec: NetworkSpec, p: float, q: float) -> Scalar:
    """How far finite width may raise Chevet's bound on the mean of |J|_{p->q}, as a fraction of it.

    (W^+ - 1) R_q*(K) E|g_d|_p* / ( R_p(d) E|g_K|_q + R_q*(K) E|g_d|_p* ), W^+ = max(W, 1): the ratio of
    `finite_width_bound` to `adversarial_loss_bound`, less 1, in the letters of the former.

    Args:
        spec: the law of the network. "residual", of which no law at finite width is known, is given the figure of
            "signed" at the same variances.
        p: exponent of the perturbation's norm, any number in [1, inf].
        q: exponent of the output's norm, any number in [1, inf].

    Returns:
        The fraction, >= 0, shaped like the leaves of `spec`; 0 for K = 1.

    Raises:
        ValueError: an exponent is outside its range.

    Source: ours, to leading order in 1/N at fixed L/N; see `finite_width_bound`.
    """
    by_outputs, by_inputs = _chevet_terms(spec, p, q)
    return (_by_width(stand_in(spec), q) - 1) * (by_inputs / (by_outputs + by_inputs))


def norm_correction(spec: NetworkSpec) -> tuple[Scalar, Scalar]:
    """What finite width does to the mean norm of J: a factor, and how far the mean may be off it, as a fraction.

        K = 1   exp(-w/8) and w^2/8,   w = ln `finite_width_factor`
        K > 1   1 and max(W - 1, 0),   W = `width_mean`: the layers spread the singular values by about sqrt(L K / N)

    Args:
        spec: the law of the network. "residual", of which no law at finite width is known, is given the figures of
            "signed" at the same variances.

    Returns:
        (factor, error), each shaped like the leaves of `spec`. For K > 1 the error is upwards, a bound.

    Source: ours, to leading order in 1/N at fixed L/N; see `adversarial_loss_bound`.
    """
    spec = stand_in(spec)
    mean = width_mean(spec)
    if spec.output_dim == 1:
        return mean, log_finite_width_factor(spec) ** 2 / 8
    return jnp.ones_like(mean), jnp.maximum(mean - 1, 0.0)


def _chevet_terms(spec: NetworkSpec, p: float, q: float) -> tuple[float, float]:
    return chevet_terms(check_exponent("p", p), check_exponent("q", q), spec.input_dim, spec.output_dim)


def _by_width(spec: NetworkSpec, q: float) -> Scalar:
    """W^+ of `finite_width_bound`."""
    spread = width_mean(spec)
    if q == math.inf and spec.output_dim > 1:
        spread = jnp.minimum(spread, _longest_row(log_finite_width_factor(spec), math.log(spec.output_dim)))
    return jnp.maximum(spread, 1.0)


@compiled()
def _longest_row(w: Scalar, log_outputs: ArrayLike) -> Scalar:
    r = jnp.maximum(jnp.sqrt(8 * log_outputs / w), 1.0)
    return jnp.exp(log_outputs / r - w / 4 + r * w / 8)


def _grown(scale: Scalar, spec: NetworkSpec) -> Scalar:
    """Scale omega^(L/2), finite wherever the product is."""
    return _grow(scale, propagation_factor(spec), spec.depth / 2)


@compiled()
def _grow(scale: Scalar, omega: Scalar, exponent: ArrayLike) -> Scalar:
    dead, largest = omega == 0, jnp.finfo(omega.dtype).max
    log_root = exponent / 2 * jnp.log(jnp.where(dead, 1.0, omega))
    lost = (scale == 0) & (log_root > jnp.log(largest))
    root = jnp.exp(jnp.where(lost, 0.0, log_root))
    # ln omega has no derivative at omega = 0, its power has
    return jnp.minimum(scale, largest) * jnp.where(dead, omega, 1.0) ** jnp.asarray(exponent, omega.dtype) * root * root


def adversarial_loss_bound(
    spec: NetworkSpec, eps: ArrayLike, p: float, q: float, kind: str = "chevet", confidence: float | None = None
) -> Scalar:
    """The bound on the adversarial loss max |f(x + eta) - f(x)|_q over |eta|_p <= eps of a random network.

    eps beta_{p,q} omega^{L/2}, beta from `operator_norm_coefficient`: the mean of eps |J(x)|_{p->q} at infinite width,
    or an upper bound on it. The loss itself may exceed eps |J(x)| a little, by the largest |J| in the ball. Finite
    width takes a factor of about exp(-w/8) off the mean for K = 1, w below, but adds to it for K > 1, where the layers'
    product spreads its singular values: 26% for p = q = 2, ReLU, K = 5, N = 100, L = 5, so that without a confidence
    this is a bound for L K << N alone.

    With a confidence, an upper bound on eps |J(x)|_{p->q} that one random network of width N obeys with at least that
    probability. J = omega^{L/2} A G, with A the product of the layers as seen from the outputs and G Gaussian, [K, d],
    entries N(0, 1/d). Half of delta = 1 - confidence goes to each factor:

        eps omega^{L/2} exp( (m - w/2 + sqrt(w) z)/2 ) [ beta + deviation at 1 - delta/2 ],
        m = min( sqrt(w/2) e, sqrt(6 (exp(K w/12) - 1)/K) e - (K - 1) w/4 ),    e = 2 E|g_{K-1}|_2  (K = 1: m = 0),

    with w = ln `finite_width_factor`, z the normal quantile at 1 - delta/2 and g_n a standard normal vector.

    Args:
        spec: the law of the network; with a confidence, "vanilla" or "signed".
        eps: the size of the perturbation, >= 0.
        p: exponent of the perturbation's norm, any number in [1, inf].
        q: exponent of the output's norm, any number in [1, inf].
        kind: "chevet", "sharp", "leading" or "published", see `operator_norm_coefficient`; the last two give estimates
            and no bounds.
        confidence: a probability, 0 < confidence < 1 (static), with kind "chevet" or "sharp"; None for the mean.

    Returns:
        The bound, shaped like the leaves of `spec` and eps; inf where it overflows.

    Raises:
        ValueError: an argument is outside its range, or has no coefficient; a confidence is given for a kind that is no
            bound, or for the "residual" block, for which no law at finite width is known.

    Source: the paper, its bound on the adversarial loss, without confidence and but for beta (infinite width; for
    "residual" and u != v J is larger along x than this assumes). With confidence, ours, for independent A and G, to
    leading order in 1/N at fixed L/N. K = 1: ln A^2 is N(-w/2, w), whose quantiles are right to .02 in probability for
    ReLU, N = 30, L = 3. K > 1: layer by layer, the logarithms x_i of the eigenvalues of A A^T follow dx_i = sqrt(2)
    dB_i - dt + sum_j dt/(exp(x_i - x_j) - 1) up to a t <= w/2, and a common normal of mean t - w/2 and variance w - 2t
    is added. Two comparisons bound the mean of the largest by that of the largest eigenvalue of a symmetric Gaussian
    matrix, which is below e (by Slepian's inequality with g_K; with g_{K-1} by computation): 1/(exp(y) - 1) <= 1/y for
    each x_i, and coth(y/2)/2 <= 1/y + y/12 for the sums of the k largest. The largest is convex and Lipschitz in B,
    hence its Gaussian tail (Borell). |J| grows with A A^T (Anderson's inequality); the rest is Gaussian concentration.
    """
    coefficient = operator_norm_coefficient(p, q, spec.input_dim, spec.output_dim, kind=kind)
    scale = check_size("eps", eps)
    if confidence is None:
        return _grown(scale * coefficient, spec)
    if kind not in _BOUNDS:
        raise ValueError(f"kind: expected one of {', '.join(_BOUNDS)} with a confidence, got {kind!r}")
    check_confidence(confidence)
    each = (1 + confidence) / 2
    coefficient += operator_norm_deviation(p, q, spec.input_dim, spec.output_dim, each)
    return _grown(scale * coefficient * width_quantile(spec, each), spec)
