"""beta_{p,q}, the typical p -> q norm of a Gaussian matrix of K rows and d columns: host float64, static arguments."""

import math
import numbers

from mftadv.spec import check_exponent, check_positive, dual_exponent
from mftadv.theory import _gaussian_norms as norms

KINDS = ("chevet", "sharp", "leading", "published")
_PUBLISHED = {
    (1, 1): lambda d, k: math.sqrt(2 * k**2 / (math.pi * d)),
    (1, 2): lambda d, k: math.sqrt(k / d),
    (2, 2): lambda d, k: 1.0,
    (math.inf, 2): lambda d, k: math.sqrt(2 * math.log(k) / d),
}


def _check_arguments(p: float, q: float, input_dim: int, output_dim: int) -> tuple[float, float, int, int]:
    d, k = check_positive("input_dim", input_dim), check_positive("output_dim", output_dim)
    return check_exponent("p", p), check_exponent("q", q), d, k


def operator_norm_coefficient(p: float, q: float, input_dim: int, output_dim: int, kind: str = "chevet") -> float:
    """The mean p -> q norm of a K x d matrix G with independent entries N(0, 1/d), or an estimate of it.

    |G|_{p->q} = max |G x|_q over |x|_p <= 1. With g_n a standard normal vector of n entries, 1/p + 1/p* = 1, and
    R_r(n) = 1 for r <= 2, n^(1/2 - 1/r) beyond:

    * "chevet", an upper bound on the mean for every p and q:
      d^(-1/2) [ R_p(d) E|g_K|_q + R_q*(K) E|g_d|_p* ], where E|g_n|_r is exact at r = 1, 2, inf and elsewhere replaced
      by an upper bound of its own: (n E|g|^r)^(1/r) for r < 2, and for r > 2 the least of n^(1/r) E|g_n|_inf and
      (n E|g|^s)^(1/s) over 2 <= s <= r.
    * "sharp", the mean itself, where it is known (`has_sharp_coefficient`): d = 1 or K = 1, the norm of a Gaussian
      vector, any p and q; p = 1 (the longest of d columns) with q in {1, 2, inf}; q = inf (the longest of K rows) with
      p in {1, 2, inf}; p = q = 2, the largest singular value. Relative error below 1e-9, but for (2, 2) beyond rank
      128: there 2e-4 for a square matrix, falling as rank^(-4/3), and less for others.
    * "leading", "chevet" with E|g_n|_2 = sqrt n and E|g_n|_inf = sqrt(2 ln 2n); no bound.
    * "published", the paper's table, of which only four entries are given: (1, 1) sqrt(2 K^2/(pi d)),
      (1, 2) sqrt(K/d), (2, 2) 1, (inf, 2) sqrt(2 ln K/d). These are not bounds. The first two are leading orders for
      K >> ln d, the third for K << d: at d = 1000, K = 1 the mean (1, 1) norm is .112 against .025. The fourth is no
      inf -> 2 norm at all but the size of the fluctuation of a 2 -> inf norm: it vanishes at K = 1, where the norm is
      sum_j |G_j|, about sqrt(2 d/pi).

    Args:
        p: exponent of the norm of inputs, any number in [1, inf].
        q: exponent of the norm of outputs, any number in [1, inf].
        input_dim: d >= 1.
        output_dim: K >= 1.
        kind: "chevet", "sharp", "leading" or "published".

    Returns:
        The coefficient beta_{p,q}.

    Raises:
        ValueError: an argument is outside its range, "sharp" does not know the mean, or "published" has no entry.

    Source: the paper, its coefficients beta_{p,q}, for "published"; the other kinds are ours. "chevet": Chevet's
    inequality (Gordon, Israel J. Math. 50, 1985, for its constant). "sharp": a p = 1 or q = inf norm is a maximum of
    independent norms; (2, 2) from the laws of the largest Wishart eigenvalue. The duality |G|_{p->q} = |G^T|_{q*->p*}
    holds in each of them but "published".
    """
    p, q, d, k = _check_arguments(p, q, input_dim, output_dim)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "published":
        if (p, q) not in _PUBLISHED:
            raise ValueError(f"p, q: expected (1, 1), (1, 2), (2, 2) or (inf, 2) for kind 'published', got ({p}, {q})")
        return _PUBLISHED[p, q](d, k)
    if kind == "sharp":
        return _sharp(p, q, d, k) / math.sqrt(d)
    return sum(chevet_terms(p, q, d, k, kind))


def has_sharp_coefficient(p: float, q: float, input_dim: int, output_dim: int) -> bool:
    """Whether `operator_norm_coefficient` knows the mean norm itself, kind "sharp".

    d = 1, or K = 1, or p = q = 2, or p = 1 with q in {1, 2, inf}, or q = inf with p in {1, 2, inf}.

    Raises:
        ValueError: an argument is outside its range.

    Source: ours, exact; see `operator_norm_coefficient`.
    """
    p, q, d, k = _check_arguments(p, q, input_dim, output_dim)
    known = (1, 2, math.inf)
    return min(d, k) == 1 or p == q == 2 or (p == 1 and q in known) or (q == math.inf and p in known)


def operator_norm_deviation(p: float, q: float, input_dim: int, output_dim: int, confidence: float) -> float:
    """The amount by which |G|_{p->q} exceeds its mean with probability at most 1 - confidence.

    R_p(d) R_q*(K) sqrt(2 ln(1/(1 - confidence)) / d), G and R_r(n) as in `operator_norm_coefficient`.

    Args:
        p: exponent of the norm of inputs, any number in [1, inf].
        q: exponent of the norm of outputs, any number in [1, inf].
        input_dim: d >= 1.
        output_dim: K >= 1.
        confidence: a probability, 0 < confidence < 1.

    Returns:
        The amount to add to the mean norm, or to a bound on it.

    Raises:
        ValueError: an argument is outside its range.

    Source: ours, a bound by Gaussian concentration: |G|_{p->q} moves by at most R_p(d) R_q*(K) times the Frobenius norm
    of a change of G.
    """
    p, q, d, k = _check_arguments(p, q, input_dim, output_dim)
    check_confidence(confidence)
    lipschitz = norms.euclidean_radius(d, p) * norms.euclidean_radius(k, dual_exponent(q))
    return lipschitz * math.sqrt(-2 * math.log1p(-confidence) / d)


def check_confidence(confidence: float, name: str = "confidence") -> None:
    """Raise ValueError unless `confidence` is a probability strictly between 0 and 1."""
    if not isinstance(confidence, numbers.Real) or not 0 < confidence < 1:
        raise ValueError(f"{name}: expected a number in (0, 1), got {confidence!r}")


def _norm_bound(n: int, r: float) -> float:
    if r in (1, 2, math.inf):
        return norms.expected_norm(n, r)
    return norms.jensen_bound(n, r, norms.expected_norm(n, math.inf))


def _leading_norm(n: int, r: float) -> float:
    largest = math.sqrt(2 * math.log(2 * n))
    return largest if r == math.inf else norms.jensen_bound(n, r, largest)


def chevet_terms(p: float, q: float, d: int, k: int, kind: str = "chevet") -> tuple[float, float]:
    """The two terms of the coefficient of that kind, "chevet" or "leading": R_p(d) E|g_K|_q and R_q*(K) E|g_d|_p*."""
    expected_norm = _norm_bound if kind == "chevet" else _leading_norm
    by_outputs = norms.euclidean_radius(d, p) * expected_norm(k, q)
    by_inputs = norms.euclidean_radius(k, dual_exponent(q)) * expected_norm(d, dual_exponent(p))
    return by_outputs / math.sqrt(d), by_inputs / math.sqrt(d)


def _sharp(p: float, q: float, d: int, k: int) -> float:
    if not has_sharp_coefficient(p, q, d, k):
        raise ValueError(
            "kind: the mean norm ('sharp') is known for d = 1, K = 1, (2, 2), (1, q) with q in {1, 2, inf} and "
            f"(p, inf) with p in {{1, 2, inf}}, expected 'chevet' for (p, q) = ({p}, {q}), got 'sharp'"
        )
    if k == 1 or q == math.inf:
        return norms.expected_maximum(k, d, dual_exponent(p))
    if d == 1 or p == 1:
        return norms.expected_maximum(d, k, q)
    return norms.expected_singular_value(k, d)
