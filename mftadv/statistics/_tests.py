"""Estimates whose errors are by network, and the law an entry of the Jacobian follows at finite width."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from jaxtyping import ArrayLike, Float, Shaped

Draws = Shaped[ArrayLike, "n ..."]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number measured over independent networks, and what is needed to test it.

    Args:
        value: the estimate.
        standard_error: its standard error, over networks.
        degrees_of_freedom: of the standard error: n - 1, or 2 n / (k - 1) where that is less, k the kurtosis of a
            network's influence on the value.
        skewness: of the estimate, 6 a + 3 c with a the acceleration and c the curvature; it falls as n^(-1/2), and for
            a mean it is the skewness of a draw over sqrt(n). What Student's t needs to be right for skewed draws.
        skewness_error: how far the skewness may be off. A sample without the rare large draws of a skewed law has too
            low a mean, too small an error and too small a skewness, all at once.
        nonfinite: number of networks left out because a draw of theirs was nan or infinite.

    Source: ours.
    """

    value: float
    standard_error: float
    degrees_of_freedom: float
    skewness: float = 0.0
    skewness_error: float = 0.0
    nonfinite: int = 0


# In units of 1/sqrt(degrees of freedom): the least at which true claims of means, and of functions of several means,
# keep a level of 1e-4 at 2 to 2000 networks of kurtosis 3.3 to 12.
_SKEWNESS_ERRORS = {"mean": 1.25, "function of means": 4.0}


def _apply(function: Callable[..., Any], means: np.ndarray) -> np.ndarray:
    """The function of means [features, ...]; what cannot be divided by comes out as nan or infinity."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(function(*means))


def smooth_estimate(function: Callable[..., Any], *features: Draws) -> Estimate:
    """Any smooth function of means over networks, by the jackknife.

    theta = f(means); value = n theta - (n-1) mean_i theta_(i), theta_(i) leaving network i out;
    u_i = (n-1) (mean theta_(.) - theta_(i)); se^2 = sum u_i^2 / (n (n-1)); a = sum u_i^3 / (6 (sum u_i^2)^(3/2));
    c = (theta(+h) + theta(-h) - 2 theta) / (2 h^2 se), means moved by h standard errors along their covariance with u.
    Degrees of freedom by matching the variance of se^2. The skewness 6 a + 3 c is cut off at 1, where expansions in it
    end.

    Args:
        function: elementwise in its arguments, one per feature.
        features: [n, ...] each; entries of a network are averaged first, so the error is never by entry.

    Returns:
        Estimate; its standard error is nan for fewer than two networks, and so is the value where a network cannot be
        left out, such as one of the two that a variance takes.

    Raises:
        ValueError: the features do not share one leading axis.

    Source: Efron 1982, "The jackknife, the bootstrap and other resampling plans" (value, se); DiCiccio and Efron 1992,
    "More accurate confidence intervals in exponential families" (a, c); Satterthwaite 1946 (degrees of freedom).
    """
    rows = [np.asarray(feature, dtype=np.float64) for feature in features]
    if any(row.ndim == 0 for row in rows) or len({len(row) for row in rows}) != 1:
        raise ValueError(f"features: expected arrays [n, ...] of one n, got shapes {[row.shape for row in rows]}")
    # nan and infinity are contagious under a sum, so the row is left out as a whole
    with np.errstate(invalid="ignore", over="ignore"):
        table = np.stack([row.reshape(len(row), math.prod(row.shape[1:])).mean(axis=1) for row in rows])
    finite = np.isfinite(table).all(axis=0)
    table = table[:, finite]
    n, nonfinite = table.shape[1], int(np.sum(~finite))

    of = functools.partial(_apply, function)
    if n < 2:
        value = float(of(table[:, 0])) if n else math.nan
        return Estimate(value if math.isfinite(value) else math.nan, math.nan, 0, nonfinite=nonfinite)
    means = table.mean(axis=1)
    theta = float(of(means))
    deviations = table - means[:, None]
    left_out = of(means[:, None] - deviations / (n - 1))
    if not np.isfinite([theta, *left_out]).all():  # without one of them there is no estimate
        return Estimate(math.nan if math.isfinite(theta) else theta, math.nan, n - 1, nonfinite=nonfinite)
    bias = (n - 1) * float(np.mean(left_out - theta))
    influence = (n - 1) * (left_out.mean() - left_out)
    # no power of an influence overflows or vanishes beside the largest
    size = float(np.max(np.abs(influence)))
    influence = influence / (size or 1.0)
    total = float(np.sum(influence**2))
    error = size * math.sqrt(total / (n * (n - 1)))
    if error == 0 or not math.isfinite(error):
        return Estimate(theta - bias, error, n - 1, nonfinite=nonfinite)
    freedom = min(n - 1, 2 * n / max(n * float(np.sum(influence**4)) / total**2 - 1, 2))
    acceleration = np.sum(influence**3) / total**1.5 / 6
    step = 0.1 * deviations @ influence / (n * math.sqrt(total))
    bend = float(of(means + step)) + float(of(means - step)) - 2 * theta
    curvature = bend / (2 * 0.1**2 * error)
    skewness = float(np.clip(6 * acceleration + 3 * curvature, -1, 1))
    uncertain = _SKEWNESS_ERRORS["mean" if len(rows) == 1 else "function of means"] / math.sqrt(freedom)
    return Estimate(theta - bias, error, freedom, skewness, uncertain, nonfinite)


def mean_estimate(values: Draws) -> Estimate:
    """The mean of a quantity, its error by network.

    Args:
        values: [n, ...], one or several values per network.

    Returns:
        Estimate of E x.

    Source: ours.
    """
    return smooth_estimate(lambda mean: mean, values)


def ratio_estimate(numerator: Draws, denominator: Draws) -> Estimate:
    """A ratio of means E x / E y, its error by network.

    Args:
        numerator: [n, ...].
        denominator: [n, ...], of non-zero mean.

    Returns:
        Estimate of E x / E y (never of E[x / y]).

    Source: ours.
    """
    return smooth_estimate(lambda x, y: x / y, numerator, denominator)


def _standardised(values: Draws) -> np.ndarray:
    """The values over their root mean square, so that powers neither overflow nor vanish."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.abs(values[np.isfinite(values)])
    size = float(np.max(finite, initial=0.0)) or 1.0
    return values / (size * (math.sqrt(np.mean((finite / size) ** 2)) if finite.any() else 1.0))


def kurtosis_estimate(entries: Draws, variance: float | None = None) -> Estimate:
    """The kurtosis E J^4 / (E J^2)^2 of entries of zero mean, its error by network.

    With the variance known this is a mean; estimated it is less noisy, but its error shows only with many networks: a
    claim of it should say what error theory predicts (`theory.relative_spread`).

    Args:
        entries: [n, ...].
        variance: E J^2 where it is known; else it is estimated from the same entries.

    Returns:
        Estimate, 3 for normal entries; compare it with the finite-width kurtosis.

    Source: ours.
    """
    entries = np.asarray(entries, dtype=np.float64)
    if variance is not None:
        return mean_estimate((entries / math.sqrt(variance)) ** 4)
    squares = _standardised(entries) ** 2
    return smooth_estimate(lambda fourth, second: fourth / second**2, squares**2, squares)


def correlation_estimate(a: Draws, b: Draws) -> Estimate:
    """Pearson's correlation of two quantities over networks and paired entries, its error by network.

    (E ab - E a E b) / sqrt(Var a Var b). Give it squares to see whether scales depend on each other.

    Args:
        a: [n, ...].
        b: [n, ...], paired with `a` entry by entry.

    Returns:
        Estimate in [-1, 1] up to its bias correction, nan where one of them does not vary.

    Raises:
        ValueError: the shapes differ.

    Source: ours.
    """
    a, b = _standardised(a), _standardised(b)
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected the same shape, got {a.shape} and {b.shape}")

    return smooth_estimate(_correlation, a, b, a * a, b * b, a * b)


def _correlation(a, b, aa, bb, ab):
    return (ab - a * b) / np.sqrt(_variance(a, aa) * _variance(b, bb))


def _variance(mean, square):
    # where nothing varies, rounding is all that is left, and there is no correlation
    return np.where(square - mean * mean > 1e-13 * square, square - mean * mean, math.nan)


def _pairs(entries: np.ndarray) -> np.ndarray:
    """The mean product of two distinct entries of the last axis, in O(m): (|sum y|^2 - sum y^2) / (m (m - 1))."""
    m = entries.shape[-1]
    if entries.ndim < 2 or m < 2:
        raise ValueError(f"entries: expected shape [n, ..., m] with m >= 2, got {entries.shape}")
    return (entries.sum(axis=-1) ** 2 - np.sum(entries**2, axis=-1)) / (m * (m - 1))


def pair_correlation_estimate(entries: Draws) -> Estimate:
    """The mean correlation of two distinct entries of a row of zero mean, its error by network.

    E_{j != k} J_j J_k / E J^2, over all m (m - 1) pairs at the cost of O(m). Its spread is about sqrt(2)/m per network,
    against 1/sqrt(m) for neighbouring pairs: the sharpest view of a common correlation; signs that alternate cancel in
    it, which the second moment along a fixed direction sees.

    Args:
        entries: [n, ..., m], the last axis along a row of J.

    Returns:
        Estimate, 0 for uncorrelated entries.

    Raises:
        ValueError: fewer than two entries in a row.

    Source: ours.
    """
    entries = _standardised(entries)
    return ratio_estimate(_pairs(entries), entries**2)


def pair_square_estimate(entries: Draws) -> Estimate:
    """The mean product of the squares of two distinct entries of a row, its error by network.

    E_{j != k} J_j^2 J_k^2 / (E J^2)^2: 1 for independent entries, and exactly kurtosis/3 where the kurtosis is the same
    in every fixed direction, since then E J_i J_j J_k J_l is a multiple of the sum over the three pairings.

    Args:
        entries: [n, ..., m], the last axis along a row of J.

    Returns:
        Estimate of the common scale's second moment.

    Raises:
        ValueError: fewer than two entries in a row.

    Source: ours.
    """
    squares = _standardised(entries) ** 2
    return smooth_estimate(lambda pairs, second: pairs / second**2, _pairs(squares), squares)


@functools.cache
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an expectation over N(0, 1); cached, since finding them costs more than a use."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    return nodes, weights / weights.sum()


def scale_mixture_cdf(x: ArrayLike, variance: float, kurtosis: float, skewness: float = 0.0) -> np.ndarray | np.float64:
    """The distribution function of a normal variable of random scale, with a given variance and kurtosis.

    J = R g with g ~ N(0, variance), ln R^2 = mu + tau (y + skewness y^2 / 6), y ~ N(0, 1), and mu and tau such that
    E R^2 = 1 and E R^4 = kurtosis/3; without skewness R is lognormal, ln R^2 ~ N(-w/2, w), w = ln(kurtosis/3):
    F(x) = E_y Phi(x / (sigma R(y))), by Gauss-Hermite quadrature.
    2 F(x) - 1 is also what `mean_estimate(abs(entries) <= x)` should find, over all entries and by network: a far more
    sensitive view of the law than `law_test`, one threshold at a time.

    Args:
        x: where to evaluate, any shape.
        variance: E J^2 > 0.
        kurtosis: E J^4 / (E J^2)^2 >= 3; 3 gives the normal law.
        skewness: of ln R^2, at most 0, at least -1 and -1.5 / sqrt(w): for an entry of J `theory.log_scale_skewness`.

    Returns:
        F(x), of the shape of `x`, float64.

    Raises:
        ValueError: `variance`, `kurtosis` or `skewness` is outside its range.

    Source: ours; each layer multiplies a tangent vector's length by an independent factor, so ln R^2 is a sum over
    layers, nearly normal, here with its first Cornish-Fisher correction. Against draws of the exact law of vanilla and
    signed networks, N = 10 to 300 and L = 1 to 30, the distribution function is off by at most .035 w / N (by .0034 at
    N=10, L=3), and without the skewness by .26 w / N.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance: expected a finite number > 0, got {variance!r}")
    if not 3 <= kurtosis < math.inf:
        raise ValueError(f"kurtosis: expected a finite number >= 3, got {kurtosis!r}")
    if kurtosis == 3:
        return scipy.special.ndtr(np.asarray(x, dtype=np.float64) / math.sqrt(variance))
    w = math.log(kurtosis / 3)
    if not max(-1.0, -1.5 / math.sqrt(max(w, 1))) <= skewness <= 0:
        raise ValueError(f"skewness: expected a number <= 0, at least -1 and -1.5 / sqrt(w), got {skewness!r}")

    def log_moment(order: int, tau: float) -> float:
        """The logarithm of E exp(order (ln R^2 - mu)), a Gaussian integral."""
        linear, square = order * tau, order * tau * skewness / 6
        return (linear**2 / (1 - 2 * square) - math.log1p(-2 * square)) / 2

    def excess(tau: float) -> float:
        return log_moment(2, tau) - 2 * log_moment(1, tau) - w

    # with u = -tau skewness / 3 the excess is at least tau^2 / ((1 + u) (1 + 2 u)) - w, which is positive at the end
    tau = float(scipy.optimize.brentq(excess, 0, 4 * math.sqrt(w))) if skewness and w else math.sqrt(w)  # pyright: ignore[reportArgumentType]
    nodes, weights = _normal_nodes()
    scales = np.exp((math.log(variance) - log_moment(1, tau) + tau * (nodes + skewness / 6 * nodes**2)) / 2)
    return scipy.special.ndtr(np.asarray(x, dtype=np.float64)[..., None] / scales) @ weights


@dataclasses.dataclass(frozen=True)
class LawTest:
    """The distance of a sample from the law it should follow.

    Args:
        distance: sup |F_n - F| from the scale mixture.
        p_value: of that distance under the mixture, exact for independent draws.
        normal_distance: sup |F_n - F| from the plain normal law, which holds at infinite width only.
        count: number of finite draws.
        nonfinite: number of draws left out.

    Source: Kolmogorov 1933, Smirnov 1948.
    """

    distance: float
    p_value: float
    normal_distance: float
    count: int
    nonfinite: int


def law_test(sample: Float[ArrayLike, " n"], variance: float, kurtosis: float, skewness: float = 0.0) -> LawTest:
    """Kolmogorov and Smirnov's test of an entry's law at finite width, with nothing estimated from the sample.

    Args:
        sample: [n], ONE value per network: one entry, or one fixed direction. Entries of one network share their scale,
            so pooling them would make the p-value wrong.
        variance: the variance theory gives.
        kurtosis: the finite-width kurtosis theory gives, >= 3.
        skewness: of the logarithm of the squared scale, see `scale_mixture_cdf`.

    Returns:
        LawTest against the scale mixture of `scale_mixture_cdf`.

    Raises:
        ValueError: `sample` is not one-dimensional or has no finite draw; another argument is out of range.

    Source: ours.
    """
    sample = np.asarray(sample, dtype=np.float64)
    ordered = np.sort(sample[np.isfinite(sample)])
    count = len(ordered)
    if sample.ndim != 1 or count == 0:
        raise ValueError(f"sample: expected shape [n] with a finite draw, got {sample.shape} with {count} finite")

    def distance(kurtosis: float, skewness: float = 0.0) -> float:
        law = scale_mixture_cdf(ordered, variance, kurtosis, skewness)
        return float(max(np.max(np.arange(1, count + 1) / count - law), np.max(law - np.arange(count) / count)))

    mixture = distance(kurtosis, skewness)
    p_value = float(scipy.stats.kstwo.sf(mixture, count))
    return LawTest(mixture, p_value, distance(3.0), count, len(sample) - count)
