"""Norms of standard Gaussian vectors and matrices: their means to float64 precision, on the host."""

import functools
import math

import numpy as np
import scipy

# Largest min(rows, columns) at which the law of the largest singular value is integrated: tens of milliseconds, and
# the limiting law is close enough beyond.
EXACT_RANK = 128

# Mean and second moment of the Tracy-Widom law of real matrices (Bornemann, Math. Comp. 79, 2010).
_TRACY_WIDOM = -1.2065335745820, 1.6077810345810 + 1.2065335745820**2


def euclidean_radius(n: int, r: float) -> float:
    """The largest Euclidean norm on the unit ball of l_r in n dimensions: 1 for r <= 2, else n^(1/2 - 1/r)."""
    return 1.0 if r <= 2 else n ** (0.5 - 1 / r)


def log_absolute_moment(r: float) -> float:
    """Ln E|g|^r = ln( 2^(r/2) Gamma((r + 1)/2) / sqrt(pi) ) for a standard normal g."""
    return float(r / 2 * math.log(2) + scipy.special.gammaln((r + 1) / 2) - math.log(math.pi) / 2)


@functools.lru_cache(maxsize=4096)
def jensen_bound(n: int, r: float, expected_maximum_norm: float) -> float:
    """An upper bound on E|g_n|_r for 1 <= r <= inf, given E|g_n|_inf or an estimate of it.

    (n E|g|^r)^(1/r) by Jensen's inequality; for r > 2 the least of this at any exponent from 2 to r, which bounds
    |g|_r too, and of n^(1/r) E|g_n|_inf.
    """
    exponent = r
    if r > 2:
        # ln(n E|g|^r)/r is least where r d(ln E|g|^r)/dr - ln E|g|^r, an increasing function, meets ln n
        def slope(t: float) -> float:
            return t / 2 * (math.log(2) + scipy.special.digamma((t + 1) / 2)) - log_absolute_moment(t) - math.log(n)

        exponent = min(r, 4 * math.log(n) + 4)
        if slope(2) >= 0:
            exponent = 2.0
        elif slope(exponent) > 0:
            exponent = scipy.optimize.root_scalar(slope, bracket=(2, exponent)).root
    bound = math.exp((math.log(n) + log_absolute_moment(exponent)) / exponent)
    return min(bound, n ** (1 / r) * expected_maximum_norm) if r > 2 else bound


@functools.lru_cache(maxsize=4096)
def expected_norm(n: int, r: float) -> float:
    """E|g_n|_r for a standard normal vector of n entries and any r in [1, inf].

    Closed forms at r = 1 and 2. Elsewhere by max-stability: for independent Frechet F_i, P(F <= x) = exp(-x^(-r)),
    max_i |g_i| F_i has the law of |g|_r F, so that with phi(t) = P(|g| F <= t) = E exp(-(|g|/t)^r)

        E|g_n|_r = int_0^inf (1 - phi(t)^n) dt / Gamma(1 - 1/r),

    by the trapezoidal rule in ln t, where the integrand is analytic and decays exponentially at both ends.
    """
    if n == 1 or r == 1:
        return n * math.sqrt(2 / math.pi)
    if r == 2:
        return float(math.sqrt(2) * scipy.special.poch(n / 2, 0.5))
    if r == math.inf:
        return expected_maximum(n, 1, 2.0)
    jensen = jensen_bound(n, r, math.inf)
    # the width of the strip in which the integrand is analytic falls with the slope of ln(1 - phi) at the maximum
    step = 0.25 / max(2.0, min(r, 2 * math.log(n) + 3))
    log_t = math.log(jensen) + step * np.arange(-37 / step, 37 / step)
    log_e, step_e = np.linspace(-75, 4, 528, retstep=True)  # an exponential variable: F = E^(-1/r)
    weights = np.exp(log_e - np.exp(log_e)) * step_e
    tail = scipy.special.erfc(np.exp(log_t[:, None] + log_e / r) / math.sqrt(2)) @ weights
    with np.errstate(divide="ignore"):
        integrand = -np.expm1(n * np.log1p(-np.minimum(tail, 1.0)))
    mean = 0.0
    if r < 2:
        # the tail t^(1 - r) is that of a constant sum n E|g|^r, whose norm is known
        mean, integrand = jensen, integrand + np.expm1(-np.exp(r * (math.log(jensen) - log_t)))
    return float(mean + integrand @ np.exp(log_t) * step / scipy.special.gamma(1 - 1 / r))


def _half_normal_sum_tail(t: np.ndarray, n: int) -> np.ndarray:
    """P(|g_n|_1 > t) for n >= 2, by inverting the moment generating function along a hyperbola.

    (1 / 2 pi i) int E[exp(z |g|)]^n exp(-z t) dz / z, E exp(z |g|) = erfcx(-z / sqrt 2) (entire), passing to the right
    of the pole and, in the sector where exp(z^2) vanishes, bending towards where exp(-z t) does.
    """
    tilt, bend = 2 / math.sqrt(n), 0.5 / math.sqrt(n)
    y, step = np.linspace(0, 20, 501, retstep=True)
    z = tilt * (1 + bend * (np.cosh(y) - 1) + 1j * np.sinh(y))
    weight = tilt * (bend * np.sinh(y) + 1j * np.cosh(y)) * step / (math.pi * z)
    weight[0] /= 2
    mean = math.sqrt(2 / math.pi)
    log_generating = n * (np.log(scipy.special.wofz(-1j * z / math.sqrt(2))) - mean * z)
    return np.exp(log_generating - (t - n * mean)[:, None] * z).dot(weight).imag


@functools.lru_cache(maxsize=4096)
def expected_maximum(count: int, n: int, r: float) -> float:
    """The mean of the largest of `count` independent |g_n|_r; r in {1, 2, inf}, or any r if `count` or n is 1.

    int_0^inf (1 - P(|g_n|_r <= t)^count) dt by Gauss-Legendre panels over the window that Gaussian concentration
    leaves.
    """
    if r == math.inf:
        count, n, r = count * n, 1, 2.0
    if count == 1:
        return expected_norm(n, r)
    if n == 1:
        r = 2.0
    lipschitz = math.sqrt(n) if r == 1 else 1.0
    centre = expected_norm(n, r)
    low = max(0.0, centre - 6 * lipschitz)
    high = centre + (9 + math.sqrt(2 * math.log(count))) * lipschitz
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(low, high, 65)
    half = (high - low) / 128
    t = (edges[:-1, None] + half * (1 + nodes)).ravel()
    tail = _half_normal_sum_tail(t, n) if r == 1 else scipy.special.gammaincc(n / 2, t**2 / 2)
    with np.errstate(divide="ignore"):
        integrand = -np.expm1(count * np.log1p(-np.clip(tail, 0.0, 1.0)))
    return float(low + half * integrand @ np.tile(weights, 64))


@functools.lru_cache(maxsize=1024)
def expected_singular_value(rows: int, columns: int) -> float:
    """The mean of the largest singular value of a standard normal matrix.

    Up to rank 128 from its exact law, P(value <= x) = Pf A(x) / Pf A(inf) with A_ij the integral of
    sign(t - s) psi_i(s) psi_j(t) over [0, x]^2 and psi_k the orthonormal functions
    t^(n - m) exp(-t^2/2) L_k^(n - m - 1/2)(t^2), k < m, bordered for odd m by the integrals of psi: relative error
    below 1e-12. Beyond, from the Tracy-Widom law centred and scaled as in Ma (Bernoulli 18, 2012): relative error
    2e-4 for a square matrix of rank 128, falling as rank^(-4/3), and less for others.
    """
    m, n = min(rows, columns), max(rows, columns)
    if m == 1:
        return expected_norm(n, 2.0)
    if m <= EXACT_RANK:
        return _integrated_singular_value(m, n)
    root_m, root_n = math.sqrt(m - 0.5), math.sqrt(n - 0.5)
    edge = root_m + root_n
    spread = (1 / root_m + 1 / root_n) ** (1 / 3) / (2 * edge)
    mean, square = _TRACY_WIDOM
    return edge * (1 + spread * mean - spread**2 * square / 2)


def _integrated_singular_value(m: int, n: int) -> float:
    edge = math.sqrt(m) + math.sqrt(n)
    low, high = max(0.0, edge - 2 * math.sqrt(m) - 9), edge + 9
    ends, step = np.linspace(low, high, math.ceil((high - low) / 0.15) + 1, retstep=True)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    t = (ends[:-1, None] + step / 2 * (1 + nodes)).ravel()

    power, order = n - m, n - m - 0.5
    scale = math.sqrt(max(power, 1))
    psi = [np.zeros_like(t), np.exp(power * np.log(t / scale) - (t**2 - scale**2) / 2)]
    for k in range(m - 1):
        ahead = (2 * k + 1 + order - t**2) * psi[-1] - math.sqrt(k * (k + order)) * psi[-2]
        psi.append(ahead / math.sqrt((k + 1) * (k + 1 + order)))
    psi = np.reshape(psi[1:], (m, -1, nodes.size))

    # row i: the weights of the integral from -1 to node i, through Legendre coefficients; the last row: to 1
    legendre = np.polynomial.legendre
    coefficients = (legendre.legvander(nodes, 11) * weights[:, None]) * (np.arange(12) + 0.5)
    integrals = legendre.legint(np.eye(12), lbnd=-1)
    to_nodes = step / 2 * legendre.legval(np.append(nodes, 1.0), integrals).T @ coefficients.T
    panel = psi @ to_nodes.T
    total = np.cumsum(panel[..., -1], axis=1)
    integral = panel[..., :-1] + (total - panel[..., -1])[..., None]

    size = m + m % 2
    matrix, log_determinants = np.zeros((size, size)), []
    accumulated = np.zeros((m, m))
    for k in range(ends.size - 1):
        accumulated += 2 * (integral[:, k] * (weights * step / 2)) @ psi[:, k].T
        if ends[k + 1] < edge - 9:
            continue
        matrix[:m, :m] = accumulated - np.outer(total[:, k], total[:, k])
        if m % 2:
            matrix[:m, m], matrix[m, :m] = total[:, k], -total[:, k]
        log_determinants.append(np.linalg.slogdet(matrix)[1])
    distribution = np.exp((np.array(log_determinants) - log_determinants[-1]) / 2)
    return float(high - step * (distribution.sum() - 0.5))
