"""How much a network can express: the Fisher-Rao norm."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from mftadv.spec import NetworkSpec
from mftadv.theory._laws import Scalar, bias_series, branch_share, compiled, propagation_factor, scaled_power


@compiled("biases")
def fisher_rao_norm(
    spec: NetworkSpec,
    input_norm_squared: ArrayLike,
    cotangent_norm_squared: ArrayLike = 1.0,
    biases: bool = True,
) -> Scalar:
    """The Fisher-Rao norm of the trained parameters, |theta|_FR^2 = E <theta, grad_theta loss>^2, over networks.

    With g = d loss / d f held fixed and r = A / omega (1 for "vanilla"), the share of a block that runs through its
    branch,

        |g|^2 [ M(L, 0) omega^L |x|^2 / d + alpha b2 sum_{j=0}^{L-1} M(j, e) omega^j ],
        M(j, e) = (j r + e)^2 + j r (1 - r),

    the mean square of the number of weights and biases, counted along a path, that it depends on: each of the j
    blocks above its start contributes its weight with probability r, and a path from a bias that bias (e = 1 with
    biases in theta, 0 for W alone). Summed term by term: there is nothing special about omega = 1.

    It shrinks with omega^L as adversarial training shrinks the weights: capacity falls, at a rate of 1/N.

    Args:
        spec: the law of the network, "vanilla" or "signed".
        input_norm_squared: |x|^2, over all d coordinates.
        cotangent_norm_squared: |g|^2, over the K outputs.
        biases: whether theta holds the biases besides the weights.

    Returns:
        The squared norm, shaped like the leaves of `spec`; inf where it overflows.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: the paper, on network capacity, for the norm as its measure and the claim that it falls; the closed form is
    ours, exact at every width and input x != 0.
    """
    if spec.block == "residual":
        raise ValueError(
            "block: expected vanilla or signed (skip and branch are correlated elsewhere; block='signed' has the same "
            "omega), got 'residual'"
        )
    share, cotangent = branch_share(spec), jnp.asarray(cotangent_norm_squared, dtype=float)

    def paths(blocks, start):
        return (blocks * share + start) ** 2 + blocks * (share * (1 - share))

    signal = jnp.asarray(input_norm_squared, dtype=float) / spec.input_dim * paths(spec.depth, 0)
    noise = bias_series(spec, jax.vmap(paths, (0, None))(jnp.arange(spec.depth, dtype=float), int(biases)))
    total = scaled_power(signal, propagation_factor(spec), spec.depth) + noise
    return scaled_power(cotangent, total, 1)
