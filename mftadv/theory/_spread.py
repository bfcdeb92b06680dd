"""How much a statistic of one network scatters over networks, which sizes a sample: host float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mftadv.spec import NetworkSpec, dual_exponent
from mftadv.theory._coefficients import operator_norm_coefficient
from mftadv.theory._gaussian_norms import euclidean_radius
from mftadv.theory._joint import jacobian_shift_square_correlation, shift_kurtosis
from mftadv.theory._laws import Scalar, branch_share, log_finite_width_factor, slope_moment, stand_in, width_excess

QUANTITIES = (
    "jacobian_mean",
    "jacobian_variance",
    "jacobian_kurtosis",
    "pair_correlation",
    "pair_square",
    "shift_mean",
    "shift_variance",
    "jacobian_shift_correlation",
    "jacobian_shift_square_correlation",
    "operator_norm",
)


def log_scale_skewness(spec: NetworkSpec) -> float:
    """The skewness of ln R^2, R the scale that the entries of a network's Jacobian share.

    R^2 is a product of independent means over N, of relative variance c_l / N and third central moment t_l / N^2, so
    that to leading order the skewness is

        sum_l (t_l - 3 c_l^2) / (sum_l c_l)^(3/2) / sqrt(N),

    with c = 2, t = 8 for P_in. A layer without shortcut has the c of `finite_width_factor` and
    t = 15 (u^6 + v^6) / (2 alpha^3) - 3 c - 1; with one, of share r, c and t become 4 r (1 - r) + c r^2 and
    t r^3 + 12 c r^2 (1 - r).

    Args:
        spec: a concrete spec, "vanilla" or "signed".

    Returns:
        The skewness, at most 0; cut off at -1 and at -1.5 / sqrt(ln(kurtosis/3)), which takes a width below 10.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: ours, to leading order in 1/N at fixed L/N.
    """
    with jax.enable_x64(True):
        c, w, share = (float(f(spec)) for f in (width_excess, log_finite_width_factor, branch_share))
        excess, sixth = 3 * float(slope_moment(spec, 2)) - 1, float(slope_moment(spec, 3))
    third = share**3 * (15 * sixth - 3 * excess - 1) + 12 * share**2 * (1 - share) * excess
    total = 8 - 3 * 2**2 + spec.depth * (third - 3 * c**2)
    skewness = total / (2 + spec.depth * c) ** 1.5 / math.sqrt(spec.width)
    return min(max(skewness, -1.0, -1.5 / math.sqrt(max(w, 1))), 0.0)


def entry_law_error(spec: NetworkSpec) -> Scalar:
    """How far the law of one entry of J at finite width may be off, as a distance of distribution functions.

    .04 w / N + D / 2, w = ln `finite_width_factor`, for a normal variable whose scale has the kurtosis of
    `finite_width_factor` and the skewness of `log_scale_skewness` (`statistics.scale_mixture_cdf`). D = 1 -
    (1 - 2^-N)^L is the probability that all gates of a layer are closed and J is 0, where there is no shortcut and one
    slope is 0; else D = 0.

    Args:
        spec: the law of the network, "vanilla" or "signed".

    Returns:
        The distance, shaped like the leaves of `spec`.

    Raises:
        ValueError: `spec.block` is "residual".

    Source: ours, measured: at most .035 w / N over the exact laws of N = 10 to 300, L = 1 to 30; D is exact.
    """
    closed = 0.0 if spec.has_shortcut else -math.expm1(spec.depth * math.log1p(-(2.0**-spec.width)))
    one_sided = jnp.asarray(spec.positive_slope) * jnp.asarray(spec.negative_slope) == 0
    return 0.04 * log_finite_width_factor(spec) / float(spec.width) + jnp.where(one_sided, closed / 2, 0)


def _scale_moments(spec: NetworkSpec) -> tuple[np.ndarray, float]:
    """(E R^4, E R^6, E R^8) of the scale R of a row of J, and C = E R_i^2 R_k^2 of two rows.

    Tangents M_j, M_k of two inputs: S = E[|M_j|^2 |M_k|^2 + 2 (M_j.M_k)^2] and D = E[|M_j|^2 |M_k|^2 - (M_j.M_k)^2]
    each grow by a factor per layer, since flipping a row of (W, b) makes its gate a fair coin; C = (S + 2 D)/3. The
    second and fourth moments are exact; the higher ones are those of a Gamma variable per layer, of the same variance.
    """
    width, depth, order = float(spec.width), spec.depth, np.arange(1, 4)
    spread, share = float(width_excess(spec)) / width, float(branch_share(spec))
    own = np.exp(np.cumsum(np.log1p(2 * order / width) + depth * np.log1p(order * spread)))
    return own, (own[0] + 2 * (1 - 1 / width) * (1 - share * (2 - share) / width) ** depth) / 3


def relative_spread(
    spec: NetworkSpec, quantity: str, columns: int | None = None, rows: int | None = None, p: float = 2, q: float = 2
) -> float:
    """The standard deviation of one network's value of a quantity, relative to its scale.

    Its square, with r rows and m columns, F = kurtosis/3, f = shift_kurtosis/3 and C = E R_i^2 R_k^2 for the scales of
    two rows:
        jacobian_mean               1 / (m r)                                           scale sqrt(E J^2); exact
        jacobian_variance           F (1 + 2/m)/r + (1 - 1/r) (F/m + (1 - 1/m) C) - 1   scale E J^2; exact
        shift_mean                  1 / r                                               scale sqrt(E a^2); exact
        shift_variance              f (1 + 2/r) - 1                                     scale E a^2; exact
        pair_correlation            (2 F + (r - 1) (F - C)) / (r m (m - 1))             scale 1
        jacobian_shift_correlation  sqrt(F f) / (m r), at most; m = 1 where none is given  scale 1
        jacobian_shift_square_correlation  (of J^2 and a^2)                             scale 1
        operator_norm               F^(1/4) - 1 + (R_p(m) R_q*(r))^2 / (m beta^2), at most
    and for jacobian_kurtosis and pair_square the delta method, with scales that are products of Gamma variables, for
    jacobian_shift_square_correlation with lognormal scales and, for several rows, at least.
    beta is `operator_norm_coefficient(p, q, m, r)` and R_t(n) = n^max(0, 1/2 - 1/t).

    Args:
        spec: a concrete spec. "residual" is given the figures of "signed" at the same variances: right within 10%
            where its Jacobian is not dominated by the direction of the input, too small where it is.
        quantity: one of `QUANTITIES`, each the matching estimate over rows and columns of one network's J or a.
        columns: m, how many columns of J are used; None for all. columns=1 is a fixed direction.
        rows: r, how many rows of J or entries of a; None for all.
        p: exponent of the norm of inputs, for operator_norm.
        q: exponent of the norm of outputs, for operator_norm.

    Returns:
        The relative standard deviation, for `statistics.networks_needed`; inf where it overflows, 0 for the shift
        without bias.

    Raises:
        ValueError: unknown quantity, or rows or columns out of range.

    Source: ours, from the fourth moments of vanilla and signed networks, exact at every width.
    """
    r, m = spec.output_dim if rows is None else rows, spec.input_dim if columns is None else columns
    if not 1 <= r <= spec.output_dim or not 1 <= m <= spec.input_dim:
        raise ValueError(f"rows, columns: expected at most {spec.output_dim} and {spec.input_dim}, got {r} and {m}")
    if quantity not in QUANTITIES or (quantity.startswith("pair") and m == 1):
        raise ValueError(f"quantity: expected one of {', '.join(QUANTITIES)} (pairs: 2 columns), got {quantity!r}")
    if "shift" in quantity and float(spec.bias_variance) == 0:
        return 0.0
    spec = stand_in(spec)
    with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):
        own, cross = _scale_moments(spec)
        match quantity:
            case "jacobian_mean":
                variance = 1 / (m * r)
            case "jacobian_variance":
                variance = own[0] * (1 + 2 / m) / r + (1 - 1 / r) * (own[0] / m + (1 - 1 / m) * cross) - 1
            case "jacobian_kurtosis":
                variance = _ratio_variance(own, cross, 1 + 32 / (3 * m), m, r)
            case "pair_correlation":
                variance = (2 * own[0] + (r - 1) * (own[0] - cross)) / (r * m * (m - 1))
            case "pair_square":
                variance = _ratio_variance(own, cross, 1 + 8 / (m - 1), m, r)
            case "shift_mean":
                variance = 1 / r
            case "shift_variance":
                variance = float(shift_kurtosis(spec)) / 3 * (1 + 2 / r) - 1
            case "jacobian_shift_correlation":
                variance = np.sqrt(own[0] * float(shift_kurtosis(spec)) / 3) / (r * (columns or 1))
            case "jacobian_shift_square_correlation":
                variance = _square_correlation_variance(spec, own[0], m) / r
            case _:
                # the Lipschitz constant of the norm, over its mean
                lipschitz = euclidean_radius(m, p) * euclidean_radius(r, dual_exponent(q)) / math.sqrt(m)
                variance = own[0] ** 0.25 - 1 + (lipschitz / operator_norm_coefficient(p, q, m, r)) ** 2
    # inf - inf and inf / inf: the spread is beyond float64
    return math.inf if math.isnan(variance) else math.sqrt(max(variance, 0.0))


def _ratio_variance(own: np.ndarray, cross: float, fourth: float, columns: int, rows: int) -> float:
    """Var(X / E X - 2 Y / E Y) of means over rows, X of fourth order in J and Y of J^2; rows share the scale only."""

    def row(moments, x, xy, y):
        second, third, eighth = moments
        return (eighth / second**2 * x - 1) - 4 * (third / second * xy - 1) + 4 * (second * y - 1)

    others = row(cross ** np.array([1, 3, 6]), 1, 1, 1)
    return (row(own, fourth, 1 + 4 / columns, 1 + 2 / columns) + (rows - 1) * others) / rows


def _square_correlation_variance(spec: NetworkSpec, factor: float, columns: int) -> float:
    """The variance of one network's influence on the correlation of J_j^2 = R^2 g_j^2 and a^2 = A^2 h^2, over columns.

    With P and Q the means of J_j^2 and J_j^4 and Y = a^2 (means 1, variances x and y, correlation c), it is that of
    (P Y - P - Y) / sqrt(x y) - c ((Q - 2 P) / x + (Y^2 - 2 Y) / y) / 2; R and A are jointly lognormal.
    """
    shift, correlation = float(shift_kurtosis(spec)) / 3, float(jacobian_shift_square_correlation(spec))
    x, y, m = 3 * factor - 1, 3 * shift - 1, columns
    root = np.sqrt(x * y)
    log_factor, log_shift, joint = np.log(factor), np.log(shift), np.log1p(correlation * root)
    # coefficients of P^a Q^b Y^k
    influence = {
        (1, 0, 1): 1 / root,
        (1, 0, 0): correlation / x - 1 / root,
        (0, 0, 1): correlation / y - 1 / root,
        (0, 1, 0): -correlation / (2 * x),
        (0, 0, 2): -correlation / (2 * y),
    }
    of_g = {(0, 0): 1, (1, 0): 1, (0, 1): 3, (2, 0): 1 + 2 / m, (1, 1): 3 + 12 / m, (0, 2): 9 + 96 / m}
    of_h = (1, 1, 3, 15, 105)

    def mean(a, b, k):
        i = a + 2 * b
        exponent = log_factor * i * (i - 1) / 2 + log_shift * k * (k - 1) / 2 + joint * i * k
        return np.exp(exponent) * of_g[a, b] * of_h[k]

    return sum(
        c * d * (mean(*np.add(one, other)) - mean(*one) * mean(*other))
        for one, c in influence.items()
        for other, d in influence.items()
    )
