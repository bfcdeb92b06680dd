"""Moments that merge: what a chunk of draws leaves behind."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mftadv.spec import concrete


def _namespace(*arrays: Any) -> ModuleType:
    """`jax.numpy` as soon as one array lives on a device or is traced, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Count, mean, spread and shape of the draws of a quantity, entry by entry.

    With c_k = sum_i (x_i - mean)^k / n over the n finite draws, deviation = c_2^(1/2), skewness = c_3 / c_2^(3/2) and
    kurtosis = c_4 / c_2^2: numbers that a float32 holds for draws of any size, as it does not hold c_4. A pytree;
    every field has the shape of one draw. What needs more draws than there are, or a spread where there is none, is
    nan, as is the mean of nothing.

    Args:
        count: number of finite draws, int32 on a device and int64 on the host.
        nonfinite: number of draws that were nan or infinite; they enter nothing else.
        mean: their mean.
        residual: what rounding left of the mean; mean + residual has more digits than one float.
        deviation: their root mean square deviation from the mean.
        skewness: their third standardised moment; 0 for a symmetric law.
        kurtosis: their fourth standardised moment, not in excess; 3 for a normal law.

    Source: ours; the definitions are the usual ones.
    """

    count: Any
    nonfinite: Any
    mean: Any
    residual: Any
    deviation: Any
    skewness: Any
    kurtosis: Any

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if all(isinstance(value, np.ndarray | np.generic | jax.Array) for value in values.values()):
            values = {"mean": self.mean, "standard_error": self.standard_error}
            for name in ("count", "nonfinite"):
                values[name] = getattr(self, name)
                distinct = np.array([]) if concrete(values[name]) is None else np.unique(values[name])
                if distinct.size == 1:  # as is usual: one number says it
                    values[name] = int(distinct[0])
            if isinstance(values["nonfinite"], int) and not values["nonfinite"]:
                del values["nonfinite"]
        with np.printoptions(precision=5, threshold=12):
            return f"Moments({', '.join(f'{name}={value}' for name, value in values.items())})"

    def _freedom(self) -> Any:
        """The number of draws less one, and nan for fewer than two draws."""
        return _namespace(self.mean).where(self.count > 1, (self.count - 1).astype(self.mean.dtype), np.nan)

    @property
    def variance(self) -> Any:
        """The unbiased variance of one draw, n deviation^2 / (n - 1)."""
        freedom = self._freedom()
        return self.deviation * (self.deviation * (1 + 1 / freedom))

    @property
    def standard_error(self) -> Any:
        """The standard error of the mean, deviation / sqrt(n - 1)."""
        return self.deviation / _namespace(self.mean).sqrt(self._freedom())

    @property
    def variance_standard_error(self) -> Any:
        """The standard error of the variance, variance sqrt((kurtosis - (n - 3)/(n - 1)) / n)."""
        xp, freedom = _namespace(self.mean), self._freedom()
        # rounding alone can take the difference below 0 for a draw of two values
        excess = xp.maximum(self.kurtosis - (1 - 2 / freedom), 0)
        return self.variance * xp.sqrt(excess / (freedom + 1))


def _unit(sizes: Any) -> Any:
    """A power of two near a quarter of the size, and 0 for 0; neither it nor its inverse overflows or is denormal."""
    xp = _namespace(sizes)
    some = sizes > 0
    # the mantissa is in [1/2, 1), and the quotient is exact
    mantissa = xp.where(some, xp.frexp(sizes)[0], 1)
    unit = xp.maximum(sizes / (4 * mantissa), float(np.finfo(sizes.dtype).tiny))
    return xp.where(some, unit, 0)


def _sum(large: Any, small: Any) -> tuple[Any, Any]:
    """The rounded sum of two floats and what the rounding left."""
    total = large + small
    return total, (large - total) + small


def _halves(xp: ModuleType, values: Any, wide: Any) -> tuple[Any, Any]:
    """Two floats whose sum is the value exactly: an integer may have more digits than one float holds."""
    dropped = 8 * values.dtype.itemsize - np.finfo(wide).nmant - 1
    if not jnp.issubdtype(values.dtype, np.integer) or dropped <= 0:
        values = values.astype(wide)
        return values, xp.zeros_like(values)
    low = values & (2**dropped - 1)
    return (values - low).astype(wide), low.astype(wide)


def moments(values: Any, where: Any = None) -> Moments:
    """The moments of draws along the leading axis, from their deviations.

    Deviations from the smallest draw are brought to a power of two near the largest; their mean c is taken off, and
    once more what rounding left of it, before they are raised to powers. A device array is summed in float32 or wider,
    whatever its dtype; a NumPy array on the host in float64. Integers enter exactly, however large.

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
    wide = np.float64 if xp is np or values.dtype.itemsize == 8 else np.float32
    values, rest = _halves(xp, values, wide)
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
    some, divisor = count > 0, xp.maximum(count, 1).astype(wide)

    def only_finite(array):
        return xp.where(finite, array, 0)

    smallest = xp.min(xp.where(finite, values, np.inf), axis=0, initial=np.inf)
    smallest = xp.where(some, smallest, 0)
    deviations = only_finite(values - smallest[None] + rest)
    unit = _unit(xp.max(deviations, axis=0, initial=0))
    deviations = deviations / xp.where(unit > 0, unit, 1)[None]
    centre = xp.zeros_like(smallest)
    for _ in range(2):
        correction = xp.sum(deviations, axis=0) / divisor
        deviations = only_finite(deviations - correction[None])
        centre = centre + correction
    mean, residual = _sum(smallest, centre * unit)
    squares = deviations * deviations
    central = (xp.sum(squares * deviations**k, axis=0) / divisor for k in range(3))
    return Moments(
        count=count,
        nonfinite=xp.sum(nonfinite, axis=0, dtype=integer),
        mean=xp.where(some, mean, np.nan),
        residual=residual,
        **_shape(unit, *central),
    )


def _shape(unit: Any, second: Any, third: Any, fourth: Any) -> dict[str, Any]:
    """Deviation, skewness and kurtosis, from central moments in powers of a unit."""
    xp = _namespace(second)
    root, spread = xp.sqrt(second), second > 0
    safe = xp.where(spread, second, 1)
    skewness, kurtosis = third / (safe * xp.sqrt(safe)), fourth / (safe * safe)
    return {
        "deviation": root * unit,
        "skewness": xp.where(spread, skewness, np.nan),
        "kurtosis": xp.where(spread, kurtosis, np.nan),
    }


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def merge(a: Any, b: Any) -> Any:
    """The moments of two disjoint sets of draws together, from the moments of each.

    With f = n_a/n and g = n_b/n the shares, delta = mean_b - mean_a, and a_k, b_k the central moments of each:
        mean = mean_a + g delta
        c_2 = f a_2 + g b_2 + f g delta^2
        c_3 = f a_3 + g b_3 + f g ((f - g) delta^3 + 3 delta (b_2 - a_2))
        c_4 = f a_4 + g b_4 + f g ((f^2 - f g + g^2) delta^4 + 6 delta^2 (f b_2 + g a_2) + 4 delta (b_3 - a_3))
    Moments of no draws are an exact neutral element, whatever their mean holds. Counts on a device are int32: beyond
    2^31 - 1 draws, merge on the host.

    Args:
        a: moments, or a pytree of them as `monte_carlo` returns, on a device or on the host (see `to_host`).
        b: moments of the same structure and shapes.

    Returns:
        Moments of the union in the same structure, where `a` and `b` are.

    Raises:
        ValueError: the structures differ, or a leaf is no Moments.

    Source: Chan, Golub and LeVeque 1983 (to second order); Pébay 2008 (to fourth).
    """
    structures = [jax.tree.structure(tree, is_leaf=_is_moments) for tree in (a, b)]
    if structures[0] != structures[1] or not all(map(_is_moments, jax.tree.leaves((a, b), is_leaf=_is_moments))):
        raise ValueError(f"a, b: expected Moments, or equal pytrees of them, got {structures[0]} and {structures[1]}")
    return jax.tree.map(_merge, a, b, is_leaf=_is_moments)


def _merge(a: Moments, b: Moments) -> Moments:
    xp = _namespace(a.mean, b.mean)
    n_a, n_b = a.count.astype(a.mean.dtype), b.count.astype(a.mean.dtype)
    n = xp.maximum(n_a + n_b, 1)
    f, g = n_a / n, n_b / n
    with np.errstate(over="ignore", invalid="ignore"):
        delta = (b.mean - a.mean) + (b.residual - a.residual)
        mean, residual = _sum(a.mean, a.residual + g * delta)
        # powers of numbers of order 1, whatever the size of the draws
        unit = _unit(xp.maximum(xp.maximum(a.deviation, b.deviation), xp.abs(delta)))
        divisor = xp.where(unit > 0, unit, 1)
        (a2, a3, a4), (b2, b3, b4) = _central(a, divisor), _central(b, divisor)
        delta = delta / divisor
        square, pairs = delta * delta, f * g
        second = f * a2 + g * b2 + pairs * square
        third = f * a3 + g * b3 + pairs * delta * ((f - g) * square + 3 * (b2 - a2))
        fourth = pairs * (f * f - pairs + g * g) * square * square + 6 * pairs * square * (f * b2 + g * a2)
        fourth = f * a4 + g * b4 + fourth + 4 * pairs * delta * (b3 - a3)
    union = {"mean": mean, "residual": residual, **_shape(unit, second, third, fourth)}

    def choose(name, merged):
        return xp.where(a.count == 0, getattr(b, name), xp.where(b.count == 0, getattr(a, name), merged))

    union = {name: choose(name, merged) for name, merged in union.items()}
    return Moments(count=a.count + b.count, nonfinite=a.nonfinite + b.nonfinite, **union)


def _central(m: Moments, unit: Any) -> tuple[Any, Any, Any]:
    """The central moments of order 2, 3 and 4, in powers of a unit."""
    xp = _namespace(m.mean)
    size = m.deviation / unit
    shape = (xp.where(m.deviation > 0, value, 0) for value in (m.skewness, m.kurtosis))
    return (size**2, *(value * size**k for k, value in enumerate(shape, 3)))


def to_host(m: Any) -> Any:
    """The same moments as NumPy arrays, float64 and int64, so that chunks merge without losing digits or counts.

    Args:
        m: moments with fields of shape [...], of float32 or wider; or a pytree of them.

    Returns:
        Moments with NumPy fields of the same shapes, in the same structure.

    Source: ours.
    """

    def convert(field):
        field = np.asarray(field)
        return field.astype(np.int64 if np.issubdtype(field.dtype, np.integer) else np.float64)

    def widen(m: Moments) -> Moments:
        m = jax.tree.map(convert, m)
        mean, residual = _sum(m.mean, m.residual)
        return dataclasses.replace(m, mean=mean, residual=residual)

    return jax.tree.map(widen, m, is_leaf=_is_moments)
