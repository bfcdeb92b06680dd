"""How fast adversarial training lowers the loss at its start, and for how long the variance's closed form holds."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec, concrete
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._correlation import correlation_path
from mftadv.theory._laws import Scalar, alpha, check_size, compiled, leaves, propagation_factor, scaled_power


def _check(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike) -> tuple[Scalar, Scalar]:
    """The two lengths as arrays, for a law that has the closed form."""
    if spec.block != "vanilla":
        raise ValueError(f"block: expected vanilla, got {spec.block!r} (measure it: no closed form is known there)")
    if spec.output_dim != 1:
        raise ValueError(
            f"output_dim: expected 1, got {spec.output_dim} (take the horizon of one output: it hardly depends on K)"
        )
    bias_variance = concrete(spec.bias_variance)
    if bias_variance is not None and np.any(bias_variance != 0):
        raise ValueError(f"bias_variance: expected 0, got {spec.bias_variance!r}")
    return check_size("eps", eps, positive=True), check_size("input_norm", input_norm, positive=True)


def _kernel_difference(spec: NetworkSpec, eps: Scalar, input_norm: Scalar) -> tuple[Scalar, Scalar]:
    """|x'| and D, where D |x'| eps / d is the sum over layers of q + q' - 2 sqrt(q q') c_{l-1} G_l.

    With G_l = prod_{k=l}^{L} g(c_{k-1}) / alpha, as a sum of positive terms, none of them a difference of nearly equal
    numbers:

        (sqrt(q') - sqrt(q))^2 + 2 sqrt(q q') [ (1 - c_{l-1}) + c_{l-1} (1 - G_l) ],
        1 - g(cos theta) / alpha = (theta / pi) (u - v)^2 / (u^2 + v^2)

    D tends to a constant with eps: it is taken at an eps whose square relative to |x|^2 can be represented.
    """
    _, _, u, v = leaves(spec)
    eps = jnp.maximum(eps, jnp.finfo(eps.dtype).tiny ** 0.5 * input_norm)
    perturbed_norm = jnp.hypot(input_norm, eps)
    near, across = input_norm / perturbed_norm, eps / perturbed_norm
    angle = correlation_path(spec, jnp.arctan2(across, near)).angle
    flipped = angle / jnp.pi * jnp.broadcast_to((u - v) ** 2 / (u**2 + v**2), angle.shape)
    above = jnp.cumsum(jnp.log1p(-flipped)[::-1], axis=0)[::-1]
    half, each = jnp.sin(angle / 2), jnp.broadcast_to(across, angle.shape)
    turned = jnp.sum(2 * half * (half / each) - jnp.cos(angle) * (jnp.expm1(above) / each), axis=0)
    return perturbed_norm, spec.depth * across * (across / (1 + near)) ** 2 + 2 * near * turned


@compiled()
def _decay_rate(spec: NetworkSpec, eps: Scalar, input_norm: Scalar) -> Scalar:
    perturbed_norm, difference = _kernel_difference(spec, eps, input_norm)
    root = jnp.sqrt(float(spec.input_dim))
    scale = float(spec.width) * alpha(spec) * difference * (perturbed_norm / root) * (eps / root)
    return scaled_power(scale, propagation_factor(spec), spec.depth - 1)


@compiled()
def _horizon(spec: NetworkSpec, eps: Scalar, input_norm: Scalar, allowed: Scalar) -> Scalar:
    perturbed_norm, difference = _kernel_difference(spec, eps, input_norm)
    scale = allowed * float(spec.input_dim) / (float(spec.width) * alpha(spec) * difference) / perturbed_norm
    return scaled_power(scale, propagation_factor(spec), 1 - spec.depth / 2)


def adversarial_loss_decay_rate(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike) -> Scalar:
    """The rate -dL_adv/dt at which gradient flow on the weights lowers the loss of one perturbation at t = 0.

    For x' = x + eta held fixed, |eta|_2 = eps, eta orthogonal to x, and K = 1,

        -dL_adv/dt = Theta(x, x) + Theta(x', x') - 2 Theta(x, x'),
        Theta(x, x') = (N / s) sum_{l=1}^{L} omega^{l-1} sqrt(q q') c_{l-1} prod_{k=l}^{L} s g(c_{k-1}),

    with q = |x|^2 / d, q' = |x'|^2 / d, c_l the correlation of the hidden layers at x and x' and g that of their gates
    (`correlation_path`). The kernel has a cusp at x' = x, gates that flip inside the ball: for small eps / |x| and
    u != v the rate is

        omega^L ((u - v)^2 / (u^2 + v^2)) N sqrt(q) eps L (L + 1) / (pi s sqrt(d)),

    linear in eps where frozen gates would make it quadratic.

    Args:
        spec: the law at t = 0: "vanilla", K = 1, no bias.
        eps: |eta|_2 > 0.
        input_norm: |x|_2 > 0, over all d coordinates.

    Returns:
        The rate, shaped like the leaves of `spec`; inf where it overflows.

    Raises:
        ValueError: an argument is outside its range; `spec` has a shortcut, K > 1, or a bias (where its variance is
            concrete; a traced one must be 0).

    Source: ours, in the limit of infinite width; the worst perturbation of a random network is orthogonal to x in the
    mean. For the worst perturbation of that very network, which is aligned with its weights, the rate is higher, by an
    excess that falls with N.
    """
    return _decay_rate(spec, *_check(spec, eps, input_norm))


def validity_horizon(
    spec: NetworkSpec,
    eps: ArrayLike,
    input_norm: ArrayLike,
    num_inputs: ArrayLike = 1,
    fraction: ArrayLike = 0.1,
) -> Scalar:
    """The training time up to which `weight_variance` overstates the change of the variance by at most a fraction.

        t = 2 fraction B L_adv / rate,      L_adv = eps beta omega^{L/2},      rate = adversarial_loss_decay_rate

    The variance falls at the rate of the present loss, and the loss at `rate` / B, the kernels of the B inputs being
    nearly orthogonal: the variance's change then falls short of the closed form's by t rate / (2 B L_adv), relative.
    beta is the exact mean of |J|_2 for one output, the "sharp" coefficient of p = q = 2.

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
        ValueError: as for `adversarial_loss_decay_rate`.

    Source: ours, to first order in t, in the limit of infinite width. Finite width shortens it, see
    `adversarial_loss_decay_rate`.
    """
    lengths = _check(spec, eps, input_norm)
    beta = operator_norm_coefficient(2, 2, spec.input_dim, 1, kind="sharp")
    allowed = 2 * check_size("fraction", fraction) * check_size("num_inputs", num_inputs) * beta
    return _horizon(spec, *lengths, allowed)
