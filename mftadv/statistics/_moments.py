"""Moments that merge: what a chunk of draws leaves behind."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` as soon as one array lives on a device or is traced, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and central sums of the draws of a quantity, entry by entry.

    m_k = sum_i (x_i - mean)^k over the finite draws. A pytree; every field has the shape of one draw. Properties that
    need more draws than there are, or a spread where there is none, are nan, as is the mean of nothing.

    Args:
        count: number of finite draws, int32 on a device and int64 on the host.
        nonfinite: number of draws that were nan or infinite; they enter nothing else.
        mean: their mean.
        m2: second central sum.
        m3: third central sum.
        m4: fourth central sum; in float32 it overflows where deviations exceed about 1e9 and vanishes below 1e-11.

    Source: Pébay 2008, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
    statistical moments" (definitions).
    """

    count: Any
    nonfinite: Any
    mean: Any
    m2: Any
    m3: Any
    m4: Any

    def _where(self, valid: Any, numerator: Any, denominator: Any) -> Any:
        """The quotient where it is valid, nan elsewhere, without a warning or a nan inside."""
        xp = _namespace(self.mean)
        one = xp.ones_like(self.mean)
        return xp.where(valid, numerator / xp.where(valid, denominator, one), one * np.nan)

    def _number(self) -> Any:
        return self.count.astype(self.mean.dtype)

    @property
    def variance(self) -> Any:
        """The unbiased variance m2 / (n - 1) of one draw."""
        return self._where(self.count > 1, self.m2, self._number() - 1)

    @property
    def standard_error(self) -> Any:
        """The standard error of the mean, sqrt(variance / n)."""
        return _namespace(self.mean).sqrt(self._where(self.count > 1, self.variance, self._number()))

    @property
    def skewness(self) -> Any:
        """The skewness sqrt(n) m3 / m2^(3/2) of the draws; 0 for a symmetric law."""
        root = _namespace(self.mean).sqrt(self.m2)
        standardised = self._where(self.m2 > 0, self._where(self.m2 > 0, self.m3, self.m2), root)
        return standardised * _namespace(self.mean).sqrt(self._number())

    @property
    def kurtosis(self) -> Any:
        """The kurtosis n m4 / m2^2 of the draws, not in excess; 3 for a normal law."""
        return self._where(self.m2 > 0, self._where(self.m2 > 0, self.m4, self.m2), self.m2) * self._number()

    @property
    def variance_standard_error(self) -> Any:
        """The standard error of the variance, variance sqrt((kurtosis - (n - 3)/(n - 1)) / n)."""
        n = self._number()
        excess = self.kurtosis - self._where(self.count > 1, n - 3, n - 1)
        # rounding alone can take the difference below 0 for a draw of two values
        xp = _namespace(self.mean)
        return self.variance * xp.sqrt(self._where(self.count > 1, xp.maximum(excess, 0 * n), n))


def moments(values: Any, where: Any = None) -> Moments:
    """The moments of draws along the leading axis, computed in two passes.

    mean = sum_i x_i / n, corrected by the mean of x_i - mean; then m_k = sum_i (x_i - mean)^k. A device array is
    summed in float32 or wider, whatever its dtype; a NumPy array on the host in float64.

    Args:
        values: [n, ...] real draws; n = 0 is allowed.
        where: [n] booleans; draws that are False are padding and are not counted at all.

    Returns:
        Moments with fields of shape [...].

    Raises:
        ValueError: `values` has no leading axis or is not real, or `where` is not of shape [n].

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance" (corrected two-pass).
    """
    xp = _namespace(values, where)
    values = xp.asarray(values)
    if values.ndim == 0 or jnp.issubdtype(values.dtype, np.complexfloating):
        raise ValueError(f"values: expected real draws of shape [n, ...], got {values.dtype}{list(values.shape)}")
    wide = jnp.issubdtype(values.dtype, np.floating) and values.dtype.itemsize >= 4
    values = values.astype(np.float64 if xp is np else values.dtype if wide else np.float32)
    finite = xp.isfinite(values)
    if where is None:
        nonfinite = ~finite
    else:
        where = xp.asarray(where, dtype=bool)
        if where.shape != values.shape[:1]:
            raise ValueError(f"where: expected booleans of shape {list(values.shape[:1])}, got {list(where.shape)}")
        where = where.reshape(where.shape + (1,) * (values.ndim - 1))
        finite, nonfinite = finite & where, ~finite & where
    integer = np.int64 if xp is np else np.int32
    count = xp.sum(finite, axis=0, dtype=integer)
    divisor = xp.maximum(count, xp.ones_like(count)).astype(values.dtype)

    def centre(deviations, mean):
        return xp.where(finite, deviations - mean[None], xp.zeros_like(deviations))

    rough = xp.sum(xp.where(finite, values, xp.zeros_like(values)), axis=0) / divisor
    deviations = centre(values, rough)
    correction = xp.sum(deviations, axis=0) / divisor
    deviations = centre(deviations, correction)
    squares = deviations * deviations
    return Moments(
        count=count,
        nonfinite=xp.sum(nonfinite, axis=0, dtype=integer),
        mean=xp.where(count > 0, rough + correction, xp.full_like(rough, np.nan)),
        m2=xp.sum(squares, axis=0),
        m3=xp.sum(squares * deviations, axis=0),
        m4=xp.sum(squares * squares, axis=0),
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two disjoint sets of draws together, from the moments of each.

    With n = n_a + n_b, f = n_a/n, g = n_b/n and delta = mean_b - mean_a:
        mean = mean_a + g delta
        m2 = m2_a + m2_b + delta^2 n_a g
        m3 = m3_a + m3_b + delta^3 n_a g (f - g) + 3 delta (f m2_b - g m2_a)
        m4 = m4_a + m4_b + delta^4 n_a g (f^2 - f g + g^2) + 6 delta^2 (f^2 m2_b + g^2 m2_a) + 4 delta (f m3_b - g m3_a)
    Moments of no draws are an exact neutral element, whatever their mean holds.

    Args:
        a: moments on a device, or on the host (see `to_host`).
        b: moments of the same shapes.

    Returns:
        Moments of the union, where `a` and `b` are.

    Source: Chan, Golub and LeVeque 1983 (to second order); Pébay 2008 (to fourth).
    """
    xp = _namespace(a.mean, b.mean)
    n_a, n_b = a.count.astype(a.mean.dtype), b.count.astype(a.mean.dtype)
    n = xp.maximum(n_a + n_b, xp.ones_like(n_a))
    f, g = n_a / n, n_b / n
    with np.errstate(over="ignore", invalid="ignore"):
        delta = b.mean - a.mean
        square, pairs = delta * delta, n_a * g
        mean = a.mean + g * delta
        m2 = a.m2 + b.m2 + square * pairs
        m3 = a.m3 + b.m3 + square * delta * pairs * (f - g) + 3 * delta * (f * b.m2 - g * a.m2)
        m4 = a.m4 + b.m4 + square * square * pairs * (f * f - f * g + g * g)
        m4 = m4 + 6 * square * (f * f * b.m2 + g * g * a.m2) + 4 * delta * (f * b.m3 - g * a.m3)

    def choose(a_field, b_field, union):
        return xp.where(a.count == 0, b_field, xp.where(b.count == 0, a_field, union))

    return Moments(
        count=a.count + b.count,
        nonfinite=a.nonfinite + b.nonfinite,
        mean=choose(a.mean, b.mean, mean),
        m2=choose(a.m2, b.m2, m2),
        m3=choose(a.m3, b.m3, m3),
        m4=choose(a.m4, b.m4, m4),
    )


def to_host(m: Moments) -> Moments:
    """The same moments as NumPy arrays, float64 and int64, so that chunks merge without losing digits or counts.

    Args:
        m: moments with fields of shape [...], of float32 or wider.

    Returns:
        Moments with NumPy fields of the same shapes.

    Source: ours.
    """
    counts = (np.asarray(value, dtype=np.int64) for value in (m.count, m.nonfinite))
    return Moments(*counts, *(np.asarray(value, dtype=np.float64) for value in (m.mean, m.m2, m.m3, m.m4)))
