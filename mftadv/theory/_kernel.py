"""How fast adversarial training lowers the loss at its start, and for how long the variance's closed form holds."""

import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from mftadv.spec import NetworkSpec, concrete
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._correlation import correlation_path
from mftadv.theory._laws import (
    Scalar,
    alpha,
    branch_share,
    check_size,
    compiled,
    gram_spread,
    leaves,
    propagation_factor,
    scaled_power,
)


class AdversarialRate(NamedTuple):
    """How fast adversarial training starts."""

    rate: Scalar  # -dL_adv/dt at t = 0 for one fixed worst perturbation; the attack of both signs falls at half of it
    time: Scalar  # t* = L_adv(0) / rate


class KernelRegime(NamedTuple):
    """How far training at finite width and angle is from the kernel regime; see `kernel_regime`."""

    gate_shift: float  # lambda
    gates_per_dimension: float  # n / d
    delta: float
    alignment: float


def check_kernel_law(spec: NetworkSpec, variance: bool = False) -> None:
    """Refuse a law whose tangent kernel, or on demand whose variance under training, has no closed form here."""
    if spec.block == "residual":
        raise ValueError("block: expected vanilla or signed (skip and branch are correlated elsewhere), got 'residual'")
    if variance and spec.block != "vanilla":
        raise ValueError(
            f"block: expected vanilla, got {spec.block!r} (training lowers the share of L_adv that runs through the "
            "branch, and the variance follows that)"
        )
    if spec.output_dim != 1:
        raise ValueError(
            f"output_dim: expected 1, got {spec.output_dim} (take the horizon of one output: it hardly depends on K)"
        )
    bias_variance = concrete(spec.bias_variance)
    if bias_variance is not None and np.any(bias_variance != 0):
        raise ValueError(f"bias_variance: expected 0, got {spec.bias_variance!r}")


def _check(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike, variance: bool = False) -> tuple[Scalar, Scalar]:
    """The two lengths as arrays, for a law that has the closed form."""
    check_kernel_law(spec, variance)
    return check_size("eps", eps, positive=True), check_size("input_norm", input_norm, positive=True)


@compiled()
def gate_overlap(spec: NetworkSpec, angle: ArrayLike) -> tuple[Array, Array, Array]:
    """The angles arccos c_{l-1} of the hidden layers at two inputs of this angle, 1 - G_l, and 1 - p of the gradients.

    G_l = gamma_l prod_{k > l} (1 - r + r gamma_k),       p = prod_k (1 - r + r gamma_k),       r = A / omega,
    gamma_k = g(c_{k-1}) / alpha,      1 - g(cos theta) / alpha = (theta / pi) (u - v)^2 / (u^2 + v^2).

    G_l is the correlation of the cotangents of the preactivation of layer l, p that of the rows of J.
    """
    _, _, u, v = leaves(spec)
    angles = correlation_path(spec, angle).angle
    flipped = angles / jnp.pi * jnp.broadcast_to((u - v) ** 2 / (u**2 + v**2), angles.shape)
    share = jnp.broadcast_to(branch_share(spec), angles.shape[1:])

    def step(defect, flipped):  # of 1 - prod, without cancellation
        through = defect + share * flipped * (1 - defect)
        return through, defect + flipped * (1 - defect)

    of_gradients, of_layers = jax.lax.scan(step, jnp.zeros_like(flipped[0]), flipped, reverse=True)
    return angles, of_layers, of_gradients


@compiled()
def kernel_defect(spec: NetworkSpec, angle: ArrayLike, unit: ArrayLike = 1.0) -> Scalar:
    """The sum over layers of (1 - c_{l-1} G_l) / unit, no term of it a difference of nearly equal numbers.

    The tangent kernel of two inputs is N alpha omega^{L-1} sqrt(q q') (L - this sum).
    """
    angles, lost, _ = gate_overlap(spec, angle)
    half, unit = jnp.sin(angles / 2), jnp.broadcast_to(unit, angles.shape)
    return jnp.sum(2 * half * (half / unit) + jnp.cos(angles) * (lost / unit), axis=0)


def _kernel_difference(spec: NetworkSpec, eps: Scalar, input_norm: Scalar, two_sided: bool) -> tuple[Scalar, Scalar]:
    """|x'| and D, where D |x'| eps / d is the sum over layers of q + q' - 2 sqrt(q q') c_{l-1} G_l.

    Two-sided, of q' (1 - c_{l-1} G_l) / 2 at the two inputs x + eta and x - eta: half of what the kernel of eta with
    itself exceeds that with -eta by, the effect on eta of pushing each of the two half the time. D tends to a constant
    with eps: it is taken at an eps whose square relative to |x|^2 can be represented.
    """
    eps = jnp.maximum(eps, jnp.finfo(eps.dtype).tiny ** 0.5 * input_norm)
    perturbed_norm = jnp.hypot(input_norm, eps)
    near, across = input_norm / perturbed_norm, eps / perturbed_norm
    angle = jnp.arctan2(across, near)
    if two_sided:
        return perturbed_norm, kernel_defect(spec, 2 * angle, 2 * across)
    turned = kernel_defect(spec, angle, across)
    return perturbed_norm, spec.depth * across * (across / (1 + near)) ** 2 + 2 * near * turned


@compiled()
def _decay_rate(spec: NetworkSpec, eps: Scalar, input_norm: Scalar, factor: ArrayLike = 1.0) -> Scalar:
    perturbed_norm, difference = _kernel_difference(spec, eps, input_norm, two_sided=False)
    root = jnp.sqrt(float(spec.input_dim))
    scale = float(spec.width) * alpha(spec) * factor * difference * (perturbed_norm / root) * (eps / root)
    return scaled_power(scale, propagation_factor(spec), spec.depth - 1)


@compiled("two_sided")
def _horizon(spec: NetworkSpec, eps: Scalar, input_norm: Scalar, allowed: Scalar, two_sided: bool) -> Scalar:
    """`allowed` eps omega^{L/2} / rate."""
    perturbed_norm, difference = _kernel_difference(spec, eps, input_norm, two_sided)
    scale = allowed * float(spec.input_dim) / (float(spec.width) * alpha(spec) * difference) / perturbed_norm
    return scaled_power(scale, propagation_factor(spec), 1 - spec.depth / 2)


@compiled()
def flip_counts(spec: NetworkSpec) -> Array:
    """How much a gate of layer k = 1 ... L counts for the rate, n_k = 1 + r (k - 1)."""
    share = branch_share(spec)
    return 1 + share * jnp.arange(float(spec.depth)).reshape(-1, *[1] * jnp.ndim(share))


@compiled()
def alignment_factor(spec: NetworkSpec) -> Scalar:
    """How much faster the worst perturbation decays than one that does not know the weights."""
    counts, spread = flip_counts(spec), gram_spread(spec)
    below = jnp.arange(float(spec.depth)).reshape(-1, *[1] * jnp.ndim(spread))
    excess = spec.input_dim / float(spec.width) * (2 + spread * below)
    return jnp.sum(counts / jnp.sum(counts, axis=0) * jnp.sqrt(1 + excess), axis=0)


def adversarial_loss_decay_rate(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike) -> Scalar:
    """The rate -dL_adv/dt at which gradient flow on the weights lowers the loss of one perturbation at t = 0.

    For x' = x + eta held fixed, |eta|_2 = eps, eta orthogonal to x, and K = 1,

        -dL_adv/dt = Theta(x, x) + Theta(x', x') - 2 Theta(x, x'),
        Theta(x, x') = N omega^{L-1} sqrt(q q') sum_{l=1}^{L} c_{l-1} g(c_{l-1}) prod_{k>l} (e + s g(c_{k-1})) / omega,

    with q = |x|^2 / d, q' = |x'|^2 / d, c_l the correlation of the hidden layers at x and x' and g that of their gates
    (`correlation_path`), e = 0 for "vanilla" and 1 for "signed". The kernel has a cusp at x' = x, gates that flip
    inside the ball: for small eps / |x| and u != v the rate is, with r = A / omega (1 for "vanilla"),

        alpha omega^{L-1} ((u - v)^2 / (u^2 + v^2)) N sqrt(q) eps L (2 + r (L - 1)) / (pi sqrt(d)),

    linear in eps where frozen gates would make it quadratic.

    Args:
        spec: the law at t = 0: "vanilla" or "signed", K = 1, no bias.
        eps: |eta|_2 > 0.
        input_norm: |x|_2 > 0, over all d coordinates.

    Returns:
        The rate, shaped like the leaves of `spec`; inf where it overflows.

    Raises:
        ValueError: an argument is outside its range; `spec` is "residual", of K > 1, or has a bias (where its variance
            is concrete; a traced one must be 0).

    Source: ours, in the limit of infinite width, for a perturbation that is fixed and independent of the weights. The
    worst one of a network is orthogonal to x in the mean but aligned with the weights, for which `adversarial_rate`
    has a factor; and an attack finds eta and -eta in turn, so that L_adv itself falls at half the rate (for u != v and
    small eps / |x|).
    """
    return _decay_rate(spec, *_check(spec, eps, input_norm))


def adversarial_rate(spec: NetworkSpec, input_norm: ArrayLike, eps: ArrayLike, aligned: bool = True) -> AdversarialRate:
    """The rate at which the loss of the worst perturbation falls at t = 0, and the time scale t* of L_adv.

        rate_adv / rate = sum_{k=1}^{L} n_k sqrt(1 + (d / N) (2 + o (k - 1))) / sum_k n_k,      n_k = 1 + r (k - 1),
        t* = L_adv / rate_adv,      L_adv = eps beta omega^{L/2},
        o = 2 r (1 - r) + chi r^2,      chi = 2 (u^4 + v^4) / (u^2 + v^2)^2,      r = A / omega (1 for "vanilla")

    with rate = `adversarial_loss_decay_rate`. Both are those of one fixed perturbation. An attack pushes eta and -eta
    in turn, so that L_adv itself falls at half the rate (`training_curve`): by a half of itself in t*, to first order.

    Args:
        spec: the law at t = 0: "vanilla" or "signed", K = 1, no bias.
        input_norm: |x|_2 > 0, over all d coordinates.
        eps: the radius of the l2 attack, > 0.
        aligned: whether the perturbation is aligned with the weights, as a worst one is; else the factor is 1.

    Returns:
        The rate and t*, the learning rate times a number of steps, shaped like the leaves of `spec`. With B inputs of
        nearly orthogonal kernels L_adv falls on the scale B t*.

    Raises:
        ValueError: as for `adversarial_loss_decay_rate`.

    Source: ours, to first order in d / N inside the root. The flips of the gates of layer k count n_k times: for their
    own layer, and for each below by the share of its gradient that runs through the branch. They are proportional to
    |W_k T_{k-1} ... T_1 P_in eta|, with T_j the layers, D_j W_j or 1 + S_j D_j W_j. For eta along J^T the square of
    that norm is the second spectral moment of a product of random matrices, relative to the first: the d columns of
    P_in give it the 1, P_in and W_k each add d / N, T_j adds o d / N. beta is "sharp".
    """
    lengths = _check(spec, eps, input_norm)
    factor = alignment_factor(spec) if aligned else jnp.ones_like(alpha(spec))
    beta = operator_norm_coefficient(2, 2, spec.input_dim, 1, kind="sharp")
    return AdversarialRate(
        _decay_rate(spec, *lengths, factor), _horizon(spec, *lengths, beta / factor, two_sided=False)
    )


def kernel_regime(spec: NetworkSpec, theta: float) -> KernelRegime:
    """Whether width and angle are such that adversarial training follows `training_curve`.

        lambda = pi sqrt(alpha d / r) sum_k n_k^2 / ((sum_k n_k)^2 theta sqrt(N) |u - v|) < 1    gates hardly move
        n / d > 10,    n = N theta / pi                                                          enough gates flip
        1.12 sqrt(delta) < .3,    delta = r L theta (u - v)^2 / (pi (u^2 + v^2))                  a nearly linear start

    with r = A / omega and n_k = 1 + r (k - 1): r = 1 and k for "vanilla". lambda is the shift of a flipping gate's
    preactivation over t*, n_k |u - v| sqrt(omega^{L+k-2} N) q t* at layer k, divided by what a perturbation moves it,
    theta sqrt(q s omega^{k-1}), in the mean over the flips that lower L_adv. Where lambda or n / d fails, L_adv falls
    more slowly than the curve; where delta fails, the two starts of `training_curve` differ much.

    Args:
        spec: the law at t = 0: "vanilla" or "signed", K = 1, no bias, u != v, s > 0, with concrete scalar leaves.
        theta: eps / |x|_2 > 0.

    Returns:
        (lambda, n / d, delta, alignment factor of `adversarial_rate`), in float64 on the host.

    Raises:
        ValueError: as for `adversarial_loss_decay_rate`; u = v, where no gate flips; "signed" of s = 0.

    Warns:
        UserWarning: one of the three conditions fails.

    Source: ours, orders of magnitude in the limit of large N and d, not bounds; for "vanilla" lambda is
    2 pi sqrt(alpha d) (2 L + 1) / (3 L (L + 1) theta sqrt(N) |u - v|), whatever s.
    """
    check_kernel_law(spec)
    check_size("theta", theta, positive=True)
    d, N, L = spec.input_dim, spec.width, spec.depth
    u, v, theta = float(spec.positive_slope), float(spec.negative_slope), float(theta)
    if u == v:
        raise ValueError(f"positive_slope, negative_slope: expected two values (no gate flips else), got {u!r} twice")
    square = u**2 + v**2
    with jax.enable_x64(True):
        alignment, r, counts = float(alignment_factor(spec)), float(branch_share(spec)), np.asarray(flip_counts(spec))
    if r == 0:
        raise ValueError(
            f"weight_variance: expected s > 0 (nothing runs through a branch else), got {spec.weight_variance!r}"
        )
    mean_count = np.sum(counts**2) / np.sum(counts) ** 2
    shift = math.pi * math.sqrt(square / 2 * d / N / r) * float(mean_count) / (theta * abs(u - v))
    found = KernelRegime(shift, N * theta / math.pi / d, r * L * theta * (u - v) ** 2 / (math.pi * square), alignment)
    failing = [
        text
        for text, holds in (
            (f"lambda = {found.gate_shift:.3g}, expected < 1", found.gate_shift < 1),
            (f"n / d = {found.gates_per_dimension:.3g}, expected > 10", found.gates_per_dimension > 10),
            (f"1.12 sqrt(delta) = {1.12 * found.delta**0.5:.3g}, expected < .3", 1.12 * found.delta**0.5 < 0.3),
        )
        if not holds
    ]
    if failing:
        warnings.warn(f"theta, spec: outside the kernel regime: {'; '.join(failing)}", stacklevel=2)
    return found


def validity_horizon(
    spec: NetworkSpec,
    eps: ArrayLike,
    input_norm: ArrayLike,
    num_inputs: ArrayLike = 1,
    fraction: ArrayLike = 0.1,
) -> Scalar:
    """The training time up to which `weight_variance` overstates the change of the variance by at most a fraction.

        t = 2 fraction B L_adv / rate_2,     L_adv = eps beta omega^{L/2},
        rate_2 = (rate_adv / rate) (Theta(x + eta, x + eta) - Theta(x + eta, x - eta)) / 2

    The variance falls at the rate of the present loss, and the loss at rate_2 / B, the kernels of the B inputs being
    nearly orthogonal: the variance's change then falls short of the closed form's by t rate_2 / (2 B L_adv), relative.
    rate_2 is that of an attack that finds eta and -eta in turn, each half the time, with the factor rate_adv / rate of
    `adversarial_rate` for their alignment with the weights. For u != v and small eps / |x| it is half of the rate of
    `adversarial_rate`, the time then 4 fraction B t*. beta is the exact mean of |J|_2 for one output, the "sharp"
    coefficient of p = q = 2.

    Args:
        spec: the law at t = 0: "vanilla", K = 1, no bias.
        eps: the radius of the l2 attack, > 0.
        input_norm: |x|_2 > 0, over all d coordinates.
        num_inputs: B >= 1, the number of training inputs in the mean of the loss.
        fraction: the relative error allowed in s(t) - s_0.

    Returns:
        The time, the learning rate times the number of steps of gradient descent on the mean of the loss over the B
        inputs (at a learning rate of .01, t = 2 is reached after 200 steps); shaped like the leaves of `spec`, nearly
        independent of a small eps.

    Raises:
        ValueError: as for `adversarial_loss_decay_rate`; the block is "signed".

    Source: ours, to first order in t, and in d / N inside the roots of the factor of alignment.
    """
    lengths = _check(spec, eps, input_norm, variance=True)
    beta = operator_norm_coefficient(2, 2, spec.input_dim, 1, kind="sharp")
    allowed = 2 * check_size("fraction", fraction) * check_size("num_inputs", num_inputs) * beta
    return _horizon(spec, *lengths, allowed / alignment_factor(spec), two_sided=True)
