"""How fast adversarial training lowers the loss at its start, and for how long the variance's closed form holds."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec, concrete
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._correlation import correlation_path
from mftadv.theory._laws import Scalar, alpha, check_size, leaves, propagation_factor, scaled_power


def _gradient_difference(spec: NetworkSpec, eps: ArrayLike, input_norm: ArrayLike) -> Scalar:
    """The sum over layers of q + q' - 2 sqrt(q q') c_{l-1} G_l, G_l = prod_{k=l}^{L} g(c_{k-1}) / alpha.

    As a sum of positive terms, none of them a difference of nearly equal numbers:

        (sqrt(q') - sqrt(q))^2 + 2 sqrt(q q') [ (1 - c_{l-1}) + c_{l-1} (1 - G_l) ],
        1 - g(cos theta) / alpha = (theta / pi) (u - v)^2 / (u^2 + v^2)
    """
    if spec.block != "vanilla":
        raise ValueError(f"block: expected vanilla, got {spec.block!r}")
    if spec.output_dim != 1:
        raise ValueError(f"output_dim: expected 1, got {spec.output_dim}")
    bias_variance = concrete(spec.bias_variance)
    if bias_variance is not None and np.any(bias_variance != 0):
        raise ValueError(f"bias_variance: expected 0, got {spec.bias_variance!r}")
    eps, input_norm = check_size("eps", eps, positive=True), check_size("input_norm", input_norm, positive=True)
    _, _, u, v = leaves(spec)
    perturbed_norm = jnp.hypot(input_norm, eps)
    angle = correlation_path(spec, jnp.arctan2(eps, input_norm)).angle
    flipped = angle / jnp.pi * jnp.broadcast_to((u - v) ** 2 / (u**2 + v**2), angle.shape)
    above = jnp.cumsum(jnp.log1p(-flipped)[::-1], axis=0)[::-1]
    turned = jnp.sum(2 * jnp.sin(angle / 2) ** 2 - jnp.cos(angle) * jnp.expm1(above), axis=0)
    stretched = (eps * (eps / (perturbed_norm + input_norm))) ** 2
    return (spec.depth * stretched + 2 * input_norm * perturbed_norm * turned) / spec.input_dim


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
    mean. For the worst perturbation of that very network, which is aligned with its weights, the rate is higher, by
    an excess that falls with N.
    """
    scale = spec.width * alpha(spec) * _gradient_difference(spec, eps, input_norm)
    return scaled_power(scale, propagation_factor(spec), spec.depth - 1)


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
        The time, shaped like the leaves of `spec`; nearly independent of a small eps.

    Raises:
        ValueError: as for `adversarial_loss_decay_rate`.

    Source: ours; first order in t, infinite width. Finite width shortens it, see `adversarial_loss_decay_rate`.
    """
    beta = operator_norm_coefficient(2, 2, spec.input_dim, 1, kind="sharp")
    allowed = 2 * check_size("fraction", fraction) * check_size("num_inputs", num_inputs)
    loss = jnp.asarray(eps, dtype=float) * beta
    rate = spec.width * alpha(spec) * _gradient_difference(spec, eps, input_norm)
    return scaled_power(allowed * loss / rate, propagation_factor(spec), 1 - spec.depth / 2)
