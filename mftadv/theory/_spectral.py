"""The largest singular value of the Jacobian at finite width."""

import jax
import numpy as np

from mftadv.spec import NetworkSpec
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._laws import branch_share, gram_spread, log_propagation_factor, slope_moment


def spectral_norm_mean(spec: NetworkSpec) -> float:
    """The mean largest singular value of the Jacobian over networks, to first order in 1/N.

        E |J|_{2->2} = omega^{L/2} beta_{2,2}(n', K) (1 - (m - 1) r^2 L / (8 N)),
        1/n' = 1/d + (1 + L (2 r (1 - r) + m r^2)) / N,      m = 2 (u^4 + v^4) / (u^2 + v^2)^2,

    with beta_{2,2}(n, K) the mean largest singular value of a Gaussian K x n matrix of variance 1/n ("sharp"), linear
    between integers n, and r = A / omega the share of the branch (1 for "vanilla"; for ReLU m = 2, 1/n' = 1/d +
    (2 L + 1)/N).

    Args:
        spec: the law of the network, "vanilla" or "signed", with concrete scalar leaves. Bias is of no effect.

    Returns:
        The mean, in float64 on the host; inf where it overflows.

    Raises:
        ValueError: `spec.block` is "residual"; N is so small for this depth that n' < 1, where the expansion has no
            sense.

    Source: ours, to first order in 1/N. Seen from the K outputs, a layer multiplies the Gram matrix of J by a random
    one, whose entries off the diagonal have variance o / N, o = 2 r (1 - r) + m r^2, and on it 2 o / N + (m - 1) r^2 /
    N. The first two are those of a Wishart matrix of N / o degrees of freedom; the rest is common to the diagonal, the
    number of open gates, and lowers the mean of a root by an eighth of its variance. P_in counts d degrees of freedom,
    P_out N.
    """
    if spec.block == "residual":
        raise ValueError("block: expected vanilla or signed (no finite-width law is known elsewhere), got 'residual'")
    N, L, d, K = float(spec.width), spec.depth, spec.input_dim, spec.output_dim
    with jax.enable_x64(True):
        laws = slope_moment(spec, 2), branch_share(spec), gram_spread(spec), log_propagation_factor(spec)
        m, r, spread, log_omega = map(float, laws)
    alike = 1 / (1 / d + (1 + L * spread) / N)
    if alike < 1:
        raise ValueError(f"width: expected N well above (2 L + 1), where the expansion in 1/N holds, got {spec.width}")
    below = int(alike)
    low, high = (operator_norm_coefficient(2, 2, n, K, "sharp") for n in (below, below + 1))
    mean = (low + (alike - below) * (high - low)) * (1 - (m - 1) * r**2 * L / (8 * N))
    return float(mean * np.exp(L / 2 * log_omega))
