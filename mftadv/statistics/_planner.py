"""How many networks a claim needs, before any is drawn."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from mftadv import theory
from mftadv.spec import NetworkSpec

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


def smallest_visible_deviation(
    relative_standard_deviation: float, num_networks: int, false_alarm: float = 1e-3, power: float = 0.9
) -> float:
    """The smallest relative deviation that a two-sided Student t test over networks sees.

    (t_{1 - false_alarm/2} + t_{power}) spread / sqrt(n), quantiles at n - 1 degrees of freedom.

    Args:
        relative_standard_deviation: of one network's value, relative to what the deviation is measured against.
        num_networks: n >= 2.
        false_alarm: probability of rejecting a true claim; in a table of m claims, the family error over m.
        power: probability of rejecting a claim that is off by the returned deviation.

    Returns:
        The deviation, relative.

    Raises:
        ValueError: an argument is outside its range.

    Source: the usual approximation of the power of a t test.
    """
    if not relative_standard_deviation >= 0:
        raise ValueError(f"relative_standard_deviation: expected a number >= 0, got {relative_standard_deviation!r}")
    if num_networks < 2:
        raise ValueError(f"num_networks: expected at least 2, got {num_networks!r}")
    for name, value in (("false_alarm", false_alarm), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a probability in (0, 1), got {value!r}")
    quantiles = stats.t.isf([false_alarm / 2, 1 - power], num_networks - 1)
    return float(quantiles.sum()) * relative_standard_deviation / math.sqrt(num_networks)


def networks_needed(
    relative_standard_deviation: float, deviation: float = 0.05, false_alarm: float = 1e-3, power: float = 0.9
) -> float:
    """The smallest number of networks that sees a relative deviation; the inverse of `smallest_visible_deviation`.

    Args:
        relative_standard_deviation: of one network's value.
        deviation: the relative deviation to see, > 0.
        false_alarm: see `smallest_visible_deviation`.
        power: see `smallest_visible_deviation`.

    Returns:
        An integer >= 2, or inf where no number below 2^62 will do.

    Raises:
        ValueError: an argument is outside its range.

    Source: the usual approximation of the power of a t test.
    """
    if not deviation > 0:
        raise ValueError(f"deviation: expected a number > 0, got {deviation!r}")

    def sees(n):
        return smallest_visible_deviation(relative_standard_deviation, n, false_alarm, power) <= deviation

    if not sees(2**62):
        return math.inf
    low, high = 1, 2
    while not sees(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sees(middle) else (middle, high)
    return high


class _Layer(NamedTuple):
    """What a layer does to the squared length of a tangent."""

    slope: float  # the mean square slope alpha
    excess: float  # c = 6 (u^4 + v^4) / (u^2 + v^2)^2 - 1, N times the relative variance of the branch's factor
    share: float  # of the branch in the mean square
    spread: float  # the relative variance of the whole layer's factor


def _layer(spec: NetworkSpec) -> _Layer:
    u, v, s = (float(leaf) for leaf in (spec.positive_slope, spec.negative_slope, spec.weight_variance))
    slope, excess = (u**2 + v**2) / 2, 6 * (u**4 + v**4) / (u**2 + v**2) ** 2 - 1
    share = slope * s / (1 + slope * s) if spec.has_shortcut else 1.0
    return _Layer(slope, excess, share, (4 * share * (1 - share) + excess * share**2) / spec.width)


def log_scale_skewness(spec: NetworkSpec) -> float:
    """The skewness of ln R^2, R the scale that the entries of a network's Jacobian share, for `scale_mixture_cdf`.

    R^2 is a product of independent means over N, of relative variance c_l / N and third central moment t_l / N^2, so
    that to leading order the skewness is

        sum_l (t_l - 3 c_l^2) / (sum_l c_l)^(3/2) / sqrt(N),

    with c = 2, t = 8 for P_in. A layer without shortcut has the c of `finite_width_factor` and
    t = 15 (u^6 + v^6) / (2 alpha^3) - 3 c - 1; with one, of share r, c and t become 4 r (1 - r) + c r^2 and
    t r^3 + 12 c r^2 (1 - r).

    Args:
        spec: a concrete spec, vanilla or signed.

    Returns:
        The skewness, at most 0; cut off at -1 and at -1.5 / sqrt(ln(kurtosis/3)), which takes a width below 10.

    Source: ours.
    """
    slope, excess, share, spread = _layer(spec)
    sixth = (float(spec.positive_slope) ** 6 + float(spec.negative_slope) ** 6) / (2 * slope**3)
    third = share**3 * (15 * sixth - 3 * excess - 1) + 12 * share**2 * (1 - share) * excess
    c, layers = spec.width * spread, spec.depth
    skewness = (8 - 3 * 2**2 + layers * (third - 3 * c**2)) / (2 + layers * c) ** 1.5 / math.sqrt(spec.width)
    w = math.log1p(2 / spec.width) + layers * math.log1p(spread)
    return min(max(skewness, -1.0, -1.5 / math.sqrt(max(w, 1))), 0.0)


def _scale_moments(spec: NetworkSpec) -> tuple[np.ndarray, float, float]:
    """(E R^4, E R^6, E R^8) of the scale R of a row of J, C = E R_i^2 R_k^2 of two rows, f = E r^4 of the shift's.

    Tangents M_j, M_k of two inputs: S = E[|M_j|^2 |M_k|^2 + 2 (M_j.M_k)^2] and D = E[|M_j|^2 |M_k|^2 - (M_j.M_k)^2]
    each grow by a factor per layer, since flipping a row of (W, b) makes its gate a fair coin; C = (S + 2 D)/3. The
    second and fourth moments are exact; the higher ones are those of a Gamma variable per layer, of the same variance.
    """
    width, layers, e = spec.width, spec.depth, float(spec.has_shortcut)
    s, b2 = float(spec.weight_variance), float(spec.bias_variance)
    slope, c, share, spread = _layer(spec)
    steps = np.arange(1, 4)
    with np.errstate(over="ignore"):
        own = np.exp(np.cumsum(np.log1p(2 * steps / width) + layers * np.log1p(steps * spread)))
    cross = (own[0] + 2 * (1 - 1 / width) * (1 - share * (2 - share) / width) ** layers) / 3
    # y = b2 / E a^2 and f = E a^4 / (3 (E a^2)^2) never overflow where the moments do; the first layer is all bias
    y, f = 1 / slope, 1 + c / width
    for _ in range(layers - 1 if b2 else 0):
        square = slope**2 * (1 + c / width) * (s * s * f + 2 * s * y + y * y)
        total = e + slope * (s + y)
        f = (e * (f + 2 * (1 + 2 / width) * slope * (s * f + y)) + square) / total**2
        y /= total
    return own, cross, f


def relative_spread(
    spec: NetworkSpec, quantity: str, columns: int | None = None, rows: int | None = None, p: float = 2, q: float = 2
) -> float:
    """The standard deviation of one network's value of a quantity, relative to its scale.

    Its square, with r rows and m columns, F = kurtosis/3 and C = E R_i^2 R_k^2 for the scales of two rows:
        jacobian_mean               1 / (m r)                                           scale sqrt(E J^2); exact
        jacobian_variance           F (1 + 2/m)/r + (1 - 1/r) (F/m + (1 - 1/m) C) - 1   scale E J^2; exact
        shift_mean                  1 / r                                               scale sqrt(E a^2); exact
        shift_variance              f (1 + 2/r) - 1,  f = E a^4 / (3 (E a^2)^2)         scale E a^2; exact
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
        columns: m, how many columns of J are kept; None for all. columns=1 is a fixed direction.
        rows: r, how many rows of J or entries of a; None for all.
        p: exponent of the norm of inputs, for operator_norm.
        q: exponent of the norm of outputs, for operator_norm.

    Returns:
        The relative standard deviation, for `networks_needed`; inf where it overflows, 0 for the shift without bias.

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
    own, cross, shift = _scale_moments(spec)

    def of_ratio(fourth: float) -> float:
        """Var(X / E X - 2 Y / E Y) for X of fourth order and Y = mean J^2; other rows share the scale only."""

        def row(moments, x, xy, y):
            second, third, eighth = moments
            return (eighth / second**2 * x - 1) - 4 * (third / second * xy - 1) + 4 * (second * y - 1)

        return (row(own, fourth, 1 + 4 / m, 1 + 2 / m) + (r - 1) * row(cross ** np.array([1, 3, 6]), 1, 1, 1)) / r

    with np.errstate(over="ignore", invalid="ignore"):
        match quantity:
            case "jacobian_mean":
                variance = 1 / (m * r)
            case "jacobian_variance":
                variance = own[0] * (1 + 2 / m) / r + (1 - 1 / r) * (own[0] / m + (1 - 1 / m) * cross) - 1
            case "jacobian_kurtosis":
                variance = of_ratio(1 + 32 / (3 * m))
            case "pair_correlation":
                variance = (2 * own[0] + (r - 1) * (own[0] - cross)) / (r * m * (m - 1))
            case "pair_square":
                variance = of_ratio(1 + 8 / (m - 1))
            case "shift_mean":
                variance = 1 / r
            case "shift_variance":
                variance = shift * (1 + 2 / r) - 1
            case "jacobian_shift_correlation":
                variance = math.sqrt(own[0] * shift) / (r * (columns or 1))
            case "jacobian_shift_square_correlation":
                # no such law is known for "residual"
                like = dataclasses.replace(spec, block="signed") if spec.block == "residual" else spec
                correlation = float(theory.jacobian_shift_square_correlation(like))
                variance = _square_correlation_variance(own[0], shift, correlation, m) / r
            case _:
                # the last two factors are the Lipschitz constant of the norm, over its mean
                beta = theory.operator_norm_coefficient(p, q, m, r)
                variance = own[0] ** 0.25 - 1 + (m ** max(-0.5, -1 / p) * r ** max(0, 1 / q - 0.5) / beta) ** 2
    # inf - inf and inf / inf: the spread is beyond float64
    return math.inf if math.isnan(variance) else math.sqrt(max(variance, 0.0))


def _square_correlation_variance(factor: float, shift: float, correlation: float, columns: int) -> float:
    """The variance of one network's influence on the correlation of J_j^2 = R^2 g_j^2 and a^2 = A^2 h^2, over columns.

    With P and Q the means of J_j^2 and J_j^4 and Y = a^2 (means 1, variances x and y, correlation c), it is that of
    (P Y - P - Y) / sqrt(x y) - c ((Q - 2 P) / x + (Y^2 - 2 Y) / y) / 2; R and A are jointly lognormal.
    """
    x, y, m = 3 * factor - 1, 3 * shift - 1, columns
    root = math.sqrt(x * y)
    joint = math.log1p(correlation * root)
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
        exponent = math.log(factor) * i * (i - 1) / 2 + math.log(shift) * k * (k - 1) / 2 + joint * i * k
        return float(np.exp(exponent)) * of_g[a, b] * of_h[k]

    return sum(
        c * d * (mean(*np.add(one, other)) - mean(*one) * mean(*other))
        for one, c in influence.items()
        for other, d in influence.items()
    )
